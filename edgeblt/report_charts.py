"""The charts of a report as plotly.js reads them: plain JSON, drawn by the page. Each is None where nothing is to draw."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeblt.benchmark import Benchmark
from edgeblt.contract import STAGES
from edgeblt.printing import printable
from edgeblt.report import Row, Tuning, pareto_front, text_sizes
from edgeblt.validation import Passage, Report

Json = dict[str, Any]

# Distinct to most colour-blind eyes, and legible on white and on black.
PALETTE = ("#2f7fc1", "#d9622b", "#1f9e7a", "#b565a7", "#c2941a", "#7a6ff0", "#9a6b4f", "#5b8c2a")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "cross", "triangle-down", "hexagon")
_GREY = "#8b93a1"
_PASSAGE_COLUMNS = 80
_LONGEST_LABEL = 48
_VISIBLE_BYTES = {0x20: "␣", 0x0A: "↵", 0x0D: "␍", 0x09: "⇥"}


@dataclass(frozen=True)
class Chart:
    """A figure for plotly.js, and the words that make it readable without knowing the project, or without seeing it."""

    name: str  # its id in the page
    title: str
    caption: str  # what it means, with units
    alternative: str  # what there is to see, for those who do not
    height: int  # pixels
    data: tuple[Json, ...]
    layout: Json
    least_width: int = 0  # pixels; narrower screens scroll


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    label: str
    bundle: str
    device: str
    texts: object  # points are comparable where this is the same
    hover: str


def shown(text: str) -> str:
    """Text from a file, of bounded length and such that plotly.js shows it as it is; it reads some HTML."""
    text = printable(text)
    return html.escape(text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…", quote=False)


def devices_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """In the order in which they are drawn, and coloured."""
    return tuple(dict.fromkeys(row.result.device for row in rows))


def size_chart(validations: Sequence[Report]) -> Chart | None:
    """Bits per byte against the size of the bundle, each validation a point."""
    points = [
        _Point(
            validation.bundle_bytes / 1e6,
            validation.bits_per_byte,
            validation.bundle,
            validation.bundle,
            validation.device,
            text_sizes(validation),
            f"{shown(validation.recipe)}<br>{_accuracy_words(validation)}<br>{validation.bundle_bytes / 1e6:,.1f} MB",
        )
        for validation in validations
    ]
    return _front_chart(
        points,
        "accuracy-size",
        "Accuracy against size",
        "Each mark is a bundle: to the right it takes more disk (megabytes, 10⁶ bytes), further up it predicts text worse "
        "(bits per byte, the mean number of bits that the model needs for the next byte of the text). Best is the lower "
        "left corner. The line is the Pareto front: for each size the best accuracy that any bundle gives; what lies above "
        "it is beaten in both.",
        "size of the bundle, MB",
        less_is_better=True,
    )


def speed_chart(rows: Sequence[Row]) -> Chart | None:
    """Bits per byte against the decoding rate, of rows with both."""
    points = [
        _Point(
            row.benchmark.decode_bytes_per_s,
            row.validation.bits_per_byte,
            row.label,
            row.result.bundle,
            row.result.device,
            text_sizes(row.validation),
            f"{_accuracy_words(row.validation)}<br>{row.benchmark.decode_bytes_per_s:,.0f} bytes/s",
        )
        for row in rows
        if row.benchmark and row.validation
    ]
    return _front_chart(
        points,
        "accuracy-speed",
        "Accuracy against speed",
        "Each mark is a bundle in one setting on one device: to the right it writes faster (bytes generated a second), "
        "further up it predicts text worse (bits per byte). Best is the lower right corner. The line is the Pareto front "
        "of a device: for each speed the best accuracy that is to be had.",
        "decoding, bytes a second",
        less_is_better=False,
    )


def _accuracy_words(validation: Report) -> str:
    return f"{validation.bits_per_byte:.4f} bits per byte, {validation.bits_per_byte_increase:+.4f} to its reference"


def _front_chart(
    points: Sequence[_Point], name: str, title: str, caption: str, x_title: str, less_is_better: bool
) -> Chart | None:
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not points:
        return None
    devices = list(dict.fromkeys(point.device for point in points))
    bundles = list(dict.fromkeys(point.bundle for point in points))
    data: list[Json] = []
    on_front: list[str] = []
    for device in devices:
        for texts in dict.fromkeys(point.texts for point in points):
            some = [point for point in points if (point.device, point.texts) == (device, texts)]
            ends = [(point.x if less_is_better else -point.x, point.y) for point in some]
            front = [some[index] for index in pareto_front(ends)]
            front.sort(key=lambda point: (point.x, -point.y if less_is_better else point.y))
            on_front += [point.label for point in front]
            colour = PALETTE[devices.index(device) % len(PALETTE)] if len(devices) > 1 else _GREY
            data.append(_front_line(front, colour, "hv" if less_is_better else "vh"))
    for point in points:
        number = (devices if len(devices) > 1 else bundles).index(point.device if len(devices) > 1 else point.bundle)
        data.append(_mark(point, PALETTE[number % len(PALETTE)], bundles.index(point.bundle), len(devices) > 1))
    layout: Json = {
        "xaxis": {"title": {"text": x_title}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "bits per byte (lower is better)"}, "automargin": True},
        "legend": _LEGEND_BELOW,
        "margin": {"t": 16, "r": 16},
    }
    alternative = f"{title}: {len(points)} points; on the Pareto front: {', '.join(map(shown, on_front))}."
    return Chart(name, title, caption, alternative, 420 + 10 * len(points), tuple(data), layout)


_LEGEND_BELOW = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"}


def _front_line(front: Sequence[_Point], colour: str, shape: str) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [point.x for point in front],
        "y": [point.y for point in front],
        "line": {"shape": shape, "color": colour, "width": 2, "dash": "dot"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _mark(point: _Point, colour: str, symbol: int, with_device: bool) -> Json:
    name = f"{shown(point.label)} — {shown(point.device)}" if with_device else shown(point.label)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point.x],
        "y": [point.y],
        "text": [f"<b>{name}</b><br>{point.hover}"],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": colour, "symbol": _SYMBOLS[symbol % len(_SYMBOLS)], "size": 12, "opacity": 0.85},
        "cliponaxis": False,
    }


def latency_chart(rows: Sequence[Row]) -> Chart | None:
    """The cumulative distribution of the time between bytes, a curve a benchmark, a panel a device."""
    timed = [row for row in rows if row.benchmark]
    devices = devices_of(timed)
    if not timed:
        return None
    data, names = [], list(dict.fromkeys(row.label for row in timed))
    layout = _panels(devices, "between one byte and the next, milliseconds", shared_x=True)
    for row in timed:
        number, panel = names.index(row.label), devices.index(row.result.device)
        assert row.benchmark
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": shown(row.label),
                "legendgroup": shown(row.label),
                "showlegend": row is next(other for other in timed if other.label == row.label),
                "x": [value if value > 0 else None for value in row.benchmark.inter_byte_latency_quantiles_ms],
                "y": list(range(101)),
                "line": {
                    "color": PALETTE[number % len(PALETTE)],
                    "dash": _DASHES[number % len(_DASHES)],
                    "width": 2,
                },
                "hovertemplate": "%{y}% within %{x:.3g} ms<extra>%{fullData.name}</extra>",
                **_axes(panel),
            }
        )
    for panel in range(len(devices)):
        layout[_axis("xaxis", panel)] |= {"type": "log", "exponentformat": "none", "tickangle": 0}
        layout[_axis("yaxis", panel)] |= {
            "range": [0, 101],
            "tickvals": [0, 25, 50, 75, 95],
            "ticksuffix": "%",
            "title": {"text": "share of bytes"},
        }
    return Chart(
        "latency",
        "Time between bytes",
        "For each setting, the share of generated bytes (vertical) that came within a time after the byte before "
        "(horizontal, milliseconds, each decade as wide as the next). A curve further left is faster; a steep one is "
        "even; a tail to the right means that some bytes are waited for, as those that end a patch and run the global "
        "stage. Bytes of an accepted draft arrive together, hence shares of almost no time.",
        f"Cumulative latency curves of {len(timed)} benchmarks on {len(devices)} device(s). "
        + " ".join(map(_latency_words, timed)),
        150 + 260 * len(devices) + 12 * len(names),
        tuple(data),
        layout,
    )


def _latency_words(row: Row) -> str:
    assert row.benchmark
    latency = row.benchmark.inter_byte_latency_ms
    return f"{printable(row.label)}: half within {latency.p50:.3g} ms, 99% within {latency.p99:.3g} ms."


def passage_chart(number: int, label: str, passage: Passage) -> Chart | None:
    """The entropy before each byte, in lines of bytes as text is written; the starts of patches and the threshold."""
    entropies, data = passage.entropies, passage.data.encode("latin-1")
    if not data or entropies is None:
        return None
    columns = _PASSAGE_COLUMNS
    finite = [value for value in (*entropies, passage.threshold or 0) if math.isfinite(value)]
    top = 1.08 * max([*finite, 0.1])
    lines = range(0, len(data), columns)
    layout = _stacked(len(lines), gap=0.32)
    figure: list[Json] = []
    for line, start in enumerate(lines):
        part = range(start, min(start + columns, len(data)))
        figure += _passage_line(passage, part, line, top)
        layout[_axis("xaxis", line)] |= {
            "range": [-0.6, columns - 0.4],
            "tickvals": list(range(len(part))),
            "ticktext": [_byte_label(data[index]) for index in part],
            "tickangle": 0,
            "tickfont": {"family": "ui-monospace, monospace", "size": 10},
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        }
        layout[_axis("yaxis", line)] |= {"range": [0, top], "nticks": 4, "fixedrange": True}
    layout[_axis("yaxis", (len(lines) - 1) // 2)]["title"] = {"text": "entropy, nats"}
    layout |= {"bargap": 0.15, "barmode": "overlay", "legend": _LEGEND_BELOW, "margin": {"t": 8, "r": 8, "l": 56}}
    starts = sum(passage.patch_starts)
    return Chart(
        f"passage-{number}",
        f"Entropy and patches: {printable(label)}",
        "The text runs along the bottom, a byte a column (␣ a space, ↵ a new line, two hexadecimal digits what is no "
        "printable ASCII). A bar is the entropy, in nats, of the small model that reads ahead: how uncertain it was of "
        "that byte before it came. Orange bars, with a line to their left, start a patch"
        + (
            ", as their entropy exceeds the threshold (dashed) or the patch before was full"
            if passage.threshold
            else ""
        )
        + ". The large model runs once a patch, so it is run where the text is hard to guess.",
        f"{len(data)} bytes of {shown(passage.text)} in {starts} patches, {len(data) / max(starts, 1):.2f} bytes each on "
        "average; the passage with its patches follows as text.",
        112 * len(lines) + 60,
        tuple(figure),
        layout,
        least_width=820,
    )


def _passage_line(passage: Passage, part: range, line: int, top: float) -> Iterable[Json]:
    entropies, data = passage.entropies or (), passage.data.encode("latin-1")
    for name, colour, wanted in (("starts a patch", PALETTE[1], True), ("continues one", _GREY, False)):
        some = [index for index in part if passage.patch_starts[index] == wanted]
        yield {
            "type": "bar",
            "name": name,
            "legendgroup": name,
            "showlegend": line == 0,
            "x": [index - part.start for index in some],
            "y": [entropies[index] for index in some],
            "text": [f"byte {index}, {_byte_label(data[index], '')} (0x{data[index]:02x})" for index in some],
            "textposition": "none",
            "hovertemplate": "%{text}: %{y:.3f} nats<extra>" + name + "</extra>",
            "marker": {"color": colour},
            **_axes(line),
        }
    edges = [index - part.start - 0.5 for index in part if passage.patch_starts[index]]
    common = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", **_axes(line)}
    yield common | {
        "name": "boundary",
        "showlegend": False,
        "x": [x for edge in edges for x in (edge, edge, None)],
        "y": [y for _ in edges for y in (0, top, None)],
        "line": {"color": PALETTE[1], "width": 1},
    }
    if passage.threshold is not None:
        yield common | {
            "name": f"threshold, {passage.threshold:.4g} nats",
            "legendgroup": "threshold",
            "showlegend": line == 0,
            "x": [-0.6, _PASSAGE_COLUMNS - 0.4],
            "y": [passage.threshold, passage.threshold],
            "line": {"color": PALETTE[0], "width": 1.5, "dash": "dash"},
        }


def _byte_label(byte: int, between: str = "<br>") -> str:
    """A column is one character wide: hexadecimal digits stand one above the other."""
    if 0x21 <= byte <= 0x7E:
        return html.escape(chr(byte))
    return _VISIBLE_BYTES.get(byte) or between.join(f"{byte:02x}")


def stage_time_chart(rows: Sequence[Row]) -> Chart | None:
    """What a generated byte's time goes into, stacked, a panel a device."""
    timed = [row for row in rows if row.benchmark]
    if not timed:
        return None

    def milliseconds(row: Row) -> dict[str, float]:
        assert row.benchmark
        stages = {str(name): seconds * 1e3 for name, seconds in row.benchmark.stage_s_per_byte.items()}
        rate = row.benchmark.decode_bytes_per_s
        rest = 1e3 / rate - sum(stages.values()) if rate > 0 else 0.0
        return stages | {"between the stages": max(rest, 0.0)}

    return _stacked_bars(
        [(row.result.device, row.label, milliseconds(row)) for row in timed],
        "stage-time",
        "Time of a byte, by stage",
        "What the time of one generated byte goes into, milliseconds (mean over the run; shorter is better). The patcher, "
        "the encoder and the decoder run for every byte, the global stage once a patch. The rest is choosing the byte, "
        "drafting, and what lies between the stages.",
        "milliseconds a byte",
        ".3f",
    )


