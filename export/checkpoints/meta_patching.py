"""Meta's `train_args.json`: the patching rule, and whether it fits the model's `config.json`.

Source: facebookresearch/blt, `bytelatent/generate_blt.py` and `demo.py`. Generation builds its patcher from
`data.patcher_args` of the training arguments and hands the patches to the model; the fields of like names among the
model's own arguments say what the model was trained with, and are not read then.
"""

import math

from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.errors import shown
from edgeblt.export.checkpoints.config_section import Findings, Section
from edgeblt.export.checkpoints.meta_config import FIXED, READ, REQUIRED, Fixed, hash_sizes, sort_fields

RELEASED_THRESHOLD = 1.335442066192627  # Meta's default
# fmt: off
PATCHER_ARGS = frozenset({
    "max_patch_length", "monotonicity", "patch_size", "patching_mode", "threshold", "threshold_add",
    # Device and batches of the entropy model, and whether it runs in training too.
    "device", "entropy_model_checkpoint_dir", "log_time", "patching_batch_size", "patching_device",
    "realtime_patching",
})
# fmt: on
TOKENIZER: Fixed = {"name": ("blt", "bytes")}  # the second is Meta's default, and nothing in its code
TOKENIZER_BOOKKEEPING = frozenset({"add_eos", "bpe_tokenizer_path"})
TOKENIZER_ARGS: Fixed = {"add_bos": (True,), "bpe_delim": (False,), "vocab_size_unit_1": (256,)}


def sort_training(training: Section, findings: Findings) -> None:
    """Sort the fields of the training arguments that are read, except the model's. Raises EdgebltError."""
    if training.boolean("train_entropy_model", False):
        raise training.error("train_entropy_model", "these are an entropy model's; give the main model's file")
    data = training.child("data")
    tokenizer = data.child("tokenizer_args")
    sort_fields(tokenizer, {"init_kwargs"}, TOKENIZER, findings)
    sort_fields(tokenizer.child("init_kwargs"), TOKENIZER_BOOKKEEPING, TOKENIZER_ARGS, findings)
    sort_fields(data.child("patcher_args"), PATCHER_ARGS, {}, findings)


def parse_patching(training: Section) -> PatchingRule:
    """The rule of generation, from sorted training arguments. Raises EdgebltError."""
    patcher = training.child("data").child("patcher_args")
    longest = patcher.optional_integer("max_patch_length", None)
    match patcher.text("patching_mode", "entropy"):
        case "entropy":
            return _entropy_rule(patcher, longest)
        case "space":
            return PatchingRule(Rule.SPACE, max_patch_length=longest)
        case "byte":
            return PatchingRule(Rule.BYTE, max_patch_length=longest)
        case "static":
            # Meta's model asserts that the first patch holds one byte.
            if patcher.number("patch_size", 4.5) != 1:
                raise patcher.error("patch_size", "Meta's model runs static patches of 1 only; give another mode")
            return PatchingRule(Rule.STATIC, max_patch_length=longest, patch_size=1)
    raise patcher.error("patching_mode", "edgeblt supports only 'entropy', 'space', 'static' and 'byte'")


def refuse_contradictions(args: Section, training: Section, rule: PatchingRule) -> None:
    """Raises EdgebltError where `args` of config.json differ from the training arguments', or state another rule."""
    trained = training.child("model")
    for name in sorted(READ | FIXED.keys() | REQUIRED.keys()):
        if name in args.document and name in trained.document:
            own, other = (hash_sizes(section.document[name]) for section in (args, trained))
            if own != other:
                raise args.error(
                    name, f"but {trained.where}: {name} is {shown(other)}; give the files of one checkpoint"
                )
    for name, value in _stated_otherwise(args, rule):
        raise args.error(name, f"but {training.where}: data.patcher_args says {shown(value)}; make the two equal")


def _stated_otherwise(args: Section, rule: PatchingRule) -> list[tuple[str, object]]:
    """Fields of `args` that state another rule, with what they should be; null, 0 and false state nothing."""
    mode = "entropy" if rule.rule.needs_entropies else rule.rule.name.lower()
    expected: dict[str, object] = {"patching_mode": mode, "max_patch_length": rule.max_patch_length}
    if rule.rule.needs_entropies:
        expected |= {"patching_threshold": rule.threshold, "monotonicity": rule.rule is Rule.MONOTONIC}
    if rule.rule in (Rule.THRESHOLD, Rule.THRESHOLD_AND_RISE):
        expected["patching_threshold_add"] = rule.threshold_add if rule.rule is Rule.THRESHOLD_AND_RISE else None
    stated = ((name, args.document.get(name), value) for name, value in expected.items())
    return [(name, value) for name, own, value in stated if own and not _equal(own, value)]


def _equal(own: object, value: object) -> bool:
    if isinstance(own, int | float) and isinstance(value, float):
        return math.isclose(own, value, rel_tol=1e-6)
    return own == value


def _entropy_rule(patcher: Section, longest: int | None) -> PatchingRule:
    threshold = patcher.number("threshold", RELEASED_THRESHOLD)
    if patcher.boolean("monotonicity", False):  # Meta's code then looks at no other threshold
        return PatchingRule(Rule.MONOTONIC, threshold, max_patch_length=longest)
    if patcher.document.get("threshold_add") is not None:
        threshold_add = patcher.number("threshold_add", 0.0)
        return PatchingRule(Rule.THRESHOLD_AND_RISE, threshold, threshold_add, longest)
    return PatchingRule(Rule.THRESHOLD, threshold, max_patch_length=longest)
