"""Which weights decoding reads, and how often: what bounds its speed where weights exceed the caches.

Every byte runs patcher, encoder and decoder. The end of a patch runs the global stage, the encoder's pooling of the
patch, and the decoder's keys and values of its latent. A byte reads one row of each table.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.bundle.contract import StageName
from edgeblt.errors import EdgebltError

TYPICAL_BYTES_PER_PATCH = 4.5  # mean of the released models on English
_HASH_TABLES = re.compile(r"\w+\.hash_tables(\.|$)")
_EMBEDDING = re.compile(r"[\w.]+\.embedding(\.|$)")
_OF_A_PATCH = re.compile(
    r"global\.|(encoder|decoder)\.patch_projection|encoder\.cross\.|decoder\.cross\.\d+\.(key|value)"
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a graph that holds weights, or codes or scales of weights."""

    # Canonical (`export/checkpoints/checkpoint.py`), several joined by _, with .codes, .scales, .zero_points behind it.
    name: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class StageWeights:
    """One stage's weights in bytes, as they are stored."""

    bytes: int
    table_bytes: int  # the part of `bytes` in hash tables
    rows_per_byte: int  # read for each byte: rows of hash tables and of the embedding
    read_per_byte: int  # read for each byte: everything but those rows
    read_per_patch: int  # read once a patch, when it ends

    def weight_bytes_per_byte(self, bytes_per_patch: float) -> float:
        return self.rows_per_byte + self.read_per_byte + self.read_per_patch / bytes_per_patch


@dataclass(frozen=True)
class WeightPlan:
    """A model's weights in one recipe's formats, in bytes."""

    recipe: str
    bytes: int  # all weights of the bundle, without the graphs' nodes and the padding between tensors
    table_bytes: int
    matrix_bytes: int  # everything but the hash tables: matrices, byte embeddings, norms
    bytes_per_patch: float
    weight_bytes_per_byte: float  # bytes of weights that decoding one byte reads
    stages: dict[StageName, StageWeights]


def weight_plan(
    recipe: str,
    config: ByteModelConfig,
    tensors: Mapping[StageName, Iterable[StoredTensor]],
    bytes_per_patch: float,
) -> WeightPlan:
    """Bytes that the weights in each stage's graph (`tensors`) take on disk, and bytes that decoding one byte reads."""
    stages = {stage: _stage_weights(stored, config.table_count) for stage, stored in tensors.items()}
    total, tables = (sum(weights) for weights in zip(*((s.bytes, s.table_bytes) for s in stages.values()), strict=True))
    read = sum(stage.weight_bytes_per_byte(bytes_per_patch) for stage in stages.values())
    return WeightPlan(recipe, total, tables, total - tables, bytes_per_patch, read, stages)


def typical_bytes_per_patch(patching: PatchingRule, wanted: float | None = None) -> float:
    """`wanted`, or the usual bytes per patch under this rule. Raises EdgebltError for a number below 1."""
    if wanted is not None:
        if not (math.isfinite(wanted) and wanted >= 1):
            raise EdgebltError(f"bytes per patch are {wanted}; give a number that is at least 1, such as 4.5")
        return wanted
    usual = {Rule.BYTE: 1.0, Rule.STATIC: float(patching.patch_size)}.get(patching.rule, TYPICAL_BYTES_PER_PATCH)
    return min(usual, patching.max_patch_length or usual)


def _stage_weights(tensors: Iterable[StoredTensor], table_count: int) -> StageWeights:
    total = tables = rows = byte = patch = 0
    for tensor in tensors:
        total += tensor.bytes
        if _HASH_TABLES.match(tensor.name):
            tables += tensor.bytes
            rows += table_count * (tensor.bytes // tensor.rows)
        elif _EMBEDDING.match(tensor.name):
            rows += tensor.bytes // tensor.rows
        elif _OF_A_PATCH.match(tensor.name):
            patch += tensor.bytes
        else:
            byte += tensor.bytes
    return StageWeights(total, tables, rows, byte, patch)
