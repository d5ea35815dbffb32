/* A libnvidia-ml.so.1 without hardware: what it answers stands in a text file, which may change while it runs.

   FAKE_NVML names the script. It is read again when it changed: replace it by rename. A missing one is a driver that
   is not loaded. One statement a line; `#` starts a comment; sizes may end in K, M or G; later lines win.

     driver 570.86.15            cuda 12080
     fault CODE|hang             every call returns the NVML code, or does not return until the script says otherwise
     init CODE                   only nvmlInit does
     missing FUNCTION ...        functions that this driver lacks
     link UUID UUID LEVEL        what the two have in common: 10 a switch, 20, 30 (else) a host bridge, 40, 50
     link UUID UUID nvlink
     gpu MODEL UUID              a GPU, in the order of the indices; the lines up to the next one are about it
       FIELD VALUE               of FIELDS below, in NVML's units: bytes, %, mW, mJ, MHz, C, ns, bits
       name WORDS                bus 00000000:01:00.0
       fail FIELD CODE|hang      a value makes the field readable again; one that never had any is not supported.
                                 Among field values a hang is a timeout.
       unsupported FIELD ...
       fault CODE|hang [calls]   of every call about it; `calls`: its handle can still be had
       garbage                   absurd values and old time stamps
       process PID BYTES|- KIND [SM%]    KIND compute, graphics, both or mps; `-`: NVML does not know its memory
       lingers BYTES EPOCH       used by nobody until then
       xid NUMBER CODE           a fault, told once to whoever registered for events before; NUMBER grows with each

   Without `used`, used memory is `base`, that of the processes, and what lingers.

   SCRIPT.holds, if there is one, is appended to: `UUID PID BYTES`, the last line of the two wins. Such a process is
   listed while it lives; its memory is free `free_late` ms after its end was seen.

   FAKE_NVML_CALLS names a file to which each call appends `PID FUNCTION UUID|-`. With FAKE_NVML_STRICT a handle that
   nvmlShutdown made invalid aborts the process, as the real library may; else it is an invalid argument. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;

/* --- what can be told of a GPU ------------------------------------------------------------------------------------ */

#define FIELDS                                                                                                         \
    X(memory) X(reserved) X(base) X(used) X(free_late)                                                                 \
    X(utilization) X(memory_utilization) X(encoder) X(decoder)                                                         \
    X(power) X(power_average) X(power_limit) X(power_enforced) X(power_default) X(power_lowest) X(power_highest)       \
    X(temperature) X(memory_temperature) X(slowdown_temperature) X(shutdown_temperature)                               \
    X(highest_temperature) X(highest_memory_temperature)                                                               \
    X(sm_clock) X(memory_clock) X(video_clock) X(highest_sm_clock) X(highest_memory_clock)                             \
    X(throttle) X(throttle_supported) X(throttled_power_cap) X(throttled_sync_boost) X(throttled_sw_thermal)           \
    X(throttled_hw_thermal) X(throttled_power_brake)                                                                   \
    X(fan) X(fans) X(performance_state) X(energy) X(recovery)                                                          \
    X(pcie_generation) X(pcie_width) X(highest_pcie_generation) X(highest_pcie_width) X(pcie_sent) X(pcie_received)    \
    X(pcie_replays) X(persistence) X(compute_mode) X(mig) X(architecture) X(capability)                                \
    X(ecc) X(ecc_corrected) X(ecc_uncorrected) X(remapped_corrected) X(remapped_uncorrected) X(remap_pending)          \
    X(remap_failed) X(processes) X(process_utilization) X(topology) X(stale) X(events)

enum field {
#define X(name) name,
    FIELDS
#undef X
    FIELD_COUNT,
    NO_FIELD = FIELD_COUNT
};

static const char *const FIELD_NAMES[] = {
#define X(name) #name,
    FIELDS
#undef X
};

