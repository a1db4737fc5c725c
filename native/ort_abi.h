// What this library uses of ONNX Runtime's C ABI (onnxruntime_c_api.h), so that building needs no headers of its.
//
// The ABI is append-only: `OrtApi` is a table of functions with frozen positions, and `OrtCustomOp` only ever grows at
// its end. Positions are those of API version 24, the first with GetTensorElementTypeAndShapeDataReference; operators
// are of version 17.
#ifndef EDGEBLT_ORT_ABI_H
#define EDGEBLT_ORT_ABI_H

#include <cstddef>
#include <cstdint>

namespace edgeblt::ort {

constexpr uint32_t kApiVersion = 24, kOperatorVersion = 17;

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct Value;
struct KernelInfo;
struct KernelContext;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kAny = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kBool = 9, kFloat16 = 10 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
// Where a kernel wants an input: in the CPU's memory, or its execution provider's own.
enum Memory : int { kCpuMemory = -2, kOwnMemory = 0 };

// The table of functions: `functions` is indexed by position.
struct Api {
  void* functions[415];

  template <typename Function>
  Function at(int position) const {
    return reinterpret_cast<Function>(functions[position]);
  }

  Status* create_status(ErrorCode code, const char* message) const {
    return at<Status* (*)(int, const char*)>(0)(code, message);
  }
  void release_status(Status* status) const { at<void (*)(Status*)>(93)(status); }
  Status* create_domain(const char* name, CustomOpDomain** domain) const {
    return at<Status* (*)(const char*, CustomOpDomain**)>(26)(name, domain);
  }
  Status* add_op(CustomOpDomain* domain, const struct CustomOp* op) const {
    return at<Status* (*)(CustomOpDomain*, const CustomOp*)>(27)(domain, op);
  }
  Status* add_domain(SessionOptions* options, CustomOpDomain* domain) const {
    return at<Status* (*)(SessionOptions*, CustomOpDomain*)>(28)(options, domain);
  }
  Status* tensor_data(Value* value, void** data) const { return at<Status* (*)(Value*, void**)>(51)(value, data); }
  Status* float_attribute(const KernelInfo* info, const char* name, float* value) const {
    return at<Status* (*)(const KernelInfo*, const char*, float*)>(85)(info, name, value);
  }
  Status* int_attribute(const KernelInfo* info, const char* name, int64_t* value) const {
    return at<Status* (*)(const KernelInfo*, const char*, int64_t*)>(86)(info, name, value);
  }
  Status* input_count(const KernelContext* context, size_t* count) const {
    return at<Status* (*)(const KernelContext*, size_t*)>(88)(context, count);
  }
  Status* input(const KernelContext* context, size_t index, const Value** value) const {
    return at<Status* (*)(const KernelContext*, size_t, const Value**)>(90)(context, index, value);
  }
  Status* output(KernelContext* context, size_t index, const int64_t* shape, size_t rank, Value** value) const {
    using Function = Status* (*)(KernelContext*, size_t, const int64_t*, size_t, Value**);
    return at<Function>(91)(context, index, shape, rank, value);
  }
  // The cudaStream_t that a kernel of the CUDA execution provider works in.
  Status* compute_stream(const KernelContext* context, void** stream) const {
    return at<Status* (*)(const KernelContext*, void**)>(193)(context, stream);
  }
  Status* node_input_count(const KernelInfo* info, size_t* count) const {
    return at<Status* (*)(const KernelInfo*, size_t*)>(230)(info, count);
  }
  Status* constant_input(const KernelInfo* info, size_t index, int* is_constant, const Value** value) const {
    return at<Status* (*)(const KernelInfo*, size_t, int*, const Value**)>(249)(info, index, is_constant, value);
  }
  // Runs `function(data, 0)` to `function(data, total - 1)` on the session's threads, in `batches` portions.
  Status* parallel_for(
      const KernelContext* context, void (*function)(void*, size_t), size_t total, size_t batches, void* data) const {
    using Function = Status* (*)(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*);
    return at<Function>(274)(context, function, total, batches, data);
  }
  // `sizes` stays the value's own.
  Status* type_and_shape(const Value* value, ElementType* type, const int64_t** sizes, size_t* rank) const {
    return at<Status* (*)(const Value*, ElementType*, const int64_t**, size_t*)>(414)(value, type, sizes, rank);
  }
};

struct ApiBase {
  const Api* (*get_api)(uint32_t version);  // null where the version is newer than the runtime
  const char* (*version_string)();
};

// A custom operator. ONNX Runtime keeps the pointer: objects must live as long as the library.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy_kernel)(void*);
  Characteristic (*input_characteristic)(const CustomOp*, size_t);
  Characteristic (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_minimum)(const CustomOp*);
  int (*variadic_input_homogeneous)(const CustomOp*);
  int (*variadic_output_minimum)(const CustomOp*);
  int (*variadic_output_homogeneous)(const CustomOp*);
  Status* (*create_kernel_with_status)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute_with_status)(void* kernel, KernelContext*);
  Status* (*infer_shapes)(const CustomOp*, void*);
  int (*first_version)(const CustomOp*);
  int (*last_version)(const CustomOp*);
  // Of later versions, and left null.
  void* later[8];
};

}  // namespace edgeblt::ort

#endif
