"""Fields of the requests: which are honoured, which change nothing, and which are refused by name."""

from typing import Any

from edgeblt.serving.api.refusals import RefusedError
from edgeblt.serving.api.schemas import Schema, optional
from edgeblt.serving.options import ServingLimits

MOST_ALTERNATIVES = 32
MOST_CHOICES = 128  # answers to one request
LARGEST_SEED = 2**53 - 1  # exact in every JSON reader

_STRING: Schema = {"type": "string"}
_ANYTHING: Schema = {}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 259}, "minItems": 1}
_ALTERNATIVES: Schema = {"type": "integer", "minimum": 0, "maximum": MOST_ALTERNATIVES}
_STOP: Schema = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 1000},
        {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 1000}, "maxItems": 16},
    ]
}
_FORMAT: Schema = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
        "json_schema": {
            "type": "object",
            "required": ["schema"],
            "properties": {
                "name": _STRING,
                "description": optional(_STRING),
                "schema": {"type": ["object", "boolean"]},
                "strict": optional({"type": "boolean"}),
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}

# They change nothing of an answer.
HARMLESS = {
    name: _ANYTHING
    for name in (
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "verbosity",
    )
}  # fmt: skip
# They would change an answer: each with the reason or the remedy. Null and the values given here ask for nothing.
REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "best_of": ("it would generate answers that are thrown away; use n", ()),
    "suffix": ("the model continues texts and cannot fill a gap", ("",)),
    "frequency_penalty": ("counted by byte it forbids letters, not repetitions; use dry_multiplier", (0,)),
    "presence_penalty": ("counted by byte it forbids letters, not repetitions; use dry_multiplier", (0,)),
    "repetition_penalty": ("counted by byte it forbids letters, not repetitions; use dry_multiplier", (1,)),
    "tools": ("the model has learned no tools", ([],)),
    "tool_choice": ("the model has learned no tools", ("none", "auto")),
    "parallel_tool_calls": ("the model has learned no tools", (True, False)),
    "functions": ("the model has learned no tools", ([],)),
    "function_call": ("the model has learned no tools", ("none", "auto")),
    "modalities": ("the model reads and writes text only", (["text"],)),
    "audio": ("the model reads and writes text only", ()),
    "prediction": ("nothing is drafted from outside", ()),
    "reasoning_effort": ("the model does not reason before it answers", ("none",)),
    "web_search_options": ("the server reaches nothing outside", ()),
    "min_tokens": ("use ignore_eos", (0,)),
}


def refuse_fields(body: dict[str, Any]) -> None:
    """Raises RefusedError where a field of `REFUSED` asks for what is not offered."""
    for name, (reason, harmless) in REFUSED.items():
        value = body.get(name)
        if value is not None and not any(_same(value, each) for each in harmless):
            raise RefusedError(400, f"{name} is not offered: {reason}", param=name, code="unsupported_parameter")


def _same(value: object, other: object) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _sampling(limits: ServingLimits) -> dict[str, Schema]:
    """Fields that completions and chats have in common."""
    count: Schema = {"type": "integer", "minimum": 0, "maximum": limits.new_bytes}
    return {
        "model": optional({"type": "string", "maxLength": 1000}),
        "max_tokens": optional({**count, "description": "Most bytes to generate, 256 by default."}),
        "temperature": optional({"type": "number", "minimum": 0, "maximum": 100}),
        "top_p": optional({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        "top_k": optional({"type": "integer", "minimum": 1, "maximum": 260}),
        "min_p": optional({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        "seed": optional({"type": "integer", "minimum": 0, "maximum": LARGEST_SEED}),
        "n": optional({"type": "integer", "minimum": 1, "maximum": min(limits.slots, MOST_CHOICES)}),
        "stop": optional(_STOP),
        "stream": optional({"type": "boolean"}),
        "stream_options": optional(
            {
                "type": "object",
                "properties": {
                    "include_usage": optional({"type": "boolean"}),
                    "include_obfuscation": optional({"type": "boolean"}),
                },
                "additionalProperties": False,
            }
        ),
        "logit_bias": optional(
            {
                "type": "object",
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                "description": "Nats by id; byte b is id b + 4.",
            }
        ),
        "dry_multiplier": optional({"type": "number", "minimum": 0, "maximum": 1000}),
        "dry_base": optional({"type": "number", "minimum": 1, "maximum": 1000}),
        "dry_allowed_length": optional({"type": "integer", "minimum": 1, "maximum": 1_000_000}),
        "dry_range": optional({"type": "integer", "minimum": 1, "maximum": 65_536}),
        "utf8": optional({"type": "boolean", "description": "Whether bytes that are not valid UTF-8 are forbidden."}),
        "ignore_eos": optional({"type": "boolean"}),
        "response_format": optional(_FORMAT),
        "regex": optional({"type": "string", "description": "A regular expression that the answer matches."}),
        "grammar": optional({"type": "string", "description": "A Lark grammar that the answer follows."}),
        "details": optional({**_ALTERNATIVES, "description": "Adds `edgeblt` to each choice, with alternatives."}),
        **HARMLESS,
        **{name: {"enum": [None, *harmless], "description": reason} for name, (reason, harmless) in REFUSED.items()},
    }


def _body(required: list[str], properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def completion_schema(limits: ServingLimits) -> Schema:
    """The body of a request for completions."""
    prompts: Schema = {
        "anyOf": [
            _STRING,
            {"type": "array", "items": _STRING, "minItems": 1, "maxItems": MOST_CHOICES},
            _IDS,
            {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MOST_CHOICES},
        ]
    }
    own: dict[str, Schema] = {
        "prompt": {**prompts, "description": "text, ids (byte b is id b + 4), or a list of either"},
        "logprobs": optional(_ALTERNATIVES),
        "echo": optional({"type": "boolean"}),
    }
    return _body(["prompt"], {**own, **_sampling(limits)})


def chat_schema(limits: ServingLimits) -> Schema:
    """The body of a request for an answer in a chat."""
    part: Schema = {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"type": "string", "enum": ["text"]}, "text": _STRING},
        "additionalProperties": False,
    }
    message: Schema = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"type": "string", "enum": ["system", "developer", "user", "assistant"]},
            "content": {"anyOf": [_STRING, {"type": "array", "items": part}]},
            "name": optional(_STRING),
        },
        "additionalProperties": False,
    }
    own: dict[str, Schema] = {
        "messages": {"type": "array", "items": message, "minItems": 1, "maxItems": 1000},
        "logprobs": optional({"type": "boolean"}),
        "top_logprobs": optional(_ALTERNATIVES),
    }
    sampling = _sampling(limits)
    return _body(["messages"], {**own, **sampling, "max_completion_tokens": sampling["max_tokens"]})


def score_schema() -> Schema:
    """The body of a request for scores."""
    own: dict[str, Schema] = {
        "model": optional({"type": "string", "maxLength": 1000}),
        "input": {"anyOf": [_STRING, _IDS], "description": "Text, or ids (byte b is id b + 4)."},
        "details": optional({**_ALTERNATIVES, "description": "Adds so many alternatives for each byte."}),
        "threshold": optional({"type": "number", "description": "Patching threshold in nats, if not the model's."}),
        **HARMLESS,
    }
    return _body(["input"], own)
