#include "patch_inputs.h"

namespace edgeblt {
namespace {

template <typename T>
T only(const Call& call, size_t index, const char* name, ort::ElementType type) {
  const Tensor tensor = call.input(index);
  require(tensor, name, type, {1});
  return *static_cast<const T*>(tensor.data);
}

}  // namespace

Rule read_rule(const Node& node) {
  return static_cast<Rule>(node.attribute("rule", kThreshold, kByte));
}

PatchInputs read_patch_inputs(const Call& call, Rule rule) {
  const Tensor logits = call.input(0), ids = call.input(1), state = call.input(3);
  require(ids, "ids", ort::kInt64, {-1});
  const int64_t length = ids.shape[0];
  require(logits, "logits", ort::kFloat, {length, -1});
  require(state, "state", ort::kFloat, {3});
  const int64_t position = only<int64_t>(call, 2, "position", ort::kInt64);
  const Settings settings{
      rule, only<float>(call, 4, "threshold", ort::kFloat), only<float>(call, 5, "threshold_add", ort::kFloat),
      only<int64_t>(call, 6, "max_patch_length", ort::kInt64), only<int64_t>(call, 7, "patch_size", ort::kInt64)};
  if (settings.patch_size < 1) {
    throw OperatorError("patch_size is " + std::to_string(settings.patch_size) + "; it must be at least 1");
  }
  if (position < 0 || position > kMostPosition) {
    throw OperatorError("position is " + std::to_string(position) + ", not 0 to " + std::to_string(kMostPosition));
  }
  if (logits.shape[1] < 1) throw OperatorError("logits has no columns");
  return {static_cast<const float*>(logits.data), static_cast<const int64_t*>(ids.data), length, logits.shape[1],
          position, *static_cast<const State*>(state.data), settings};
}

void decide(const PatchInputs& inputs, const float* entropies, bool* patch_starts, State* states) {
  const Settings& settings = inputs.settings;
  State previous = inputs.state;
  int64_t last = last_start(settings, inputs.position, previous);
  for (int64_t i = 0; i < inputs.length; ++i) {
    const int64_t next = inputs.position + i + 1;
    State state = state_after(inputs.ids[i], entropies[i]);
    const bool start = starts(settings, next, inputs.ids[i], state, previous);
    if (start) last = next;
    patch_starts[i] = starts_within_maximum(settings, next, last, start, state);
    states[i] = previous = state;
  }
}

Operator patch_operator(Kernel* (*create)(const Node&)) {
  using namespace ort;
  return {"EntropyPatch", 0, {kFloat, kInt64, kInt64, kFloat, kFloat, kFloat, kInt64, kInt64}, 8,
          {kFloat, kBool, kFloat}, create};
}

}  // namespace edgeblt
