"""Meta's arguments of a BLT (`args` in `config.json`) into a ModelConfig, as Meta's code follows them.

Source: facebookresearch/blt, `bytelatent/model/blt.py`, `local_models.py`, `latent_transformer.py` and
`bytelatent/base_transformer.py`. A field that would change the computation in a way edgeblt does not follow is refused
by name; what Meta's code reads only in training, or not at all, is skipped. The widths of MLPs are those of the
tensors, not computed from `multiple_of` and `ffn_dim_multiplier`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeblt.bundle.config import LIMIT, HashConfig, ModelConfig, PatchingRule, TransformerConfig
from edgeblt.bundle.hashing import PRIMES
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.config_section import FieldRule, Findings, Section, only
from edgeblt.export.checkpoints.files.stored_weights import StoredPart
from edgeblt.export.checkpoints.llama_switches import HARMLESS, switches_beside
from edgeblt.ids import VOCAB_SIZE

Fixed = dict[str, tuple[object, ...]]
MlpWidth = Callable[[str], int]  # MLP width by Meta's name of a stack: encoder, global, decoder

# fmt: off
BOOKKEEPING = frozenset({
    "alpha_depth", "attn_to_keep", "cross_attn_use_flex_attention", "custom_bwd", "dim", "dim_patch_emb",
    "dim_token_emb", "dropout", "encoder_enable_byte_group_hash", "encoder_lm_loss", "encoder_ngram_table_dir",
    "encoder_ngram_to_size_str", "encoder_preds_low_entropy_toks", "encoder_preds_random_toks",
    "entropy_model_checkpoint_dir", "full_logging_n_layers", "fuse_sequence_parallel", "init_base_std",
    "init_std_factor", "init_use_depth", "init_use_gaussian", "layer_ckpt", "log_patch_lengths", "loss_parallel",
    "max_encoder_seq_length", "max_length", "max_seqlen", "n_heads", "n_layers", "ngram_vocab_sizes", "output_size",
    "pad_to_max_length", "patching_batch_size", "patching_device", "patching_thresholds_str", "recompute_attn",
    "recompute_fc1_out", "recompute_fc3_out", "rope_use_fp32_in_outer_product", "seed", "sequence_parallel",
    "use_fsdp",
    "patch_in_forward",  # generation computes the patches itself; `meta_patching` compares the two
    "ffn_dim_multiplier", "multiple_of",  # the tensors have the widths that these once gave
    "patch_size",  # read only in a mode that is not supported
    "share_encoder_decoder_emb",  # without effect where `dim_token` is the width of both
})
READ = frozenset({
    "cross_attn_all_layers_decoder", "cross_attn_all_layers_encoder", "cross_attn_k", "cross_attn_nheads", "dim_global",
    "dim_local_decoder", "dim_local_encoder", "dim_token", "encoder_hash_byte_group_nb_functions",
    "encoder_hash_byte_group_size", "encoder_hash_byte_group_vocab", "head_dim", "local_attention_window_len",
    "max_patch_length", "monotonicity", "n_heads_global", "n_heads_local_decoder", "n_heads_local_encoder",
    "n_kv_heads", "n_kv_heads_global", "n_layers_global", "n_layers_local_decoder", "n_layers_local_encoder",
    "norm_eps", "patching_mode", "patching_threshold", "patching_threshold_add", "rope_theta",
    "use_local_encoder_transformer", "vocab_size",
})
# Supported values; a field that is left out has Meta's default, which is the first.
FIXED: Fixed = {
    "architecture": ("vanilla",),
    "attn_bias_type": ("causal", "block_causal", None),  # the same for one text, which is what a sequence is here
    "attn_impl": ("sdpa", "xformers", "flex_attention", "fmha", None),  # see `refuse_idle_window`
    "conv_kernel_size": (None,),
    "encoder_enable_byte_ngrams": (False,),
    "entropy_model_is_ngram_model": (False,),
    "eos_id": (2, None),  # Meta's masks part texts behind this id
    "global_local_decoder_residual_layer": (None,),
    "non_linearity": ("swiglu",),
    "norm_affine": (True,),
    "norm_type": ("rmsnorm",),
    "pm_size": (0,),
    "pre_norm": (True,),
    "tie_local_encoder_decoder": (False,),
    "tie_local_encoder_decoder_logits": (False,),
    "tokenize_with_bpe_delimiter": (False,),
    "use_rope": (True,),
    "weight_tying": (False,),
    # 1: a patch sees only its own bytes and a byte only its own patch, as without a window.
    "cross_attn_window_decoder": (None, 1),
    "cross_attn_window_encoder": (None, 1),
}
REQUIRED: dict[str, object] = {  # left out, Meta's default is another
    "cross_attn_decoder": True,
    "cross_attn_encoder": True,
    "cross_attn_init_by_pooling": True,
    "downsampling_by_pooling": "max",
}
# fmt: on
WINDOWED_ATTENTION = "xformers"  # the only `attn_impl` under which Meta's code has windows


@dataclass(frozen=True)
class StackFields:
    """The stage, and what Meta calls the fields of its stack."""

    stage: str
    hidden_size: str
    layer_count: str
    head_count: str
    kv_head_count: str


ENCODER = StackFields("encoder", "dim_local_encoder", "n_layers_local_encoder", "n_heads_local_encoder", "n_kv_heads")
GLOBAL = StackFields("global", "dim_global", "n_layers_global", "n_heads_global", "n_kv_heads_global")
DECODER = StackFields("decoder", "dim_local_decoder", "n_layers_local_decoder", "n_heads_local_decoder", "n_kv_heads")


def is_meta(document: object) -> bool:
    """Whether a parsed `config.json` is in Meta's form."""
    return isinstance(document, dict) and "args" in document and "model_type" not in document


