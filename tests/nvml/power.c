/* What a program that limits power needs of libnvidia-ml. Each card is a folder of files, <place>/<index>/, with the
   numbers in milliwatts; the place is $FAKE_POWER, else /var/lib/fake-power.

   uuid name bus     what it is
   min max default   what it can do; a file that is missing is NOT_SUPPORTED
   now               its limit; another driver, which has forgotten, is a copy of default
   stubborn          takes a limit and keeps its own;  fixed: refuses every one;  lost: can't be asked
   broken            (in the place itself) the driver and the library disagree */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, LOST = 15, MISMATCH = 18 };

static const char *path(int index, const char *name) {
    static char buffer[512];
    const char *place = getenv("FAKE_POWER") ? getenv("FAKE_POWER") : "/var/lib/fake-power";
    if (index < 0)
        snprintf(buffer, sizeof buffer, "%s/%s", place, name);
    else
        snprintf(buffer, sizeof buffer, "%s/%d/%s", place, index, name);
    return buffer;
}

static int has(int index, const char *name) { return access(path(index, name), F_OK) == 0; }

static int text(int index, const char *name, char *into, unsigned length) {
    FILE *file = fopen(path(index, name), "re");
    if (!file)
        return NOT_SUPPORTED;
    if (!fgets(into, (int)length, file))
        into[0] = 0;
    into[strcspn(into, "\n")] = 0;
    fclose(file);
    return SUCCESS;
}

static int number(int index, const char *name, unsigned *into) {
    char line[32];
    int code = text(index, name, line, sizeof line);
    if (code == SUCCESS)
        *into = (unsigned)strtoul(line, NULL, 10);
    return code;
}

static int of(void *handle) { return (int)(long)handle - 1; }

int nvmlInit_v2(void) { return has(-1, "broken") ? MISMATCH : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) {
    return code == MISMATCH ? "Driver/library version mismatch" : code == LOST ? "GPU is lost" : code == INVALID ? "Invalid Argument" : "Not Supported";
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    for (*count = 0; has((int)*count, "uuid"); ++*count)
        ;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (has((int)index, "lost"))
        return LOST;
    *handle = (void *)(long)(index + 1);
    return SUCCESS;
}

struct pci { char legacy[16]; unsigned domain, bus, device, ids, subsystem; char bus_id[32]; };

int nvmlDeviceGetPciInfo_v3(void *handle, struct pci *pci) {
    memset(pci, 0, sizeof *pci);
    return number(of(handle), "bus", &pci->bus);
}

int nvmlDeviceGetUUID(void *handle, char *into, unsigned length) { return text(of(handle), "uuid", into, length); }
int nvmlDeviceGetName(void *handle, char *into, unsigned length) { return text(of(handle), "name", into, length); }

int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned *least, unsigned *most) {
    int code = number(of(handle), "min", least);
    return code == SUCCESS ? number(of(handle), "max", most) : code;
}

int nvmlDeviceGetPowerManagementDefaultLimit(void *handle, unsigned *limit) { return number(of(handle), "default", limit); }
int nvmlDeviceGetPowerManagementLimit(void *handle, unsigned *limit) { return number(of(handle), "now", limit); }
int nvmlDeviceGetPersistenceMode(void *handle, unsigned *mode) {
    *mode = !has(of(handle), "forgetful");
    return SUCCESS;
}

int nvmlDeviceSetPowerManagementLimit(void *handle, unsigned limit) {
    unsigned least, most;
    int code = nvmlDeviceGetPowerManagementLimitConstraints(handle, &least, &most);
    if (code != SUCCESS || has(of(handle), "fixed"))
        return NOT_SUPPORTED;
    if (limit < least || limit > most)
        return INVALID;
    if (has(of(handle), "stubborn"))
        return SUCCESS;
    FILE *file = fopen(path(of(handle), "now"), "we");
    fprintf(file, "%u\n", limit);
    fclose(file);
    return SUCCESS;
}
