"""transformers' `config.json` of a BLT into a ModelConfig, as transformers 5 reads it: its defaults and its overrides.

Source: transformers `models/blt/configuration_blt.py` and, for what a field does, `modeling_blt.py`. A field that would
change the computation in a way edgeblt does not follow is refused by name; bookkeeping is skipped.
"""

import math
from dataclasses import dataclass
from typing import Any

from edgeblt.config import LIMIT, HashConfig, ModelConfig, PatchingRule, Rule, TransformerConfig
from edgeblt.errors import EdgebltError
from edgeblt.ids import VOCAB_SIZE

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
LOCAL = STACK | {"cross_attn_all_layers", "cross_attn_k", "hidden_size_global", "sliding_window", "vocab_size"}
TOP = frozenset({
    "cross_attn_k", "decoder_config", "encoder_config", "encoder_hash_byte_group_nb_functions",
    "encoder_hash_byte_group_size", "encoder_hash_byte_group_vocab", "global_config", "local_attention_window_len",
    "max_patch_length", "patch_in_forward", "patch_size", "patcher_config", "patching_mode", "patching_threshold",
    "rope_parameters", "rope_scaling", "rope_theta",  # each stack has its own rotary angles: these are not used
    "vocab_size",
})
# fmt: on
# Would change the computation, except at these values.
INERT: dict[str, tuple[object, ...]] = {
    "attention_bias": (None, False),
    "factor": (None, 1.0),
    "mlp_bias": (None, False),
    "monotonicity": (None, False),
    "partial_rotary_factor": (None, 1.0),
    "patching_threshold_add": (None, 0.0),
    "per_layer_config": (None, {}),
    "pm_size": (None, 0),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
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
    """A ModelConfig, and what only the tensor names of transformers' form depend on."""

    model: ModelConfig
    encoder_cross_layer: int  # which of the encoder's cross-attention modules has an effect
    tied: bool  # the output head and the encoder's embedding stand for each other where one is not stored


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


def shown(value: object) -> str:
    """A short form of a value read from a file, on one line."""
    text = ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."


class Section:
    """One JSON object of the configuration, its fields read by type; `where` names it in errors."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, dict):
            raise EdgebltError(f"{where} is {shown(document)}; it must be a JSON object")
        self.document: dict[str, Any] = document
        self.where = where

    def error(self, name: str, rest: str) -> EdgebltError:
        return EdgebltError(f"{self.where}: {name} is {shown(self.document.get(name))}; {rest}")

    def refuse_unknown(self, known: frozenset[str]) -> None:
        if self.document.get("quantization_config") is not None:
            raise EdgebltError(
                f"{self.where}: the checkpoint is already quantized (quantization_config); give one in bfloat16, "
                "float16 or float32"
            )
        for name, value in self.document.items():
            if name in INERT:
                if value not in INERT[name]:
                    raise self.error(name, f"this is not supported, only {shown(INERT[name][-1])} or no such field")
            elif name not in known and not name.endswith("_token_id"):
                raise EdgebltError(
                    f"{self.where}: unsupported configuration field {shown(name)}; remove it if it does not change "
                    "what the model computes"
                )

    def integer(self, name: str, default: int, minimum: int = 1) -> int:
        value = self.document.get(name, default)
        if type(value) is not int or not minimum <= value < LIMIT:  # `type`: true is no integer
            raise self.error(name, f"it must be an integer between {minimum} and {LIMIT - 1}")
        return value

    def optional_integer(self, name: str, default: int | None, minimum: int = 1) -> int | None:
        if self.document.get(name, default) is None:
            return None
        return self.integer(name, minimum if default is None else default, minimum)

    def number(self, name: str, default: float) -> float:
        value = self.document.get(name, default)
        if type(value) is int and abs(value) < 1 << 53:
            value = float(value)
        if type(value) is not float or not math.isfinite(value):
            raise self.error(name, "it must be a finite number")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self.document.get(name, default)
        if value is not None and type(value) is not bool:
            raise self.error(name, "it must be true or false")
        return bool(value)

    def text(self, name: str, default: str) -> str:
        value = self.document.get(name, default)
        if type(value) is not str:
            raise self.error(name, "it must be a string")
        return value


def parse_config(document: object, where: str) -> TransformersConfig:
    """`config.json`, parsed, as edgeblt describes models; `where` names the file in errors. Raises EdgebltError."""
    top = Section(document, where)
    if top.document.get("model_type") != "blt":
        raise top.error(
            "model_type", "it must be 'blt' (a Byte Latent Transformer in transformers' form); give another checkpoint"
        )
    top.refuse_unknown(BOOKKEEPING | TOP)
    window = top.optional_integer("local_attention_window_len", 512)
    encoder, decoder = _section(top, "encoder_config"), _section(top, "decoder_config")
    global_ = _section(top, "global_config")
    encoder.refuse_unknown(BOOKKEEPING | LOCAL)
    decoder.refuse_unknown(BOOKKEEPING | LOCAL)
    global_.refuse_unknown(BOOKKEEPING | STACK | {"encoder_cross_output_size"})  # transformers computes that one
    patching = _patching(top)
    model = ModelConfig(
        vocab_size=_vocab_size(top, encoder),
        cross_attention_k=_cross_attention_k(top, encoder, decoder),
        patcher=_patcher(top) if patching.rule.needs_entropies else None,
        # One mask, of the encoder's window, serves both local stacks; their own sliding_window is not read.
        encoder=_stack(encoder, ENCODER, window),
        global_=_stack(global_, GLOBAL, None),
        decoder=_stack(decoder, DECODER, window),
        decoder_cross_all_layers=decoder.boolean("cross_attn_all_layers", True),
        hashes=_hashes(top),
        patching=patching,
    )
    _refuse_unequal_widths(model, decoder)
    every_layer = encoder.boolean("cross_attn_all_layers", False)
    return TransformersConfig(
        model,
        # Each layer's cross-attention overwrites the patch vectors of the one before, so the last one counts.
        encoder_cross_layer=model.encoder.layer_count - 1 if every_layer else 0,
        tied=top.boolean("tie_word_embeddings", False),
    )


def _section(top: Section, name: str) -> Section:
    """A sub-configuration; one that is missing or null is all defaults."""
    document = top.document.get(name)
    return Section({} if document is None else document, f"{top.where}: {name}")


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


def _rope_theta(section: Section, defaults: StackDefaults) -> float:
    """From `rope_parameters`, or the `rope_scaling` and `rope_theta` that transformers 4 wrote."""
    document = section.document.get("rope_scaling") or section.document.get("rope_parameters") or {}
    rope = Section(document, f"{section.where}: rope_parameters")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind != "default":
        raise EdgebltError(f"{rope.where}: rope_type {shown(kind)} is not supported; only 'default' is")
    rope.refuse_unknown(frozenset({"rope_theta", "rope_type", "type"}))
    return (rope if "rope_theta" in document else section).number("rope_theta", defaults.rope_theta)


def _patcher(top: Section) -> TransformerConfig:
    section = _section(top, "patcher_config")
    section.refuse_unknown(BOOKKEEPING | STACK | {"sliding_window", "vocab_size"})
    vocab_size, own = top.integer("vocab_size", VOCAB_SIZE), section.integer("vocab_size", VOCAB_SIZE)
    if own != vocab_size:
        raise section.error("vocab_size", f"it must be the model's, {vocab_size}")
    return _stack(section, PATCHER, section.optional_integer("sliding_window", 512))


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


def _hashes(top: Section) -> HashConfig:
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
    if top.optional_integer("patch_size", 4, minimum=0) is None:  # read by no computation, but null turns patching off
        raise top.error("patch_size", "entropy patching needs a number; set it to 4")
    return PatchingRule(
        Rule.THRESHOLD,
        threshold=top.number("patching_threshold", 1.335442066192627),
        max_patch_length=top.optional_integer("max_patch_length", None),
    )


def _refuse_unequal_widths(model: ModelConfig, decoder: Section) -> None:
    """Widths that transformers' modules are built with, but that its forward cannot join."""
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
