"""When a patch starts, one position at a time in plain Python: the oracle of the patching tests.

Written from the rules' definitions (docs/patching.md), which are those of `bytelatent/data/patcher.py` of
facebookresearch/blt; shares nothing with the operator.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import PatchingRule, Rule

Floats = Sequence[float] | NDArray[np.float32] | NDArray[np.float64]
Ids = Sequence[int] | NDArray[np.int64]


def entropies(logits: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats, float64 [T], of the softmax of each row of `logits` [T, V]."""
    log_p = log_probabilities(logits)
    total: NDArray[np.float64] = -(np.exp(log_p) * log_p).sum(axis=1)
    return total


def log_probabilities(logits: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [T, V] of `logits` [T, V]."""
    exact = logits.astype(np.float64)
    shifted: NDArray[np.float64] = exact - exact.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def patch_starts(rule: PatchingRule, entropies: Floats, ids: Ids) -> NDArray[np.bool_]:
    """bool [T]: whether position t + 1 starts a patch, for a sequence that begins at position 0."""
    starts = []
    last_start_of_rule = 0
    for t in range(len(ids)):
        position = t + 1
        if _rule_starts(rule, entropies, ids, t):
            last_start_of_rule = position
        length = position - last_start_of_rule
        forced = rule.max_patch_length is not None and length % rule.max_patch_length == 0
        starts.append(length == 0 or forced)
    return np.array(starts, bool)


def is_space_like(token: int) -> bool:
    """Anything but an ASCII letter, an ASCII digit or a UTF-8 continuation byte."""
    byte = token - 4
    if ord("0") <= byte <= ord("9") or ord("A") <= byte <= ord("Z") or ord("a") <= byte <= ord("z"):
        return False
    return not 0b1000_0000 <= byte <= 0b1011_1111


def _rule_starts(rule: PatchingRule, entropies: Floats, ids: Ids, t: int) -> bool:
    match rule.rule:
        case Rule.THRESHOLD:
            return t == 0 or entropies[t] > rule.threshold
        case Rule.MONOTONIC:
            return t <= 1 or entropies[t] - entropies[t - 1] > rule.threshold
        case Rule.THRESHOLD_AND_RISE:
            if t <= 2:
                return t <= 1
            rise = entropies[t] - entropies[t - 1]
            return rise > rule.threshold_add and entropies[t] > rule.threshold
        case Rule.SPACE:
            if t == 0 or ids[t] < 4:
                return True
            return is_space_like(ids[t]) and not is_space_like(ids[t - 1])
        case Rule.STATIC:
            return (t + 1) % rule.patch_size == 0
        case Rule.BYTE:
            return True
