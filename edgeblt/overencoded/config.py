"""Configuration of an over-encoded byte transformer."""

from dataclasses import dataclass, field
from typing import ClassVar

from edgeblt.bundle.architectures import PatchlessConfig
from edgeblt.bundle.config import Generation, TransformerConfig
from edgeblt.bundle.dataclass_json import LATER
from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.errors import EdgebltError
from edgeblt.ids import VOCAB_SIZE

MOST_FURTHER = 8  # ids that a model may guess beyond the next


@dataclass(frozen=True)
class OverEncodedConfig(PatchlessConfig):
    """Layers over ids, each an embedding and rows of n-gram tables.

    tables: None where the input is the embedding alone.
    further: number of ids beyond the next that heads of their own guess.
    """

    architecture: ClassVar[str] = "overencoded"

    transformer: TransformerConfig
    tables: OverEncoding | None
    further: int
    generation: Generation = field(default=Generation(), metadata=LATER)

    def __post_init__(self) -> None:
        if not 0 <= self.further <= MOST_FURTHER:
            raise EdgebltError(f"{self.further} ids are guessed beyond the next; at most {MOST_FURTHER} can be")
        if self.transformer.window is not None:
            raise EdgebltError("attention has a window; an over-encoded transformer attends to the whole text")
        if self.tables:
            self.tables.require_fit(VOCAB_SIZE, self.transformer.hidden_size)

    @property
    def further_count(self) -> int:
        return self.further

    @property
    def table_count(self) -> int:
        """Number of n-gram tables."""
        return self.tables.table_count if self.tables else 0

    @property
    def context(self) -> int:
        """The number of ids before an id that its n-grams read."""
        return self.tables.context if self.tables else 0

    @property
    def table_width(self) -> int:
        """Numbers of a row of a table."""
        return self.transformer.hidden_size // max(self.table_count, 1)

    @property
    def starts_empty(self) -> bool:
        """A text can begin with nothing but BOS."""
        return True
