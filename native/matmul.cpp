#include "matmul.h"

#include <algorithm>
#include <cstring>

namespace edgeblt {
namespace {

constexpr int64_t kTaskProducts = 65536;  // below this, handing work to a thread takes longer than it saves
constexpr int64_t kMostTasks = 16;
constexpr int64_t kRowUnit = 16;
constexpr int64_t kLargest = int64_t{1} << 31;

// Grows, is never given back, and belongs to the calling thread: one product runs in it at a time.
template <typename T, int kPurpose>
T* workspace(int64_t count) {
  thread_local std::vector<T> buffer;
  constexpr size_t kSlackElements = 64 / sizeof(T);
  if (buffer.size() < static_cast<size_t>(count) + kSlackElements) {
    buffer.resize(static_cast<size_t>(count) + kSlackElements);
  }
  return buffer.data() + (-reinterpret_cast<uintptr_t>(buffer.data()) & 63) / sizeof(T);
}

// Even columns first, then odd ones, in every run of `split` columns: as 4-bit codes come apart.
void split_columns(int8_t* codes, int64_t columns, int64_t split) {
  int8_t run[256];
  for (int64_t begin = 0; begin < columns; begin += split) {
    for (int64_t i = 0; i < split / 2; ++i) {
      run[i] = codes[begin + 2 * i];
      run[split / 2 + i] = codes[begin + 2 * i + 1];
    }
    std::memcpy(codes + begin, run, static_cast<size_t>(split));
  }
}

int64_t positive(const Node& node, const char* name) {
  const int64_t value = node.attribute(name);
  if (value < 1 || value >= kLargest) {
    throw OperatorError(std::string(name) + " is " + std::to_string(value) + "; export the model again");
  }
  return value;
}

}  // namespace

MatMul::MatMul(const Node& node)
    : columns_(positive(node, "K")), rows_(positive(node, "N")), bits_(positive(node, "bits")),
      block_size_(positive(node, "block_size")), blocks_per_scale_(positive(node, "blocks_per_scale")) {
  if (bits_ != 4 && bits_ != 8) throw OperatorError("bits is " + std::to_string(bits_) + "; use 4 or 8");
  if (block_size_ < 16 || block_size_ > 256 || (block_size_ & (block_size_ - 1))) {
    throw OperatorError("block_size is " + std::to_string(block_size_) + "; use 16, 32, 64, 128 or 256");
  }
  blocks_ = (columns_ + block_size_ - 1) / block_size_;
}

void MatMul::bind_constants(const Node& node, size_t count, size_t required) {
  weight_count_ = count;
  std::vector<Tensor> weights;
  for (size_t index = 1; index <= count; ++index) {
    weights.push_back(node.constant(index));
    if (index <= required && !weights.back()) return;
  }
  bind(weights);
  bound_ = true;
}

Scales MatMul::bind_scales(const Tensor& scales, bool pairs) const {
  const int64_t per_row = (blocks_ + blocks_per_scale_ - 1) / blocks_per_scale_;
  const Shape shape = pairs ? Shape{(rows_ + 1) / 2, per_row, 2} : Shape{rows_, per_row};
  require(scales, "scales", scales.type == ort::kFloat ? ort::kFloat : ort::kFloat16, shape);
  return {scales.data, scales.type == ort::kFloat16, per_row, blocks_per_scale_};
}

Inputs MatMul::round_inputs(const Call& call, const Kernels& table, const float* values, int64_t rows) const {
  const int64_t columns = padded_columns(columns_, block_size_), stride = (blocks_ + 7) / 8 * 8 + kSlack;
  int8_t* codes = workspace<int8_t, 0>(rows * columns);
  float* scales = workspace<float, 0>(rows * stride);
  float* sums = workspace<float, 1>(rows * stride);
  const auto round = [&](int64_t row) {
    std::memset(scales + row * stride, 0, static_cast<size_t>(stride) * sizeof *scales);
    std::memset(sums + row * stride, 0, static_cast<size_t>(stride) * sizeof *sums);
    table.quantize(values + row * columns_, columns_, block_size_, codes + row * columns, scales + row * stride,
                   sums + row * stride);
    if (splits_inputs()) split_columns(codes + row * columns, columns, table.split);
  };
  const int64_t tasks = std::clamp<int64_t>(rows * columns_ / kTaskProducts, 1, kMostTasks);
  const int64_t portion = (rows + tasks - 1) / tasks;
  call.parallel(static_cast<size_t>(tasks), [&](size_t task) {
    const int64_t begin = static_cast<int64_t>(task) * portion;
    for (int64_t row = begin; row < std::min(rows, begin + portion); ++row) round(row);
  });
  return {rows, columns, block_size_, blocks_, stride, codes, scales, sums};
}

void MatMul::compute(const Call& call) {
  const Tensor values = call.input(0);
  if (values.type != ort::kFloat || values.shape.empty() || values.shape.back() != columns_) {
    throw OperatorError("the input is " + describe(values.shape) + ", its last dimension must be " +
                        std::to_string(columns_) + ", of float32");
  }
  if (!bound_) {
    std::vector<Tensor> weights;
    for (size_t index = 1; index <= weight_count_; ++index) weights.push_back(call.input(index));
    bind(weights);
  }
  Shape shape = values.shape;
  shape.back() = rows_;
  auto* out = call.output<float>(0, shape);
  const int64_t rows = values.count() / columns_;
  if (!rows) return;
  const Kernels& table = kernels(current_level());
  const Inputs inputs = round_inputs(call, table, static_cast<const float*>(values.data), rows);
  const double products = static_cast<double>(rows_) * static_cast<double>(columns_) * static_cast<double>(rows);
  const int64_t units = (rows_ + kRowUnit - 1) / kRowUnit;
  const auto wanted = static_cast<int64_t>(std::min<double>(products / kTaskProducts, kMostTasks));
  const int64_t portion = (units + std::clamp<int64_t>(wanted, 1, units) - 1) / std::clamp<int64_t>(wanted, 1, units);
  call.parallel(static_cast<size_t>((units + portion - 1) / portion), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * portion * kRowUnit;
    multiply(table, inputs, first, std::min(rows_, first + portion * kRowUnit), out);
  });
}

}  // namespace edgeblt
