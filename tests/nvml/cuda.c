/* A libcuda.so.1 without hardware, for runner/box/checks/adder.py: what that calls, and no more.

   FAKE_CUDA is a list of words: `count=2`, `version=13000`, `capability=86`, `wrong` (sums are off by one), and
   `cuInit=999` or the like, which is the code that a call returns; `hang` in place of a code does not return,
   `crash` ends the process. Card N has the UUID of the fake libnvidia-ml's card N (tests/fake_nvml.py). */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *word(const char *name) {
    static char text[64];
    const char *at = getenv("FAKE_CUDA");
    size_t length = strlen(name);
    for (; at && *at; at = strchr(at, ' ') ? strchr(at, ' ') + 1 : NULL)
        if (!strncmp(at, name, length) && (at[length] == '=' || at[length] == ' ' || !at[length])) {
            snprintf(text, sizeof text, "%s", at[length] == '=' ? at + length + 1 : "");
            return text;
        }
    return NULL;
}

static int number(const char *name, int otherwise) {
    const char *said = word(name);
    return said ? atoi(said) : otherwise;
}

static int code(const char *call) {
    const char *said = word(call);
    if (said && !strncmp(said, "hang", 4))
        for (;;)
            pause();
    if (said && !strncmp(said, "crash", 5))
        abort();
    return said ? atoi(said) : 0;
}

#define CALL(name, ...)                                                                                                \
    int name(__VA_ARGS__);                                                                                             \
    int name(__VA_ARGS__)
#define RETURN return code(__func__)

CALL(cuInit, unsigned flags) { (void)flags; RETURN; }
CALL(cuDriverGetVersion, int *version) { *version = number("version", 13000); RETURN; }
CALL(cuDeviceGetCount, int *count) { *count = number("count", 1); RETURN; }
CALL(cuDeviceGet, int *device, int index) { *device = index; RETURN; }
CALL(cuDeviceGetName, char *name, int size, int device) { snprintf(name, (size_t)size, "Fake GPU %d", device); RETURN; }

CALL(cuDeviceGetUuid, unsigned char *uuid, int device) {
    unsigned one = (unsigned)device + 1;
    memset(uuid, 0, 16);
    memset(uuid, (int)(one * 0x11), 4); /* 11111111-0000-4000-8000-000000000001 */
    uuid[6] = 0x40;
    uuid[8] = 0x80;
    uuid[15] = (unsigned char)one;
    RETURN;
}

CALL(cuDeviceGetAttribute, int *value, int attribute, int device) {
    (void)device;
    int capability = number("capability", 86);
    *value = attribute == 75 ? capability / 10 : capability % 10;
    RETURN;
}

CALL(cuDevicePrimaryCtxRetain, void **context, int device) { (void)device; *context = context; RETURN; }
CALL(cuCtxSetCurrent, void *context) { (void)context; RETURN; }

CALL(cuModuleLoadData, void **module, const char *text) {
    *module = module;
    if (!strstr(text, number("capability", 86) >= 75 ? ".target sm_75" : ".target sm_30"))
        return 209;
    RETURN;
}

CALL(cuModuleGetFunction, void **function, void *module, const char *name) {
    (void)module;
    *function = function;
    if (strcmp(name, "add"))
        return 500;
    RETURN;
}

CALL(cuMemAlloc_v2, uint64_t *place, size_t size) { *place = (uint64_t)(uintptr_t)calloc(1, size); RETURN; }
CALL(cuMemcpyHtoD_v2, uint64_t to, const void *from, size_t size) { memcpy((void *)(uintptr_t)to, from, size); RETURN; }
CALL(cuMemcpyDtoH_v2, void *to, uint64_t from, size_t size) { memcpy(to, (void *)(uintptr_t)from, size); RETURN; }
CALL(cuCtxSynchronize, void) { RETURN; }

CALL(cuLaunchKernel, void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
     unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **arguments, void **extra) {
    (void)function, (void)grid_y, (void)grid_z, (void)block_y, (void)block_z, (void)shared, (void)stream, (void)extra;
    uint32_t *places[3], count = *(uint32_t *)arguments[3];
    for (int which = 0; which < 3; which++)
        places[which] = (uint32_t *)(uintptr_t) * (uint64_t *)arguments[which];
    for (uint32_t index = 0; index < count && index < grid_x * block_x; index++)
        places[2][index] = places[0][index] + places[1][index] + (word("wrong") != NULL);
    RETURN;
}
