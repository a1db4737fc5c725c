"""transformers' `config.json` of a BLT into a ModelConfig, as transformers 5 reads it: its defaults and its overrides.

Source: transformers `models/blt/configuration_blt.py` and, for what a field does, `modeling_blt.py`. A field that would
change the computation in a way edgeblt does not follow is refused by name; bookkeeping is skipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edgeblt.bundle.config import HashConfig, ModelConfig, PatchingRule, Rule, TransformerConfig
from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints import meta_config
from edgeblt.export.checkpoints.config_section import Document, FieldRule, Findings, Section, only
from edgeblt.export.checkpoints.generation_config import end_ids
from edgeblt.export.checkpoints.llama_switches import ABSENT, HARMLESS, ONE, switches_beside
from edgeblt.export.checkpoints.ngram_tables.fields import FIELDS as OVER_ENCODING
from edgeblt.export.checkpoints.ngram_tables.fields import over_encoding_fields
from edgeblt.ids import EOS, VOCAB_SIZE

# fmt: off
# Written by PreTrainedConfig.to_dict() of transformers 4.5x or 5.x, or read only in training and generation.
BOOKKEEPING = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
    "_experts_implementation", "_experts_implementation_internal", "_name_or_path", "add_cross_attention",
    "architectures", "assistant_confidence_threshold", "assistant_lookbehind", "attn_implementation", "bad_words_ids",
    "begin_suppress_tokens", "chunk_size_feed_forward", "cross_attention_hidden_size", "diversity_penalty",
    "do_sample", "dropout", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "epsilon_cutoff", "eta_cutoff", "experts_implementation", "exponential_decay_length_penalty", "finetuning_task",
    "gradient_checkpointing", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder", "label2id",
    "length_penalty", "max_length", "max_position_embeddings", "min_length", "model_type", "name_or_path",
    "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams",
    "num_labels", "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "prefix",
    "problem_type", "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate",
    "suppress_tokens", "target_lookbehind", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tie_last_hidden_states", "tie_word_embeddings", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_bfloat16", "use_cache",
    # Written by transformers' conversion of Meta's checkpoints; its model never reads them.
    "attn_bias_type", "attn_impl", "patching_batch_size", "patching_device", "realtime_patching",
})
STACK = frozenset({
    "head_dim", "hidden_act", "hidden_size", "intermediate_size", "norm_eps", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
})
READ = STACK | {
    "cross_attn_all_layers", "cross_attn_k", "decoder_config", "encoder_config", "encoder_cross_output_size",
    "encoder_hash_byte_group_nb_functions", "encoder_hash_byte_group_size", "encoder_hash_byte_group_vocab",
    "global_config", "hidden_size_global", "local_attention_window_len", "max_patch_length", "patch_in_forward",
    "patch_size", "patcher_config", "patching_mode", "patching_threshold", "vocab_size",
}
KNOWN = READ | BOOKKEEPING | HARMLESS | meta_config.BOOKKEEPING | {"eos_id"}
# fmt: on
WINDOWED = ("encoder_config", "decoder_config", "patcher_config")  # local stacks have windows, whatever each says
THRESHOLD_ONLY = "transformers itself starts patches at a threshold alone; give the model in Meta's form"
RULES: Mapping[str, FieldRule] = {
    **switches_beside(KNOWN),
    **{name: only(*values) for name, values in meta_config.FIXED.items() if name not in KNOWN},
    **{name: only(value, None) for name, value in meta_config.REQUIRED.items()},
    "monotonicity": only(None, False, because=THRESHOLD_ONLY),
    "patching_threshold_add": only(None, 0.0, because=THRESHOLD_ONLY),
    "pm_size": only(None, 0),
}
WINDOWED_RULES = {name: rule for name, rule in RULES.items() if name != "sliding_window"}
UNSCALED = ("linear", "llama3")  # RoPE types without scaling if their factor is 1
ROPE_KNOWN = frozenset({
    "beta_fast", "beta_slow", "high_freq_factor", "long_factor", "low_freq_factor", "mscale", "mscale_all_dim",
    "original_max_position_embeddings", "rope_theta", "short_factor", "truncate",
})  # fmt: skip
ROPE_RULES: Mapping[str, FieldRule] = {
    "attention_factor": ONE,
    "factor": ONE,
    "full_attention": ABSENT,
    "mrope_section": ABSENT,
    "partial_rotary_factor": ONE,
    "sliding_attention": ABSENT,
    **dict.fromkeys(
        ("rope_type", "type"),
        FieldRule(
            "only 'default', or 'linear' or 'llama3' with a factor of 1",
            lambda value, rope: value == "default" or (value in UNSCALED and rope.get("factor") == 1),
        ),
    ),
}
ACTIVATION_ALIASES = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
}


@dataclass(frozen=True)
class TransformersConfig:
    """A ModelConfig, and the settings that only the names of tensors in transformers' form depend on."""

    model: ModelConfig
    encoder_cross_layer: int  # index of the encoder's one cross-attention module that has an effect
    tied: bool  # the output head and the encoder's embedding stand for each other where one is not stored
    notes: tuple[str, ...] = ()  # sentences for the user on how the file was read


