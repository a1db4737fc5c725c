"""JSON objects of a checkpoint's configuration: their fields read by type, and sorted by what they mean.

A field is of one of four kinds: read; known not to change what the model computes; known to change it, at a value that
edgeblt does not support, and refused; or unknown. `Findings` collects the last two kinds over all objects of a
checkpoint, so that one sentence names all fields of a kind.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from edgeblt.bundle.config import LIMIT
from edgeblt.errors import EdgebltError, shown

LISTED = 200  # more fields than this are counted, not named
Document = Mapping[str, Any]


class Section:
    """One JSON object; `file` and `path`, the keys that lead to it, name it in errors."""

    def __init__(self, document: object, file: str, path: tuple[str, ...] = ()) -> None:
        self.file, self.path = file, path
        if not isinstance(document, dict):
            raise EdgebltError(f"{self.where} is {shown(document)}; it must be a JSON object")
        self.document: dict[str, Any] = document

    @property
    def where(self) -> str:
        return ": ".join((self.file, *self.path))

    def child(self, name: str) -> "Section":
        """The object under a key; a missing or null one is empty, so that all its fields have their defaults."""
        document = self.document.get(name)
        return Section({} if document is None else document, self.file, (*self.path, name))

    def error(self, name: str, rest: str) -> EdgebltError:
        return EdgebltError(f"{self.where}: {name} is {shown(self.document.get(name))}; {rest}")

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


class FieldRule:
    """The values at which a field changes nothing; `remedy` is the part of a refusal that names what is supported."""

    def __init__(
        self, remedy: str, is_neutral: Callable[[object, Document], bool], doubtful: tuple[object, ...] = ()
    ) -> None:
        """`is_neutral` gets the value and the object it is in; `doubtful` values are reported, but not refused."""
        self.remedy, self.is_neutral, self.doubtful = remedy, is_neutral, doubtful


def only(*values: object, because: str = "") -> FieldRule:
    """A rule that accepts only these values; true is not 1, nor false 0."""
    allowed = because or f"only {' or '.join(dict.fromkeys(map(shown, values)))}"
    return FieldRule(allowed, lambda value, _: any(_same(value, other) for other in values))


def _same(value: object, other: object) -> bool:
    return value == other and (type(value) is bool) is (type(other) is bool)


class Findings:
    """Refused, unknown and doubtful fields of one checkpoint's whole configuration."""

    def __init__(self) -> None:
        self._refused: dict[str, list[str]] = {}  # sentences by file
        self._unknown: dict[str, list[str]] = {}

    def refuse(self, section: Section, name: str, rest: str) -> None:
        what = f"{_dotted(section, name)} is {shown(section.document.get(name))}"
        self._refused.setdefault(section.file, []).append(f"{what} ({rest})")

    def sort(self, section: Section, read: Collection[str], rules: Mapping[str, FieldRule], implied: Document) -> None:
        """Sort an object's fields into `read` ones, those with rules, and unknown ones.

        `implied` are values of fields that are left out, for rules that compare with them.
        """
        document = {**implied, **section.document}
        for name, value in section.document.items():
            rule = rules.get(name)
            if rule and rule.is_neutral(value, document):
                continue
            if rule and value not in rule.doubtful:
                self.refuse(section, name, rule.remedy)
            elif name not in read and not is_note(name):
                self._unknown.setdefault(section.file, []).append(_dotted(section, name))

    def settle(self, strict: bool) -> tuple[str, ...]:
        """Notes for the user, a sentence each. Raises EdgebltError for refused fields and, if `strict`, unknown ones.

        Called after all objects are sorted and before their values are read.
        """
        if self._refused:
            raise EdgebltError(
                f"{_by_file(self._refused)}: not supported, as it changes what a model computes; give a checkpoint "
                "without it, or remove what this one was not trained with"
            )
        if not self._unknown:
            return ()
        several = sum(map(len, self._unknown.values())) > 1
        listed = f"{_by_file(self._unknown)}: {'these fields are' if several else 'this field is'} not known to edgeblt"
        if strict:
            raise EdgebltError(f"{listed}; remove what does not change what the model computes, or leave out --strict")
        return (f"{listed}, and taken not to change what the model computes; --strict refuses such",)


def _dotted(section: Section, name: str) -> str:
    name = name if name.isidentifier() and name.isascii() and len(name) <= 80 else shown(name)
    return ".".join((*section.path, name))


def _by_file(listed: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{file}: {_listed(items)}" for file, items in listed.items())


def _listed(items: list[str]) -> str:
    more = [f"{len(items) - LISTED} more"] if len(items) > LISTED else []
    return ", ".join((*items[:LISTED], *more))


def is_note(name: str) -> bool:
    """Whether a field of this name concerns only training, ids of special tokens or the software that wrote it."""
    return name.endswith(NOTES) or name.startswith(("unsloth", "_unsloth", "transformers_js", "transformers.js"))


# fmt: off
NOTES = (
    "_token_id", "_token_ids", "_token_index", "_dropout", "_dropout_prob", "_pdrop", "_drop_rate", "_version",
    "_loss_coef", "_loss_weight", "_loss_coefficient",
)
# fmt: on