def stage_size_chart(benchmarks: Sequence[Benchmark]) -> Chart | None:
    """What a bundle's weights go into, stacked."""
    bundles: dict[str, Benchmark] = {benchmark.bundle_id: benchmark for benchmark in reversed(benchmarks)}
    names = [benchmark.bundle for benchmark in bundles.values()]
    sizes = [
        (
            "",
            benchmark.bundle if names.count(benchmark.bundle) == 1 else f"{benchmark.bundle} {id_}",
            {str(name): size / 1e6 for name, size in benchmark.stage_bytes.items()},
        )
        for id_, benchmark in reversed(bundles.items())
    ]
    return _stacked_bars(
        sizes,
        "stage-size",
        "Size of the weights, by stage",
        "What the weights of a bundle take on disk, megabytes (10⁶ bytes). The hash tables, of which a byte reads a few "
        "rows only, belong to the encoder.",
        "MB",
        ",.2f",
    )


def _stacked_bars(
    bars: Sequence[tuple[str, str, dict[str, float]]], name: str, title: str, caption: str, unit: str, digits: str
) -> Chart | None:
    """Of (device, label, value by part): a bar each, a panel a device."""
    if not any(parts for _, _, parts in bars):
        return None
    devices = list(dict.fromkeys(device for device, _, _ in bars))
    order = dict.fromkeys((*STAGES, *(part for _, _, parts in bars for part in parts)))
    names = [part for part in order if any(part in parts for _, _, parts in bars)]
    counts = [sum(device == other for other, _, _ in bars) for device in devices]
    layout = _panels(devices, unit, shared_x=True, weights=counts)
    data: list[Json] = []
    for panel, device in enumerate(devices):
        some = [(label, parts) for other, label, parts in bars if other == device]
        for number, part in enumerate(names):
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": shown(part),
                    "legendgroup": shown(part),
                    "showlegend": panel == 0,
                    "y": [shown(label) for label, _ in some],
                    "x": [parts.get(part) for _, parts in some],
                    "marker": {"color": _GREY if part == "between the stages" else PALETTE[number % len(PALETTE)]},
                    "hovertemplate": f"%{{y}}: %{{x:{digits}}} {unit}<extra>%{{fullData.name}}</extra>",
                    **_axes(panel),
                }
            )
        layout[_axis("yaxis", panel)] |= {"type": "category", "autorange": "reversed", "automargin": True}
        layout[_axis("xaxis", panel)] |= {"rangemode": "tozero"}
    layout |= {"barmode": "stack", "bargap": 0.35}
    height = 150 + 34 * len(bars) + 50 * len(devices)
    return Chart(name, title, caption, _bar_words(bars, unit, digits), height, tuple(data), layout)