/* Words that may stand where a script's may. The first are every GPU's; what a model does not say is not supported. */
static const struct {
    const char *name, *text;
} MODELS[] = {
    {"any", "base 0\nfree_late 0\nutilization 0\nmemory_utilization 0\nencoder 0\ndecoder 0\npower 20000\n"
            "temperature 35\nsm_clock 210\nmemory_clock 405\nvideo_clock 1185\nthrottle 1\nthrottle_supported 511\n"
            "throttled_power_cap 0\nthrottled_sync_boost 0\nthrottled_sw_thermal 0\nthrottled_hw_thermal 0\n"
            "throttled_power_brake 0\nperformance_state 8\nenergy 5000000\nrecovery 0\npersistence 0\ncompute_mode 0\n"
            "processes 0\nprocess_utilization 0\ntopology 0\nstale 0\nevents 0\n"},
    {"geforce", "fan 30\nfans 2\npcie_generation 1\npcie_width 16\nhighest_pcie_width 16\npcie_sent 0\n"
                "pcie_received 0\npcie_replays 0\n"},
    {"2080s", "any\ngeforce\nname NVIDIA GeForce RTX 2080 SUPER\nmemory 8192M\nreserved 225M\nbase 1M\n"
              "power_limit 250000\npower_enforced 250000\npower_default 250000\npower_lowest 105000\n"
              "power_highest 292000\nslowdown_temperature 91\nshutdown_temperature 94\nhighest_temperature 89\n"
              "highest_sm_clock 2130\nhighest_memory_clock 7751\nhighest_pcie_generation 3\narchitecture 6\n"
              "capability 75\n"},
    {"3090", "any\ngeforce\nname NVIDIA GeForce RTX 3090\nmemory 24576M\nreserved 317M\nbase 1M\n"
             "power_average 20000\npower_limit 350000\npower_enforced 350000\npower_default 350000\n"
             "power_lowest 100000\npower_highest 366000\nslowdown_temperature 95\nshutdown_temperature 98\n"
             "highest_temperature 93\nhighest_sm_clock 2100\nhighest_memory_clock 9751\nhighest_pcie_generation 4\n"
             "architecture 7\ncapability 86\n"},
    {"4080s", "any\ngeforce\nname NVIDIA GeForce RTX 4080 SUPER\nmemory 16376M\nreserved 323M\nbase 1M\n"
              "power_average 20000\npower_limit 320000\npower_enforced 320000\npower_default 320000\n"
              "power_lowest 150000\npower_highest 352000\nslowdown_temperature 97\nshutdown_temperature 100\n"
              "highest_temperature 90\nhighest_sm_clock 3105\nhighest_memory_clock 11501\nhighest_pcie_generation 4\n"
              "architecture 8\ncapability 89\n"},
    {"4090", "any\ngeforce\nname NVIDIA GeForce RTX 4090\nmemory 24564M\nreserved 352M\nbase 1M\n"
             "power_average 20000\npower_limit 450000\npower_enforced 450000\npower_default 450000\n"
             "power_lowest 150000\npower_highest 600000\nslowdown_temperature 97\nshutdown_temperature 100\n"
             "highest_temperature 84\nhighest_sm_clock 3105\nhighest_memory_clock 10501\nhighest_pcie_generation 4\n"
             "architecture 8\ncapability 89\n"},
    {"h200", "any\nname NVIDIA H200\nmemory 143771M\nreserved 614M\nbase 1M\npower 76000\npower_average 76000\n"
             "power_limit 700000\npower_enforced 700000\npower_default 700000\npower_lowest 200000\n"
             "power_highest 700000\ntemperature 28\nmemory_temperature 33\nsm_clock 345\nmemory_clock 3201\n"
             "performance_state 0\nhighest_sm_clock 1980\nhighest_memory_clock 3201\npcie_generation 5\n"
             "pcie_width 16\nhighest_pcie_generation 5\nhighest_pcie_width 16\npcie_sent 0\npcie_received 0\n"
             "pcie_replays 0\npersistence 1\nmig 0\necc 1\necc_corrected 0\necc_uncorrected 0\nremapped_corrected 0\n"
             "remapped_uncorrected 0\nremap_pending 0\nremap_failed 0\narchitecture 9\ncapability 90\n"},
    {"gb10", "any\nname NVIDIA GB10\npower 4500\nsm_clock 208\nhighest_sm_clock 3003\npersistence 1\narchitecture 10\n"
             "capability 121\nunsupported memory_clock\n"},
    {"garbage", "utilization 4294967295\nmemory_utilization 4294967295\npower 4294967295\npower_average 4294967295\n"
                "temperature 4000000000\nsm_clock 4294967295\nmemory_clock 4294967295\nfan 4294967295\n"
                "process_utilization 4294967295\nenergy 18446744073709551615\nstale 1\n"},
};

/* --- what the script says ----------------------------------------------------------------------------------------- */

enum {
    HANG = -1,
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    FUNCTION_NOT_FOUND = 13,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25,
};
enum { COMPUTE = 1, GRAPHICS = 2, MPS = 4 };
enum { MOST_GPUS = 16, MOST_PROCESSES = 128, MOST_LINKS = 128, MOST_MISSING = 16, MOST_HOLDS = 20000, UUID_SIZE = 96 };

struct process {
    unsigned pid, kinds, sm;
    u64 bytes; /* UINT64_MAX: not known */
};

struct lingering {
    u64 bytes;
    double until;
};

struct gpu {
    char uuid[UUID_SIZE], name[96], bus[32];
    int fault, handle_fault;
    u64 value[FIELD_COUNT];
    int error[FIELD_COUNT];
    struct process process[MOST_PROCESSES];
    unsigned process_count;
    struct lingering lingering[MOST_PROCESSES];
    unsigned lingering_count;
    unsigned xid_number, xid;
};

struct link {
    char one[UUID_SIZE], other[UUID_SIZE];
    unsigned level, nvlink;
};

static struct machine {
    char driver[80];
    int cuda, fault, init_fault;
    char missing[MOST_MISSING][64];
    unsigned missing_count;
    struct link link[MOST_LINKS];
    unsigned link_count;
    struct gpu gpu[MOST_GPUS];
    unsigned gpu_count;
} machine;

static struct hold {
    char uuid[UUID_SIZE];
    struct process process;
    double died; /* 0: not seen yet */
} holds[MOST_HOLDS];
static unsigned hold_count;