@dataclass(frozen=True)
class StackDefaults:
    """The defaults of one sub-configuration class; `intermediate_size` None: 8/3 of `hidden_size`."""

    hidden_size: int
    layer_count: int
    head_count: int
    intermediate_size: int | None
    rope_theta: float


PATCHER = StackDefaults(768, 14, 12, 2048, 10000.0)
ENCODER = StackDefaults(1024, 1, 16, None, 500000.0)
GLOBAL = StackDefaults(2048, 25, 16, 5632, 500000.0)
DECODER = StackDefaults(1024, 9, 16, 2816, 500000.0)
STACKS = {"patcher_config": PATCHER, "encoder_config": ENCODER, "global_config": GLOBAL, "decoder_config": DECODER}
WINDOW = 512  # transformers' default


def parse_config(document: object, where: str, strict: bool = False) -> TransformersConfig:
    """The ModelConfig of a parsed `config.json`; `where` names the file in errors.

    Fields that no model known to edgeblt has are noted, and refused if `strict`. Raises EdgebltError.
    """
    top = Section(document, where)
    if top.document.get("model_type") != "blt":
        raise top.error(
            "model_type", "it must be 'blt' (a Byte Latent Transformer in transformers' form); give another checkpoint"
        )
    notes = _sort_fields(top).settle(strict)
    window = top.optional_integer("local_attention_window_len", WINDOW)
    encoder, decoder = top.child("encoder_config"), top.child("decoder_config")
    patching = _patching(top)
    model = ModelConfig(
        vocab_size=_vocab_size(top, encoder),
        cross_attention_k=_cross_attention_k(top, encoder, decoder),
        patcher=_patcher(top) if patching.rule.needs_entropies else None,
        # One mask, of the encoder's window, serves both local stacks; their own sliding_window is not read.
        encoder=_stack(encoder, ENCODER, window),
        global_=_stack(top.child("global_config"), GLOBAL, None),
        decoder=_stack(decoder, DECODER, window),
        decoder_cross_all_layers=decoder.boolean("cross_attn_all_layers", True),
        hashes=_hashes(top, encoder),
        patching=patching,
    )
    _refuse_unequal_widths(model, decoder)
    every_layer = encoder.boolean("cross_attn_all_layers", False)
    return TransformersConfig(
        model,
        # Each layer's cross-attention overwrites the patch vectors of the one before, so the last one counts.
        encoder_cross_layer=model.encoder.layer_count - 1 if every_layer else 0,
        tied=top.boolean("tie_word_embeddings", False),
        notes=notes + _windows_taken(top, patching),
    )