def _bar_words(bars: Sequence[tuple[str, str, dict[str, float]]], unit: str, digits: str) -> str:
    words = (
        f"{printable(label)}: " + ", ".join(f"{printable(part)} {value:{digits}}" for part, value in parts.items())
        for _, label, parts in bars
    )
    return f"Stacked bars, {unit}. {'; '.join(words)}."


def tuning_chart(tunings: Sequence[Tuning]) -> Chart | None:
    """Bits per byte against the decoding rate while the threshold is turned, a curve a tuning."""
    data: list[Json] = []
    words = []
    for number, tuning in enumerate(tunings):
        curve = _tuning_curve(tuning, PALETTE[number % len(PALETTE)], _DASHES[number % len(_DASHES)])
        if curve:
            data += curve
            words.append(
                f"{printable(tuning.bundle)}: {len(tuning.points)} thresholds"
                + ("" if tuning.chosen_threshold is None else f", chosen {tuning.chosen_threshold:.4g} nats")
            )
    if not data:
        return None
    layout: Json = {
        "xaxis": {"title": {"text": "decoding, bytes a second"}},
        "yaxis": {"title": {"text": "bits per byte (lower is better)"}, "automargin": True},
        "legend": _LEGEND_BELOW,
        "margin": {"t": 24, "r": 24},
    }
    return Chart(
        "tuning",
        "Turning the patching threshold",
        "Each curve is one bundle, each mark one threshold (nats, beside it): a higher threshold makes patches longer, "
        "so that the large model runs less often; decoding gets faster (to the right, bytes a second) and the text is "
        "predicted worse (further up, bits per byte). The large ring is the threshold chosen, a dotted line the most bits "
        "per byte that were allowed for it.",
        f"{'; '.join(words)}.",
        440 + 12 * len(data),
        tuple(data),
        layout,
    )


