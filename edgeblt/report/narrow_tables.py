"""Prints text and tables to a terminal of any width, or to a file, without truncating a table."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeblt.printable import printable

_LEAST_WIDTH = 120  # width if stdout is no terminal


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold", show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and column != "content" else "left")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Adds a row of cells, whose text may come from files and hold any characters."""
    table.add_row(*(Text(printable(cell)) for cell in cells))


def show(what: Table | Text | str) -> None:
    """Prints to stdout. A table that is too wide for the terminal becomes a block of lines for each row."""
    console, wraps_itself = Console(), isinstance(what, str)
    if isinstance(what, Table):
        cells = _texts(what)
        widest = _width(cells, [max(map(cell_len, column)) for column in cells])
        if not console.is_terminal:
            console = Console(width=max(_LEAST_WIDTH, widest))
        elif widest > console.width and not _fit(what, cells, console.width):
            what, wraps_itself = _lines(what, cells), True
    elif not console.is_terminal:
        console = Console(width=_LEAST_WIDTH)
    console.print(what, highlight=False, markup=False, soft_wrap=wraps_itself)


def _texts(table: Table) -> list[list[str]]:
    """Texts of each column: its name, empty where names are not shown, then its cells."""
    shown = table.show_header
    return [[str(column.header) if shown else "", *map(str, column.cells)] for column in table.columns]


def _width(cells: Sequence[Sequence[str]], widths: Sequence[int]) -> int:
    return sum(widths) + 3 * len(cells) + 1  # a space on both sides of each cell, and lines between them


def _fit(table: Table, cells: Sequence[Sequence[str]], width: int) -> bool:
    """Narrows the widest columns down to their longest words; False where that is not enough."""
    widths = [max(map(cell_len, column)) for column in cells]
    least = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    while _width(cells, widths) > width:
        reducible = [index for index in range(len(widths)) if widths[index] > least[index]]
        if not reducible:
            return False
        widths[max(reducible, key=lambda index: widths[index])] -= 1
    for column, chosen in zip(table.columns, widths, strict=True):
        column.width = chosen
    return True


def _lines(table: Table, cells: Sequence[Sequence[str]]) -> Text:
    """The title, then each row's cells as `column: cell`, all but the first indented, empty ones left out.

    A table without column names has rows `name: value`.
    """
    lines = []
    names, *rows = zip(*cells, strict=True)
    for row in rows:
        if table.show_header:
            filled = [f"{name}: {cell}" if name else cell for name, cell in zip(names, row, strict=True) if cell]
            lines += [f"{'  ' * (index > 0)}{cell}" for index, cell in enumerate(filled)]
        else:
            lines.append(f"{row[0]}: {', '.join(row[1:])}")
    return Text.assemble((f"{table.title}\n", "bold") if table.title else "", "\n".join(lines))
