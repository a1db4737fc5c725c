// What libedgeblt exports. Everything else in the library is hidden.
#ifndef EDGEBLT_H
#define EDGEBLT_H

#include <stddef.h>

#define EDGEBLT_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// The package version the library was built from, e.g. "0.1.0"; a static string.
EDGEBLT_API const char* edgeblt_version(void);

// Instruction levels: 0 scalar, 1 AVX2, 2 AVX-512 with VNNI and VBMI2, 3 NEON with dot products.
// The one in use in this process; whether another can be; and the switch to it, 0 where it cannot.
EDGEBLT_API int edgeblt_level(void);
EDGEBLT_API int edgeblt_level_available(int level);
EDGEBLT_API int edgeblt_use_level(int level);

// How many times kernels of this library have run in this process, by operator: 0 EntropyPatch, 1 DenseMatMul,
// 2 SparseMatMul, 3 MaskedMatMul, 4 WindowAttention. What tells a kernel at work from a portable body.
EDGEBLT_API unsigned long long edgeblt_runs(int op);

// The sum of `count` bytes as little-endian words of 64 bits, modulo 2 ** 64: a read of memory to be timed.
EDGEBLT_API unsigned long long edgeblt_read_memory(const void* bytes, size_t count);

// Null where everything was registered, else one line on why the last RegisterCustomOps did not.
EDGEBLT_API const char* edgeblt_registration_error(void);

// Called by SessionOptions.register_custom_ops_library; opaque types are ONNX Runtime's.
struct OrtSessionOptions;
struct OrtApiBase;
struct OrtStatus;
EDGEBLT_API struct OrtStatus* RegisterCustomOps(struct OrtSessionOptions* options, const struct OrtApiBase* base);

#ifdef __cplusplus
}
#endif

#endif