def _tuning_curve(tuning: Tuning, colour: str, dash: str) -> list[Json]:
    points = sorted(
        (point for point in tuning.points if point.decode_bytes_per_s is not None), key=lambda point: point.threshold
    )
    if not points:
        return []
    name = shown(tuning.bundle) + (f" — {shown(tuning.device)}" if tuning.device else "")
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
            "line": {"color": colour, "dash": dash},
            "marker": {"size": 8},
            "cliponaxis": False,
        }
    ]
    chosen = [point for point in points if point.threshold == tuning.chosen_threshold]
    if chosen:
        curve.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"chosen for {shown(tuning.bundle)}: {chosen[0].threshold:.4g} nats",
                "x": [chosen[0].decode_bytes_per_s],
                "y": [chosen[0].bits_per_byte],
                "marker": {"symbol": "circle-open", "size": 20, "color": colour, "line": {"width": 3}},
                "hoverinfo": "skip",
                "cliponaxis": False,
            }
        )
    if tuning.max_bpb_increase is not None:
        most = points[0].bits_per_byte - points[0].increase + tuning.max_bpb_increase
        curve.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"allowed for {shown(tuning.bundle)}: +{tuning.max_bpb_increase:g} bits per byte",
                "x": [min(rate for rate in rates if rate is not None), max(rate for rate in rates if rate is not None)],
                "y": [most, most],
                "line": {"color": colour, "dash": "dot", "width": 1},
                "hoverinfo": "skip",
            }
        )
    return curve