__attribute__((noreturn, format(printf, 1, 2))) static void give_up(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    fputs("fake nvml: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    abort();
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

/* --- reading it --------------------------------------------------------------------------------------------------- */

static char *word(char **rest)
{
    char *found = strsep(rest, " \t");
    while (found && !*found)
        found = strsep(rest, " \t");
    return found ? found : "";
}

static u64 number(const char *text)
{
    char *end;
    u64 value = strtoull(text, &end, 10);
    const char *units = "KMG", *unit = *end ? strchr(units, *end) : NULL;
    if (unit)
        value <<= 10 * (unit - units + 1), end++;
    if (end == text || *end)
        give_up("not a number: %s", text);
    return value;
}

static int code_of(const char *text)
{
    return strcmp(text, "hang") ? (int)number(text) : HANG;
}

static u64 bytes_of(const char *text)
{
    return strcmp(text, "-") ? number(text) : UINT64_MAX;
}

static enum field field_named(const char *name)
{
    for (int field = 0; field < FIELD_COUNT; field++)
        if (!strcmp(FIELD_NAMES[field], name))
            return (enum field)field;
    give_up("no such field or statement: %s", name);
}

static unsigned kinds_of(const char *text)
{
    static const struct {
        const char *name;
        unsigned kinds;
    } KINDS[] = {
        {"", COMPUTE}, {"compute", COMPUTE}, {"graphics", GRAPHICS}, {"both", COMPUTE | GRAPHICS}, {"mps", MPS},
    };
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (!strcmp(KINDS[i].name, text))
            return KINDS[i].kinds;
    give_up("no such kind of process: %s", text);
}

static void copy(char *to, const char *text, size_t size)
{
    snprintf(to, size, "%s", text);
}

static unsigned one_more(unsigned *count, unsigned most)
{
    if (*count == most)
        give_up("more than %u of a kind", most);
    return (*count)++;
}

static void add_process(struct gpu *gpu, char *rest)
{
    struct process *process = &gpu->process[one_more(&gpu->process_count, MOST_PROCESSES)];
    process->pid = (unsigned)number(word(&rest));
    process->bytes = bytes_of(word(&rest));
    process->kinds = kinds_of(word(&rest));
    const char *sm = word(&rest);
    process->sm = *sm ? (unsigned)number(sm) : 0;
}

static void add_lingering(struct gpu *gpu, char *rest)
{
    struct lingering *lingering = &gpu->lingering[one_more(&gpu->lingering_count, MOST_PROCESSES)];
    lingering->bytes = number(word(&rest));
    lingering->until = strtod(word(&rest), NULL);
}

static void set_faults(struct gpu *gpu, char *rest)
{
    gpu->fault = code_of(word(&rest));
    gpu->handle_fault = strcmp(word(&rest), "calls") ? gpu->fault : SUCCESS;
}

static int apply_model(struct gpu *gpu, const char *name);

static void gpu_line(struct gpu *gpu, const char *what, char *rest)
{
    if (!strcmp(what, "name"))
        copy(gpu->name, rest, sizeof gpu->name);
    else if (!strcmp(what, "bus"))
        copy(gpu->bus, word(&rest), sizeof gpu->bus);
    else if (!strcmp(what, "process"))
        add_process(gpu, rest);
    else if (!strcmp(what, "lingers"))
        add_lingering(gpu, rest);
    else if (!strcmp(what, "xid")) {
        gpu->xid_number = (unsigned)number(word(&rest));
        gpu->xid = (unsigned)number(word(&rest));
    } else if (!strcmp(what, "fault"))
        set_faults(gpu, rest);
    else if (!strcmp(what, "fail")) {
        enum field field = field_named(word(&rest));
        gpu->error[field] = code_of(word(&rest));
    } else if (!strcmp(what, "unsupported")) {
        for (const char *name = word(&rest); *name; name = word(&rest))
            gpu->error[field_named(name)] = NOT_SUPPORTED;
    } else if (!apply_model(gpu, what)) {
        enum field field = field_named(what);
        gpu->value[field] = number(word(&rest));
        gpu->error[field] = SUCCESS;
    }
}

static int apply_model(struct gpu *gpu, const char *name)
{
    for (size_t i = 0; i < sizeof MODELS / sizeof *MODELS; i++)
        if (!strcmp(MODELS[i].name, name)) {
            char text[2048], *rest = text;
            copy(text, MODELS[i].text, sizeof text);
            for (char *line = strsep(&rest, "\n"); line && *line; line = strsep(&rest, "\n")) {
                const char *what = word(&line);
                gpu_line(gpu, what, line ? line : "");
            }
            return 1;
        }
    return 0;
}

static void add_gpu(struct machine *to, char *rest)
{
    unsigned index = one_more(&to->gpu_count, MOST_GPUS);
    struct gpu *gpu = &to->gpu[index];
    for (int field = 0; field < FIELD_COUNT; field++)
        gpu->error[field] = NOT_SUPPORTED;
    snprintf(gpu->bus, sizeof gpu->bus, "00000000:%02X:00.0", index + 1);
    const char *model = word(&rest);
    if (!apply_model(gpu, model))
        give_up("no such model: %s", model);
    copy(gpu->uuid, word(&rest), sizeof gpu->uuid);
}

static void add_link(struct machine *to, char *rest)
{
    struct link *link = &to->link[one_more(&to->link_count, MOST_LINKS)];
    copy(link->one, word(&rest), sizeof link->one);
    copy(link->other, word(&rest), sizeof link->other);
    const char *level = word(&rest);
    link->nvlink = !strcmp(level, "nvlink");
    link->level = link->nvlink ? 30 : (unsigned)number(level);
}

static void add_missing(struct machine *to, char *rest)
{
    for (const char *name = word(&rest); *name; name = word(&rest))
        copy(to->missing[one_more(&to->missing_count, MOST_MISSING)], name, sizeof *to->missing);
}

static void machine_line(struct machine *to, const char *what, char *rest)
{
    if (!strcmp(what, "driver"))
        copy(to->driver, word(&rest), sizeof to->driver);
    else if (!strcmp(what, "cuda"))
        to->cuda = (int)number(word(&rest));
    else if (!strcmp(what, "fault"))
        to->fault = to->init_fault = code_of(word(&rest));
    else if (!strcmp(what, "init"))
        to->init_fault = code_of(word(&rest));
    else if (!strcmp(what, "missing"))
        add_missing(to, rest);
    else if (!strcmp(what, "link"))
        add_link(to, rest);
    else
        give_up("not about a GPU: %s", what);
}

static void read_script(FILE *script)
{
    static struct machine next;
    char line[1024];
    next = (struct machine){.driver = "570.86.15", .cuda = 12080};
    while (fgets(line, sizeof line, script)) {
        line[strcspn(line, "#\n")] = 0;
        char *rest = line;
        const char *what = word(&rest);
        if (!strcmp(what, "gpu"))
            add_gpu(&next, rest);
        else if (*what && next.gpu_count)
            gpu_line(&next.gpu[next.gpu_count - 1], what, rest);
        else if (*what)
            machine_line(&next, what, rest);
    }
    machine = next;
}

static struct hold *hold_of(const char *uuid, unsigned pid)
{
    for (unsigned i = 0; i < hold_count; i++)
        if (holds[i].process.pid == pid && !strcmp(holds[i].uuid, uuid))
            return &holds[i];
    struct hold *hold = &holds[one_more(&hold_count, MOST_HOLDS)];
    copy(hold->uuid, uuid, sizeof hold->uuid);
    hold->process = (struct process){.pid = pid, .kinds = COMPUTE};
    return hold;
}

static void read_holds(FILE *lines)
{
    static long read_up_to;
    char line[1024];
    fseek(lines, read_up_to, SEEK_SET);
    while (fgets(line, sizeof line, lines) && strchr(line, '\n')) {
        read_up_to = ftell(lines);
        line[strcspn(line, "\n")] = 0;
        char *rest = line;
        const char *uuid = word(&rest);
        struct hold *hold = hold_of(uuid, (unsigned)number(word(&rest)));
        hold->process.bytes = bytes_of(word(&rest));
        hold->died = 0;
    }
}

static struct file {
    const char *suffix;
    void (*read)(FILE *);
    char path[4096];
    struct stat seen;
    int there;
} script = {.suffix = "", .read = read_script}, hold_lines = {.suffix = ".holds", .read = read_holds};

/* Reads a file anew if it is another than last time. */
static void follow(struct file *file)
{
    struct stat is;
    if (!*file->path)
        snprintf(file->path, sizeof file->path, "%s%s", getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "", file->suffix);
    file->there = !stat(file->path, &is);
    if (!file->there)
        return;
    if (is.st_ino == file->seen.st_ino && is.st_size == file->seen.st_size &&
        is.st_mtim.tv_sec == file->seen.st_mtim.tv_sec && is.st_mtim.tv_nsec == file->seen.st_mtim.tv_nsec)
        return;
    FILE *stream = fopen(file->path, "re");
    if (!stream)
        return;
    fstat(fileno(stream), &file->seen);
    file->read(stream);
    fclose(stream);
}

static void catch_up(void)
{
    follow(&script);
    follow(&hold_lines);
}

/* --- a call ------------------------------------------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned users;           /* nvmlInit without nvmlShutdown */
static uintptr_t generation = 1; /* of handles: they end with the last nvmlShutdown */
static char handed_out[MOST_GPUS * 4][UUID_SIZE];
static unsigned handle_count;

static struct gpu *gpu_with(const char *uuid)
{
    for (unsigned i = 0; i < machine.gpu_count; i++)
        if (!strcmp(machine.gpu[i].uuid, uuid))
            return &machine.gpu[i];
    return NULL;
}

static void *handle_of(const struct gpu *gpu)
{
    unsigned slot = 0;
    while (slot < handle_count && strcmp(handed_out[slot], gpu->uuid))
        slot++;
    if (slot == handle_count)
        copy(handed_out[one_more(&handle_count, MOST_GPUS * 4)], gpu->uuid, UUID_SIZE);
    return (void *)(generation << 8 | (slot + 1));
}

/* The UUID that a handle stands for; NULL: none. */
static const char *uuid_of(const void *handle)
{
    uintptr_t value = (uintptr_t)handle;
    unsigned slot = (unsigned)(value & 255) - 1;
    if (value >> 8 == generation && slot < handle_count)
        return handed_out[slot];
    if (getenv("FAKE_NVML_STRICT"))
        give_up("a handle was used that is none, or not any more: %p", handle);
    return NULL;
}

static void note(const char *function, const char *uuid)
{
    static int calls = -2;
    if (calls == -2) {
        const char *path = getenv("FAKE_NVML_CALLS");
        calls = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666) : -1;
    }
    if (calls >= 0)
        dprintf(calls, "%d %s %s\n", (int)getpid(), function, uuid ? uuid : "-");
}

static int lacks(const char *function)
{
    for (unsigned i = 0; i < machine.missing_count; i++)
        if (!strcmp(machine.missing[i], function))
            return 1;
    return 0;
}

static int state_of_library(const char *function)
{
    if (lacks(function))
        return FUNCTION_NOT_FOUND;
    if (!users)
        return UNINITIALIZED;
    return script.there ? machine.fault : DRIVER_NOT_LOADED;
}

static int state_of_gpu(const char *uuid, enum field field, struct gpu **gpu)
{
    *gpu = uuid ? gpu_with(uuid) : NULL;
    if (!*gpu)
        return uuid ? GPU_IS_LOST : INVALID_ARGUMENT;
    if ((*gpu)->fault)
        return (*gpu)->fault;
    return field == NO_FIELD ? SUCCESS : (*gpu)->error[field];
}

/* A call that hangs is in the hands of the kernel: only SIGKILL ends it. */
static void keep_signals_off(int off)
{
    static _Thread_local sigset_t before;
    static _Thread_local int are_off;
    sigset_t all;
    sigfillset(&all);
    if (off && !are_off)
        pthread_sigmask(SIG_BLOCK, &all, &before);
    else if (!off && are_off)
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    are_off = off;
}

/* Whether a call that would return this hangs: then a moment has passed, and it looks again. */
static int hangs(int code)
{
    struct timespec moment = {.tv_nsec = 10000000};
    keep_signals_off(code == HANG);
    if (code != HANG)
        return 0;
    pthread_mutex_unlock(&lock);
    nanosleep(&moment, NULL);
    pthread_mutex_lock(&lock);
    catch_up();
    return 1;
}

/* Every call lies between one of the begins, which says whether it may answer, and end. */
static int begin(const char *function)
{
    int code;
    pthread_mutex_lock(&lock);
    catch_up();
    note(function, NULL);
    do
        code = state_of_library(function);
    while (hangs(code));
    return code;
}

static int begin_two(const char *function, const void *handles[2], enum field field, struct gpu *gpus[2])
{
    int code;
    pthread_mutex_lock(&lock);
    const char *uuid = users ? uuid_of(handles[0]) : NULL, *other = users ? uuid_of(handles[1]) : NULL;
    catch_up();
    note(function, uuid);
    do {
        code = state_of_library(function);
        if (!code)
            code = state_of_gpu(uuid, field, &gpus[0]);
        if (!code)
            code = state_of_gpu(other, field, &gpus[1]);
    } while (hangs(code));
    return code;
}

static int begin_gpu(const char *function, const void *handle, enum field field, struct gpu **gpu)
{
    const void *handles[2] = {handle, handle};
    struct gpu *gpus[2] = {NULL, NULL};
    int code = begin_two(function, handles, field, gpus);
    *gpu = gpus[0];
    return code;
}

static int end(int code)
{
    pthread_mutex_unlock(&lock);
    return code;
}

/* --- memory and processes ----------------------------------------------------------------------------------------- */

static int lives(unsigned pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    text[size > 0 ? size : 0] = 0;
    const char *name_end = strrchr(text, ')');
    return name_end && name_end[1] && !strchr("ZX", name_end[2]);
}

static int holds_on(struct hold *hold)
{
    if (!hold->died && !lives(hold->process.pid))
        hold->died = now();
    return !hold->died;
}

static u64 known(u64 bytes)
{
    return bytes == UINT64_MAX ? 0 : bytes;
}

static u64 used_by_holds(const struct gpu *gpu)
{
    u64 sum = 0;
    for (unsigned i = 0; i < hold_count; i++)
        if (!strcmp(holds[i].uuid, gpu->uuid) &&
            (holds_on(&holds[i]) || now() < holds[i].died + (double)gpu->value[free_late] / 1e3))
            sum += known(holds[i].process.bytes);
    return sum;
}

static u64 memory_used(const struct gpu *gpu)
{
    if (!gpu->error[used])
        return gpu->value[used];
    u64 sum = gpu->value[base] + used_by_holds(gpu);
    for (unsigned i = 0; i < gpu->process_count; i++)
        sum += known(gpu->process[i].bytes);
    for (unsigned i = 0; i < gpu->lingering_count; i++)
        if (now() < gpu->lingering[i].until)
            sum += gpu->lingering[i].bytes;
    return sum;
}

static u64 left(u64 total, u64 taken)
{
    return taken < total ? total - taken : 0;
}

/* The processes of a GPU: those of the script, and those that hold on. Returns how many. */
static unsigned list_processes(const struct gpu *gpu, unsigned kinds, struct process *found)
{
    unsigned count = 0;
    for (unsigned i = 0; i < gpu->process_count; i++)
        if (gpu->process[i].kinds & kinds)
            found[count++] = gpu->process[i];
    for (unsigned i = 0; i < hold_count && count < 2 * MOST_PROCESSES; i++)
        if (!strcmp(holds[i].uuid, gpu->uuid) && (holds[i].process.kinds & kinds) && holds_on(&holds[i]))
            found[count++] = holds[i].process;
    return count;
}

struct memory {
    u64 total, free, used;
};

int nvmlDeviceGetMemoryInfo(void *handle, struct memory *out)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, memory, &gpu);
    if (!code) {
        out->total = gpu->value[memory];
        out->used = memory_used(gpu) + gpu->value[reserved];
        out->free = left(out->total, out->used);
    }
    return end(code);
}

