"""Settings of generated texts in lm-evaluation-harness's terms."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from edgeblt.arguments import real_number, whole_number
from edgeblt.decoding.settings import GenerationSettings, merged_settings
from edgeblt.errors import EdgebltError, shown

MAX_TOKENS = 256  # lm-evaluation-harness's own default
BYTES_PER_TOKEN = 4.0  # about what a token of English holds
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
_OWN = frozenset(field.name for field in fields(GenerationSettings)) - {"stop", "constraint"}


def task_settings(arguments: Mapping[str, Any], bytes_per_token: float = BYTES_PER_TOKEN) -> GenerationSettings:
    """Settings that a task's `generation_kwargs` ask for.

    arguments: `until` or `stop`, a string or several; `max_gen_toks`, which counts tokens; `do_sample`; any setting of
        `GenerationSettings` by its own name. Without `do_sample`, a temperature above 0 asks for samples.
    bytes_per_token: bytes that a token of `max_gen_toks` stands for, above 0.

    Samples have the seed 0 unless `seed` is given. Raises EdgebltError for other arguments and values out of range.
    """
    left = dict(arguments)
    changes: dict[str, Any] = {"stop": _stops(left)}
    lengths = [left.pop(name) for name in _LENGTHS if name in left]
    tokens = whole_number("max_gen_toks", lengths[0] if lengths else MAX_TOKENS)
    changes["max_new_bytes"] = int(tokens * bytes_per_token)
    sampled = left.pop("do_sample", None)
    temperature = left.pop("temperature", None)
    if sampled is None:
        sampled = bool(temperature) and real_number("temperature", temperature, "it must be a number") > 0
    changes["temperature"] = temperature if sampled else 0.0
    changes |= {name: left.pop(name) for name in sorted(_OWN & left.keys())}
    if sampled:
        changes.setdefault("seed", 0)
    if left.pop("num_beams", 1) != 1:
        raise EdgebltError(f"num_beams is {shown(arguments['num_beams'])}; there is no beam search, leave it out")
    if left:
        raise EdgebltError(
            f"{shown(next(iter(left)))} is no setting of generated texts; leave it out of generation_kwargs"
        )
    return merged_settings(None, **changes)


def _stops(arguments: dict[str, Any]) -> tuple[str, ...]:
    """Takes the stop sequences out of `arguments`; empty ones, as some tasks have them, stop nothing."""
    found: list[str] = []
    for name in ("until", "stop"):
        given = arguments.pop(name, None)
        several = [given] if isinstance(given, str) else given or []
        if not isinstance(several, Sequence) or not all(isinstance(each, str) for each in several):
            raise EdgebltError(f"{name} is {shown(given)}; it must be a string or several of them")
        found += several
    return tuple(dict.fromkeys(filter(None, found)))
