// What the operators share: inputs and outputs with their shapes, the session's threads, errors as ONNX Runtime's
// status.
#ifndef EDGEBLT_OPERATOR_H
#define EDGEBLT_OPERATOR_H

#include <atomic>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "checked.h"
#include "ort_abi.h"

namespace edgeblt {

// One line on what is wrong; becomes the status that the session reports.
struct OperatorError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Sizes of a tensor's dimensions, in place: every run reads several.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) {
    resize(sizes.size());
    size_t axis = 0;
    for (const int64_t size : sizes) sizes_[axis++] = size;
  }
  void resize(size_t rank) {
    if (rank > kMost) {
      throw OperatorError("a tensor has " + std::to_string(rank) + " dimensions; export the model again");
    }
    rank_ = rank;
  }
  size_t size() const { return rank_; }
  bool empty() const { return rank_ == 0; }
  int64_t* data() { return sizes_; }
  const int64_t* data() const { return sizes_; }
  const int64_t* begin() const { return sizes_; }
  const int64_t* end() const { return sizes_ + rank_; }
  int64_t operator[](size_t axis) const { return sizes_[axis]; }
  int64_t& back() { return sizes_[rank_ - 1]; }
  int64_t back() const { return sizes_[rank_ - 1]; }

 private:
  static constexpr size_t kMost = 8;
  size_t rank_ = 0;
  int64_t sizes_[kMost];
};

struct Tensor {
  const void* data = nullptr;  // null: the optional input is absent
  ort::ElementType type = ort::kAny;
  Shape shape;

  int64_t count() const;  // raises SizeError
  explicit operator bool() const { return data != nullptr; }
};

// One run of an operator.
class Call {
 public:
  Call(const ort::Api& api, ort::KernelContext* context);

  Tensor input(size_t index) const;
  template <typename T>
  T* output(size_t index, const Shape& shape) const {
    return static_cast<T*>(output_data(index, shape));
  }
  // The stream of a kernel of the CUDA execution provider.
  void* stream() const;
  // task(0) to task(count - 1), on the session's threads where there are several. Raises the first thing that a task
  // raised: nothing may leave a thread that is not ours.
  template <typename Task>
  void parallel(size_t count, const Task& task) const {
    if (count == 1) return task(0);
    Portion<Task> portion{task};
    const auto run = [](void* data, size_t index) { static_cast<Portion<Task>*>(data)->run(index); };
    run_parallel(count, run, &portion);
    if (portion.error) std::rethrow_exception(portion.error);
  }

 private:
  template <typename Task>
  struct Portion {
    const Task& task;
    std::atomic<bool> failed{false};
    std::exception_ptr error{};

    void run(size_t index) noexcept {
      try {
        task(index);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  };

  void* output_data(size_t index, const Shape& shape) const;
  void run_parallel(size_t count, void (*task)(void*, size_t), void* data) const;

  const ort::Api& api_;
  ort::KernelContext* context_;
  size_t inputs_ = 0;
};

// What is known of a node when its session opens.
class Node {
 public:
  Node(const ort::Api& api, const ort::KernelInfo* info) : api_(api), info_(info) {}

  // Raises OperatorError for one that is missing, of another type, or not from `lowest` to `highest`.
  int64_t attribute(const char* name, int64_t lowest, int64_t highest) const;
  // A finite one.
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
  int number;  // in edgeblt_runs; -1: not counted
  std::vector<ort::ElementType> inputs;
  size_t required;  // of the inputs; the others are optional
  std::vector<ort::ElementType> outputs;
  Kernel* (*create)(const Node&);
};

// "2 x 3" for messages.
std::string describe(const Shape& shape);

// Raises OperatorError unless `tensor` has this type and shape (-1: any size), naming the input.
void require(const Tensor& tensor, const char* name, ort::ElementType type, const Shape& shape);

// Those of the library, each defined once.
std::vector<const Operator*> operators();

const Operator& entropy_patch_operator();
const Operator& dense_matmul_operator();
const Operator& dense_projection_operator();
const Operator& sparse_matmul_operator();
const Operator& masked_matmul_operator();
std::vector<const Operator*> window_attention_operators();  // one for each type of cache
std::vector<const Operator*> dense_layer_operators();
const Operator& latent_attention_operator();
const Operator& dense_cross_attention_operator();
const Operator& hash_embedding_operator();
const Operator& patch_attention_operator();
const Operator& dense_pooling_operator();
const Operator& causal_convolution_operator();
const Operator& selective_scan_operator();

}  // namespace edgeblt

#endif
