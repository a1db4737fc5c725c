"""Compared models as a table for people: a column for each."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.filesize import decimal

from edgeblt.printable import printable
from edgeblt.report.narrow_tables import add_row, new_table, show

if TYPE_CHECKING:  # the runtime, slow to import
    from edgeblt.evaluation.comparison import ComparedFigures, Comparison


def show_comparison(result: "Comparison") -> None:
    """Prints the figures, and what to know of them."""
    models, first = result.models, result.models[0]
    table = new_table("side by side", "", *(printable(f"{one.model} ({one.weight_format})") for one in models))
    figures: dict[str, Callable[[ComparedFigures], str]] = {"bits per byte": lambda one: f"{one.bits_per_byte:.4f}"}
    for name in first.texts:
        figures[f"  {name}"] = lambda one, name=name: _marked(one, name, one.texts[name])  # type: ignore[misc]
    for name in first.noises:
        figures[f"with {name}"] = lambda one, name=name: _marked(one, name, one.noises[name])  # type: ignore[misc]
    figures |= {
        "prefill, bytes/s": lambda one: f"{one.prefill_bytes_per_s:,.0f}",
        "decoding, bytes/s": lambda one: f"{one.decode_bytes_per_s:,.0f}",
        "bytes a patch or token": lambda one: f"{one.bytes_per_step:.2f}",
        "weights read for a byte": lambda one: decimal(round(one.weight_bytes_per_byte)),
        "memory": lambda one: "unknown" if one.memory_bytes is None else decimal(one.memory_bytes),
        "weights on disk": lambda one: decimal(one.stored_bytes),
    }
    for name, value in figures.items():
        add_row(table, name, *map(value, models))
    show(table)
    if any(one.inexact for one in models):
        show("* the tokenizer does not give these bytes back: bits per byte are of what it keeps, perhaps too low")
    show(
        printable(
            f"{result.bytes:,} bytes of text; speeds: {result.prompt_bytes:,} bytes of {result.text} read, then "
            f"{result.new_bytes:,} decoded as they are, medians of {result.repeats} runs in turn, on {result.device}"
        )
    )


def _marked(one: "ComparedFigures", name: str, bits: float) -> str:
    return f"{bits:.4f}{'*' if name in one.inexact else ''}"
