"""Checkpoints of over-encoded byte transformers: `config.json` with Llama's fields, and safetensors or a pickle."""

from collections.abc import Mapping
from pathlib import Path

from edgeblt.bundle.config import Generation, TransformerConfig
from edgeblt.bundle.over_encoding import OverEncoding
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
from edgeblt.export.checkpoints.files.stored_weights import (
    FloatingWeight,
    FusedWeight,
    JoinedWeight,
    StoredPart,
    StoredWeight,
)
from edgeblt.export.overencoded.names import EMBEDDING, HEAD, PROJECTION, TABLES, overencoded_shapes, stored_names
from edgeblt.ids import BOS, EOS, VOCAB_SIZE
from edgeblt.overencoded.config import OverEncodedConfig

MODEL_TYPE = "overencoded"
_SPELLINGS = {
    "ratio": ("oe_vocab_size_ratio", "ngram_vocab_size_ratio"),
    "neighbors": ("oe_neighbor_num", "emb_neighbor_num"),
    "splits": ("oe_split_num", "emb_split_num"),
}
_ROWS = "oe_vocab_sizes"
_READ = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "eos_token_id", "num_future_heads",
    "ngram_fix_normalize_factor", "ngram_exclude_sp_token", "special_token_scope", _ROWS,
    *(name for names in _SPELLINGS.values() for name in names),
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
            tables=_tables(section, () if end is None else (end,)),
            further=section.integer("num_future_heads", 0, 0),
            generation=Generation(() if end is None else (end,)),
        )
    except EdgebltError as error:
        raise EdgebltError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None
    return config, section.boolean("tie_word_embeddings", False), notes


def _tables(section: Section, ends: tuple[int, ...]) -> OverEncoding | None:
    given = {key: _spelled(section, names) for key, names in _SPELLINGS.items()}
    if given["neighbors"] is None and given["ratio"] is None and section.document.get(_ROWS) is None:
        return None
    neighbors, splits = (section.integer(given[key] or _SPELLINGS[key][0], 0) for key in ("neighbors", "splits"))
    count = splits * (neighbors - 1)
    if section.document.get(_ROWS) is not None:
        rows = section.document[_ROWS]
        if not isinstance(rows, list) or any(type(number) is not int for number in rows):
            raise section.error(_ROWS, "it must be a list of integers, one for each table")
    else:
        ratio = section.number(given["ratio"] or _SPELLINGS["ratio"][0], 0.0)
        if not 0 <= ratio <= 1 << 40 or count > 1 << 10:
            raise section.error(given["ratio"] or _SPELLINGS["ratio"][0], "it must be a positive number")
        rows = [int(ratio * VOCAB_SIZE) + 2 * table + 1 for table in range(count)]
    excluded = _scope(section) if section.boolean("ngram_exclude_sp_token", False) else ()
    by_root = section.boolean("ngram_fix_normalize_factor", False)
    return OverEncoding(VOCAB_SIZE, neighbors, splits, tuple(rows), by_root, ends, excluded)


def _spelled(section: Section, names: tuple[str, ...]) -> str | None:
    """The name under which a field is given."""
    given = [name for name in names if section.document.get(name) is not None]
    if len(given) > 1 and section.document[given[0]] != section.document[given[1]]:
        raise section.error(given[0], f"it differs from {given[1]}; leave one of both out")
    return given[0] if given else None


def _scope(section: Section) -> tuple[int, ...]:
    """Ids in ranges such as `0:4,36:55`, whose ends are left out."""
    text, found = section.text("special_token_scope", "0:4"), set[int]()
    for part in text.split(","):
        begin, colon, end = part.strip().partition(":")
        if not (colon and begin.isdecimal() and end.isdecimal() and len(begin + end) < 9 and int(end) <= VOCAB_SIZE):
            raise section.error("special_token_scope", f"give ranges of ids below {VOCAB_SIZE}, such as 0:4")
        found |= set(range(int(begin), int(end)))
    return tuple(sorted(found))


def _weight(
    listing: Path, stored: Mapping[str, StoredPart], config: OverEncodedConfig, name: str, shape: tuple[int, ...]
) -> StoredWeight:
    parts = [stored_tensor(listing, stored, part) for part in stored_names(name, config.table_count)]
    width = config.table_width
    if name == TABLES and config.tables:
        return FusedWeight(
            tuple(of_shape(part, (rows, width)) for part, rows in zip(parts, config.tables.rows, strict=True))
        )
    if name == PROJECTION:
        return JoinedWeight(tuple(of_shape(part, (shape[0], width)) for part in parts))
    return FloatingWeight(of_shape(parts[0], shape))
