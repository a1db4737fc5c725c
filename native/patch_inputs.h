// What the kernels of edgeblt::EntropyPatch share: its inputs, checked, and the decisions on the CPU.
#ifndef EDGEBLT_PATCH_INPUTS_H
#define EDGEBLT_PATCH_INPUTS_H

#include "operator.h"
#include "patch_rules.h"

namespace edgeblt {

// The node's attribute `rule`. Raises OperatorError for a number that is none.
Rule read_rule(const Node& node);

// All but logits and ids are read at once, and must lie in the CPU's memory. Raises OperatorError.
PatchInputs read_patch_inputs(const Call& call, Rule rule);

// What follows from the entropies, row after row, into `patch_starts` [length] and `states` [length].
void decide(const PatchInputs& inputs, const float* entropies, bool* patch_starts, State* states);

// The operator with one of its kernels.
Operator patch_operator(Kernel* (*create)(const Node&));

}  // namespace edgeblt

#endif