def _sort_fields(top: Section) -> Findings:
    """Sorts the fields of all objects of the file."""
    findings = Findings()
    findings.sort(top, KNOWN | set(OVER_ENCODING), RULES, _implied(top.child("decoder_config"), DECODER))
    _sort_rope(top, findings)
    for name, defaults in STACKS.items():
        section = top.child(name)
        rules, known = (WINDOWED_RULES, KNOWN | {"sliding_window"}) if name in WINDOWED else (RULES, KNOWN)
        findings.sort(section, known, rules, _implied(section, defaults))
        _sort_rope(section, findings)
    return findings


def _sort_rope(section: Section, findings: Findings) -> None:
    rope = _rope(section)
    findings.sort(rope, ROPE_KNOWN, ROPE_RULES, {})


def _implied(section: Section, defaults: StackDefaults) -> Document:
    """The stack's values with defaults, which field rules compare with; top-level fields use the decoder's."""
    stack = {
        "hidden_act": "silu",
        "hidden_size": defaults.hidden_size,
        "num_attention_heads": defaults.head_count,
        "num_hidden_layers": defaults.layer_count,
        "rms_norm_eps": 1e-5,
        "rope_theta": defaults.rope_theta,
    }
    stack |= {name: section.document[name] for name in stack.keys() & section.document.keys()}
    return stack | {"rope_theta": _rope(section).document.get("rope_theta", stack["rope_theta"])}


def _windows_taken(top: Section, patching: PatchingRule) -> tuple[str, ...]:
    """A note where a window is left out: checkpoints of the released models were converted without them."""
    missing = [] if "local_attention_window_len" in top.document else ["local_attention_window_len"]
    if patching.rule.needs_entropies and "sliding_window" not in top.child("patcher_config").document:
        missing.append("patcher_config.sliding_window")
    if not missing:
        return ()
    return (f"{top.where} has no {' and no '.join(missing)}: {WINDOW} was taken, as the released models have it",)