def sort_model(args: Section, findings: Findings) -> None:
    """Sort the fields of a main model's `args`."""
    required = {name: only(value) for name, value in REQUIRED.items()}
    sort_fields(args, BOOKKEEPING | READ, FIXED, findings, required)
    for name in sorted(REQUIRED.keys() - args.document.keys()):
        findings.refuse(args, name, required[name].remedy)


def parse_model(
    args: Section, patching: PatchingRule, patcher: TransformerConfig | None, mlp_width: MlpWidth
) -> ModelConfig:
    """The configuration of a main model from its sorted `args`, its rule and its entropy model. Raises EdgebltError."""
    if args.document.get("patching_mode") == "":
        raise args.error("patching_mode", "edgeblt does not pad the first patch; give a model with a patching mode")
    window = args.optional_integer("local_attention_window_len", None)
    refuse_idle_window(args, "local_attention_window_len", window)
    model = ModelConfig(
        vocab_size=args.integer("vocab_size", -1, minimum=VOCAB_SIZE),
        cross_attention_k=args.integer("cross_attn_k", 0),
        patcher=patcher,
        encoder=_local_stack(args, ENCODER, window, mlp_width),
        global_=parse_stack(args, GLOBAL, None, mlp_width),
        decoder=_local_stack(args, DECODER, window, mlp_width),
        decoder_cross_all_layers=args.boolean("cross_attn_all_layers_decoder", False),
        hashes=_hashes(args),
        patching=patching,
    )
    _refuse_unequal_widths(args, model)
    if model.encoder.layer_count > 1 and args.boolean("cross_attn_all_layers_encoder", False):
        raise args.error("cross_attn_all_layers_encoder", "edgeblt supports only false for more than one encoder layer")
    return model


def sort_fields(
    section: Section,
    read: Collection[str],
    fixed: Fixed,
    findings: Findings,
    required: Mapping[str, FieldRule] | None = None,
) -> None:
    """Sort the fields of an object of Meta's: `read`, at a value in `fixed`, or those of other models."""
    known = frozenset(read) | HARMLESS
    rules = {name: only(*values) for name, values in fixed.items()} | dict(required or {})
    findings.sort(section, known, switches_beside(known) | rules, {})


