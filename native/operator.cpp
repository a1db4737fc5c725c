#include "operator.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <exception>
#include <new>

#include "edgeblt.h"

namespace edgeblt {
namespace {

constexpr int kOperators = 14;
std::atomic<unsigned long long> runs[kOperators];

// ONNX Runtime's errors carry a status that we pass on as it is.
struct StatusError {
  ort::Status* status;
};

void check(ort::Status* status) {
  if (status) throw StatusError{status};
}

// Takes no memory: there may be none.
ort::Status* failure(const ort::Api& api, const char* name, const char* reason) noexcept {
  char message[1024];
  std::snprintf(message, sizeof message, "edgeblt::%s: %s", name, reason);
  return api.create_status(ort::kInvalidArgument, message);
}

template <typename Function>
ort::Status* guarded(const ort::Api& api, const char* name, Function function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const StatusError& error) {
    return error.status;
  } catch (const std::bad_alloc&) {
    return failure(api, name, "there is not enough memory; feed less at once, or close other programs");
  } catch (const std::length_error&) {  // a buffer of more bytes than there can be
    return failure(api, name, "there is not enough memory; feed less at once, or close other programs");
  } catch (const std::exception& error) {
    return failure(api, name, error.what());
  } catch (...) {
    return failure(api, name, "it failed and does not say why");
  }
}

alignas(64) char nothing[64];  // an empty tensor may have no address

Tensor read_tensor(const ort::Api& api, const ort::Value* value) {
  Tensor tensor;
  if (!value) return tensor;
  const int64_t* sizes = nullptr;
  size_t rank = 0;
  check(api.type_and_shape(value, &tensor.type, &sizes, &rank));
  tensor.shape.resize(rank);
  std::copy(sizes, sizes + rank, tensor.shape.data());
  void* data = nullptr;
  check(api.tensor_data(const_cast<ort::Value*>(value), &data));
  tensor.data = data ? data : nothing;
  return tensor;
}

// A kernel with what it needs to run.
struct Instance {
  const ort::Api* api;
  const Operator* op;
  Kernel* kernel;
};

ort::Status* create(const ort::CustomOp* base, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
  const auto* op = static_cast<const Operator*>(base);
  return guarded(*api, op->op_name, [&] { *kernel = new Instance{api, op, op->create(Node(*api, info))}; });
}

ort::Status* compute(void* kernel, ort::KernelContext* context) {
  const auto* instance = static_cast<Instance*>(kernel);
  return guarded(*instance->api, instance->op->op_name, [&] {
    instance->kernel->compute(Call(*instance->api, context));
    if (instance->op->number >= 0) runs[instance->op->number].fetch_add(1, std::memory_order_relaxed);
  });
}

void destroy(void* kernel) {
  const auto* instance = static_cast<Instance*>(kernel);
  delete instance->kernel;
  delete instance;
}

const Operator& self(const ort::CustomOp* op) { return *static_cast<const Operator*>(op); }

}  // namespace

Operator::Operator(
    const char* op_name, int number, std::vector<ort::ElementType> inputs, size_t required,
    std::vector<ort::ElementType> outputs, Kernel* (*create)(const Node&))
    : ort::CustomOp{}, op_name(op_name), number(number), inputs(std::move(inputs)), required(required),
      outputs(std::move(outputs)), create(create) {
  version = ort::kOperatorVersion;
  name = [](const ort::CustomOp* op) { return self(op).op_name; };
  provider = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU
  input_type = [](const ort::CustomOp* op, size_t index) { return self(op).inputs[index]; };
  input_count = [](const ort::CustomOp* op) { return self(op).inputs.size(); };
  output_type = [](const ort::CustomOp* op, size_t index) { return self(op).outputs[index]; };
  output_count = [](const ort::CustomOp* op) { return self(op).outputs.size(); };
  destroy_kernel = destroy;
  input_characteristic = [](const ort::CustomOp* op, size_t index) {
    return index < self(op).required ? ort::kRequired : ort::kOptional;
  };
  output_characteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  input_memory = [](const ort::CustomOp*, size_t) -> int { return ort::kOwnMemory; };
  variadic_input_minimum = [](const ort::CustomOp*) { return 1; };
  variadic_input_homogeneous = [](const ort::CustomOp*) { return 1; };
  variadic_output_minimum = [](const ort::CustomOp*) { return 1; };
  variadic_output_homogeneous = [](const ort::CustomOp*) { return 1; };
  first_version = [](const ort::CustomOp*) { return 1; };
  last_version = [](const ort::CustomOp*) { return 1; };
  create_kernel_with_status = edgeblt::create;
  compute_with_status = edgeblt::compute;
}

