"""Meta's entropy model: a directory on its own, or `entropy_model/` in a checkpoint.

    params.json, consolidated.pth      as trained; Meta's `load_entropy_model` reads six of the fields
    config.json, model.safetensors     as Meta's `LMTransformer.save_pretrained` writes it; all fields are read

Source: facebookresearch/blt, `bytelatent/entropy_model.py`, `transformer.py` and, for the directory, `data/patcher.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeblt.bundle.config import TransformerConfig
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.config_section import Findings, Section
from edgeblt.export.checkpoints.files.checkpoint_files import (
    CONFIG,
    INDEX,
    SINGLE,
    by_plain_name,
    checkpoint_file,
    exists,
    read_json,
    read_weights,
)
from edgeblt.export.checkpoints.files.pickle_files import pickled_tensors
from edgeblt.export.checkpoints.files.stored_weights import StoredPart
from edgeblt.export.checkpoints.meta_config import (
    Fixed,
    MlpWidth,
    StackFields,
    mlp_width,
    parse_stack,
    refuse_idle_window,
    sort_fields,
)

PARAMS = "params.json"
PICKLES = ("consolidated/consolidated.pth", "consolidated.pth")  # the order Meta looks in
KEY = "model"  # key of the state dictionary in the pickled one
WINDOW = "local_block_causal"
LOADER_WINDOW = 512  # `load_entropy_model` sets it, whatever the file says
STACK = StackFields("patcher", "dim", "n_layers", "n_heads", "n_kv_heads")
# fmt: off
READ = frozenset({
    "dim", "head_dim", "n_heads", "n_kv_heads", "n_layers", "norm_eps", "rope_theta", "sliding_window", "vocab_size",
})
BOOKKEEPING = frozenset({
    "ffn_dim_multiplier", "init_base_std", "init_std_factor", "max_seqlen", "multiple_of",
    "rope_use_fp32_in_outer_product", "seed",
})
# fmt: on
FIXED: Fixed = {
    "attn_bias_type": (None, "causal", "block_causal", WINDOW),
    "attn_impl": ("sdpa", "xformers", "flex_attention", "fmha", None),
    "eos_id": (2, None),
    "weight_tying": (False,),
}
LOADER_BOOKKEEPING = BOOKKEEPING | {"attn_bias_type", "attn_impl"}  # it sets them
LOADER_FIXED: Fixed = {  # it leaves them at Meta's defaults
    "eos_id": (2, None),
    "norm_eps": (1e-5,),
    "rope_theta": (10000.0,),
    "sliding_window": (LOADER_WINDOW, None),
    "weight_tying": (False,),
}


@dataclass(frozen=True)
class EntropyModel:
    """An opened entropy model: its configuration and every tensor stored with it, by Meta's names."""

    stack: TransformerConfig
    fields: Section  # stored fields
    listing: Path
    stored: Mapping[str, StoredPart]
    files: dict[str, Path]  # paths by name in the directory


def entropy_fields(directory: Path, findings: Findings) -> Section:
    """Read and sort the configuration. Raises EdgebltError."""
    name = next((name for name in (CONFIG, PARAMS) if exists(directory, name)), None)
    if name is None:
        raise EdgebltError(f"{directory} holds neither {CONFIG} nor {PARAMS}; give the directory of an entropy model")
    file, key = checkpoint_file(directory, name), "args" if name == CONFIG else "entropy_model"
    document = read_json(file)
    if not isinstance(document, dict) or not isinstance(document.get(key), dict):
        raise EdgebltError(f"{file} has no {key!r} of an entropy model; give the directory of Meta's entropy model")
    fields = Section(document[key], str(file), (key,))
    if "dim_global" in fields.document:
        raise EdgebltError(f"{file} is a whole model's; give the directory of its entropy model")
    if fields.document.get(STACK.head_count) is None:
        raise fields.error(STACK.head_count, "it must be an integer")
    if name == CONFIG:
        sort_fields(fields, READ | BOOKKEEPING, FIXED, findings)
    else:
        sort_fields(fields, READ | LOADER_BOOKKEEPING, LOADER_FIXED, findings)
    return fields


def open_entropy_model(directory: Path, fields: Section) -> EntropyModel:
    """Read the headers of the weight files, no tensor data; `fields` are the directory's. Raises EdgebltError."""
    listing, stored, files = _tensors(directory)
    parse = _as_saved if Path(fields.file).name == CONFIG else _as_loaded
    stack = parse(fields, lambda stage: mlp_width(stored, listing, ""))
    return EntropyModel(stack, fields, listing, stored, {Path(fields.file).name: Path(fields.file), **files})


def _as_saved(fields: Section, width: MlpWidth) -> TransformerConfig:
    window = fields.optional_integer("sliding_window", None)
    refuse_idle_window(fields, "sliding_window", window)
    if (window is not None) != (fields.document.get("attn_bias_type") == WINDOW):
        raise fields.error("attn_bias_type", f"with sliding_window {window} edgeblt supports only {_biases(window)}")
    return parse_stack(fields, STACK, window, width)


def _biases(window: int | None) -> str:
    return repr(WINDOW) if window is not None else "null, 'causal' and 'block_causal'"


def _as_loaded(fields: Section, width: MlpWidth) -> TransformerConfig:
    """The model that `load_entropy_model` builds from six fields; the other fields must agree with it."""
    stack = parse_stack(fields, STACK, LOADER_WINDOW, width)
    if stack.kv_head_count != stack.head_count:
        raise fields.error(STACK.kv_head_count, f"Meta's code reads this file as if it were {stack.head_count}")
    return stack


def _tensors(directory: Path) -> tuple[Path, Mapping[str, StoredPart], dict[str, Path]]:
    """The file that lists the tensors, the tensors, and the files that hold them."""
    pickle = next((name for name in PICKLES if exists(directory, name)), None)
    if pickle is None or exists(directory, SINGLE) or exists(directory, INDEX):
        listing, stored = read_weights(directory)
        return listing, stored, {file.name: file for file in (listing, *(part.file for part in stored.values()))}
    file = checkpoint_file(directory, pickle)
    return file, by_plain_name(file, pickled_tensors(file, KEY).values()), {pickle: file}
