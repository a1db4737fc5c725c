"""Over-encoding: tables of n-grams far larger than the vocabulary, whose rows are added to an id's embedding.

    table i = (n - 2) K + j, for n from 2 to N and j below K, has `rows[i]` rows of width / (K (N - 1)) numbers
    row of table i at position t = (x[t] + sum over s from 1 to n - 1 of c[s] (V ** s mod rows[i])) mod rows[i]
    c[s] = x[t - s], but 0 before the text, and where one of x[t - 1] .. x[t - s] ends a text or is excluded

The family is that of Over-Tokenized Transformers (arXiv 2501.16975) as LongCat-Flash-Lite has it. In a graph a table's
rows follow those of the table before it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.ids import EOS

LONGEST = 64  # ids of an n-gram; bounds the work that a hostile file can cause
MOST_TABLES = 1 << 10
MOST_ROWS = 1 << 40  # rows of a table; with more, sums of products might leave int64


@dataclass(frozen=True)
class OverEncoding:
    """The tables of a model whose ids are below `vocab_size`.

    neighbors: ids of the longest n-gram, N.
    splits: tables of each length, K.
    rows: rows of each table.
    by_root: whether the sum is divided by the square root of 1 + K (N - 1), and not by that number.
    ends: ids that end a text, so that n-grams do not reach back beyond them.
    excluded: ids that have no n-grams, and that those of later ids do not reach back to.
    """

    vocab_size: int
    neighbors: int
    splits: int
    rows: tuple[int, ...]
    by_root: bool
    ends: tuple[int, ...] = (EOS,)
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.neighbors <= LONGEST:
            raise EdgebltError(f"n-grams have up to {self.neighbors} ids; it must be between 2 and {LONGEST}")
        if not 1 <= self.splits <= MOST_TABLES // (self.neighbors - 1):
            raise EdgebltError(f"there are {self.splits} tables of each length; at most {MOST_TABLES} in all can be")
        if len(self.rows) != self.table_count or any(not 1 <= rows <= MOST_ROWS for rows in self.rows):
            raise EdgebltError(
                f"the rows of n-gram tables are {list(self.rows)!r:.60}; there must be {self.table_count} numbers "
                f"between 1 and {MOST_ROWS}"
            )
        if any(not 0 <= id < self.vocab_size for id in (*self.ends, *self.excluded)):
            raise EdgebltError(f"ids that end n-grams must be below {self.vocab_size}")

    def require_fit(self, vocab_size: int, width: int) -> None:
        """Raises EdgebltError where a model of this vocabulary and width cannot have these tables."""
        if self.vocab_size != vocab_size:
            raise EdgebltError(f"n-grams are of {self.vocab_size} ids; the model has {vocab_size}")
        if width % self.table_count:
            raise EdgebltError(f"hidden_size {width} is not a multiple of the {self.table_count} tables")

    def describe(self, width: int) -> str:
        """In a few words, for people; rows have `width` numbers."""
        rows = f"{self.row_count:,} rows of {width} in all"
        return f"{self.table_count} tables for 2 to {self.neighbors} bytes, {rows}"

    @property
    def table_count(self) -> int:
        return self.splits * (self.neighbors - 1)

    @property
    def context(self) -> int:
        """The number of ids before an id that its n-grams read."""
        return self.neighbors - 1

    @property
    def row_count(self) -> int:
        """Rows of all tables."""
        return sum(self.rows)

    @property
    def divisor(self) -> float:
        """The number that the sum of embedding and rows is divided by."""
        count = 1 + self.table_count
        return count**0.5 if self.by_root else float(count)

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """The first row of each table among those of all: int64 [tables]."""
        return np.cumsum([0, *self.rows[:-1]], dtype=np.int64)

    @property
    def coefficients(self) -> NDArray[np.int64]:
        """Factors of the ids of a window, the oldest first: int64 [N, tables], 0 where an n-gram is shorter."""
        columns = []
        for table, rows in enumerate(self.rows):
            longest = table // self.splits + 2
            powers = [pow(self.vocab_size, distance, rows) for distance in range(1, longest)]
            columns.append([0] * (self.neighbors - longest) + powers[::-1] + [1])
        return np.array(columns, np.int64).T

    @property
    def cuts(self) -> NDArray[np.int64]:
        """1 for each id that n-grams do not reach back to, else 0: int64 [vocab]."""
        marks = np.zeros(self.vocab_size, np.int64)
        marks[[*self.ends, *self.excluded]] = 1
        return marks


def table_rows(tables: OverEncoding, windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows among those of all tables: int64 [T, tables].

    windows: [T, N], each id after those before it, zeros before the text.
    """
    cut = tables.cuts[windows]
    cut[:, -1] = 0
    reached = np.cumsum(cut[:, ::-1], axis=1)[:, ::-1] == 0
    sums = np.where(reached, windows, 0) @ tables.coefficients
    found: NDArray[np.int64] = sums % np.array(tables.rows, np.int64) + tables.first_rows
    return found
