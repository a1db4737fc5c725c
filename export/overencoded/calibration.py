"""An over-encoded transformer in torch for calibration, every matrix product left to the caller."""

from collections.abc import Sequence

from torch import Tensor

from edgeblt.export.overencoded.names import EMBEDDING, HEAD
from edgeblt.overencoded.config import OverEncodedConfig
from edgeblt.overencoded.contract import STAGE
from edgeblt.quant.calibration.activations import each
from edgeblt.quant.calibration.forward import Lookup, Multiply, Read, rms_norm, transformer_stack
from edgeblt.quant.calibration.over_encoding import over_encoded


def calibrate_overencoded(
    config: OverEncodedConfig, multiply: Multiply, read: Read, lookup: Lookup, texts: Sequence[Tensor]
) -> None:
    """Run each text of ids, int64 [T], through the model."""
    if config.tables:
        hidden = over_encoded(STAGE, config.tables, multiply, lookup, texts)
    else:
        hidden = lookup(EMBEDDING, [text[:, None] for text in texts])
    hidden = transformer_stack(STAGE, config.transformer, multiply, read, hidden)
    scale = read("causal.norm")
    normed = each(lambda values: rms_norm(scale, config.transformer, values), hidden)
    for head in (HEAD, *(f"causal.further.{further}.head" for further in range(config.further_count))):
        multiply(normed, [head], lambda logits: logits)