struct memory_v2 {
    unsigned version;
    u64 total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *out)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, memory, &gpu);
    if (!code && out->version != (2u << 24 | sizeof *out))
        code = ARGUMENT_VERSION_MISMATCH;
    if (!code) {
        out->total = gpu->value[memory];
        out->reserved = gpu->value[reserved];
        out->used = memory_used(gpu);
        out->free = left(out->total, out->used + out->reserved);
    }
    return end(code);
}

struct process_info {
    unsigned pid;
    u64 used;
    unsigned gpu_instance, compute_instance;
};

static int running(const char *function, void *handle, unsigned kinds, unsigned *count, struct process_info *out)
{
    struct gpu *gpu;
    struct process found[2 * MOST_PROCESSES];
    int code = begin_gpu(function, handle, processes, &gpu);
    if (code)
        return end(code);
    unsigned room = *count;
    *count = list_processes(gpu, kinds, found);
    if (*count > room)
        return end(INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < *count; i++)
        out[i] = (struct process_info){found[i].pid, found[i].bytes, UINT32_MAX, UINT32_MAX};
    return end(SUCCESS);
}

#define RUNNING(function, kinds)                                                                                       \
    int function(void *handle, unsigned *count, struct process_info *out)                                              \
    {                                                                                                                  \
        return running(__func__, handle, kinds, count, out);                                                           \
    }