def parse_stack(section: Section, fields: StackFields, window: int | None, mlp_width: MlpWidth) -> TransformerConfig:
    """One stack of layers, with Meta's defaults. Raises EdgebltError."""
    hidden_size, heads = section.integer(fields.hidden_size, 512), section.integer(fields.head_count, 8)
    if hidden_size % heads:
        raise section.error(fields.head_count, f"it must divide {fields.hidden_size}, {hidden_size}")
    if section.document.get("head_dim") not in (None, hidden_size // heads):
        raise section.error(
            "head_dim", f"it must be {fields.hidden_size} over {fields.head_count}, {hidden_size // heads}"
        )
    kv_heads = section.optional_integer(fields.kv_head_count, None, minimum=0) or heads  # 0 is none too
    if heads % kv_heads:
        raise section.error(fields.kv_head_count, f"it must divide {fields.head_count}, {heads}")
    width = mlp_width(fields.stage)
    try:
        return TransformerConfig(
            hidden_size=hidden_size,
            layer_count=section.integer(fields.layer_count, 8),
            head_count=heads,
            kv_head_count=kv_heads,
            intermediate_size=width,
            norm_epsilon=section.number("norm_eps", 1e-5),
            rope_theta=section.number("rope_theta", 10000.0),
            window=window,
        )
    except EdgebltError as error:
        if section.where in str(error):
            raise
        raise EdgebltError(f"{section.where}: {error}") from None


def refuse_idle_window(section: Section, name: str, window: int | None) -> None:
    """Raises EdgebltError for a window that Meta's code would not apply."""
    if window is not None and section.document.get("attn_impl", "sdpa") != WINDOWED_ATTENTION:
        raise section.error(
            "attn_impl",
            f"Meta's code applies {name} {window} only under {WINDOWED_ATTENTION!r}; set the one or the other to what "
            "the model was trained with",
        )


def mlp_width(stored: Mapping[str, StoredPart], listing: Path, prefix: str) -> int:
    """MLP width of the stack whose names begin with `prefix`, from its first layer's tensor. Raises EdgebltError."""
    name = f"{prefix}layers.0.feed_forward.w1.weight"
    part = stored.get(name)
    if part is None:
        raise EdgebltError(
            f"{listing} has no tensor {name!a}, which the configuration asks for; give the complete checkpoint"
        )
    if len(part.shape) != 2 or not 1 <= part.shape[0] < LIMIT:
        raise EdgebltError(f"{part.file}: the tensor {name!a} has shape {list(part.shape)}, and should be a matrix")
    return part.shape[0]


def _local_stack(args: Section, fields: StackFields, window: int | None, mlp_width: MlpWidth) -> TransformerConfig:
    """A stack whose cross-attention has heads like its own: one set of counts describes both."""
    stack = parse_stack(args, fields, window, mlp_width)
    if args.integer("cross_attn_nheads", 0) != stack.head_count:
        raise args.error("cross_attn_nheads", f"edgeblt supports only {fields.head_count}, {stack.head_count}")
    if stack.kv_head_count != stack.head_count:
        raise args.error("n_kv_heads", f"edgeblt supports only null or {fields.head_count}, {stack.head_count}")
    return stack


def _refuse_unequal_widths(args: Section, model: ModelConfig) -> None:
    width = model.encoder.hidden_size
    if model.decoder.hidden_size != width:
        raise args.error("dim_local_decoder", f"the decoder reads the encoder's vectors: it must be {width} too")
    if args.optional_integer("dim_token", None) not in (None, width):
        raise args.error("dim_token", f"edgeblt supports only null or dim_local_encoder, {width}")
    if args.document.get("dim_token") is None and not args.boolean("use_local_encoder_transformer", False):
        raise args.error("use_local_encoder_transformer", f"without dim_token {width} edgeblt supports only true")
    if model.global_.hidden_size == width:
        raise args.error("dim_global", "edgeblt supports only a width other than dim_local_decoder's")


def _hashes(args: Section) -> HashConfig:
    sizes = hash_sizes(args.document.get("encoder_hash_byte_group_size"))
    if not isinstance(sizes, list) or not 1 <= len(sizes) <= 64 or any(type(n) is not int for n in sizes):
        raise args.error("encoder_hash_byte_group_size", "it must be a list of 1 to 64 integers")
    if not all(1 <= n <= 64 for n in sizes):
        raise args.error("encoder_hash_byte_group_size", "its integers must be between 1 and 64")
    functions = args.integer("encoder_hash_byte_group_nb_functions", 3)
    if functions > len(PRIMES):
        raise args.error("encoder_hash_byte_group_nb_functions", f"there are only {len(PRIMES)} hash functions")
    return HashConfig(
        function_count=functions,
        group_sizes=tuple(sizes),
        vocab_size=args.integer("encoder_hash_byte_group_vocab", 30000),
    )


def hash_sizes(value: object) -> object:
    """The sizes as a list; Meta also writes them as a string: "3,4,5"."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",") if part]
    return [int(part) for part in parts] if all(part.isdecimal() and len(part) < 9 for part in parts) else value
