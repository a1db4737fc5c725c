// What the operators share: inputs and outputs with their shapes, the session's threads, errors as ONNX Runtime's
// status.
#ifndef EDGEBLT_OPERATOR_H
#define EDGEBLT_OPERATOR_H

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace edgeblt {

using Shape = std::vector<int64_t>;

// One line on what is wrong; becomes the status that the session reports.
struct OperatorError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Tensor {
  const void* data = nullptr;  // null: the optional input is absent
  ort::ElementType type = ort::kAny;
  Shape shape;

  int64_t count() const;
  explicit operator bool() const { return data != nullptr; }
};

// One run of an operator.
class Call {
 public:
  Call(const ort::Api& api, ort::KernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) const;
  template <typename T>
  T* output(size_t index, const Shape& shape) const {
    return static_cast<T*>(output_data(index, shape));
  }
  // task(0) to task(count - 1), on the session's threads where there are several; tasks must not throw.
  void parallel(size_t count, const std::function<void(size_t)>& task) const;

 private:
  void* output_data(size_t index, const Shape& shape) const;

  const ort::Api& api_;
  ort::KernelContext* context_;
};

// What is known of a node when its session opens.
class Node {
 public:
  Node(const ort::Api& api, const ort::KernelInfo* info) : api_(api), info_(info) {}

  int64_t attribute(const char* name) const;
  float float_attribute(const char* name) const;
  // An input that is an initializer; data is null for any other, and for one that is absent.
  Tensor constant(size_t index) const;

 private:
  const ort::Api& api_;
  const ort::KernelInfo* info_;
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) = 0;
};

struct Operator : ort::CustomOp {
  Operator(const char* name, int number, std::vector<ort::ElementType> inputs, size_t required,
           std::vector<ort::ElementType> outputs, Kernel* (*create)(const Node&));

  const char* op_name;
  int number;  // in edgeblt_runs
  std::vector<ort::ElementType> inputs;
  size_t required;  // of the inputs; the others are optional
  std::vector<ort::ElementType> outputs;
  Kernel* (*create)(const Node&);
};

// "2 x 3" for messages.
std::string describe(const Shape& shape);

// Raises OperatorError unless `tensor` has this type and shape (-1: any size), naming the input.
void require(const Tensor& tensor, const char* name, ort::ElementType type, const Shape& shape);

const Operator& entropy_patch_operator();
const Operator& dense_matmul_operator();
const Operator& sparse_matmul_operator();
const Operator& masked_matmul_operator();
const Operator& window_attention_operator();

}  // namespace edgeblt

#endif