RUNNING(nvmlDeviceGetComputeRunningProcesses_v2, COMPUTE)
RUNNING(nvmlDeviceGetComputeRunningProcesses_v3, COMPUTE)
RUNNING(nvmlDeviceGetGraphicsRunningProcesses_v2, GRAPHICS)
RUNNING(nvmlDeviceGetGraphicsRunningProcesses_v3, GRAPHICS)
RUNNING(nvmlDeviceGetMPSComputeRunningProcesses_v3, MPS)

struct process_sample {
    unsigned pid;
    u64 at; /* microseconds */
    unsigned sm, memory, encoder, decoder;
};

int nvmlDeviceGetProcessUtilization(void *handle, struct process_sample *out, unsigned *count, u64 since)
{
    struct gpu *gpu;
    struct process found[2 * MOST_PROCESSES];
    int code = begin_gpu(__func__, handle, process_utilization, &gpu);
    if (code)
        return end(code);
    unsigned room = out ? *count : 0, is_stale = gpu->value[stale] != 0;
    u64 at = is_stale ? 1 : (u64)(now() * 1e6);
    *count = list_processes(gpu, COMPUTE | GRAPHICS | MPS, found);
    if (!*count || (at <= since && !is_stale))
        return end(NOT_FOUND);
    if (*count > room)
        return end(INSUFFICIENT_SIZE);
    unsigned absurd = (unsigned)gpu->value[process_utilization];
    for (unsigned i = 0; i < *count; i++)
        out[i] = (struct process_sample){found[i].pid, at, absurd ? absurd : found[i].sm, 0, 0, 0};
    return end(SUCCESS);
}

/* --- single values ------------------------------------------------------------------------------------------------ */

#define VALUE(function, type, field)                                                                                   \
    int function(void *handle, type *out)                                                                              \
    {                                                                                                                  \
        struct gpu *gpu;                                                                                               \
        int code = begin_gpu(__func__, handle, field, &gpu);                                                           \
        if (!code)                                                                                                     \
            *out = (type)gpu->value[field];                                                                            \
        return end(code);                                                                                              \
    }

