/* Stands in for libcudart.so: device memory is memory of the host, and a kernel does nothing.
 *
 * As on a GPU, what is copied to the device or cleared there by calls without a stream is done when the default stream
 * is waited for, and not before; a read or write beyond an allocation is an error; an error stays the last one until it
 * is asked for. No header of CUDA is needed: of its structures only the offsets below are used (CUDA 13).
 * All that onnxruntime wants and is not here is generated, to return 0.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_PITCH = 12, NO_DEVICE = 100 };
enum { VERSION = 13000, TO_HOST = 2, DEVICE_MEMORY = 2 };
enum { MULTIPROCESSORS = 16, THREADS_PER_BLOCK = 1024, THREADS_PER_MULTIPROCESSOR = 1536, REGISTERS = 65536, WARP = 32 };
enum { SHARED_BYTES = 49152, SHARED_BYTES_OPT_IN = 101376, SHARED_BYTES_PER_MULTIPROCESSOR = 102400 };

struct allocation {
    struct allocation *next;
    size_t size;
    char *bytes;
};

struct pending { /* height rows of width bytes, staged; source NULL: zeros */
    struct pending *next;
    char *target, *source;
    size_t pitch, width, height;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct allocation *allocations;
static struct pending *first_pending, **last_pending = &first_pending;
static size_t used;
static __thread int last_error;