int64_t Tensor::count() const {
  for (const int64_t size : shape) {
    if (size == 0) return 0;
  }
  int64_t product = 1;
  for (const int64_t size : shape) product = product_of({product, size});
  return product;
}

Call::Call(const ort::Api& api, ort::KernelContext* context) : api_(api), context_(context) {
  check(api_.input_count(context_, &inputs_));
}

Tensor Call::input(size_t index) const {
  if (index >= inputs_) return {};
  const ort::Value* value = nullptr;
  check(api_.input(context_, index, &value));
  return read_tensor(api_, value);
}

void* Call::output_data(size_t index, const Shape& shape) const {
  ort::Value* value = nullptr;
  check(api_.output(context_, index, shape.data(), shape.size(), &value));
  if (!value) throw OperatorError("output " + std::to_string(index) + " is not used; export the model again");
  void* data = nullptr;
  check(api_.tensor_data(value, &data));
  return data ? data : nothing;
}

void* Call::stream() const {
  void* stream = nullptr;
  check(api_.compute_stream(context_, &stream));
  return stream;
}

void Call::run_parallel(size_t count, void (*task)(void*, size_t), void* data) const {
  check(api_.parallel_for(context_, task, count, count, data));
}

int64_t Node::attribute(const char* name, int64_t lowest, int64_t highest) const {
  int64_t value = 0;
  if (ort::Status* status = api_.int_attribute(info_, name, &value)) {
    api_.release_status(status);
    throw OperatorError(std::string(name) + " is missing, or no integer; export the model again");
  }
  if (value < lowest || value > highest) {
    throw OperatorError(std::string(name) + " is " + std::to_string(value) + ", not " + std::to_string(lowest) +
                        " to " + std::to_string(highest) + "; export the model again");
  }
  return value;
}

float Node::float_attribute(const char* name) const {
  float value = 0;
  if (ort::Status* status = api_.float_attribute(info_, name, &value)) {
    api_.release_status(status);
    throw OperatorError(std::string(name) + " is missing, or no float; export the model again");
  }
  if (!std::isfinite(value)) throw OperatorError(std::string(name) + " is not finite; export the model again");
  return value;
}

Tensor Node::constant(size_t index) const {
  size_t count = 0;
  check(api_.node_input_count(info_, &count));
  if (index >= count) return {};
  int is_constant = 0;
  const ort::Value* value = nullptr;
  check(api_.constant_input(info_, index, &is_constant, &value));
  return is_constant ? read_tensor(api_, value) : Tensor{};
}

std::string describe(const Shape& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : " x ") + (size < 0 ? "any" : std::to_string(size));
  return text.empty() ? "a scalar" : text;
}

void require(const Tensor& tensor, const char* name, ort::ElementType type, const Shape& shape) {
  if (!tensor) throw OperatorError(std::string(name) + " is missing");
  bool fits = tensor.type == type && tensor.shape.size() == shape.size();
  for (size_t axis = 0; fits && axis < shape.size(); ++axis) {
    fits = shape[axis] < 0 || tensor.shape[axis] == shape[axis];
  }
  if (fits) return;
  throw OperatorError(
      std::string(name) + " is " + describe(tensor.shape) + " of type " + std::to_string(tensor.type) + ", not " +
      describe(shape) + " of type " + std::to_string(type) + "; export the model again");
}

}  // namespace edgeblt

unsigned long long edgeblt_runs(int op) {
  return op >= 0 && op < edgeblt::kOperators ? edgeblt::runs[op].load(std::memory_order_relaxed) : 0;
}
