"""The contract of the one stage: `causal.onnx`, ids to next-byte logits over keys and values of the whole text.

Symbolic dimension: T ids of the chunk, at least 1.
"""

from collections.abc import Mapping

from edgeblt.bundle.contract import (
    FURTHER,
    CacheFormat,
    StageContract,
    StageName,
    Target,
    TensorSpec,
    attention_inputs,
    key_value_cache,
    with_cache_format,
)
from edgeblt.errors import EdgebltError
from edgeblt.overencoded.config import OverEncodedConfig

STAGE: StageName = "causal"


def overencoded_contracts(
    config: OverEncodedConfig,
    targets: Mapping[StageName, Target] | None = None,
    caches: Mapping[StageName, CacheFormat] | None = None,
) -> dict[StageName, StageContract]:
    """The contract of the one stage; `targets` and `caches` None: cpu and fp32.

    Raises EdgebltError for another target than cpu.
    """
    if targets and targets[STAGE] != "cpu":
        raise EdgebltError(f"target is {targets[STAGE]}; an over-encoded transformer runs on the cpu only")
    vocab, further = config.vocab_size, config.further_count
    contract = StageContract(
        STAGE,
        "cpu",
        inputs=(
            TensorSpec("windows", "int64", ("T", config.context + 1)),  # each id, after the ids its n-grams read
            *attention_inputs(config.transformer, "cpu"),
        ),
        settings=(),
        outputs=(
            TensorSpec("logits", "float32", ("T", vocab)),
            *([TensorSpec(FURTHER, "float32", ("T", further * vocab))] if further else []),
        ),
        cache=key_value_cache(config.transformer, "cpu"),
    )
    return {STAGE: with_cache_format(contract, caches[STAGE]) if caches else contract}
