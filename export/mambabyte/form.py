"""MambaByte's checkpoints as they are published: mamba-ssm's `config.json` and `pytorch_model.bin`, or safetensors.

Names may also be those of MambaByte's training repository, whose state dictionaries come without a `config.json`.
"""

import math
from pathlib import Path

from edgeblt.errors import EdgebltError
from edgeblt.export.architectures import CheckpointForm
from edgeblt.export.checkpoints.config_section import Findings, Section, only
from edgeblt.export.checkpoints.files.checkpoint_files import (
    CONFIG,
    checkpoint_file,
    of_shape,
    read_json,
    read_weights,
    readable_object,
    stored_tensor,
)
from edgeblt.export.checkpoints.files.stored_weights import FloatingWeight, StoredWeight
from edgeblt.export.mambabyte.names import EMBEDDING, HEAD, mambabyte_shapes, published_name, training_name
from edgeblt.mambabyte.config import BYTE_VALUES, MambaByteConfig

NORM_EPSILON = 1e-5  # mamba-ssm's, which its configuration does not state
_READ = ("d_model", "n_layer", "vocab_size", "ssm_cfg", "rms_norm", "pad_vocab_size_multiple", "tie_embeddings")
_RULES = {
    "residual_in_fp32": only(True, False),  # residuals are float32 either way
    "fused_add_norm": only(True, False),
    "d_intermediate": only(0, None),
    "attn_layer_idx": only([], None),
    "attn_cfg": only({}, None),
}
_SSM_READ = ("d_state", "d_conv", "expand", "dt_rank")
_SSM_RULES = {
    "layer": only("Mamba1", None),
    "bias": only(False, None),
    "conv_bias": only(True, None),
}
# How training begins, and which of mamba-ssm's own kernels computes.
_SSM_NEUTRAL = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path")


def open_mambabyte_form(directory: Path, strict: bool) -> CheckpointForm | None:
    """The content of a directory in this form, whose weights are complete; None where it is in another form.

    Raises EdgebltError for a configuration that edgeblt cannot follow, and for tensors that do not fit it.
    """
    if not _is_mambabyte(directory):
        return None
    config, tied, notes = parse_mambabyte(read_json(checkpoint_file(directory, CONFIG)), directory / CONFIG, strict)
    listing, stored = read_weights(directory)
    name_of = training_name if training_name(EMBEDDING) in stored else published_name
    weights: dict[str, StoredWeight] = {}
    for name, shape in mambabyte_shapes(config).items():
        tensor = stored_tensor(listing, stored, name_of(EMBEDDING if tied and name == HEAD else name))
        weights[name] = FloatingWeight(of_shape(tensor, shape))
    return CheckpointForm.reading(config, weights, stored, directory / CONFIG, notes)


def _is_mambabyte(directory: Path) -> bool:
    """Whether `config.json` has mamba-ssm's fields, and names no other model."""
    document = readable_object(directory / CONFIG)
    return document is not None and {"d_model", "n_layer"} <= document.keys() and "model_type" not in document


def parse_mambabyte(document: object, where: Path, strict: bool) -> tuple[MambaByteConfig, bool, tuple[str, ...]]:
    """Configuration, whether head and embedding are one, and notes. Raises EdgebltError naming the field at fault."""
    section = Section(document, str(where))
    ssm, findings = section.child("ssm_cfg"), Findings()
    findings.sort(section, _READ, _RULES, {})
    findings.sort(ssm, (*_SSM_READ, *_SSM_NEUTRAL), _SSM_RULES, {})
    notes = findings.settle(strict)
    width, multiple = section.integer("d_model", 0), section.integer("pad_vocab_size_multiple", 8)
    vocabulary = section.integer("vocab_size", BYTE_VALUES)
    if -(-vocabulary // multiple) * multiple != BYTE_VALUES:
        raise section.error("vocab_size", f"a model of bytes has {BYTE_VALUES} ids, padding included")
    channels = width * ssm.integer("expand", 2)
    rank = ssm.document.get("dt_rank", "auto")
    try:
        config = MambaByteConfig(
            hidden_size=width,
            layer_count=section.integer("n_layer", 0),
            channel_count=channels,
            state_size=ssm.integer("d_state", 16),
            step_rank=math.ceil(width / 16) if rank == "auto" else ssm.integer("dt_rank", 1),
            kernel_size=ssm.integer("d_conv", 4),
            norm="rms" if section.boolean("rms_norm", True) else "layer",
            norm_epsilon=NORM_EPSILON,
            has_slots=True,
        )
    except EdgebltError as error:
        raise EdgebltError(f"{where}: {error}") from None
    return config, section.boolean("tie_embeddings", True), notes
