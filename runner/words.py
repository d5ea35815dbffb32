"""The vocabulary: states of a job, reasons of an end. No imports, so that every process can afford it."""

QUEUED = "queued"  # submitted, held or waiting; the scheduler says why
STARTING = "starting"  # queued -> starting: an attempt number is spent and durable
RUNNING = "running"  # starting -> running: the attempt's `started` record exists
SUCCEEDED = "succeeded"  # running -> succeeded: exit code 0
FAILED = "failed"  # -> failed: another exit code, a signal, or it never ran (see the reason)
CANCELLED = "cancelled"  # -> cancelled: asked for by a person
TIMED_OUT = "timed_out"  # running -> timed_out: its time limit passed
OUT_OF_MEMORY = "out_of_memory"  # running -> out_of_memory: the host's memory ran out
LOST = "lost"  # -> lost: nobody can know how it ended (reboot, its supervisor died)

STATES = (QUEUED, STARTING, RUNNING, SUCCEEDED, FAILED, CANCELLED, TIMED_OUT, OUT_OF_MEMORY, LOST)
UNFINISHED = (QUEUED, STARTING, RUNNING)
ACTIVE = (STARTING, RUNNING)
FINISHED = tuple(state for state in STATES if state not in UNFINISHED)

# Reason code of an end -> what happened, for people.
REASONS = {
    "exit_code": "the command ended with a code other than 0",
    "signal": "the command was ended by a signal",
    "cancelled": "cancelled on request",
    "time_limit": "it ran longer than its time limit",
    "host_out_of_memory": "the box ran out of memory and the kernel ended it",
    "cuda_out_of_memory": "the GPU ran out of memory",
    "disk_full": "the box's disk was full",
    "cannot_exec": "the command could not be started",
    "environment_failed": "its environment could not be built",
    "code_failed": "its code could not be laid out on the box",
    "dependency_failed": "a job that it waits for did not succeed",
    "gpu_lost": "a GPU that it had was lost",
    "gpu_idle": "it left its GPUs idle for as long as it said (--stop-if-idle)",
    "reboot": "the box went down while it ran",
    "supervisor_died": "its supervisor was killed, so the job was ended too",
    "record_missing": "its records were removed while it ran",
    "engine_failed": "the box could not start a process for it",
}

# What a GPU is, seen from the queue.
FREE = "free"  # nobody uses it
BUSY = "busy"  # one job has it for itself
SHARED = "shared"  # jobs share its memory
FOREIGN = "foreign"  # a process that the queue did not start is in the way
DRAINING = "draining"  # its owner wants nothing new on it
STUCK = "stuck"  # memory that does not free, or a process that will not die
GONE = "lost"  # it fell off the bus, or is missing
ASLEEP = "asleep"  # powered down by the kernel, and left so until a job needs it
UNKNOWN = "unknown"  # nothing is known of it just now: not the same as free, lost or zero
GPU_STATES = (FREE, BUSY, SHARED, FOREIGN, DRAINING, STUCK, GONE, ASLEEP, UNKNOWN)

# Why a job waits that in truth does not: nothing is in its way.
STARTS_NOW = "starts now"

# What a person or a token may do, from little to much: read looks, submit has jobs of its own, admin may everything.
ROLES = ("read", "submit", "admin")

# What no file's name may hold that goes between a laptop and a box: it is for terminals, and whoever lists files.
CONTROL = frozenset(map(chr, (*range(32), *range(127, 160))))

# What `--retry-on` may name. A reason outside of it can't be changed by trying again.
RETRYABLE = (
    "exit_code", "signal", "time_limit", "host_out_of_memory", "cuda_out_of_memory", "disk_full", "gpu_lost",
    "reboot", "supervisor_died", "record_missing", "environment_failed",
)  # fmt: skip
