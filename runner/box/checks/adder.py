"""A program of its own: what CUDA says of the GPUs here, and whether each one named adds two vectors as it should.

    python adder.py [--all | UUID...]

Prints one JSON object: {"call", "code", "version", "gpus": [{"uuid", "name", "capability", "call", "code", "right"}]};
call and code are of the first call that failed, "" and 0 where none did; right is null where nothing was added.
It runs as a job, too, so it is one file of the standard library, for any Python from 3.9 on. It may crash or hang with
the driver: whoever runs it sets a limit.
"""

from __future__ import annotations

import ctypes
import json
import sys
import uuid

NUMBERS = 1 << 16  # in each vector
THREADS = 256  # in a block
MAJOR, MINOR = 75, 76  # attributes of a device: its compute capability
# Two vectors of 32-bit integers, added. The older text is for cards that a driver of CUDA 13 does not know any more.
PTX = """.version {version}
.target {target}
.address_size 64
.visible .entry add(.param .u64 left, .param .u64 right, .param .u64 sum, .param .u32 count)
{{
    .reg .pred %p;
    .reg .b32 %r<8>;
    .reg .b64 %d<8>;
    ld.param.u64 %d0, [left];
    ld.param.u64 %d1, [right];
    ld.param.u64 %d2, [sum];
    ld.param.u32 %r0, [count];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.u32 %r4, %r1, %r2, %r3;
    setp.ge.u32 %p, %r4, %r0;
    @%p bra OUT;
    cvta.to.global.u64 %d0, %d0;
    cvta.to.global.u64 %d1, %d1;
    cvta.to.global.u64 %d2, %d2;
    mul.wide.u32 %d3, %r4, 4;
    add.u64 %d4, %d0, %d3;
    add.u64 %d5, %d1, %d3;
    add.u64 %d6, %d2, %d3;
    ld.global.u32 %r5, [%d4];
    ld.global.u32 %r6, [%d5];
    add.u32 %r7, %r5, %r6;
    st.global.u32 [%d6], %r7;
OUT:
    ret;
}}
"""


class Failed(Exception):
    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call}: {code}")
        self.call, self.code = call, code


class Cuda:
    """The driver's library. Each call raises Failed unless it succeeds."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Failed(f"loading libcuda.so.1 ({error})", -1) from None

    def __call__(self, name: str, *arguments: object) -> None:
        try:
            code = self._library[name](*arguments)
        except AttributeError:
            raise Failed(f"{name}, which this driver lacks,", -1) from None
        if code != 0:
            raise Failed(name, code)

    def number(self, name: str, *arguments: object) -> int:
        """A call whose first argument takes an int."""
        found = ctypes.c_int()
        self(name, ctypes.byref(found), *arguments)
        return found.value


def text(capability: tuple[int, int]) -> bytes:
    new = capability >= (7, 5)
    return PTX.format(version="6.3" if new else "4.3", target="sm_75" if new else "sm_30").encode() + b"\0"


def add(cuda: Cuda, device: int, capability: tuple[int, int]) -> bool:
    """Whether the card adds as it should."""
    context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    cuda("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    cuda("cuCtxSetCurrent", context)
    cuda("cuModuleLoadData", ctypes.byref(module), text(capability))
    cuda("cuModuleGetFunction", ctypes.byref(function), module, b"add")
    vector = ctypes.c_uint32 * NUMBERS
    left, right, found = vector(*range(NUMBERS)), vector(*range(7, 3 * NUMBERS + 7, 3)), vector()
    size = ctypes.c_size_t(ctypes.sizeof(vector))
    places = [ctypes.c_uint64() for _ in range(3)]
    for place in places:
        cuda("cuMemAlloc_v2", ctypes.byref(place), size)
    for number, values in enumerate((left, right, found)):
        cuda("cuMemcpyHtoD_v2", places[number], values, size)
    taken = [*places, ctypes.c_uint32(NUMBERS)]
    pointers = (ctypes.c_void_p * len(taken))(*(ctypes.addressof(one) for one in taken))
    cuda("cuLaunchKernel", function, NUMBERS // THREADS, 1, 1, THREADS, 1, 1, 0, None, pointers, None)
    cuda("cuCtxSynchronize")
    cuda("cuMemcpyDtoH_v2", found, places[2], size)
    return all(one == 4 * number + 7 for number, one in enumerate(found))


def look(cuda: Cuda, number: int, wanted: list[str]) -> dict[str, object]:
    """One device."""
    said: dict[str, object] = {"uuid": "", "name": "", "capability": None, "call": "", "code": 0, "right": None}
    try:
        device = cuda.number("cuDeviceGet", number)
        name, sixteen = ctypes.create_string_buffer(100), ctypes.create_string_buffer(16)
        cuda("cuDeviceGetName", name, 100, device)
        cuda("cuDeviceGetUuid", sixteen, device)
        said["name"], said["uuid"] = name.value.decode(errors="replace"), f"GPU-{uuid.UUID(bytes=sixteen.raw)}"
        capability = [cuda.number("cuDeviceGetAttribute", attribute, device) for attribute in (MAJOR, MINOR)]
        said["capability"] = capability
        if "--all" in wanted or said["uuid"] in wanted:
            said["right"] = add(cuda, device, (capability[0], capability[1]))
    except Failed as failed:
        said["call"], said["code"] = failed.call, failed.code
    return said


def main(wanted: list[str]) -> dict[str, object]:
    said: dict[str, object] = {"call": "", "code": 0, "version": None, "gpus": []}
    try:
        cuda = Cuda()
        cuda("cuInit", 0)
        said["version"] = cuda.number("cuDriverGetVersion")
        said["gpus"] = [look(cuda, number, wanted) for number in range(cuda.number("cuDeviceGetCount"))]
    except Failed as failed:
        said["call"], said["code"] = failed.call, failed.code
    return said


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:])) + "\n")
