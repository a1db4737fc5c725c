"""Scores of a corpus as a table for people."""

from typing import TYPE_CHECKING

from edgeblt.printable import printable
from edgeblt.report.narrow_tables import add_row, new_table, show

if TYPE_CHECKING:  # the runtime, slow to import
    from edgeblt.corpus.run import CorpusScores


def show_corpus_scores(result: "CorpusScores") -> None:
    """Prints the figures over all rows, and where those of each row are."""
    table = new_table("", "", "over all rows")
    for name, figure in (
        ("rows", f"{result.rows:,}"),
        ("  without scores", f"{result.bad_rows:,}"),
        ("bytes", f"{result.bytes:,}"),
        ("bits per byte", f"{result.bits_per_byte:.5f}"),
        ("mean entropy, nats", f"{result.mean_entropy:.4f}"),
        ("bytes a patch", f"{result.bytes_per_patch:.2f}"),
        ("bytes/s of this run", f"{result.bytes_per_s:,.0f}"),
    ):
        add_row(table, name, figure)
    show(table)
    show(printable(f"Written to {result.out}, by {result.processes} workers on {result.provider}."))
