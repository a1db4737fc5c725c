"""Charts of accuracy against size, against speed, and over the patching threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeblt.measure.tuning import Tuning
from edgeblt.measure.validation import Report
from edgeblt.printable import printable
from edgeblt.report.charts import (
    GREY,
    LEGEND_BELOW,
    Chart,
    Json,
    colour,
    dash,
    devices_of,
    logarithmic,
    shortened,
    shown,
)
from edgeblt.report.results import Row, TextSizes, pareto_front, text_sizes

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "cross", "triangle-down", "hexagon")
_WIDE = 6  # ratio of largest to smallest value from which an axis is logarithmic
_MOST_WORDS = 16  # labels beside marks; more would overlap


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    bundle: str
    device: str
    words: str  # beside the mark
    texts: TextSizes  # points are comparable where these are the same
    hover: str


@dataclass(frozen=True)
class _Style:
    """Marks: the symbol shows the bundle; the colour shows the device, or the bundle where there is one device only."""

    bundles: list[str]
    devices: list[str]

    def colour(self, point: _Point) -> str:
        number = self.devices.index(point.device) if len(self.devices) > 1 else self.bundles.index(point.bundle)
        return colour(number)

    def line_colour(self, device: str) -> str:
        return colour(self.devices.index(device)) if len(self.devices) > 1 else GREY

    def symbol(self, point: _Point) -> str:
        return _SYMBOLS[self.bundles.index(point.bundle) % len(_SYMBOLS)]

    def name(self, point: _Point) -> str:
        return shown(point.bundle) + (f" on {shown(point.device)}" if len(self.devices) > 1 else "")


def size_chart(rows: Sequence[Row]) -> Chart | None:
    """Bits per byte against the size of the bundle, a point for each validation."""
    points = []
    for row in rows:
        validation = row.validation
        if validation:
            hover = f"{shown(validation.recipe)}<br>{_accuracy(validation)}<br>{validation.bundle_bytes / 1e6:,.1f} MB"
            where = (row.bundle, validation.device, "", text_sizes(validation), hover)
            points.append(_Point(validation.bundle_bytes / 1e6, validation.bits_per_byte, *where))
    return _front_chart(
        list(dict.fromkeys(points)),
        rows,
        "accuracy-size",
        "Accuracy against size",
        "Each mark is a bundle: further right it takes more disk (megabytes, 10⁶ bytes), further up it predicts text "
        "worse (bits per byte: the mean number of bits that the model needs for the next byte of a text). Best is the "
        "lower left corner. The dotted line is the Pareto front: for each size the best accuracy that a bundle of at "
        "most that size gives. What lies above the line is beaten in both.",
        "size of the bundle, MB",
        less_is_better=True,
    )


def speed_chart(rows: Sequence[Row]) -> Chart | None:
    """Bits per byte against the decoding rate, for rows with both a benchmark and a validation."""
    points = []
    for row in rows:
        if row.benchmark and row.validation:
            rate = row.benchmark.decode_bytes_per_s
            hover = f"{shown(row.setting)}<br>{_accuracy(row.validation)}<br>{rate:,.0f} bytes/s"
            where = (row.bundle, row.result.device, row.setting, text_sizes(row.validation), hover)
            points.append(_Point(rate, row.validation.bits_per_byte, *where))
    return _front_chart(
        points,
        rows,
        "accuracy-speed",
        "Accuracy against speed",
        "Each mark is a bundle in one setting on one device: further right it writes faster (bytes generated a "
        "second), further up it predicts text worse (bits per byte). Best is the lower right corner. The dotted line "
        "is the Pareto front of a device: for each speed the best accuracy that is to be had at that speed or above.",
        "decoding, bytes a second",
        less_is_better=False,
    )


def _accuracy(validation: Report) -> str:
    return f"{validation.bits_per_byte:.4f} bits per byte, {validation.bits_per_byte_increase:+z.4f} to its reference"


def _front_chart(
    points: Sequence[_Point],
    rows: Sequence[Row],
    name: str,
    title: str,
    caption: str,
    x_title: str,
    less_is_better: bool,
) -> Chart | None:
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not points:
        return None
    devices = dict.fromkeys((*devices_of(rows), *(point.device for point in points)))  # validated elsewhere: the latter
    style = _Style(list(dict.fromkeys(row.bundle for row in rows)), list(devices))
    fronts = _fronts(points, less_is_better)
    data = [_line(front, style.line_colour(front[0].device), "hv" if less_is_better else "vh") for front in fronts]
    names = list(dict.fromkeys(map(style.name, points)))
    for name_ in names:
        some = sorted((point for point in points if style.name(point) == name_), key=lambda point: point.x)
        for number, point in enumerate(some):
            mark = _mark(point, style, _position(number, len(some)), worded=len(points) <= _MOST_WORDS)
            data.append(mark | {"showlegend": number == 0})
    layout: Json = {
        "xaxis": _horizontal(x_title, [point.x for point in points]),
        "yaxis": {"title": {"text": "bits per byte (lower is better)"}},
        "legend": dict(LEGEND_BELOW),
        "margin": {"t": 20, "r": 40},
    }
    best = [" ".join(filter(None, (point.bundle, point.words))) for front in fronts for point in front]
    alternative = f"{title}: {len(points)} marks; on the Pareto front: {', '.join(map(shortened, best))}."
    return Chart(name, title, caption, alternative, 440 + 8 * len(names), tuple(data), layout)


def _position(number: int, count: int) -> str:
    """Position of a mark's label; labels of neighbouring marks, often at one height, stay apart."""
    if count < 3 or 0 < number < count - 1:
        return "top center" if number % 2 == 0 else "bottom center"
    return "top right" if number else "top left"