VALUE(nvmlDeviceGetPowerUsage, unsigned, power)
VALUE(nvmlDeviceGetEnforcedPowerLimit, unsigned, power_enforced)
VALUE(nvmlDeviceGetPowerManagementLimit, unsigned, power_limit)
VALUE(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, power_default)
VALUE(nvmlDeviceGetFanSpeed, unsigned, fan)
VALUE(nvmlDeviceGetNumFans, unsigned, fans)
VALUE(nvmlDeviceGetPerformanceState, unsigned, performance_state)
VALUE(nvmlDeviceGetPowerState, unsigned, performance_state)
VALUE(nvmlDeviceGetTotalEnergyConsumption, u64, energy)
VALUE(nvmlDeviceGetCurrentClocksEventReasons, u64, throttle)
VALUE(nvmlDeviceGetCurrentClocksThrottleReasons, u64, throttle)
VALUE(nvmlDeviceGetSupportedClocksEventReasons, u64, throttle_supported)
VALUE(nvmlDeviceGetSupportedClocksThrottleReasons, u64, throttle_supported)
VALUE(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, pcie_generation)
VALUE(nvmlDeviceGetCurrPcieLinkWidth, unsigned, pcie_width)
VALUE(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, highest_pcie_generation)
VALUE(nvmlDeviceGetMaxPcieLinkWidth, unsigned, highest_pcie_width)
VALUE(nvmlDeviceGetPcieReplayCounter, unsigned, pcie_replays)
VALUE(nvmlDeviceGetPersistenceMode, unsigned, persistence)
VALUE(nvmlDeviceGetComputeMode, unsigned, compute_mode)
VALUE(nvmlDeviceGetArchitecture, unsigned, architecture)

/* A value that an argument selects. */
static int selected(const char *function, void *handle, enum field field, unsigned *out)
{
    struct gpu *gpu;
    int code = begin_gpu(function, handle, field, &gpu);
    if (!code)
        *out = field == NO_FIELD ? 0 : (unsigned)gpu->value[field];
    return end(code ? code : field == NO_FIELD ? INVALID_ARGUMENT : SUCCESS);
}

#define SELECTED(function, ...)                                                                                        \
    int function(void *handle, unsigned which, unsigned *out)                                                          \
    {                                                                                                                  \
        static const enum field CHOICE[] = {__VA_ARGS__};                                                              \
        return selected(__func__, handle, which < sizeof CHOICE / sizeof *CHOICE ? CHOICE[which] : NO_FIELD, out);     \
    }

SELECTED(nvmlDeviceGetTemperature, temperature)
SELECTED(nvmlDeviceGetTemperatureThreshold, shutdown_temperature, slowdown_temperature,
         highest_memory_temperature, highest_temperature)
SELECTED(nvmlDeviceGetClockInfo, sm_clock, sm_clock, memory_clock, video_clock)
SELECTED(nvmlDeviceGetMaxClockInfo, highest_sm_clock, highest_sm_clock, highest_memory_clock)
SELECTED(nvmlDeviceGetFanSpeed_v2, fan, fan, fan)
SELECTED(nvmlDeviceGetPcieThroughput, pcie_sent, pcie_received)

struct temperature {
    unsigned version, sensor;
    int celsius;
};

int nvmlDeviceGetTemperatureV(void *handle, struct temperature *out)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, temperature, &gpu);
    if (!code && out->version != (1u << 24 | sizeof *out))
        code = ARGUMENT_VERSION_MISMATCH;
    if (!code)
        out->celsius = (int)gpu->value[temperature];
    return end(code);
}

static int pair(const char *function, void *handle, enum field one, enum field other, unsigned *first, unsigned *second)
{
    struct gpu *gpu;
    int code = begin_gpu(function, handle, one, &gpu);
    if (!code) {
        *first = (unsigned)gpu->value[one];
        *second = (unsigned)gpu->value[other];
    }
    return end(code);
}

#define PAIR(function, one, other)                                                                                     \
    int function(void *handle, unsigned *first, unsigned *second)                                                      \
    {                                                                                                                  \
        return pair(__func__, handle, one, other, first, second);                                                      \
    }

PAIR(nvmlDeviceGetPowerManagementLimitConstraints, power_lowest, power_highest)
PAIR(nvmlDeviceGetEccMode, ecc, ecc)
PAIR(nvmlDeviceGetMigMode, mig, mig)

int nvmlDeviceGetUtilizationRates(void *handle, unsigned out[2])
{
    return pair(__func__, handle, utilization, memory_utilization, &out[0], &out[1]);
}

int nvmlDeviceGetEncoderUtilization(void *handle, unsigned *percent, unsigned *period)
{
    *period = 166666;
    return selected(__func__, handle, encoder, percent);
}

int nvmlDeviceGetDecoderUtilization(void *handle, unsigned *percent, unsigned *period)
{
    *period = 166666;
    return selected(__func__, handle, decoder, percent);
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, capability, &gpu);
    if (!code) {
        *major = (int)gpu->value[capability] / 10;
        *minor = (int)gpu->value[capability] % 10;
    }
    return end(code);
}

static int ecc_errors(const char *function, void *handle, unsigned uncorrected, u64 *out)
{
    struct gpu *gpu;
    enum field field = uncorrected ? ecc_uncorrected : ecc_corrected;
    int code = begin_gpu(function, handle, field, &gpu);
    if (!code)
        *out = gpu->value[field];
    return end(code);
}

int nvmlDeviceGetTotalEccErrors(void *handle, unsigned uncorrected, unsigned counter, u64 *out)
{
    (void)counter;
    return ecc_errors(__func__, handle, uncorrected, out);
}

int nvmlDeviceGetMemoryErrorCounter(void *handle, unsigned uncorrected, unsigned counter, unsigned place, u64 *out)
{
    (void)counter, (void)place;
    return ecc_errors(__func__, handle, uncorrected, out);
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, remapped_corrected, &gpu);
    if (!code) {
        *corrected = (unsigned)gpu->value[remapped_corrected];
        *uncorrected = (unsigned)gpu->value[remapped_uncorrected];
        *pending = (unsigned)gpu->value[remap_pending];
        *failed = (unsigned)gpu->value[remap_failed];
    }
    return end(code);
}

/* --- values by number --------------------------------------------------------------------------------------------- */

enum { UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3 };

