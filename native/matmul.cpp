#include "matmul.h"

#include <cstring>

namespace edgeblt {

int64_t positive(const Node& node, const char* name) {
  return node.attribute(name, 1, kMostSize);
}

Form::Form(const Node& node, int64_t columns, int64_t rows, const std::string& prefix)
    : columns(columns), rows(rows), bits(positive(node, (prefix + "bits").c_str())),
      block_size(positive(node, (prefix + "block_size").c_str())),
      blocks_per_scale(positive(node, (prefix + "blocks_per_scale").c_str())),
      blocks((columns + block_size - 1) / block_size) {
  if (bits != 4 && bits != 8) throw OperatorError(prefix + "bits is " + std::to_string(bits) + "; use 4 or 8");
  if (block_size < 16 || block_size > 256 || (block_size & (block_size - 1))) {
    throw OperatorError(prefix + "block_size is " + std::to_string(block_size) + "; use 16, 32, 64, 128 or 256");
  }
}

Scales Form::scales(const Tensor& scales, int64_t together, const char* name) const {
  const int64_t per_row = scales_per_row();
  const Shape shape = together > 1 ? Shape{(rows + together - 1) / together, per_row, together} : Shape{rows, per_row};
  require(scales, name, scales.type == ort::kFloat ? ort::kFloat : ort::kFloat16, shape);
  return {scales.data, scales.type == ort::kFloat16, per_row, blocks_per_scale};
}

Rounding::Rounding(const Kernels& table, const Form& form, int64_t rows, bool tiles)
    : values_(form.columns),
      inputs_{rows, padded_columns(form.columns, form.block_size), form.block_size, form.blocks,
              (form.blocks + 7) / 8 * 8 + kSlack, nullptr, nullptr, nullptr, nullptr, table.tile_width(rows, form.block_size)} {
  codes_ = workspace<int8_t, kCodes>(product_of({rows, inputs_.columns}));
  scales_ = workspace<float, kScales>(product_of({rows, inputs_.stride}));
  sums_ = workspace<int32_t, kSums>(product_of({rows, inputs_.stride}));
  product_of({rows + kWideTileRows, tile_elements(form.blocks, form.block_size)});  // raises where it wraps
  tiles_ = tiles ? workspace<int32_t, kTiles>(tiles_elements(rows, form.blocks, form.block_size)) : nullptr;
  inputs_.codes = codes_, inputs_.scales = scales_, inputs_.sums = sums_, inputs_.tiles = tiles_;
}

void Rounding::round(const Kernels& table, int64_t row, const float* values) const {
  float* scales = scales_ + row * inputs_.stride;
  int32_t* sums = sums_ + row * inputs_.stride;
  table.quantize(values, values_, inputs_.block_size, codes_ + row * inputs_.columns, scales, sums);
  const auto beyond = static_cast<size_t>(inputs_.stride - inputs_.blocks);
  std::memset(scales + inputs_.blocks, 0, beyond * sizeof *scales);
  std::memset(sums + inputs_.blocks, 0, beyond * sizeof *sums);
  if (tiles_) add_to_tile(table, inputs_, row, tiles_);
}

MatMul::MatMul(const Node& node) : form_(node, positive(node, "K"), positive(node, "N")) {}

void MatMul::bind_constants(const Node& node, size_t count) {
  weight_count_ = count;
  std::vector<Tensor> weights;
  for (size_t index = 1; index <= count; ++index) {
    weights.push_back(node.constant(index));
    if (!weights.back()) return;
  }
  bind(weights);
  bound_ = true;
}

void MatMul::bind_inputs(const Call& call) {
  std::vector<Tensor> weights;
  for (size_t index = 1; index <= weight_count_; ++index) weights.push_back(call.input(index));
  bind(weights);
}

void MatMul::compute(const Call& call) {
  if (bound_) prefetch();
  const Tensor values = call.input(0);
  if (values.type != ort::kFloat || values.shape.empty() || values.shape.back() != form_.columns) {
    throw OperatorError("the input is " + describe(values.shape) + ", its last dimension must be " +
                        std::to_string(form_.columns) + ", of float32");
  }
  std::unique_lock<std::mutex> alone(unbound_, std::defer_lock);
  if (!bound_) {
    alone.lock();
    bind_inputs(call);
  }
  Shape shape = values.shape;
  shape.back() = form_.rows;
  auto* out = call.output<float>(0, shape);
  const int64_t rows = values.count() / form_.columns;
  if (!rows) return;
  const Kernels& table = kernels(current_level());
  const auto* data = static_cast<const float*>(values.data);
  const Inputs inputs = round_rows(call, table, form_, rows, takes_tiles(), [&](int64_t row) {
    return data + row * form_.columns;
  });
  multiply_rows(call, table, form_, inputs, out, [&](const Inputs& some, int64_t first, int64_t last, float* place) {
    multiply(table, some, first, last, place);
  });
}

}  // namespace edgeblt