def _horizontal(title: str, values: Sequence[float]) -> Json:
    """Horizontal axis, logarithmic where the largest value would leave little room for the others."""
    low, high = min(values), max(values)
    if low <= 0 or high / low < _WIDE:
        return {"title": {"text": title}, "rangemode": "tozero"}
    return {"title": {"text": f"{title} (logarithmic scale)"}} | logarithmic(low / 1.4, high * 1.4)


def _fronts(points: Sequence[_Point], less_is_better: bool) -> list[list[_Point]]:
    """Pareto fronts, one for each device and set of texts, from left to right."""
    fronts = []
    for key in dict.fromkeys((point.device, point.texts) for point in points):
        some = [point for point in points if (point.device, point.texts) == key]
        ends = [(point.x if less_is_better else -point.x, point.y) for point in some]
        front = [some[index] for index in pareto_front(ends)]
        fronts.append(front if less_is_better else front[::-1])
    return fronts


def _line(front: Sequence[_Point], line_colour: str, shape: str) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [point.x for point in front],
        "y": [point.y for point in front],
        "line": {"shape": shape, "color": line_colour, "width": 2, "dash": "dot"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _mark(point: _Point, style: _Style, position: str, worded: bool) -> Json:
    name = style.name(point)
    return {
        "type": "scatter",
        "mode": "markers+text" if worded and point.words else "markers",
        "name": name,
        "legendgroup": name,
        "x": [point.x],
        "y": [point.y],
        "text": [shown(point.words)],
        "textposition": position,
        "textfont": {"size": 11},
        "customdata": [f"<b>{name}</b><br>{point.hover}"],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"color": style.colour(point), "symbol": style.symbol(point), "size": 12, "opacity": 0.9},
        "cliponaxis": False,
    }


def tuning_chart(tunings: Sequence[Tuning]) -> Chart | None:
    """Bits per byte against the decoding rate as the threshold varies, a curve for each tuning."""
    data: list[Json] = []
    words = []
    for number, tuning in enumerate(tunings):
        curve = _curve(tuning, number)
        if curve:
            chosen = f"{len(tuning.points)} thresholds, chosen {tuning.chosen_threshold:.4g} nats"
            words.append(f"{printable(tuning.bundle)}: {chosen}")
            data += curve
    if not data:
        return None
    layout: Json = {
        "xaxis": {"title": {"text": "decoding, bytes a second"}},
        "yaxis": {"title": {"text": "bits per byte (lower is better)"}},
        "legend": dict(LEGEND_BELOW),
        "margin": {"t": 24, "r": 24},
    }
    return Chart(
        "tuning",
        "Turning the patching threshold",
        "Each curve is a bundle, each mark on it a threshold (nats, beside the mark). A higher threshold makes "
        "patches longer, so that the large model runs less often: decoding gets faster (further right, bytes a "
        "second) and the text is predicted worse (further up, bits per byte). The ring is the threshold that was "
        "chosen, the thin dotted line the most bits per byte that were allowed for it.",
        f"{'; '.join(words)}.",
        440 + 8 * len(data),
        tuple(data),
        layout,
    )


def _curve(tuning: Tuning, number: int) -> list[Json]:
    points = sorted(tuning.points, key=lambda point: point.threshold)
    if not points:
        return []
    name = f"{shown(tuning.bundle)} on {shown(tuning.device)}"
    rates = [point.decode_bytes_per_s for point in points]
    curve: list[Json] = [
        {
            "type": "scatter",
            "mode": "lines+markers+text",
            "name": name,
            "x": rates,
            "y": [point.bits_per_byte for point in points],
            "text": [f"{point.threshold:.3g}" for point in points],
            "customdata": [[point.bytes_per_patch, point.increase] for point in points],
            "textposition": "top left",
            "textfont": {"size": 11},
            "hovertemplate": "threshold %{text} nats<br>%{y:.4f} bits per byte, %{customdata[1]:+.4f}<br>"
            "%{x:,.0f} bytes/s<br>%{customdata[0]:.2f} bytes a patch<extra>%{fullData.name}</extra>",
            "line": {"color": colour(number), "dash": dash(number)},
            "marker": {"size": 8},
            "cliponaxis": False,
        }
    ]
    for point in points:
        if point.threshold == tuning.chosen_threshold:
            ring = {"symbol": "circle-open", "size": 20, "color": colour(number), "line": {"width": 3}}
            place = {"x": [point.decode_bytes_per_s], "y": [point.bits_per_byte], "cliponaxis": False}
            named = {"name": f"chosen for {name}: {point.threshold:.4g} nats", "hoverinfo": "skip"}
            curve.append({"type": "scatter", "mode": "markers", "marker": ring} | place | named)
    most = points[0].bits_per_byte - points[0].increase + tuning.max_bpb_increase
    thin = {"color": colour(number), "dash": "dot", "width": 1}
    place = {"x": [min(rates), max(rates)], "y": [most, most], "line": thin}
    named = {"name": f"allowed for {name}: +{tuning.max_bpb_increase:g} bits per byte", "hoverinfo": "skip"}
    curve.append({"type": "scatter", "mode": "lines"} | place | named)
    return curve
