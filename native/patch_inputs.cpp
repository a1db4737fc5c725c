#include "patch_inputs.h"

namespace edgeblt {
namespace {

template <typename T>
T only(const Call& call, size_t index, const char* name, ort::ElementType type) {
  const Tensor tensor = call.input(index);
  require(tensor, name, type, {1});
  return *static_cast<const T*>(tensor.data);
}

// Raises OperatorError unless the sequences' rows begin with the first row, and each behind the one before it.
void read_sequences(const Call& call, PatchInputs& inputs) {
  const Tensor sequences = call.input(8), states = call.input(9);
  if (!sequences || sequences.shape.empty() || sequences.shape[0] == 0) return;
  require(sequences, "sequences", ort::kInt64, {-1, 2});
  inputs.sequence_count = sequences.shape[0];
  require(states, "sequence_states", ort::kFloat, {inputs.sequence_count, 3});
  inputs.sequences = static_cast<const int64_t*>(sequences.data);
  inputs.states = static_cast<const State*>(states.data);
  int64_t next = 0;
  for (int64_t sequence = 0; sequence < inputs.sequence_count; ++sequence) {
    const int64_t row = inputs.sequences[2 * sequence], position = inputs.sequences[2 * sequence + 1];
    if ((sequence ? row < next : row != 0) || row >= inputs.length || position < 0 || position > kMostPosition) {
      throw OperatorError("sequence " + std::to_string(sequence) + " begins in row " + std::to_string(row) +
                          " at position " + std::to_string(position) + "; open the model again");
    }
    next = row + 1;
  }
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
  PatchInputs inputs{static_cast<const float*>(logits.data), static_cast<const int64_t*>(ids.data), length,
                     logits.shape[1], position, *static_cast<const State*>(state.data), settings};
  read_sequences(call, inputs);
  return inputs;
}

namespace {

// Rows [first, end), of one sequence: the first is at `position`, behind the state `previous`.
void decide_rows(
    const PatchInputs& inputs, int64_t first, int64_t end, int64_t position, State previous, const float* entropies,
    bool* patch_starts, State* states) {
  const Settings& settings = inputs.settings;
  int64_t last = last_start(settings, position, previous);
  for (int64_t i = first; i < end; ++i) {
    const int64_t next = position + (i - first) + 1;
    State state = state_after(inputs.ids[i], entropies[i]);
    const bool start = starts(settings, next, inputs.ids[i], state, previous);
    if (start) last = next;
    patch_starts[i] = starts_within_maximum(settings, next, last, start, state);
    states[i] = previous = state;
  }
}

}  // namespace

void decide(const PatchInputs& inputs, const float* entropies, bool* patch_starts, State* states) {
  if (!inputs.sequence_count) {
    return decide_rows(inputs, 0, inputs.length, inputs.position, inputs.state, entropies, patch_starts, states);
  }
  for (int64_t sequence = 0; sequence < inputs.sequence_count; ++sequence) {
    const int64_t* own = inputs.sequences + 2 * sequence;
    const int64_t end = sequence + 1 < inputs.sequence_count ? own[2] : inputs.length;
    decide_rows(inputs, own[0], end, own[1], inputs.states[sequence], entropies, patch_starts, states);
  }
}

Operator patch_operator(Kernel* (*create)(const Node&)) {
  using namespace ort;
  return {"EntropyPatch", 0, {kFloat, kInt64, kInt64, kFloat, kFloat, kFloat, kInt64, kInt64, kInt64, kFloat}, 8,
          {kFloat, kBool, kFloat}, create};
}

}  // namespace edgeblt
