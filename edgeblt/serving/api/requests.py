"""Requests as they are understood: checked, and in the terms of the engine."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from edgeblt.arguments import as_bytes
from edgeblt.decoding.settings import MAX_NEW_BYTES, GenerationSettings, merged_settings
from edgeblt.decoding.settings_json import one_constraint
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, OFFSET
from edgeblt.serving.api.fields import MOST_CHOICES, refuse_fields
from edgeblt.serving.api.refusals import RefusedError
from edgeblt.serving.api.schemas import Schema, check
from edgeblt.serving.options import ServingLimits

Understood = TypeVar("Understood")
_NAMES = (
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "dry_multiplier", "dry_base", "dry_allowed_length",
    "dry_range", "utf8", "ignore_eos",
)  # fmt: skip
_WHOLE = ("top_k", "seed", "dry_allowed_length", "dry_range")


@dataclass(frozen=True)
class TextRequest:
    """A request for texts: `n` answers to each prompt.

    alternatives: number of likeliest alternatives of each byte that the engine records; None records nothing.
    logprobs: number that the answer shows in OpenAI's form; None shows none.
    details: number that the answer shows in the form of this server; None shows none.
    echo: whether the answer begins with the prompt.
    scores_only: whether nothing is to be generated, only the prompt's own log-probabilities shown.
    """

    model: str | None
    prompts: tuple[bytes, ...]
    settings: GenerationSettings
    n: int
    stream: bool
    include_usage: bool
    logprobs: int | None
    details: int | None
    echo: bool

    @property
    def alternatives(self) -> int | None:
        shown = [number for number in (self.logprobs, self.details) if number is not None]
        return max(shown) if shown else None

    @property
    def records_prompt(self) -> bool:
        return self.echo and self.alternatives is not None

    @property
    def scores_only(self) -> bool:
        return self.records_prompt and self.settings.max_new_bytes == 0


@dataclass(frozen=True)
class ScoreRequest:
    """A request for the scores of a text.

    alternatives: number of likeliest alternatives that the answer shows for each byte; None shows none.
    threshold: patching threshold in nats; None is the model's own.
    """

    model: str | None
    text: bytes
    alternatives: int | None
    threshold: float | None


def read_json(data: bytes, schema: Schema) -> dict[str, Any]:
    """The object in a request's body. Raises RefusedError for anything that does not meet the schema."""
    try:
        document = json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else f"{error}"[:200]
        raise RefusedError(400, f"the body is no JSON ({reason}); send a JSON object in UTF-8") from None
    if isinstance(document, dict):
        refuse_fields(document)
    check(document, schema, "")
    assert isinstance(document, dict)
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def text_request(
    body: Mapping[str, Any], prompts: tuple[bytes, ...], limits: ServingLimits, is_chat: bool
) -> TextRequest:
    """The request in a checked body. Raises RefusedError for what the schema cannot say."""
    n = int(_given(body, "n", 1))
    if len(prompts) * n > min(MOST_CHOICES, limits.slots + limits.queue):
        most = min(MOST_CHOICES, limits.slots + limits.queue)
        raise RefusedError(400, f"{len(prompts)} prompts with n = {n} ask for too many answers; ask for at most {most}")
    for prompt in prompts:
        check_size("the prompt", prompt, limits.prompt_bytes)
    settings = _understood(lambda: _settings(body, limits, is_chat))
    options = body.get("stream_options") or {}
    logprobs = body.get("logprobs")
    if is_chat:
        logprobs = int(body.get("top_logprobs") or 0) if logprobs else None
    return TextRequest(
        model=body.get("model"),
        prompts=prompts,
        settings=settings,
        n=n,
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        logprobs=None if logprobs is None else int(logprobs),
        details=_whole_or_none(body, "details"),
        echo=bool(body.get("echo")),
    )


def score_request(body: Mapping[str, Any], limits: ServingLimits) -> ScoreRequest:
    """The request in a checked body. Raises RefusedError for a text that is too long."""
    text = prompt_bytes("input", body["input"])
    check_size("the input", text, limits.prompt_bytes)
    return ScoreRequest(body.get("model"), text, _whole_or_none(body, "details"), body.get("threshold"))


def prompts_of(given: Any) -> tuple[bytes, ...]:
    """The prompts in the field `prompt`, checked. Raises RefusedError for ids that are no bytes."""
    if isinstance(given, list) and not isinstance(given[0], int | float):
        return tuple(prompt_bytes("prompt", each) for each in given)
    return (prompt_bytes("prompt", given),)


def prompt_bytes(name: str, given: Any) -> bytes:
    """The bytes of a text or of ids, which may begin with BOS. Raises RefusedError for others."""
    if isinstance(given, str):
        return _understood(lambda: as_bytes(name, given))
    ids = [int(id) for id in given]
    rest = ids[1:] if ids[0] == BOS else ids
    wrong = next((id for id in rest if id < OFFSET), None)
    if wrong is not None:
        raise RefusedError(400, f"{name} has the id {wrong}, which is no byte; byte b is id b + {OFFSET}", param=name)
    return bytes(id - OFFSET for id in rest)


def check_size(name: str, data: bytes, most: int) -> None:
    """Raises RefusedError for more bytes than a limit allows."""
    if len(data) > most:
        raise RefusedError(400, f"{name} has {len(data):,} bytes; this server takes at most {most:,}", code="too_long")


def _settings(body: Mapping[str, Any], limits: ServingLimits, is_chat: bool) -> GenerationSettings:
    given = {name: body.get(name) for name in _NAMES}
    given |= {name: _whole_or_none(body, name) for name in _WHOLE}
    most = _whole_or_none(body, "max_completion_tokens") if is_chat else None
    most = _whole_or_none(body, "max_tokens") if most is None else most
    biases = {_biased_id(key): float(nats) for key, nats in (body.get("logit_bias") or {}).items()}
    return merged_settings(
        None,
        **given,
        logit_bias=biases or None,
        constraint=one_constraint(**_constraint(body, limits)),
        max_new_bytes=min(MAX_NEW_BYTES, limits.new_bytes) if most is None else most,
    )


def _constraint(body: Mapping[str, Any], limits: ServingLimits) -> dict[str, str]:
    """The constraint of a request as JSON settings name it; none where it has none."""
    found = {name: body[name] for name in ("regex", "grammar") if body.get(name) is not None}
    wanted = body.get("response_format") or {"type": "text"}
    if wanted["type"] == "json_object":
        found["json_schema"] = '{"type": "object"}'
    elif wanted["type"] == "json_schema":
        if "json_schema" not in wanted:
            raise RefusedError(400, "response_format.json_schema is missing", param="response_format.json_schema")
        try:
            found["json_schema"] = json.dumps(wanted["json_schema"]["schema"])
        except RecursionError:
            raise RefusedError(400, "the JSON schema is too deep; simplify it", param="response_format") from None
    for name, text in found.items():
        check_size(name, text.encode(errors="surrogatepass"), limits.grammar_bytes)
    return found


def _biased_id(key: str) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 3 or int(key) > 259:
        raise RefusedError(
            400, "logit_bias has a name that is no id from 0 to 259; byte b is id b + 4", param="logit_bias"
        )
    return int(key)


def _understood(read: Callable[[], Understood]) -> Understood:
    try:
        return read()
    except EdgebltError as error:
        raise RefusedError(400, str(error)) from None


def _given(body: Mapping[str, Any], name: str, default: Any) -> Any:
    value = body.get(name)
    return default if value is None else value


def _whole_or_none(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    return None if value is None else int(value)
