// edgeblt::EntropyPatch: entropies of next-byte distributions and the patch starts they decide. docs/patching.md has
// the rules; export/entropy_patch.py is the same in standard operators.
#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels.h"
#include "operator.h"

namespace edgeblt {
namespace {

constexpr int64_t kOffset = 4, kVocabulary = 260;  // ids below 4 are special; byte b is b + 4
constexpr float kLongestMaximum = 16777216;  // float32 counts exactly below it
constexpr int64_t kTaskElements = 32768;

enum Rule : int64_t { kThreshold, kMonotonic, kThresholdAndRise, kSpace, kStatic, kByte };

// 1 for every id that is no ASCII letter or digit and no UTF-8 continuation byte. As a Gather from the last id on
// would, larger ids count as the last one.
float space_like(int64_t id) {
  id = std::min(id, kVocabulary - 1);
  const int64_t byte = id - kOffset;
  const bool digit = byte >= '0' && byte <= '9';
  const bool letter = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
  return digit || letter || (byte >= 0x80 && byte < 0xC0) ? 0.0F : 1.0F;
}

struct State {
  float entropy, space, since;
};

struct Settings {
  Rule rule;
  float threshold, threshold_add;
  int64_t max_patch_length, patch_size;
};

// Whether `position` starts a patch by the rule itself, given the ids before it.
bool starts(const Settings& settings, int64_t position, int64_t id, const State& state, const State& previous) {
  const float rise = state.entropy - previous.entropy;
  switch (settings.rule) {
    case kThreshold: return position <= 1 || state.entropy > settings.threshold;
    case kMonotonic: return position <= 2 || rise > settings.threshold;
    case kThresholdAndRise:
      return position <= 2 || (position > 3 && rise > settings.threshold_add && state.entropy > settings.threshold);
    case kSpace: return position <= 1 || id < kOffset || state.space > previous.space;
    case kStatic: return position % settings.patch_size == 0;
    case kByte: break;
  }
  return position > 0;
}

template <typename T>
T only(const Call& call, size_t index, const char* name, ort::ElementType type) {
  const Tensor tensor = call.input(index);
  require(tensor, name, type, {1});
  return *static_cast<const T*>(tensor.data);
}

class EntropyPatch final : public Kernel {
 public:
  explicit EntropyPatch(const Node& node) : rule_(static_cast<Rule>(node.attribute("rule"))) {
    if (rule_ < kThreshold || rule_ > kByte) throw OperatorError("rule is " + std::to_string(rule_) + "; use 0 to 5");
  }

  void compute(const Call& call) override {
    const Tensor logits = call.input(0), ids = call.input(1), state = call.input(3);
    require(ids, "ids", ort::kInt64, {-1});
    const int64_t length = ids.shape[0];
    require(logits, "logits", ort::kFloat, {length, -1});
    require(state, "state", ort::kFloat, {3});
    const int64_t position = only<int64_t>(call, 2, "position", ort::kInt64);
    const Settings settings{
        rule_, only<float>(call, 4, "threshold", ort::kFloat), only<float>(call, 5, "threshold_add", ort::kFloat),
        only<int64_t>(call, 6, "max_patch_length", ort::kInt64), only<int64_t>(call, 7, "patch_size", ort::kInt64)};
    if (settings.patch_size < 1) {
      throw OperatorError("patch_size is " + std::to_string(settings.patch_size) + "; it must be at least 1");
    }
    if (logits.shape[1] < 1) throw OperatorError("logits has no columns");

    float* entropies = call.output<float>(0, {length});
    bool* patch_starts = call.output<bool>(1, {length});
    auto* states = reinterpret_cast<State*>(call.output<float>(2, {length, 3}));
    find_entropies(call, static_cast<const float*>(logits.data), length, logits.shape[1], entropies);
    decide(settings, position, *static_cast<const State*>(state.data), length, static_cast<const int64_t*>(ids.data),
           entropies, patch_starts, states);
  }

 private:
  static void find_entropies(const Call& call, const float* logits, int64_t length, int64_t width, float* entropies) {
    const Kernels& table = kernels(current_level());
    const int64_t rows = std::max<int64_t>(1, kTaskElements / width);  // of a task
    const auto tasks = static_cast<size_t>((length + rows - 1) / rows);
    if (!tasks) return;
    call.parallel(tasks, [&](size_t task) {
      const int64_t begin = static_cast<int64_t>(task) * rows;
      table.entropies(logits + begin * width, std::min(rows, length - begin), width, entropies + begin);
    });
  }

  static void decide(
      const Settings& settings, int64_t position, State previous, int64_t length, const int64_t* ids,
      const float* entropies, bool* patch_starts, State* states) {
    const int64_t limit = settings.max_patch_length;
    // A first id's state means nothing; nor does a count where there is no maximum.
    const bool counted = position && limit > 0 && previous.since >= 0 && previous.since < kLongestMaximum;
    int64_t last = counted ? position - static_cast<int64_t>(previous.since) : 0;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t next = position + i + 1;
      State state{entropies[i], space_like(ids[i]), 0};
      bool start = starts(settings, next, ids[i], state, previous);
      if (start) last = next;
      if (limit > 0) {
        const int64_t since = (next - last) % limit;
        state.since = static_cast<float>(since);
        start = since == 0;
      }
      patch_starts[i] = start;
      states[i] = previous = state;
    }
  }

  Rule rule_;
};

}  // namespace

const Operator& entropy_patch_operator() {
  using namespace ort;
  static const Operator op(
      "EntropyPatch", 0, {kFloat, kInt64, kInt64, kFloat, kFloat, kFloat, kInt64, kInt64}, 8, {kFloat, kBool, kFloat},
      [](const Node& node) -> Kernel* { return new EntropyPatch(node); });
  return op;
}

}  // namespace edgeblt
