/* Stands in for libcuda.so.1, the driver. */
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NO_DEVICE = 100, UNKNOWN = 999 };

static int fault(const char *name) {
    const char *text = getenv("CUDA_STAND_IN_FAULT");
    return text && !strcmp(text, name);
}

int cuDriverGetVersion(int *version) {
    *version = fault("old-driver") ? 12040 : 13000;
    return OK;
}

int cuInit(unsigned flags) { return fault("no-device") ? NO_DEVICE : fault("driver-fails") ? UNKNOWN : OK; }

int cuDeviceGetCount(int *count) {
    *count = !fault("none-counted");
    return OK;
}

int cuDeviceGet(int *device, int ordinal) { return *device = 0; }

int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, "stand-in", length);
    return OK;
}

int cuGetErrorName(int code, const char **name) {
    *name = code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_UNKNOWN";
    return OK;
}
