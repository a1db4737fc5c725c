"""Sweeps for people: the Pareto table in the terminal, and charts and a table on the page."""

from collections.abc import Iterator, Sequence

from rich.filesize import decimal

from edgeblt.measure.sweep_result import COMPLETE, Sweep, SweepTrial
from edgeblt.printable import printable
from edgeblt.report.charts import LEGEND_BELOW, Chart, Json, colour, html_table, shown
from edgeblt.report.narrow_tables import add_row, new_table, show

_UNKNOWN = "–"  # noqa: RUF001 - a dash as in tables of figures
_BAR_PIXELS = 34


def show_sweep(sweep: Sweep) -> None:
    """Prints the Pareto front, what parts are worth, and how the front compares with the package's recipes."""
    by_number = {trial.number: trial for trial in sweep.trials}
    table = new_table("Pareto front", "trial", "bundle", "bits per byte", "decoding, bytes/s", "settings")
    for number in sweep.front:
        add_row(table, str(number), *_cells(by_number[number]))
    show(table)
    if sweep.sensitivity:
        table = new_table("parts", "finest choice of", "gains, bits per byte", "share of the differences")
        for part, gain in sorted(sweep.sensitivity.items(), key=lambda item: -item[1]):
            add_row(table, part, f"{gain:+.4f}", _share(sweep.importance.get(part)))
        show(table)
    for each in sweep.against:
        show(printable(each.sentence))
    show(printable(_counts(sweep)))


def sweep_charts(sweeps: Sequence[Sweep]) -> Iterator[Chart]:
    """For each sweep its trials with their front, and the importance of each setting."""
    for number, sweep in enumerate(sweeps):
        if any(trial.state == COMPLETE for trial in sweep.trials):
            yield _front_chart(f"sweep-{number}", sweep)
        if sweep.importance:
            yield _importance_chart(f"sweep-importance-{number}", sweep)


def sweep_tables(sweeps: Sequence[Sweep]) -> str:
    """HTML tables of the fronts, and the sentences that compare them with the package's recipes."""
    return "".join(map(_table, sweeps))


def _cells(trial: SweepTrial) -> tuple[str, str, str, str]:
    size = decimal(trial.bundle_bytes) if trial.bundle_bytes is not None else _UNKNOWN
    bits = f"{trial.bits_per_byte:.4f}" if trial.bits_per_byte is not None else _UNKNOWN
    rate = f"{trial.decode_bytes_per_s:,.0f}" if trial.decode_bytes_per_s is not None else _UNKNOWN
    return size, bits, rate, trial.label


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0%}"


def _counts(sweep: Sweep) -> str:
    states = [trial.state for trial in sweep.trials]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    texts = ", ".join(f"{name} ({count:,} bytes)" for name, count in sweep.texts.items())
    limits = [f"bundles of at most {decimal(sweep.at_most_bytes)}"] if sweep.at_most_bytes is not None else []
    if sweep.at_least_bytes_per_s is not None:
        limits.append(f"at least {sweep.at_least_bytes_per_s:,.0f} bytes/s")
    within = f"; the front is of {' and '.join(limits)}" if limits else ""
    return f"{sweep.checkpoint}, study {sweep.study}: {counted}; on {texts}{within}."


def _front_chart(name: str, sweep: Sweep) -> Chart:
    complete = [trial for trial in sweep.trials if trial.state == COMPLETE]
    groups = (
        ("on the front", [trial for trial in complete if trial.number in sweep.front], 0),
        ("others", [trial for trial in complete if trial.number not in sweep.front and not trial.packaged], 6),
        ("recipes of the package", [trial for trial in complete if trial.packaged], 1),
    )
    layout: Json = {
        "xaxis": {"title": {"text": "bundle, MB"}},
        "yaxis": {"title": {"text": "bits per byte (lower is better)"}},
        "legend": dict(LEGEND_BELOW),
        "margin": {"t": 20, "r": 24},
    }
    return Chart(
        name,
        f"Search: {sweep.study}",
        "Each mark is a trial. The front is of trials that no other on the same device beats in size, bits per byte "
        "and speed together, so a mark may be on it for its speed. Hover to see the settings.",
        f"{len(complete)} trials by size and bits per byte, {len(sweep.front)} of them on the front; see the table.",
        440,
        tuple(_marks(title, trials, number) for title, trials, number in groups if trials),
        layout,
    )


def _marks(title: str, trials: Sequence[SweepTrial], number: int) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": title,
        "x": [(trial.bundle_bytes or 0) / 1e6 for trial in trials],
        "y": [trial.bits_per_byte for trial in trials],
        "customdata": [
            f"trial {trial.number}<br>{'<br>'.join(shown(f'{key} {value}') for key, value in trial.settings.items())}"
            f"<br>{trial.decode_bytes_per_s or 0:,.0f} bytes/s"
            for trial in trials
        ],
        "hovertemplate": "%{customdata}<br>%{x:.2f} MB, %{y:.4f} bits per byte<extra></extra>",
        "marker": {"color": colour(number), "size": 9 if number else 12, "opacity": 0.85},
    }


def _importance_chart(name: str, sweep: Sweep) -> Chart:
    ordered = sorted(sweep.importance.items(), key=lambda item: item[1])
    data: Json = {
        "type": "bar",
        "orientation": "h",
        "x": [share for _, share in ordered],
        "y": [shown(part) for part, _ in ordered],
        "marker": {"color": colour(0)},
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    return Chart(
        name,
        "What decides about bits per byte",
        "Share of each setting in what tells the best tenth of the trials from the others (PED-ANOVA).",
        "; ".join(f"{part} {share:.0%}" for part, share in reversed(ordered)),
        110 + _BAR_PIXELS * len(ordered),
        (data,),
        {"xaxis": {"tickformat": ".0%", "rangemode": "tozero"}, "yaxis": {"automargin": True}, "margin": {"t": 8}},
    )


def _table(sweep: Sweep) -> str:
    by_number = {trial.number: trial for trial in sweep.trials}
    columns = ("Trial", "Bundle", "Bits per byte", "Decoding, bytes/s", "Settings", "Device")
    front = [by_number[number] for number in sweep.front if number in by_number]
    rows = [(str(trial.number), *_cells(trial), trial.device) for trial in front]
    words = " ".join([*(each.sentence for each in sweep.against), _counts(sweep)])
    return html_table(f"Front of {sweep.study}", columns, rows, words)