static int setting(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static size_t total_memory(void) {
    const char *text = getenv("CUDA_STAND_IN_MEMORY");
    return text ? strtoull(text, NULL, 10) : (size_t)8 << 30;
}

static int result(int code) {
    if (code) last_error = code;
    return code;
}

static int fault(const char *name) {
    const char *text = getenv("CUDA_STAND_IN_FAULT");
    return text && !strcmp(text, name);
}

int cudaGetLastError(void) {
    int code = last_error;
    last_error = OK;
    return code;
}

int cudaPeekAtLastError(void) { return last_error; }

const char *cudaGetErrorName(int code) { return code == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : "cudaError"; }

const char *cudaGetErrorString(int code) {
    return code == OUT_OF_MEMORY ? "out of memory"
           : code == INVALID_VALUE ? "invalid argument"
           : code == INVALID_PITCH ? "invalid pitch argument"
           : code == NO_DEVICE ? "no CUDA-capable device is detected" : "error of the stand-in";
}

/* Devices */

int cudaGetDevice(int *device) { return *device = 0; }

int cudaGetDeviceCount(int *count) {
    *count = !fault("no-device");
    return result(*count ? OK : NO_DEVICE);
}

int cudaDriverGetVersion(int *version) {
    *version = fault("old-driver") ? 12040 : VERSION;
    return OK;
}

int cudaRuntimeGetVersion(int *version) {
    *version = VERSION;
    return OK;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    int capability = setting("CUDA_STAND_IN_CAPABILITY", 80);
    switch (attribute) {
        case 1: *value = THREADS_PER_BLOCK; break;
        case 5: *value = INT32_MAX; break; /* grid, x */
        case 6: case 7: *value = 65535; break;
        case 8: *value = SHARED_BYTES; break;
        case 10: *value = WARP; break;
        case 12: case 82: *value = REGISTERS; break; /* per block, per multiprocessor */
        case 16: *value = MULTIPROCESSORS; break;
        case 39: *value = THREADS_PER_MULTIPROCESSOR; break;
        case 41: *value = 1; break; /* one address space with the host */
        case 75: *value = capability / 10; break;
        case 76: *value = capability % 10; break;
        case 81: *value = SHARED_BYTES_PER_MULTIPROCESSOR; break;
        case 97: *value = SHARED_BYTES_OPT_IN; break;
        case 106: *value = 16; break; /* blocks per multiprocessor */
        default: *value = 0;
    }
    return OK;
}

static void put(void *structure, size_t offset, int value) {
    memcpy((char *)structure + offset, &value, sizeof value);
}

static void put_size(void *structure, size_t offset, size_t value) {
    memcpy((char *)structure + offset, &value, sizeof value);
}

int cudaGetDeviceProperties(void *properties, int device) { /* struct cudaDeviceProp */
    int capability = setting("CUDA_STAND_IN_CAPABILITY", 80);
    memset(properties, 0, 1008);
    strcpy(properties, "stand-in"); /* name */
    put_size(properties, 288, total_memory());
    put_size(properties, 296, SHARED_BYTES);
    put(properties, 304, REGISTERS);
    put(properties, 308, WARP);
    put(properties, 320, THREADS_PER_BLOCK);
    put(properties, 324, THREADS_PER_BLOCK); /* maxThreadsDim */
    put(properties, 328, THREADS_PER_BLOCK);
    put(properties, 332, 64);
    put(properties, 336, INT32_MAX); /* maxGridSize */
    put(properties, 340, 65535);
    put(properties, 344, 65535);
    put(properties, 360, capability / 10);
    put(properties, 364, capability % 10);
    put(properties, 384, MULTIPROCESSORS);
    put(properties, 604, THREADS_PER_MULTIPROCESSOR);
    put_size(properties, 624, SHARED_BYTES_PER_MULTIPROCESSOR);
    put(properties, 632, REGISTERS);
    put_size(properties, 672, SHARED_BYTES_OPT_IN);
    put(properties, 688, 16); /* maxBlocksPerMultiProcessor */
    return OK;
}

int cudaFuncGetAttributes(void *attributes, const void *function) { /* struct cudaFuncAttributes */
    int capability = setting("CUDA_STAND_IN_CAPABILITY", 80);
    memset(attributes, 0, 144);
    put(attributes, 24, THREADS_PER_BLOCK);
    int built_for = capability / 10 == 8 ? 80 : capability; /* onnxruntime has no code for 8.7 of its own */
    put(attributes, 32, built_for); /* ptxVersion, binaryVersion */
    put(attributes, 36, built_for);
    return OK;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                           size_t shared, unsigned flags) {
    *blocks = 1;
    return OK;
}

/* Memory */

static struct allocation *allocation_of(const void *address, size_t size) {
    for (struct allocation *one = allocations; one; one = one->next)
        if ((const char *)address >= one->bytes && (const char *)address < one->bytes + one->size)
            return (const char *)address + size <= one->bytes + one->size ? one : NULL;
    return NULL;
}

static int on_device(const void *address) { return allocation_of(address, 0) != NULL; }

int cudaMalloc(void **address, size_t size) {
    pthread_mutex_lock(&lock);
    struct allocation *one = NULL;
    if (used + size <= total_memory()) {
        one = malloc(sizeof *one);
        one->size = size;
        one->bytes = aligned_alloc(256, (size + 256) / 256 * 256);
        memset(one->bytes, 0, size); /* what kernels leave unwritten is the same in every run */
        one->next = allocations;
        allocations = one;
        used += size;
        *address = one->bytes;
    }
    pthread_mutex_unlock(&lock);
    return result(one ? OK : OUT_OF_MEMORY);
}

static void complete(void) { /* with the lock held */
    while (first_pending) {
        struct pending *one = first_pending;
        for (size_t row = 0; row < one->height; row++) {
            char *target = one->target + row * one->pitch;
            if (one->source) memcpy(target, one->source + row * one->width, one->width);
            else memset(target, 0, one->width);
        }
        first_pending = one->next;
        free(one->source);
        free(one);
    }
    last_pending = &first_pending;
}

int cudaFree(void *address) {
    int code = address ? INVALID_VALUE : OK;
    pthread_mutex_lock(&lock);
    complete();
    for (struct allocation **one = &allocations; *one; one = &(*one)->next)
        if ((*one)->bytes == address) {
            struct allocation *gone = *one;
            *one = gone->next;
            used -= gone->size;
            free(gone->bytes);
            free(gone);
            code = OK;
            break;
        }
    pthread_mutex_unlock(&lock);
    return result(code);
}

int cudaFreeAsync(void *address, void *stream) { return cudaFree(address); }

int cudaMallocFromPoolAsync(void **address, size_t size, void *pool, void *stream) { return cudaMalloc(address, size); }

int cudaMallocHost(void **address, size_t size) {
    *address = calloc(size + 1, 1);
    return OK;
}

int cudaHostAlloc(void **address, size_t size, unsigned flags) { return cudaMallocHost(address, size); }

int cudaFreeHost(void *address) {
    free(address);
    return OK;
}

int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    pthread_mutex_lock(&lock);
    *total = total_memory();
    *free_bytes = *total - used;
    pthread_mutex_unlock(&lock);
    return OK;
}

int cudaPointerGetAttributes(void *attributes, const void *address) { /* struct cudaPointerAttributes */
    memset(attributes, 0, 88);
    pthread_mutex_lock(&lock);
    put(attributes, 0, on_device(address) ? DEVICE_MEMORY : 0);
    pthread_mutex_unlock(&lock);
    return OK;
}

