"""Architectures that bundles can hold, by name: one folder each, here and in `export/` (docs/architectures.md).

`edgeblt.NAME.architecture.ARCHITECTURE` says how a bundle of that architecture is read and run. It is imported when a
bundle or a checkpoint asks for it, so none depends on another.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from edgeblt.bundle.config import Generation, PatchingRule, Rule, TransformerConfig
from edgeblt.bundle.contract import CacheFormat, StageContract, StageName, Target
from edgeblt.errors import EdgebltError, shown
from edgeblt.ids import VOCAB_SIZE

if TYPE_CHECKING:
    from edgeblt.runtime.batch.ragged import RaggedStepper
    from edgeblt.runtime.session import Session

ARCHITECTURES = ("blt", "mambabyte", "overencoded")
NOTHING_ENDS = Generation(ends=())  # generation defaults of a model without an id that ends texts
FIRST = "blt"  # the architecture of documents that name none


class ByteModelConfig(Protocol):
    """Configuration of any architecture: a frozen dataclass that bundles record.

    Ids are those of `edgeblt.ids` whatever numbers a model has for bytes itself, so `vocab_size` counts these.
    """

    architecture: ClassVar[str]

    @property
    def vocab_size(self) -> int: ...

    @property
    def patching(self) -> PatchingRule:
        """The rule byte where there are no patches."""
        ...

    @property
    def generation(self) -> Generation: ...

    @property
    def patcher(self) -> TransformerConfig | None:
        """None where no patcher can draft."""
        ...

    @property
    def table_count(self) -> int:
        """Number of tables of which each byte looks a row up, beside the embedding."""
        ...

    @property
    def further_count(self) -> int:
        """Number of ids after the next that the model guesses with heads of their own."""
        ...

    @property
    def starts_empty(self) -> bool:
        """Whether a text can begin with nothing but BOS; otherwise a prompt must have a byte."""
        ...


class PatchlessConfig:
    """Part of a configuration that all models of bytes without patches and without BOS share."""

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE

    @property
    def patching(self) -> PatchingRule:
        return PatchingRule(Rule.BYTE)

    @property
    def patcher(self) -> None:
        return None

    @property
    def table_count(self) -> int:
        return 0

    @property
    def further_count(self) -> int:
        return 0

    @property
    def starts_empty(self) -> bool:
        return False


@dataclass(frozen=True)
class Architecture:
    """The part of an architecture that a device needs.

    config: class of the configuration.
    stages: names of the stages, in the order of the computation.
    contracts: contract of each stage, given the configuration, targets, and formats of keys and values; None for either
        is cpu or fp32 for all.
    session: module and class of its sessions, `MODULE:CLASS`, a `Session`.
    stepper: module and class of what runs rows of several sequences in common steps, a `RaggedStepper`; None where
        sequences run one after the other.
    targets: targets that its stages can be exported for.
    """

    name: str
    config: type[Any]
    stages: tuple[StageName, ...]
    contracts: Callable[
        [Any, Mapping[StageName, Target] | None, Mapping[StageName, CacheFormat] | None], dict[StageName, StageContract]
    ]
    session: str
    stepper: str | None
    targets: tuple[Target, ...]

    @property
    def session_class(self) -> "type[Session]":
        """The class of its sessions, imported now."""
        return cast("type[Session]", _named(self.session))

    @property
    def stepper_class(self) -> "type[RaggedStepper] | None":
        """The class of its steppers, imported now."""
        return cast("type[RaggedStepper]", _named(self.stepper)) if self.stepper else None


def _named(place: str) -> Any:
    """The object at `MODULE:NAME`, imported now."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def architecture(name: str) -> Architecture:
    """The architecture of this name. Raises EdgebltError for an unknown one."""
    if name not in ARCHITECTURES:
        raise EdgebltError(f"the architecture {shown(name)} is unknown; this version has {', '.join(ARCHITECTURES)}")
    module = importlib.import_module(f"edgeblt.{name}.architecture")
    return cast(Architecture, module.ARCHITECTURE)


def check_prompt(config: ByteModelConfig, prompt: bytes) -> None:
    """Raises EdgebltError for an empty prompt where the model needs a byte to begin with."""
    if not prompt and not config.starts_empty:
        raise EdgebltError("this model has no id for the beginning of a text; give a prompt of at least one byte")
