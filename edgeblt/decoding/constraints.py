"""Constraints on a generated text: a regular expression, a JSON schema or a Lark grammar, followed by llguidance."""

import copy
import functools
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from edgeblt.arguments import as_bytes
from edgeblt.errors import EdgebltError, shown
from edgeblt.ids import OFFSET
from edgeblt.installing import install_hint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ConstraintKind = Literal["regex", "json_schema", "lark"]
_CALLED = {"regex": "the regular expression", "json_schema": "the JSON schema", "lark": "the grammar"}
_BYTES = (1 << 256) - 1


@dataclass(frozen=True)
class Constraint:
    """A form that a generated text must have as a whole; made by `regex`, `json_schema` or `lark`.

    kind: regex, json_schema or lark.
    text: the regular expression in Rust's syntax, the schema as JSON, or the grammar in llguidance's Lark.

    Needs the extra `constraints`. Raises EdgebltError where llguidance is missing, and for what cannot be parsed or
    satisfied.
    """

    kind: ConstraintKind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            raise EdgebltError(
                f"the kind of constraint is {shown(self.kind)}; use {', '.join(get_args(ConstraintKind))}"
            )
        if not isinstance(self.text, str):
            raise EdgebltError(f"{_CALLED[self.kind]} is {shown(self.text)}; it must be a str")
        as_bytes(_CALLED[self.kind], self.text)  # refuses lone surrogates
        _compiled(self.kind, self.text)

    @classmethod
    def regex(cls, pattern: str) -> "Constraint":
        """The whole text matches a regular expression, in the syntax of Rust's `regex` without look-around.

        pattern: the regular expression.
        """
        return cls("regex", pattern)

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any]) -> "Constraint":
        """The text is JSON that a schema allows, without white space between its tokens.

        schema: JSON text or a dict; `{}` is any JSON. White space is allowed by
            `"x-guidance": {"whitespace_flexible": true}` in it.
        """
        try:
            text = schema if isinstance(schema, str) else json.dumps(dict(schema))
        except (TypeError, ValueError):
            raise EdgebltError(f"the JSON schema is {shown(schema)}; it must be JSON text or a dict") from None
        return cls("json_schema", text)

    @classmethod
    def lark(cls, grammar: str) -> "Constraint":
        """The whole text is derived from the rule `start` of a grammar in llguidance's variant of Lark.

        grammar: the grammar's text.
        """
        return cls("lark", grammar)


class ConstraintRule:
    """A constraint on one text; ids that end it are forbidden until the constraint is met."""

    def __init__(self, constraint: Constraint, ends: Sequence[int]) -> None:
        """Start an empty text; none of `ends`, the ids that end it, is the id of a byte."""
        self._matcher = _compiled(constraint.kind, constraint.text).deep_copy()
        self._called, self._ends = _CALLED[constraint.kind], list(ends)
        self._mask: int | None = None  # the bytes that may follow; None is not computed yet
        self._ended = False
        self._allows_none = not self._bytes()  # not even the first

    @property
    def is_complete(self) -> bool:
        return self._allows_none or (self._matcher.is_stopped() and self._matcher.is_accepting())

    def _bytes(self) -> int:
        if self._mask is None:
            self._mask = _allowed_bytes(self._matcher, self._called)
        return self._mask

    def adjust(self, logits: NDArray[np.float64]) -> None:
        packed = np.frombuffer(self._bytes().to_bytes(32, "little"), np.uint8)
        logits[OFFSET : OFFSET + 256][np.unpackbits(packed, bitorder="little") == 0] = -np.inf
        if self._ends and not self._matcher.is_accepting():
            logits[self._ends] = -np.inf

    def take(self, id: int) -> None:
        self._mask = None
        if not OFFSET <= id < OFFSET + 256:
            self._mask, self._ended = 0, True
        elif not self._matcher.consume_token(id - OFFSET):
            reason = _reason(self._matcher)
            raise EdgebltError(f"{self._called} cannot be followed any further ({reason}); simplify it")

    def forced(self) -> Sequence[int]:
        if self._ended or self._allows_none:
            return ()
        return [byte + OFFSET for byte in self._matcher.compute_ff_bytes()]

    def permitted(self, ids: Sequence[int]) -> int:
        if self._ended:
            return 0
        if len(ids) == 1 and not OFFSET <= ids[0] < OFFSET + 256:
            return int(self._matcher.is_accepting())
        found = next((place for place, id in enumerate(ids) if not OFFSET <= id < OFFSET + 256), len(ids))
        return self._matcher.validate_tokens([id - OFFSET for id in ids[:found]])

    def fork(self) -> Self:
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other


def _allowed_bytes(matcher: "LLMatcher", called: str) -> int:
    """Bit b is set where byte b may follow. Raises EdgebltError where the matcher cannot go on."""
    mask = int.from_bytes(matcher.compute_bitmask(), "little") & _BYTES
    if not mask and not matcher.is_accepting():
        reason = f" ({_reason(matcher)})" if matcher.is_error() else ""
        raise EdgebltError(f"{called} allows no byte here{reason}; simplify it")
    return mask


@functools.cache
def _tokenizer() -> "LLTokenizer":
    if not importlib.util.find_spec("llguidance"):
        raise EdgebltError(f"constraints need llguidance; install it with: {install_hint('constraints')}")
    import llguidance

    return llguidance.LLTokenizer("byte")


@functools.lru_cache(maxsize=32)
def _compiled(kind: ConstraintKind, text: str) -> "LLMatcher":
    """A matcher at the start of a text, to be copied. Raises EdgebltError for what cannot be parsed or satisfied."""
    tokenizer = _tokenizer()
    from llguidance import LLMatcher

    if kind == "json_schema":
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_flexible": False})
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise EdgebltError(f"the JSON schema {shown(text)} cannot be used ({reason}); correct it") from None
    else:
        grammar = LLMatcher.grammar_from_regex(text) if kind == "regex" else LLMatcher.grammar_from_lark(text)
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise EdgebltError(f"{_CALLED[kind]} {shown(text)} cannot be used ({_reason(matcher)}); correct it")
    try:
        _allowed_bytes(matcher, _CALLED[kind])
    except EdgebltError:
        raise EdgebltError(f"{_CALLED[kind]} {shown(text)} matches no text; give another") from None
    return matcher


def _reason(matcher: "LLMatcher") -> str:
    """The error of a matcher in one line: the last sentence of a regular expression's, the first line of others'."""
    text = matcher.get_error()
    named = re.search(r"^error: (.*)$", text, re.MULTILINE)
    return " ".join((named[1] if named else text.partition("\n")[0]).split())[:200]