static const struct numbered {
    unsigned id;
    enum field field;
    unsigned type;
} NUMBERED[] = {
    {74, throttled_power_cap, UNSIGNED_LONG_LONG},
    {76, throttled_sync_boost, UNSIGNED_LONG_LONG},
    {82, memory_temperature, UNSIGNED_INT},
    {83, energy, UNSIGNED_LONG_LONG},
    {94, pcie_replays, UNSIGNED_INT},
    {142, remapped_corrected, UNSIGNED_INT},
    {143, remapped_uncorrected, UNSIGNED_INT},
    {144, remap_pending, UNSIGNED_INT},
    {145, remap_failed, UNSIGNED_INT},
    {185, power_average, UNSIGNED_INT},
    {186, power, UNSIGNED_INT},
    {187, power_lowest, UNSIGNED_INT},
    {188, power_highest, UNSIGNED_INT},
    {189, power_default, UNSIGNED_INT},
    {190, power_enforced, UNSIGNED_INT},
    {191, energy, UNSIGNED_LONG_LONG},
    {192, power_limit, UNSIGNED_INT},
    {230, recovery, UNSIGNED_INT},
    {269, throttled_sw_thermal, UNSIGNED_LONG_LONG},
    {270, throttled_hw_thermal, UNSIGNED_LONG_LONG},
    {271, throttled_power_brake, UNSIGNED_LONG_LONG},
};

struct field_value {
    uint32_t id, scope;
    int64_t at, latency; /* microseconds */
    unsigned type, code;
    union {
        unsigned small;
        u64 large;
    } value;
};

static void fill(const struct gpu *gpu, struct field_value *out)
{
    const struct numbered *found = NULL;
    for (size_t i = 0; i < sizeof NUMBERED / sizeof *NUMBERED; i++)
        if (NUMBERED[i].id == out->id)
            found = &NUMBERED[i];
    out->at = gpu->value[stale] ? 1 : (int64_t)(now() * 1e6);
    out->latency = 0;
    int error = found ? gpu->error[found->field] : NOT_SUPPORTED;
    out->code = error == HANG ? TIMEOUT : (unsigned)error; /* one value does not stop the others */
    out->value.large = 0;
    if (out->code)
        return;
    out->type = found->type;
    if (found->type == UNSIGNED_INT)
        out->value.small = (unsigned)gpu->value[found->field];
    else
        out->value.large = gpu->value[found->field];
}

int nvmlDeviceGetFieldValues(void *handle, int count, struct field_value *values)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, NO_FIELD, &gpu);
    for (int i = 0; !code && i < count; i++)
        fill(gpu, &values[i]);
    return end(code);
}

/* --- who it is ---------------------------------------------------------------------------------------------------- */

static int put_text(const char *text, char *out, unsigned size)
{
    if (strlen(text) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

int nvmlDeviceGetName(void *handle, char *out, unsigned size)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, NO_FIELD, &gpu);
    return end(code ? code : put_text(gpu->name, out, size));
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned size)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, NO_FIELD, &gpu);
    return end(code ? code : put_text(gpu->uuid, out, size));
}

static int index_of(const char *function, void *handle, unsigned *out)
{
    struct gpu *gpu;
    int code = begin_gpu(function, handle, NO_FIELD, &gpu);
    if (!code)
        *out = (unsigned)(gpu - machine.gpu);
    return end(code);
}

int nvmlDeviceGetIndex(void *handle, unsigned *out)
{
    return index_of(__func__, handle, out);
}

int nvmlDeviceGetMinorNumber(void *handle, unsigned *out)
{
    return index_of(__func__, handle, out);
}

struct pci {
    char short_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char id[32];
};

static void put_pci(const struct gpu *gpu, struct pci *out)
{
    memset(out, 0, sizeof *out);
    sscanf(gpu->bus, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    copy(out->id, gpu->bus, sizeof out->id);
    copy(out->short_id, gpu->bus + (strlen(gpu->bus) > 12 ? 4 : 0), sizeof out->short_id);
    out->device_id = 0x220410DE;
}

int nvmlDeviceGetPciInfo_v3(void *handle, struct pci *out)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, NO_FIELD, &gpu);
    if (!code)
        put_pci(gpu, out);
    return end(code);
}

static int hand_out(const struct gpu *gpu, void **out)
{
    if (!gpu)
        return NOT_FOUND;
    if (!gpu->handle_fault)
        *out = handle_of(gpu);
    return gpu->handle_fault;
}

static const struct gpu *at_index(const void *index)
{
    unsigned value = *(const unsigned *)index;
    return value < machine.gpu_count ? &machine.gpu[value] : NULL;
}

static const struct gpu *with_uuid(const void *uuid)
{
    return gpu_with(uuid);
}

/* Ids of PCI are written with a domain of four digits or of eight, or with none. */
static const struct gpu *at_bus(const void *id)
{
    size_t size = strlen(id);
    for (unsigned i = 0; i < machine.gpu_count; i++) {
        const char *bus = machine.gpu[i].bus;
        if (size >= 7 && size <= strlen(bus) && !strcasecmp(bus + strlen(bus) - size, id))
            return &machine.gpu[i];
    }
    return NULL;
}

static int find_handle(const char *function, const struct gpu *(*find)(const void *), const void *what, void **out)
{
    int code;
    pthread_mutex_lock(&lock);
    catch_up();
    const struct gpu *sought = find(what);
    note(function, sought ? sought->uuid : NULL);
    do {
        code = state_of_library(function);
        if (!code)
            code = hand_out(find(what), out);
    } while (hangs(code));
    return end(code);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out)
{
    int code = find_handle(__func__, at_index, &index, out);
    return code == NOT_FOUND ? INVALID_ARGUMENT : code;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **out)
{
    return find_handle(__func__, with_uuid, uuid, out);
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **out)
{
    return find_handle(__func__, at_bus, id, out);
}

int nvmlDeviceGetCount_v2(unsigned *out)
{
    int code = begin(__func__);
    if (!code)
        *out = machine.gpu_count;
    return end(code);
}

/* --- faults that it tells ----------------------------------------------------------------------------------------- */

