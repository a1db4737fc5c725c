"""Checkpoints of over-encoded byte transformers: `config.json` with Llama's fields, and safetensors or a pickle."""

from collections.abc import Mapping
from pathlib import Path

from edgeblt.bundle.config import Generation, TransformerConfig
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
from edgeblt.export.checkpoints.files.stored_weights import FloatingWeight, StoredPart, StoredWeight
from edgeblt.export.checkpoints.ngram_tables.fields import FIELDS, over_encoding_fields
from edgeblt.export.checkpoints.ngram_tables.weights import table_weight
from edgeblt.export.overencoded.names import EMBEDDING, HEAD, PROJECTION, TABLES, overencoded_shapes, stored_names
from edgeblt.ids import BOS, EOS, VOCAB_SIZE
from edgeblt.overencoded.config import OverEncodedConfig

MODEL_TYPE = "overencoded"
_READ = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "eos_token_id", "num_future_heads",
    *FIELDS,
)  # fmt: skip
_RULES = {
    "bos_token_id": only(BOS, None),
    "hidden_act": only("silu", None),
    "attention_bias": only(False, None),
    "mlp_bias": only(False, None),
    "rope_scaling": only(None),
    "rope_interleave": only(True, None),
    "sliding_window": only(None),
}
_NEUTRAL = (
    "architectures", "max_position_embeddings", "torch_dtype", "dtype", "transformers_version", "use_cache",
    "initializer_range", "attention_dropout", "pad_token_id", "head_dim",
)  # fmt: skip


def open_overencoded_form(directory: Path, strict: bool) -> CheckpointForm | None:
    """The content of a directory in this form, whose weights are complete; None where it is in another form.

    Raises EdgebltError for a configuration that edgeblt cannot follow, and for tensors that do not fit it.
    """
    if not _is_overencoded(directory):
        return None
    config, tied, notes = parse_overencoded(read_json(checkpoint_file(directory, CONFIG)), directory / CONFIG, strict)
    listing, stored = read_weights(directory)
    weights: dict[str, StoredWeight] = {}
    for name, shape in overencoded_shapes(config).items():
        weights[name] = _weight(listing, stored, config, EMBEDDING if tied and name == HEAD else name, shape)
    return CheckpointForm.reading(config, weights, stored, directory / CONFIG, notes)


def _is_overencoded(directory: Path) -> bool:
    document = readable_object(directory / CONFIG)
    return document is not None and document.get("model_type") == MODEL_TYPE


def parse_overencoded(document: object, where: Path, strict: bool) -> tuple[OverEncodedConfig, bool, tuple[str, ...]]:
    """Configuration, whether head and embedding are one, and notes. Raises EdgebltError naming the field at fault."""
    section, findings = Section(document, str(where)), Findings()
    findings.sort(section, (*_READ, *_NEUTRAL), _RULES, {})
    notes = findings.settle(strict)
    if section.integer("vocab_size", VOCAB_SIZE) != VOCAB_SIZE:
        raise section.error("vocab_size", f"a model of bytes has {VOCAB_SIZE} ids: 4 special ones, then the bytes")
    heads = section.integer("num_attention_heads", 0)
    end = section.optional_integer("eos_token_id", EOS, 0)
    width = section.integer("hidden_size", 0)
    if (head_dim := section.optional_integer("head_dim", None)) is not None and head_dim * heads != width:
        raise section.error("head_dim", "it must be hidden_size divided by num_attention_heads")
    try:
        config = OverEncodedConfig(
            transformer=TransformerConfig(
                hidden_size=width,
                layer_count=section.integer("num_hidden_layers", 0),
                head_count=heads,
                kv_head_count=section.optional_integer("num_key_value_heads", None) or heads,
                intermediate_size=section.integer("intermediate_size", 0),
                norm_epsilon=section.number("rms_norm_eps", 1e-5),
                rope_theta=section.number("rope_theta", 10000.0),
                window=None,
            ),
            tables=over_encoding_fields(section, VOCAB_SIZE, () if end is None else (end,)),
            further=section.integer("num_future_heads", 0, 0),
            generation=Generation(() if end is None else (end,)),
        )
    except EdgebltError as error:
        raise EdgebltError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None
    return config, section.boolean("tie_word_embeddings", False), notes


def _weight(
    listing: Path, stored: Mapping[str, StoredPart], config: OverEncodedConfig, name: str, shape: tuple[int, ...]
) -> StoredWeight:
    if config.tables and name in (TABLES, PROJECTION):
        return table_weight(listing, stored, config.tables, name, config.transformer.hidden_size)
    (part,) = stored_names(name, config.table_count)
    return FloatingWeight(of_shape(stored_tensor(listing, stored, part), shape))