def _axis(name: str, panel: int) -> str:
    return name if panel == 0 else f"{name}{panel + 1}"


def _axes(panel: int) -> Json:
    return {"xaxis": _axis("x", panel), "yaxis": _axis("y", panel)}


def _stacked(count: int, gap: float, weights: Sequence[int] | None = None) -> Json:
    """`count` panels from the top down, the share `gap` of the height between them."""
    heights = [weight / sum(weights) for weight in weights] if weights else [1 / count] * count
    between = gap / count if count > 1 else 0.0
    layout: Json = {}
    top = 1.0
    for panel, height in enumerate(heights):
        bottom = top - height * (1 - between * (count - 1))
        layout[_axis("xaxis", panel)] = {"anchor": _axis("y", panel)}
        layout[_axis("yaxis", panel)] = {"anchor": _axis("x", panel), "domain": [max(bottom, 0.0), top]}
        top = bottom - between
    return layout


def _panels(devices: Sequence[str], x_title: str, shared_x: bool, weights: Sequence[int] | None = None) -> Json:
    """A panel a device, its name above it."""
    layout = _stacked(len(devices), gap=0.3, weights=weights)
    layout["annotations"] = [
        {
            "text": f"<b>{shown(device)}</b>",
            "showarrow": False,
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": layout[_axis("yaxis", panel)]["domain"][1],
            "yref": "paper",
            "yanchor": "bottom",
        }
        for panel, device in enumerate(devices)
        if device
    ]
    for panel in range(len(devices)):
        if shared_x and panel:
            layout[_axis("xaxis", panel)]["matches"] = "x"
    layout[_axis("xaxis", len(devices) - 1)]["title"] = {"text": x_title}
    return layout | {"legend": _LEGEND_BELOW, "margin": {"t": 28, "r": 16}}
