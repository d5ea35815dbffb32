"""Why a job ended, told by its exit record and the end of its log."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from builders import an_exit

from runner.box.ends import DETAIL_MAX, TAIL, explain, explained


@pytest.mark.parametrize(
    ("tail", "reason", "detail"),
    [
        pytest.param("", "exit_code", "", id="an empty log"),
        pytest.param("Traceback\n  File\nValueError: no\n", "exit_code", "ValueError: no", id="the last line"),
        pytest.param("ValueError: no\n\n   \n\n", "exit_code", "ValueError: no", id="empty lines behind it"),
        pytest.param("10%\r50%\rdied here", "exit_code", "died here", id="a progress bar"),
        pytest.param("\x1b[1;31mError:\x1b[0m no\x07\n", "exit_code", "Error: no", id="colours"),
        pytest.param(
            "OSError: [Errno 28] No space left on device: 'x'\nAborted\n",
            "disk_full",
            "OSError: [Errno 28] No space left on device: 'x'",
            id="a full disk",
        ),
        pytest.param(
            "Disk quota exceeded (1)\nDisk quota exceeded (2)", "disk_full", "Disk quota exceeded (2)", id="quota"
        ),
        pytest.param("y" * 400, "exit_code", "y" * DETAIL_MAX + "…", id="an endless line"),
    ],
)
def test_the_log_shows_the_reason(tail: str, reason: str, detail: str) -> None:
    told = explain(an_exit("exit_code"), tail)
    assert (told.reason, told.detail) == (reason, detail)


# --- a GPU without memory: logs as the libraries write them, shortened -----------------------------------------------

TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 9, in <module>\n    step()\n'
TF = "2026-01-02 03:04:05.678901:"
PLACE = "/job:localhost/replica:0/task:0/device"
SHORT = f"{TF} W bfc_allocator.cc:501] Allocator (GPU_0_bfc) ran out of memory trying to allocate 8.00GiB"
RETRIED = f"{TF} I cuda_driver.cc:1101] failed to allocate 7.5GiB from device: CUDA_ERROR_OUT_OF_MEMORY: out of memory"

# Whose words -> (what stands before, the line that tells, what stands behind it).
OUT_OF_MEMORY = {
    "PyTorch 2.5": (
        TRACEBACK,
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 "
        "GiB of which 1.06 GiB is free.",
        "",
    ),
    "PyTorch 2.0": (
        TRACEBACK,
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 23.69 GiB total)",
        "",
    ),
    "PyTorch 1": (TRACEBACK, "RuntimeError: CUDA out of memory.", ""),
    "PyTorch 0": (TRACEBACK, "RuntimeError: cuda runtime error (2) : out of memory at /tmp/THCStorage.cu:58", ""),
    "PyTorch, an error of the runtime": (
        TRACEBACK,
        "torch.AcceleratorError: CUDA error: out of memory",
        "CUDA kernel errors might be asynchronously reported, so the stacktrace below might be incorrect.\n",
    ),
    "cuBLAS": ("", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", ""),
    "cuDNN": ("", "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", ""),
    "a launcher whose worker ran out": (
        TRACEBACK,
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB.",
        TRACEBACK + "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n",
    ),
    "NCCL": (
        "",
        "box:7:9 [0] enqueue.cc:1085 NCCL WARN Cuda failure 2 'out of memory'",
        TRACEBACK + "torch.distributed.DistBackendError: NCCL error, unhandled cuda error\n",
    ),
    "TensorFlow, a graph": (
        f"{SHORT}\n{TRACEBACK}tensorflow.errors_impl.ResourceExhaustedError: Graph execution error:\n\n",
        f"OOM when allocating tensor with shape[256,64] and type float on {PLACE}:GPU:0 by allocator GPU_0_bfc",
        "\t [[{{node model/conv}}]]\nHint: to see a list of allocated tensors when OOM happens, add an option\n",
    ),
    "TensorFlow, eager": (
        SHORT,
        f"ResourceExhaustedError: OOM when allocating tensor with shape[8,8] and type float on {PLACE}:GPU:0 by "
        "allocator GPU_0_bfc [Op:AddV2]",
        "",
    ),
    "TensorFlow, nothing else went wrong": ("", RETRIED, f"{TF} F device.cc:12] Check failed: buffer\n"),
    "TensorFlow, an error that does not say where": (
        "",
        RETRIED,
        "ResourceExhaustedError: failed to allocate memory [Op:AddV2]\n",
    ),
    "TensorFlow, a copy": (
        "",
        f"InternalError: Failed copying input tensor from {PLACE}:CPU:0 to {PLACE}:GPU:0 in order to run _EagerConst: "
        "Dst tensor is not initialized.",
        "",
    ),
    "JAX": (
        TRACEBACK,
        "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 47703 bytes.",
        "BufferAssignment OOM Debugging.\nPeak buffers:\n\tBuffer 1:\n\t\tSize: 6.00MiB\n",
    ),
    "JAX of 2021": (
        "",
        "RuntimeError: Resource exhausted: Out of memory while trying to allocate 12582912 bytes.",
        "",
    ),
    "JAX, an error that does not say where": (
        "",
        f"{SHORT} (rounded to 8589934592)requested by op",
        f"{TRACEBACK}jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.\n",
    ),
    "CuPy": (
        TRACEBACK,
        "cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 8,000,000,000 bytes (allocated so far: 0 bytes).",
        "",
    ),
    "RMM": (
        "",
        "MemoryError: std::bad_alloc: out_of_memory: CUDA error at: rmm/mr/cuda_memory_resource.hpp:69: "
        "cudaErrorMemoryAllocation out of memory",
        "",
    ),
    "RMM, a pool": (
        "",
        "MemoryError: std::bad_alloc: out_of_memory: RMM failure at: pool.hpp:313: Maximum pool size exceeded",
        "",
    ),
    "Numba": (
        "",
        "numba.cuda.cudadrv.driver.CudaAPIError: [2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
        "",
    ),
    "llama.cpp, a buffer": (
        "",
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9866.00 MiB on device 1: cudaMalloc failed: out of "
        "memory",
        f"alloc_tensor_range: failed to allocate CUDA1 buffer\n{TRACEBACK}ValueError: Failed to load model from file\n",
    ),
    "llama.cpp, an error of the runtime": (
        "",
        "CUDA error: out of memory",
        "  current device: 0, in function alloc at ggml-cuda.cu:480\n",
    ),
    "ONNX Runtime": (
        "",
        "onnxruntime.RuntimeException: [ONNXRuntimeError] : 6 : onnxruntime::CudaCall CUDA failure 2: out of memory ; "
        "GPU=0 ; hostname=box",
        "",
    ),
    "Thrust": (
        "terminate called after throwing an instance of 'thrust::system_error'\n",
        "what():  parallel_for failed: cudaErrorMemoryAllocation: out of memory",
        "",
    ),
}
NO_GPU_OUT_OF_MEMORY = {
    "PyTorch on the host": (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 132426121216 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "TensorFlow on the host": (
        f"{TF} W op_kernel.cc:1763] OP_REQUIRES failed at cast_op.cc:109 : Resource exhausted: OOM when allocating "
        f"tensor with shape[1,512] and type float on {PLACE}:CPU:0 by allocator cpu"
    ),
    "JAX on the host": "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.",
    "pinned memory of the host": (
        f"{TF} E cuda_driver.cc:893] failed to alloc 966367744 bytes on host: CUDA_ERROR_OUT_OF_MEMORY: out of memory\n"
        f"{TF} W gpu_host_allocator.h:44] could not allocate pinned host memory of size: 966367744"
    ),
    "NumPy": "numpy.core._exceptions.MemoryError: Unable to allocate 1.00 TiB for an array",
    "C++": "terminate called after throwing an instance of 'std::bad_alloc'",
    "TensorFlow could be faster": (
        f"{SHORT} with freed_by_count=0. The caller indicates that this is not a failure, but this may mean that there "
        "could be performance gains if more memory were available.\nSegmentation fault"
    ),
    "TensorFlow took less and failed otherwise": f"{RETRIED}\nEpoch 1/10\n{TRACEBACK}ValueError: not a number",
    "shared memory of a kernel": "XlaRuntimeError: RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 9",
    "gRPC": "grpc.RpcError: StatusCode.RESOURCE_EXHAUSTED: received message larger than max",
    "advice": "hint: set max_split_size_mb to avoid CUDA out of memory errors\nKilled",
    "another error of CUDA": "RuntimeError: CUDA error: unspecified launch failure",
    "a lost GPU, which the collector knows better": "pynvml.NVMLError_GpuIsLost: GPU is lost",
}


@pytest.mark.parametrize("whose", OUT_OF_MEMORY)
@pytest.mark.parametrize("reason", ["exit_code", "signal"])
def test_a_gpu_that_ran_out_of_memory_is_recognised(whose: str, reason: str) -> None:
    before, line, behind = OUT_OF_MEMORY[whose]
    told = explain(an_exit(reason), f"{before}\n{line}\n{behind}")
    assert (told.reason, told.detail) == ("cuda_out_of_memory", line)


@pytest.mark.parametrize("what", NO_GPU_OUT_OF_MEMORY)
def test_what_sounds_like_it_is_no_gpu_without_memory(what: str) -> None:
    assert explain(an_exit("exit_code"), f"{NO_GPU_OUT_OF_MEMORY[what]}\n").reason == "exit_code"


def test_who_ran_out_of_memory_and_went_on_has_another_reason(tmp_path: Path) -> None:
    log = tmp_path / "log"
    steps = "".join(f"step {n}\n" for n in range(10_000))
    log.write_text(f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n{steps}ValueError: no\n")
    told = explained(an_exit("exit_code"), str(log))
    assert (told.reason, told.detail) == ("exit_code", "ValueError: no")


def test_of_two_reasons_the_one_nearest_to_the_end_is_told() -> None:
    gpu, disk = "RuntimeError: CUDA out of memory.", "OSError: [Errno 28] No space left on device"
    assert explain(an_exit("exit_code"), f"{gpu}\n{disk}\nbye\n").reason == "disk_full"
    assert explain(an_exit("exit_code"), f"{disk}\n{gpu}\nbye\n").reason == "cuda_out_of_memory"


@pytest.mark.parametrize("reason", [None, "cancelled", "gpu_lost", "time_limit"])
def test_who_did_not_fail_by_itself_did_not_run_out_of_memory(reason: str | None) -> None:
    assert explain(an_exit(reason), "RuntimeError: CUDA out of memory.\n") == an_exit(reason)


def test_what_the_supervisor_had_to_say_is_kept_behind_the_line() -> None:
    end = replace(an_exit("exit_code"), detail="process 47 could not be ended: it waits in the kernel")
    told = explain(end, "ValueError: no\n")
    assert told.detail == "ValueError: no; process 47 could not be ended: it waits in the kernel"
    assert explain(end, "") == end


@pytest.mark.parametrize(
    "piece", ["CUDA error ", "OOM when allocating tensor", "device:GPU:0", "Error CUDA_", "cuHo", "a.", "CUBLAS_"]
)
def test_an_endless_line_that_nearly_fits_is_read_at_once(piece: str) -> None:
    began = time.process_time()
    explain(an_exit("exit_code"), (piece * TAIL)[:TAIL])
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize("reason", [None, "cancelled", "time_limit", "cannot_exec", "supervisor_died"])
def test_an_end_that_needs_no_explaining_reads_nothing(reason: str | None) -> None:
    end = an_exit(reason)
    assert explain(end, "No space left on device") == end
    assert explained(end, "/no/such/log") == end


def test_a_signal_is_explained_too() -> None:
    assert explain(an_exit("signal", signal=6), "terminate called\n").detail == "terminate called"


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"No space left on device\n" + b"\xff" * TAIL + b"\nthe last\n")
    told = explained(an_exit("exit_code"), str(log))
    assert (told.reason, told.detail) == ("exit_code", "the last")


def test_a_log_that_can_not_be_read_explains_nothing(tmp_path: Path) -> None:
    end = an_exit("exit_code")
    assert explained(end, str(tmp_path / "nowhere")) == end
    secret = tmp_path / "secret"
    secret.write_text("a secret\n")
    os.symlink(secret, tmp_path / "log")
    assert explained(end, str(tmp_path / "log")) == end, "a job may not have us read through a link"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_a_job_put_in_the_place_of_its_log_is_not_waited_for(tmp_path: Path, make: Callable[[str], None]) -> None:
    make(f"{tmp_path}/log")
    end = an_exit("exit_code")
    assert explained(end, f"{tmp_path}/log") == end
