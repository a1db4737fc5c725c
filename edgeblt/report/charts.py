"""Building blocks of the page: charts as plain JSON for plotly.js, None where nothing is drawn, and tables as HTML."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edgeblt.printable import printable
from edgeblt.report.results import Row

Json = dict[str, Any]

# Distinct to most colour-blind eyes, and legible on white and on black.
PALETTE = ("#2f7fc1", "#d9622b", "#1f9e7a", "#b565a7", "#c2941a", "#7a6ff0", "#9a6b4f", "#5b8c2a")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
GREY = "#8b93a1"
LEGEND_BELOW: Mapping[str, Any] = MappingProxyType(
    {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"}
)
_LONGEST_LABEL = 48
_FEW_DECADES = 6


@dataclass(frozen=True)
class Chart:
    """A figure for plotly.js, its caption, and a text alternative for readers who cannot see it."""

    name: str  # its id in the page
    title: str
    caption: str  # explanation, with units
    alternative: str  # description for readers who cannot see the chart
    height: int  # pixels
    data: tuple[Json, ...]
    layout: Json
    least_width: int = 0  # pixels; narrower screens scroll


def shown(text: str) -> str:
    """Text from a file, shortened and escaped, as plotly.js interprets some HTML."""
    return html.escape(shortened(text), quote=False)


def escaped(text: str) -> str:
    """Text from a file as HTML."""
    return html.escape(printable(text))


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A figure with a table, whose rows begin with their names."""
    head = "".join(f"<th scope='col'>{escaped(name)}</th>" for name in columns)
    lines = "".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>'
        + "".join(f"<td>{escaped(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{escaped(title)}"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{lines}</tbody></table></div><figcaption>{escaped(caption)}</figcaption></figure>"
    )


def shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


def colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def dash(number: int) -> str:
    return DASHES[number % len(DASHES)]


def devices_of(rows: Iterable[Row]) -> list[str]:
    """Devices in the order in which they are drawn and coloured."""
    return list(dict.fromkeys(row.result.device for row in rows))


def axis(name: str, panel: int) -> str:
    """Name of an axis in a panel; plotly.js numbers axes x, x2, x3 and xaxis, xaxis2, xaxis3."""
    return name if panel == 0 else f"{name}{panel + 1}"


def axes(panel: int) -> Json:
    """Axis references that put a trace into a panel."""
    return {"xaxis": axis("x", panel), "yaxis": axis("y", panel)}


def logarithmic(low: float, high: float) -> Json:
    """Logarithmic axis with ticks at 1, 2 and 5 of each decade, or only at 1 where there are many decades."""
    low, high = max(low, 1e-300), min(high, 1e300)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(decades) <= _FEW_DECADES else (1,)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [f"{tick:,.10g}" for tick in ticks],
        "tickangle": 0,
    }


def stacked_panels(heights: Sequence[float], gap: float) -> Json:
    """Axes of panels from the top down; `heights` and `gap` are in the same unit."""
    total = sum(heights) + gap * (len(heights) - 1)
    layout: Json = {}
    above = 0.0
    for panel, height in enumerate(heights):
        domain = [max(1 - (above + height) / total, 0.0), 1 - above / total]
        layout[axis("xaxis", panel)] = {"anchor": axis("y", panel)}
        layout[axis("yaxis", panel)] = {"anchor": axis("x", panel), "domain": domain}
        above += height + gap
    return layout


def device_panels(devices: Sequence[str], heights: Sequence[float], x_title: str) -> Json:
    """Axes with one panel for each device, titled by its name, and a shared horizontal axis."""
    layout = stacked_panels(heights, gap=64)
    layout["annotations"] = [
        {
            "text": f"<b>{shown(device)}</b>",
            "showarrow": False,
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": layout[axis("yaxis", panel)]["domain"][1],
            "yref": "paper",
            "yanchor": "bottom",
        }
        for panel, device in enumerate(devices)
        if device
    ]
    for panel in range(1, len(devices)):
        layout[axis("xaxis", panel)]["matches"] = "x"
    layout[axis("xaxis", len(devices) - 1)]["title"] = {"text": x_title}
    return layout | {"legend": dict(LEGEND_BELOW), "margin": {"t": 28, "r": 16}}
