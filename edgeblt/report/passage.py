"""Chart of a passage of text as a bundle divides it into patches: entropies, patch starts, and the text."""

import html
import math
from collections.abc import Iterator

from edgeblt.measure.validation import Passage
from edgeblt.report.charts import GREY, LEGEND_BELOW, PALETTE, Chart, Json, axes, axis, shortened, stacked_panels

_COLUMNS = 80  # bytes a line
_START, _THRESHOLD = PALETTE[1], PALETTE[0]
_NAMED_BYTES = {0x20: "␣", 0x0A: "↵", 0x0D: "␍", 0x09: "⇥"}


def passage_chart(number: int, label: str, passage: Passage) -> Chart | None:
    """Chart of the entropy before each byte in rows, like lines of text, with patch starts and the threshold."""
    entropies, data = passage.entropies, passage.data.encode("latin-1")
    if not data or entropies is None:
        return None
    top = 1.08 * max([value for value in (*entropies, passage.threshold or 0.0) if math.isfinite(value)] + [0.1])
    lines = [range(start, min(start + _COLUMNS, len(data))) for start in range(0, len(data), _COLUMNS)]
    layout = stacked_panels([80.0] * len(lines), gap=34)
    figure: list[Json] = []
    for panel, part in enumerate(lines):
        for trace in _line(passage, entropies, data, part, top):
            figure.append(trace | axes(panel) | {"showlegend": panel == 0 and trace.get("showlegend", True)})
        layout[axis("xaxis", panel)] |= _letters(data, part)
        layout[axis("yaxis", panel)] |= {"range": [0, top], "nticks": 4, "fixedrange": True}
    layout[axis("yaxis", (len(lines) - 1) // 2)]["title"] = {"text": "entropy, nats"}
    layout |= {"barmode": "overlay", "legend": dict(LEGEND_BELOW), "margin": {"t": 8, "r": 8, "l": 60}}
    starts = sum(passage.patch_starts)
    return Chart(
        f"passage-{number}",
        f"Entropy and patches: {label}",
        _caption(passage.threshold),
        f"{len(data)} bytes of {shortened(passage.text)} in {starts} patches, on average "
        f"{len(data) / max(starts, 1):.2f} bytes each. The text with its patches follows.",
        104 * len(lines) + 50,
        tuple(figure),
        layout,
        least_width=820,
    )


def _caption(threshold: float | None) -> str:
    rule = "" if threshold is None else f", as a rule because their entropy exceeds the threshold, {threshold:.4g} nats"
    return (
        "The text runs from left to right, a byte a column, line below line (␣ is a space, ↵ a new line; two "
        "hexadecimal digits, one above the other, are a byte outside printable ASCII). The height of a bar is an "
        "entropy in nats: how uncertain the patcher, the small model that reads first, was of that byte before it "
        f"came. Orange bars, with a line to their left, start a patch{rule}. The large global model runs once a "
        "patch: seldom where the text is easy to guess, often where it is not."
    )


def _line(passage: Passage, entropies: tuple[float, ...], data: bytes, part: range, top: float) -> Iterator[Json]:
    for name, shade, wanted in (("starts a patch", _START, True), ("continues a patch", GREY, False)):
        some = [index for index in part if passage.patch_starts[index] == wanted]
        yield {
            "type": "bar",
            "name": name,
            "legendgroup": name,
            "x": [index - part.start for index in some],
            "y": [entropies[index] for index in some],
            "width": 0.82,
            "customdata": [f"byte {index}, {_letter(data[index], '')} (0x{data[index]:02x})" for index in some],
            "hovertemplate": "%{customdata}: %{y:.3f} nats<extra>" + name + "</extra>",
            "marker": {"color": shade},
        }
    edges = [index - part.start - 0.5 for index in part if passage.patch_starts[index]]
    lines = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    yield lines | {
        "name": "start of a patch",
        "showlegend": False,
        "x": [x for edge in edges for x in (edge, edge, None)],
        "y": [y for _ in edges for y in (0, top, None)],
        "line": {"color": _START, "width": 1},
    }
    if passage.threshold is not None:
        yield lines | {
            "name": f"threshold, {passage.threshold:.4g} nats",
            "legendgroup": "threshold",
            "x": [-0.6, _COLUMNS - 0.4],
            "y": [passage.threshold, passage.threshold],
            "line": {"color": _THRESHOLD, "width": 1.5, "dash": "dash"},
        }


def _letters(data: bytes, part: range) -> Json:
    """Axis under a row of bars: each byte below its bar."""
    return {
        "range": [-0.6, _COLUMNS - 0.4],
        "tickvals": list(range(len(part))),
        "ticktext": [_letter(data[index], "<br>") for index in part],
        "tickangle": 0,
        "tickfont": {"family": "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace", "size": 11},
        "ticks": "",
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }


def _letter(byte: int, between: str) -> str:
    if 0x21 <= byte <= 0x7E:
        return html.escape(chr(byte), quote=False)
    return _NAMED_BYTES.get(byte) or between.join(f"{byte:02x}")