def _stack(section: Section, defaults: StackDefaults, window: int | None) -> TransformerConfig:
    hidden_size = section.integer("hidden_size", defaults.hidden_size)
    heads = section.integer("num_attention_heads", defaults.head_count)
    # Null and 0 both mean the usual choice here.
    kv_heads = section.optional_integer("num_key_value_heads", None, minimum=0) or heads
    intermediate = section.optional_integer("intermediate_size", defaults.intermediate_size, minimum=0)
    epsilon = section.number("rms_norm_eps", 1e-5)
    if section.number("norm_eps", epsilon) != epsilon:
        raise section.error("norm_eps", f"transformers uses rms_norm_eps {epsilon} instead; make the two equal")
    if section.document.get("head_dim") not in (None, hidden_size // heads):
        raise section.error("head_dim", f"it must be hidden_size over num_attention_heads, {hidden_size // heads}")
    activation = section.text("hidden_act", "silu")
    layers, rope_theta = section.integer("num_hidden_layers", defaults.layer_count), _rope_theta(section, defaults)
    try:
        return TransformerConfig(
            hidden_size=hidden_size,
            layer_count=layers,
            head_count=heads,
            kv_head_count=kv_heads,
            intermediate_size=intermediate or int(8 * hidden_size / 3),
            norm_epsilon=epsilon,
            rope_theta=rope_theta,
            window=window,
            activation=ACTIVATION_ALIASES.get(activation, activation),
        )
    except EdgebltError as error:
        raise EdgebltError(f"{section.where}: {error}") from None


def _rope(section: Section) -> Section:
    """`rope_parameters`, or the `rope_scaling` that transformers 4 wrote."""
    name = "rope_scaling" if section.document.get("rope_scaling") else "rope_parameters"
    return Section(section.document.get(name) or {}, section.file, (*section.path, name))


def _rope_theta(section: Section, defaults: StackDefaults) -> float:
    rope = _rope(section)
    return (rope if "rope_theta" in rope.document else section).number("rope_theta", defaults.rope_theta)


def _patcher(top: Section) -> TransformerConfig:
    section = top.child("patcher_config")
    vocab_size, own = top.integer("vocab_size", VOCAB_SIZE), section.integer("vocab_size", VOCAB_SIZE)
    if own != vocab_size:
        raise section.error("vocab_size", f"it must be the model's, {vocab_size}")
    return _stack(section, PATCHER, section.optional_integer("sliding_window", WINDOW))


def _vocab_size(top: Section, encoder: Section) -> int:
    vocab_size, own = top.integer("vocab_size", VOCAB_SIZE), encoder.integer("vocab_size", VOCAB_SIZE)
    if vocab_size < VOCAB_SIZE:
        raise top.error("vocab_size", f"256 bytes and the special ids need at least {VOCAB_SIZE}")
    if own != vocab_size:
        raise encoder.error("vocab_size", f"it must be the model's, {vocab_size}")
    return vocab_size


def _cross_attention_k(top: Section, encoder: Section, decoder: Section) -> int:
    k = top.integer("cross_attn_k", 2)
    for section in (encoder, decoder):
        own = section.integer("cross_attn_k", 2)
        if own != k:
            raise EdgebltError(f"{section.where}: cross_attn_k is {own}, but the model's is {k}; the two must be equal")
    return k


def _hashes(top: Section, encoder: Section) -> HashConfig | OverEncoding:
    """The n-gram tables: over-encoding's where there are fields of these, whatever the others say."""
    vocab_size, width = _vocab_size(top, encoder), encoder.integer("hidden_size", ENCODER.hidden_size)
    try:
        tables = over_encoding_fields(top, vocab_size, end_ids(top, vocab_size) or (EOS,))
        if tables:
            tables.require_fit(vocab_size, width)
            return tables
    except EdgebltError as error:
        raise EdgebltError(f"{top.where}: {str(error).removeprefix(f'{top.where}: ')}") from None
    sizes = top.document.get("encoder_hash_byte_group_size") or [3, 4, 5, 6, 7, 8]
    if not isinstance(sizes, list) or len(sizes) > 64 or any(type(n) is not int or not 1 <= n <= 64 for n in sizes):
        raise top.error("encoder_hash_byte_group_size", "it must be a list of at most 64 integers between 1 and 64")
    return HashConfig(
        function_count=top.integer("encoder_hash_byte_group_nb_functions", 1),
        group_sizes=tuple(sizes),
        vocab_size=top.integer("encoder_hash_byte_group_vocab", 500002),
    )


def _patching(top: Section) -> PatchingRule:
    by_entropy = top.document.get("patching_mode", "entropy") == "entropy"
    if not (by_entropy and top.boolean("patch_in_forward", True)):
        return PatchingRule(Rule.BYTE)  # whatever the mode is called, transformers then makes every byte a patch
    if top.document.get("patch_size", 4) is None:  # no computation reads the number, but null turns patching off
        raise top.error("patch_size", "entropy patching needs a number; set it to 4")
    top.number("patch_size", 4)
    return PatchingRule(
        Rule.THRESHOLD,
        threshold=top.number("patching_threshold", 1.335442066192627),
        max_patch_length=top.optional_integer("max_patch_length", None),
    )


def _refuse_unequal_widths(model: ModelConfig, decoder: Section) -> None:
    """Raises EdgebltError for widths that transformers' modules accept but its forward pass cannot join."""
    if model.decoder.hidden_size != model.encoder.hidden_size:
        raise EdgebltError(
            f"{decoder.where}: hidden_size is {model.decoder.hidden_size}, but the encoder's is "
            f"{model.encoder.hidden_size}; the decoder reads the encoder's vectors, so they must be equal"
        )
    read = decoder.integer("hidden_size_global", GLOBAL.hidden_size)
    if read != model.global_.hidden_size:
        raise EdgebltError(
            f"{decoder.where}: hidden_size_global is {read}, but global_config.hidden_size is "
            f"{model.global_.hidden_size}; the two must be equal"
        )
