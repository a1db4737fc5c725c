"""Times of matrix products as a table for people."""

from typing import TYPE_CHECKING

from edgeblt.printable import printable
from edgeblt.report.narrow_tables import add_row, new_table, show

if TYPE_CHECKING:  # the runtime, slow to import
    from edgeblt.measure.products.product_speed import ProductSpeed

_FLOATING = 32  # bits of a weight that is not quantized


def show_product_speed(speed: "ProductSpeed") -> None:
    """Prints the memory's bandwidth, microseconds of every product, a line for each case, and what they say."""
    quantized = [each for each in speed.products if each.bits != _FLOATING]
    floating = {each.case[1:]: each.microseconds for each in speed.products if each.bits == _FLOATING}
    ours = dict.fromkeys(each.level for each in quantized if each.level)
    theirs = dict.fromkeys(each.operator for each in quantized if not each.level)
    title = "microseconds of a matrix product, one thread; by level of instructions, and in ONNX Runtime"
    table = new_table(title, "inputs x outputs", "rows", "weights", *ours, *theirs, "MatMul fp32")
    for bits, inputs, outputs, rows in sorted({each.case for each in quantized}, key=lambda case: (case[1:], -case[0])):
        case = {each.level or each.operator: each for each in quantized if each.case == (bits, inputs, outputs, rows)}
        times = [case[name].microseconds if name in case else None for name in (*ours, *theirs)]
        times.append(floating.get((inputs, outputs, rows)))
        cells = ("" if time is None else f"{time:,.1f}" for time in times)
        add_row(table, f"{inputs:,} x {outputs:,}", str(rows), f"int{bits}", *cells)
    rates = ", ".join(f"{rate / 1e9:.1f} GB/s with {count} thread(s)" for count, rate in speed.bandwidths.items())
    show(printable(f"{speed.device}; memory is read at {rates}"))
    show(table)
    show(printable(speed.finding))