static int inside(const void *address, size_t size) { /* of its allocation, where it is the device's */
    return !on_device(address) || allocation_of(address, size);
}

/* Where a kernel should have counted, such as the places that a Compress keeps, stands what an earlier tensor left there:
   fewer than none is read as none. */
static void read_count(void *target, size_t size) {
    if ((size == 4 || size == 8) && !on_device(target) && ((signed char *)target)[size - 1] < 0) memset(target, 0, size);
}

/* A copy to the host is complete at once, after all before it; any other when the default stream is waited for. */
static int transfer(char *target, size_t target_pitch, const char *source, size_t source_pitch, size_t width,
                    size_t height) {
    if (!width || !height) return OK;
    if (!inside(target, (height - 1) * target_pitch + width)) return INVALID_VALUE;
    if (source && !inside(source, (height - 1) * source_pitch + width)) return INVALID_VALUE;
    int reads_device = source && on_device(source);
    if (reads_device) complete(); /* in the order of the stream */
    struct pending *one = calloc(1, sizeof *one);
    *one = (struct pending){.target = target, .pitch = target_pitch, .width = width, .height = height};
    if (source) {
        one->source = malloc(width * height);
        for (size_t row = 0; row < height; row++)
            memcpy(one->source + row * width, source + row * source_pitch, width);
    }
    *last_pending = one;
    last_pending = &one->next;
    if (!on_device(target)) complete();
    if (reads_device && height == 1) read_count(target, width);
    return OK;
}

int cudaMemcpy2D(void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width,
                 size_t height, int kind) {
    if (width > target_pitch || width > source_pitch || target_pitch > INT32_MAX || source_pitch > INT32_MAX)
        return result(INVALID_PITCH);
    pthread_mutex_lock(&lock);
    int code = transfer(target, target_pitch, source, source_pitch, width, height);
    pthread_mutex_unlock(&lock);
    return result(code);
}

int cudaMemcpy(void *target, const void *source, size_t size, int kind) {
    pthread_mutex_lock(&lock);
    int code = transfer(target, size, source, size, size, 1);
    pthread_mutex_unlock(&lock);
    return result(code);
}

int cudaMemset(void *target, int value, size_t size) {
    if (value) return result(INVALID_VALUE); /* nobody here writes anything but zeros */
    pthread_mutex_lock(&lock);
    int code = transfer(target, size, NULL, 0, size, 1);
    pthread_mutex_unlock(&lock);
    return result(code);
}

int cudaStreamSynchronize(void *stream) {
    pthread_mutex_lock(&lock);
    if (!stream) complete();
    pthread_mutex_unlock(&lock);
    return OK;
}

int cudaDeviceSynchronize(void) { return cudaStreamSynchronize(NULL); }

/* Streams of their own do everything at once, and do not wait for the default stream. */

int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
    if (!stream) return cudaMemcpy(target, source, size, kind);
    pthread_mutex_lock(&lock);
    int fits = inside(target, size) && inside(source, size);
    if (fits) memmove(target, source, size);
    if (fits && on_device(source)) read_count(target, size);
    pthread_mutex_unlock(&lock);
    return result(fits ? OK : INVALID_VALUE);
}

int cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width,
                      size_t height, int kind, void *stream) {
    for (size_t row = 0; row < height; row++) {
        char *to = (char *)target + row * target_pitch;
        int code = cudaMemcpyAsync(to, (const char *)source + row * source_pitch, width, kind, stream);
        if (code) return code;
    }
    return OK;
}

int cudaMemsetAsync(void *target, int value, size_t size, void *stream) {
    pthread_mutex_lock(&lock);
    int fits = inside(target, size);
    pthread_mutex_unlock(&lock);
    if (fits) memset(target, value, size);
    return result(fits ? OK : INVALID_VALUE);
}

/* Handles: addresses that mean nothing */

static int handle(void **handle) {
    *handle = malloc(64);
    return OK;
}

int cudaStreamCreate(void **stream) { return handle(stream); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return handle(stream); }
int cudaEventCreate(void **event) { return handle(event); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return handle(event); }
int cudaMemPoolCreate(void **pool, const void *properties) { return handle(pool); }

int cudaStreamIsCapturing(void *stream, int *status) { return *status = 0; }

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[1];
    return handle;
}