static struct {
    char uuid[MOST_GPUS][UUID_SIZE];
    unsigned told[MOST_GPUS], count;
} event_set;

struct event {
    void *device;
    u64 type, data;
    unsigned gpu_instance, compute_instance;
};

int nvmlEventSetCreate(void **out)
{
    int code = begin(__func__);
    if (!code) {
        event_set.count = 0;
        *out = &event_set;
    }
    return end(code);
}

int nvmlDeviceRegisterEvents(void *handle, u64 types, void *set)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, events, &gpu);
    (void)types, (void)set;
    if (!code) {
        unsigned slot = one_more(&event_set.count, MOST_GPUS);
        copy(event_set.uuid[slot], gpu->uuid, UUID_SIZE);
        event_set.told[slot] = gpu->xid_number;
    }
    return end(code);
}

int nvmlEventSetWait_v2(void *set, struct event *out, unsigned milliseconds)
{
    int code = begin(__func__);
    (void)set, (void)milliseconds; /* nobody waits here */
    for (unsigned i = 0; !code && i < event_set.count; i++) {
        struct gpu *gpu = gpu_with(event_set.uuid[i]);
        if (!gpu || gpu->xid_number <= event_set.told[i])
            continue;
        event_set.told[i] = gpu->xid_number;
        *out = (struct event){handle_of(gpu), 8, gpu->xid, 0, 0};
        return end(SUCCESS);
    }
    return end(code ? code : TIMEOUT);
}

/* --- how near they are -------------------------------------------------------------------------------------------- */

static const struct link *link_between(const struct gpu *one, const struct gpu *other)
{
    static const struct link USUAL = {.level = 30};
    for (unsigned i = 0; i < machine.link_count; i++) {
        const struct link *link = &machine.link[i];
        if ((!strcmp(link->one, one->uuid) && !strcmp(link->other, other->uuid)) ||
            (!strcmp(link->one, other->uuid) && !strcmp(link->other, one->uuid)))
            return link;
    }
    return &USUAL;
}

static int begin_link(const char *function, void *one, void *other, const struct link **link)
{
    const void *handles[2] = {one, other};
    struct gpu *gpus[2];
    int code = begin_two(function, handles, topology, gpus);
    if (!code)
        *link = link_between(gpus[0], gpus[1]);
    return code;
}

int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, unsigned *out)
{
    const struct link *link;
    int code = begin_link(__func__, one, other, &link);
    if (!code)
        *out = one == other ? 0 : link->level;
    return end(code);
}

int nvmlDeviceGetP2PStatus(void *one, void *other, unsigned what, unsigned *out)
{
    enum { OK = 0, CHIPSET_NOT_SUPPORTED = 1, P2P_NOT_SUPPORTED = 5, NVLINK = 2 };
    const struct link *link;
    int code = begin_link(__func__, one, other, &link);
    if (!code)
        *out = link->nvlink ? OK : what == NVLINK ? P2P_NOT_SUPPORTED : CHIPSET_NOT_SUPPORTED;
    return end(code);
}

/* The GPU at the other end of the n-th NVLink; NULL: there is none. */
static const struct gpu *nvlink_peer(const struct gpu *gpu, unsigned n)
{
    for (unsigned i = 0; i < machine.gpu_count; i++)
        if (&machine.gpu[i] != gpu && link_between(gpu, &machine.gpu[i])->nvlink && !n--)
            return &machine.gpu[i];
    return NULL;
}

int nvmlDeviceGetNvLinkState(void *handle, unsigned n, unsigned *active)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, topology, &gpu);
    if (!code)
        *active = nvlink_peer(gpu, n) != NULL;
    return end(code);
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *handle, unsigned n, struct pci *out)
{
    struct gpu *gpu;
    int code = begin_gpu(__func__, handle, topology, &gpu);
    const struct gpu *peer = code ? NULL : nvlink_peer(gpu, n);
    if (peer)
        put_pci(peer, out);
    return end(code ? code : peer ? SUCCESS : NOT_SUPPORTED);
}

/* --- the library -------------------------------------------------------------------------------------------------- */

static int state_of_init(void)
{
    return script.there ? machine.init_fault : DRIVER_NOT_LOADED;
}

int nvmlInitWithFlags(unsigned flags)
{
    int code;
    (void)flags;
    pthread_mutex_lock(&lock);
    catch_up();
    note(__func__, NULL);
    do
        code = state_of_init();
    while (hangs(code));
    users += !code;
    return end(code);
}

int nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

int nvmlShutdown(void)
{
    pthread_mutex_lock(&lock);
    note(__func__, NULL);
    if (!users)
        return end(UNINITIALIZED);
    if (!--users) {
        generation++;
        handle_count = 0;
    }
    return end(SUCCESS);
}

int nvmlSystemGetDriverVersion(char *out, unsigned size)
{
    int code = begin(__func__);
    return end(code ? code : put_text(machine.driver, out, size));
}

int nvmlSystemGetNVMLVersion(char *out, unsigned size)
{
    char text[96];
    int code = begin(__func__);
    snprintf(text, sizeof text, "%d.%s", machine.cuda / 1000, machine.driver);
    return end(code ? code : put_text(text, out, size));
}

static int cuda_version(const char *function, int *out)
{
    int code = begin(function);
    if (!code)
        *out = machine.cuda;
    return end(code);
}

int nvmlSystemGetCudaDriverVersion(int *out)
{
    return cuda_version(__func__, out);
}

int nvmlSystemGetCudaDriverVersion_v2(int *out)
{
    return cuda_version(__func__, out);
}

const char *nvmlErrorString(int code)
{
    static const char *const WORDS[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires reset",
        "The operating system has blocked the request", "Driver/library version mismatch",
        "In use by another client", "Insufficient Memory", "No data", "The requested vgpu operation is not available",
        "Insufficient resources", "Resource not available at this time", "Argument version mismatch", "Deprecated",
        "Not ready", "GPU not found", "Invalid state"};
    return code >= 0 && (size_t)code < sizeof WORDS / sizeof *WORDS ? WORDS[code] : "Unknown Error";
}
