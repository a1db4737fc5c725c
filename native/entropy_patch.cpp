// edgeblt::EntropyPatch: entropies of next-byte distributions and the patch starts they decide. docs/patching.md has
// the rules; export/operators/entropy_patch.py is the same in standard operators.
#include <algorithm>

#include "kernels.h"
#include "patch_inputs.h"

namespace edgeblt {
namespace {

constexpr int64_t kTaskElements = 32768;

class EntropyPatch final : public Kernel {
 public:
  explicit EntropyPatch(const Node& node) : rule_(read_rule(node)) {}

  void compute(const Call& call) override {
    const PatchInputs inputs = read_patch_inputs(call, rule_);
    float* entropies = call.output<float>(0, {inputs.length});
    bool* patch_starts = call.output<bool>(1, {inputs.length});
    auto* states = reinterpret_cast<State*>(call.output<float>(2, {inputs.length, 3}));
    find_entropies(call, inputs, entropies);
    decide(inputs, entropies, patch_starts, states);
  }

 private:
  static void find_entropies(const Call& call, const PatchInputs& inputs, float* entropies) {
    const Kernels& table = kernels(current_level());
    const int64_t length = inputs.length, width = inputs.width;
    const int64_t rows = std::max<int64_t>(1, kTaskElements / width);  // of a task
    const auto tasks = static_cast<size_t>((length + rows - 1) / rows);
    if (!tasks) return;
    call.parallel(tasks, [&](size_t task) {
      const int64_t begin = static_cast<int64_t>(task) * rows;
      table.entropies(inputs.logits + begin * width, std::min(rows, length - begin), width, entropies + begin);
    });
  }

  Rule rule_;
};

}  // namespace

const Operator& entropy_patch_operator() {
  static const Operator op = patch_operator([](const Node& node) -> Kernel* { return new EntropyPatch(node); });
  return op;
}

}  // namespace edgeblt
