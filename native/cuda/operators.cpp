// The operators of libedgeblt_cuda, for ONNX Runtime's CUDA execution provider.
#include "../entropies.h"
#include "../patch_inputs.h"
#include "entropy_patch.h"

namespace edgeblt {
namespace {

// Where a kernel writes.
struct Outputs {
  float* entropies;
  bool* patch_starts;
  State* states;

  Outputs(const Call& call, int64_t length)
      : entropies(call.output<float>(0, {length})), patch_starts(call.output<bool>(1, {length})),
        states(reinterpret_cast<State*>(call.output<float>(2, {length, 3}))) {}
};

class EntropyPatch final : public Kernel {
 public:
  explicit EntropyPatch(const Node& node) : rule_(read_rule(node)) {}

  void compute(const Call& call) override {
    const PatchInputs in = read_patch_inputs(call, rule_);
    if (in.sequence_count) throw OperatorError("the rows are of several sequences, which only the CPU's kernel takes");
    const Outputs out(call, in.length);
    const cuda::PatchWork work{in, out.entropies, out.patch_starts, out.states};
    if (const char* error = cuda::launch_entropy_patch(work, call.stream())) {
      throw OperatorError(std::string("CUDA did not start the kernel: ") + error);
    }
  }

 private:
  Rule rule_;
};

// For sessions that get no CUDA after all: once a library has registered an operator, ONNX Runtime wants a kernel of it
// and leaves the portable body alone.
class EntropyPatchOnCpu final : public Kernel {
 public:
  explicit EntropyPatchOnCpu(const Node& node) : rule_(read_rule(node)) {}

  void compute(const Call& call) override {
    const PatchInputs in = read_patch_inputs(call, rule_);
    const Outputs out(call, in.length);
    entropy_rows(in.logits, in.length, in.width, out.entropies);
    decide(in, out.entropies, out.patch_starts, out.states);
  }

 private:
  Rule rule_;
};

Operator on_cuda(Operator op) {
  op.provider = [](const ort::CustomOp*) { return "CUDAExecutionProvider"; };
  // Logits and ids are on the device. Callers have the position, the state and the settings in the CPU's memory, from
  // where they travel with the launch: six copies to the device fewer, and none back to check them.
  op.input_memory = [](const ort::CustomOp*, size_t index) -> int {
    return index < 2 ? ort::kOwnMemory : ort::kCpuMemory;
  };
  return op;
}

Operator uncounted(Operator op) {
  op.number = -1;
  return op;
}

}  // namespace

std::vector<const Operator*> operators() {
  static const Operator on_device =
      on_cuda(patch_operator([](const Node& node) -> Kernel* { return new EntropyPatch(node); }));
  static const Operator on_cpu =
      uncounted(patch_operator([](const Node& node) -> Kernel* { return new EntropyPatchOnCpu(node); }));
  return {&on_device, &on_cpu};
}

}  // namespace edgeblt
