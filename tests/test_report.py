"""Reports: what is read, what is joined, Pareto fronts, and the page as a browser shows it."""

import contextlib
import dataclasses
import html.parser
import itertools
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import Exported
from edgeblt.errors import EdgebltError
from edgeblt.installing import install_hint
from edgeblt.measure.benchmark import Benchmark, Setting, bench
from edgeblt.measure.distribution import Percentiles, Spread
from edgeblt.measure.reference import ComputedRows, Text
from edgeblt.measure.tuning import Point, Tuning
from edgeblt.measure.validation import Passage, Report, Validation, validate
from edgeblt.report import page
from edgeblt.report.accuracy import size_chart, speed_chart, tuning_chart
from edgeblt.report.charts import Chart, logarithmic, shortened, stacked_panels
from edgeblt.report.passage import passage_chart
from edgeblt.report.results import Results, Row, join, pareto_front, read_results
from edgeblt.report.speed import latency_chart, stage_size_chart, stage_time_chart
from test_commands import run_command, sentence

# Markup that a browser would read, and markup and entities that plotly.js would.
HOSTILE = "<b>&amp;</b><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">&amp;%{y}"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def benchmark(**changes: Any) -> Benchmark:
    quantiles = tuple(float(value) for value in np.geomspace(0.5, 8.0, 101))
    result = Benchmark(
        bundle="int8", bundle_id="a" * 12, recipe="int8", provider="cpu", device="first", threads=1, draft="none",
        threshold=None, text="prose", prompt_bytes=64, new_bytes=16, repeats=3, load_time_s=0.1,
        time_to_first_byte_s=0.25, prefill_bytes_per_s=256.0, decode_bytes_per_s=500.0,
        spread={"decode_bytes_per_s": Spread(450.0, 525.0)},
        inter_byte_latency_ms=Percentiles(quantiles[50], quantiles[95], quantiles[99]),
        inter_byte_latency_quantiles_ms=quantiles, bytes_per_patch=4.5, bytes_per_pass=1.0, draft_acceptance=None,
        weight_bytes_per_byte=2.5e6, cache_bytes_per_byte=5e5,
        bandwidth_bytes_per_s=None, bandwidth_share=None, cpu_s_per_byte=0.002,
        energy_j_per_byte=None, cost_per_million_bytes=None,
        stage_s_per_byte={"patcher": 0.0005, "encoder": 0.0002, "global": 0.0003, "decoder": 0.0006},
        stage_weight_bytes_per_byte={"patcher": 1e6, "encoder": 2e5, "global": 7e5, "decoder": 5e5},
        stage_cache_bytes_per_byte={"patcher": 2e5, "encoder": 5e4, "global": 1e5, "decoder": 1.5e5},
        stage_bytes={"patcher": 1_000_000, "encoder": 2_000_000, "global": 3_000_000, "decoder": 500_000},
        anonymous_bytes=None, mapped_bytes=None, peak_rss_bytes=1 << 20, prepared=False, unprepared_because=None,
        bundle_bytes=6_600_000,
    )  # fmt: skip
    return dataclasses.replace(result, **changes)


PASSAGE = Passage("prose", "To be, or \xc3\xb6\n<b>", tuple(t / 5 for t in range(16)), (True, False) * 8, 1.25)


def validation(**changes: Any) -> Report:
    figures = Validation(1.96, 1.95, 0.99, 0.001, 0.98, 0.75, 0.5, 1000, "cpu")
    result = Report(
        **vars(figures), bundle="int8", bundle_id="a" * 12, recipe="int8", bundle_bytes=6_600_000, device="first",
        threshold=None, texts={"prose": figures}, passage=PASSAGE,
    )  # fmt: skip
    return dataclasses.replace(result, **changes)


def tuning(**changes: Any) -> Tuning:
    points = tuple(Point(t, 2 + t, 1.9 + t / 100, t / 100 - 0.01, 400 + 50 * t, 2e6) for t in (2.0, 1.0, 0.5))
    return dataclasses.replace(
        Tuning("int8", "a" * 12, "int8", "cpu", "first", "prose", 6000, 1.0, 2.0, 0.02, points), **changes
    )


def written(path: Path, *results: Any) -> Path:
    documents = [dataclasses.asdict(result) for result in results]
    path.write_text(json.dumps(documents[0] if len(documents) == 1 else documents))
    return path


# Reading.


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    one, several = validation(mean_kl=math.nan), [benchmark(), benchmark(draft="ngram"), tuning()]
    files = [
        written(tmp_path / "one", one),
        written(tmp_path / "several", *several),
        written(tmp_path / "a", several[0]),
    ]
    results = read_results(files)
    assert results.benchmarks == tuple(several[:2]) and results.tunings == (several[2],)
    assert repr(results.validations) == repr((one,))  # no NaN equals itself


def changed(result: Any, **changes: Any) -> str:
    document = dataclasses.asdict(result) | changes
    return json.dumps({key: value for key, value in document.items() if value != "left out"})


REMEDY = "give what `edgeblt validate`, `bench`, `tune` or `sweep` wrote with --json"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", f" is not JSON (Expecting value: line 1 column 1 (char 0)); {REMEDY}"),
        ("\xff", f" is not JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte); {REMEDY}"),
        ("[" * 100_000, f" is nested too deeply; {REMEDY}"),
        ("1" * 19, f" is not JSON (a number of 19 digits); {REMEDY}"),
        ("[]", f" holds no results; {REMEDY}"),
        ("7", f" is no result of a validation, benchmark, tuning or sweep; {REMEDY}"),
        ('[{"bundle": "x"}]', f"[0] is no result of a validation, benchmark, tuning or sweep; {REMEDY}"),
        (changed(benchmark(), bundle_id="left out"), " lacks the field 'bundle_id'; write it again with edgeblt"),
        (f"[{changed(validation())},{changed(benchmark(), threads='1')}]",
         "[1]: threads is '1'; it must be of type int"),
        (changed(benchmark(), stage_bytes=3), ": stage_bytes is 3; it must be of type dict"),
        (changed(benchmark(), inter_byte_latency_quantiles_ms=[1, 2]),
         " has 2 quantiles instead of 101; run `edgeblt bench` again"),
        (changed(validation(), passage=None), ": passage must be a JSON object, not None; write it again with edgeblt"),
        (changed(validation(), passage=dataclasses.asdict(PASSAGE) | {"data": "x"}),
         ": passage: a passage needs an entropy and a patch start for each byte; validate the bundle again"),
        (changed(tuning(), points=[{}]), ": points[0] lacks the field 'threshold'; write it again with edgeblt"),
        (changed(tuning(), points={}), ": points is {}; it must be of type tuple"),
    ],
)  # fmt: skip
def test_files_that_are_refused(content: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "result.json", tmp_path / "out.html"
    path.write_bytes(content.encode("latin-1"))
    shown = sentence(run_command(capfd, "report", path, "-o", out)).removeprefix(str(path))
    assert shown.startswith(said.removesuffix("tuple")) and not out.exists()


def test_paths_that_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "result.json", benchmark())
    before = path.read_bytes()
    said = sentence(run_command(capfd, "report", path, "-o", path))
    assert said == f"{path} is one of the results; choose another name for the report" and path.read_bytes() == before
    for absent in (tmp_path, tmp_path / "absent"):
        said = sentence(run_command(capfd, "report", absent))
        assert said == f"{absent} is not a regular file of at most 256 MB; {REMEDY}"
    said = sentence(run_command(capfd, "report", path, "-o", tmp_path))
    assert said.startswith(f"{tmp_path} cannot be written (") and list(tmp_path.iterdir()) == [path]


def test_without_plotly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("edgeblt.report.page.importlib.util", SimpleNamespace(find_spec=lambda name: None))
    said = sentence(run_command(capfd, "report", written(tmp_path / "result.json", benchmark())))
    assert said == f"a report needs plotly; install it with: {install_hint('report')}"


# Joining.


def test_benchmarks_meet_the_validations_of_the_same() -> None:
    here, there, other = validation(), validation(device="second", bytes=9), validation(bundle_id="b")
    alone = [benchmark(bundle_id="c"), benchmark(provider="cuda"), benchmark(threshold=2.0)]
    met = [benchmark(), benchmark(device="second"), benchmark(device="third", draft="ngram")]
    rows = join(Results((*alone, *met), (there, here, other), ()))
    assert [row.validation for row in rows if row.benchmark in alone] == [None] * 3
    partners = {row.benchmark.device: row.validation for row in rows if row.benchmark and row.benchmark in met}
    assert partners == {"first": here, "second": there, "third": here}  # its own device's, else that on more bytes
    assert [(row.benchmark, row.validation) for row in rows if not row.benchmark] == [(None, other)]
    devices = [row.result.device for row in rows]
    assert [device for device, _ in itertools.groupby(devices)] == ["first", "second", "third"]


def test_labels_say_what_differs() -> None:
    settings = [benchmark(), benchmark(draft="ngram"), benchmark(device="second"), benchmark(decode_bytes_per_s=1.0)]
    rows = join(Results((*settings, benchmark(bundle_id="b", threads=None)), (), ()))
    assert [row.label for row in rows if row.result.device == "first"] == [
        f"int8 {'a' * 12}, 1 thread, no drafts",
        f"int8 {'a' * 12}, 1 thread, drafts ngram",
        f"int8 {'a' * 12}, 1 thread, no drafts, again (2)",
        "int8 b, threads by size, no drafts",
    ]
    assert [row.label for row in join(Results((benchmark(), benchmark(device="second")), (), ()))] == ["int8"] * 2


@given(st.lists(st.tuples(*[st.one_of(st.floats(), st.integers(0, 3).map(float))] * 2), max_size=12))
def test_pareto_front(points: list[tuple[float, float]]) -> None:
    finite = [index for index, point in enumerate(points) if all(map(math.isfinite, point))]

    def beaten(index: int) -> bool:
        (x, y) = points[index]
        return any(points[i][0] <= x and points[i][1] <= y and points[i] != points[index] for i in finite)

    front = pareto_front(points)
    assert sorted(front) == [index for index in finite if not beaten(index)]
    assert [points[index] for index in front] == sorted(points[index] for index in front)


# Charts.


def sample() -> Results:
    """Two devices, a name that is hostile, results without partner, numbers that are none."""
    quantiles = (0.0,) * 40 + tuple(float(value) for value in np.geomspace(1e-5, 90.0, 60)) + (math.nan,)
    benchmarks = (
        benchmark(),
        benchmark(draft="ngram", draft_acceptance=0.5, decode_bytes_per_s=700.0),
        benchmark(device="second", decode_bytes_per_s=40.0, inter_byte_latency_quantiles_ms=quantiles),
        benchmark(bundle=HOSTILE, bundle_id="b", recipe=HOSTILE, device="second", decode_bytes_per_s=90.0),
        benchmark(bundle="broken", bundle_id="c", decode_bytes_per_s=math.nan, bytes_per_patch=math.inf, spread={}),
    )
    validations = (
        validation(),
        validation(bundle=HOSTILE, bundle_id="b", recipe=HOSTILE, bits_per_byte=2.0, bundle_bytes=4_000_000,
                   passage=dataclasses.replace(PASSAGE, text=HOSTILE, threshold=None)),
        validation(bundle="alone", bundle_id="d", bits_per_byte=math.nan, mean_kl=math.nan,
                   passage=dataclasses.replace(PASSAGE, entropies=None)),
        validation(bundle="far", bundle_id="e", device="third", bundle_bytes=90_000_000),
    )  # fmt: skip
    return Results(benchmarks, validations, (tuning(), tuning(bundle=HOSTILE, chosen_threshold=7.5)))


def charts_of(results: Results) -> list[Chart]:
    rows = join(results)
    passages = (passage_chart(number, "x", each.passage) for number, each in enumerate(results.validations))
    made = (size_chart(rows), speed_chart(rows), latency_chart(rows), *passages, stage_time_chart(rows),
            stage_size_chart(rows), tuning_chart(results.tunings))  # fmt: skip
    return [chart for chart in made if chart]


def test_charts_are_as_plotly_wants_them() -> None:
    charts = charts_of(sample())
    assert Counter(chart.name.partition("-")[0] for chart in charts) == {
        "accuracy": 2, "latency": 1, "passage": 3, "stage": 2, "tuning": 1
    }  # fmt: skip
    for chart in charts:
        plotly.graph_objects.Figure({"data": chart.data, "layout": chart.layout})  # raises where it knows no such thing
        assert chart.title and len(chart.caption) > 80 and len(chart.alternative) > 20 and chart.height > 100


def traces(chart: Chart | None, **wanted: Any) -> list[dict[str, Any]]:
    assert chart
    return [trace for trace in chart.data if all(trace.get(key) == value for key, value in wanted.items())]


def test_fronts_are_of_one_device_and_choice_of_texts() -> None:
    other_text = {"code": validation().texts["prose"]}
    validations = (
        validation(bundle="a", bundle_id="a", bundle_bytes=1_000_000, bits_per_byte=2.5),
        validation(bundle="b", bundle_id="b", bundle_bytes=3_000_000, bits_per_byte=2.0),
        validation(bundle="c", bundle_id="c", bundle_bytes=2_000_000, bits_per_byte=2.75),
        validation(bundle="d", bundle_id="d", bundle_bytes=500_000, bits_per_byte=1.0, texts=other_text),
        validation(bundle="e", bundle_id="e", bundle_bytes=400_000, bits_per_byte=1.0, device="second"),
    )
    rates = {"a": 30.0, "b": 10.0, "c": 20.0, "d": 90.0}
    benchmarks = tuple(benchmark(bundle=name, bundle_id=name, decode_bytes_per_s=rate) for name, rate in rates.items())
    rows = join(Results(benchmarks, validations, ()))
    lines = [list(zip(trace["x"], trace["y"], strict=True)) for trace in traces(size_chart(rows), mode="lines")]
    assert lines == [[(1.0, 2.5), (3.0, 2.0)], [(0.5, 1.0)], [(0.4, 1.0)]]
    lines = [list(zip(trace["x"], trace["y"], strict=True)) for trace in traces(speed_chart(rows), mode="lines")]
    assert lines == [[(10.0, 2.0), (30.0, 2.5)], [(90.0, 1.0)]]
    chart = speed_chart(rows)
    assert chart and chart.alternative == "Accuracy against speed: 4 marks; on the Pareto front: b, a, d."


def test_an_accuracy_measured_on_a_device_without_benchmarks_is_drawn() -> None:
    rows = join(Results((benchmark(device="second"),), (validation(),), ()))
    names = [trace["name"] for trace in traces(size_chart(rows)) if "name" in trace]
    assert len(rows) == 1 and names == ["int8 on first"]


def test_devices_have_panels_of_their_own() -> None:
    rows = join(Results((benchmark(), benchmark(device="second")), (), ()))
    for chart in (latency_chart(rows), stage_time_chart(rows)):
        assert chart and [note["text"] for note in chart.layout["annotations"]] == ["<b>first</b>", "<b>second</b>"]
        assert {trace["yaxis"] for trace in chart.data} == {"y", "y2"}
        assert len([trace for trace in chart.data if trace["showlegend"]]) == len(chart.data) / 2


def test_stages_and_the_rest_add_up_to_a_byte() -> None:
    chart = stage_time_chart(join(Results((benchmark(),), (), ())))
    parts = {trace["name"]: trace["x"][0] for trace in traces(chart)}
    assert list(parts) == ["patcher", "encoder", "global", "decoder", "between the stages"]
    assert sum(parts.values()) == pytest.approx(1e3 / 500) and parts["between the stages"] == pytest.approx(0.4)


def test_the_passage_chart_shows_every_byte() -> None:
    data = bytes(range(200))
    starts = tuple(index % 7 == 0 for index in range(200))
    chart = passage_chart(1, "x", Passage("t", data.decode("latin-1"), tuple(map(float, range(200))), starts, 50.0))
    drawn: dict[int, tuple[float, str]] = {}
    for trace in traces(chart, type="bar"):
        line = int(trace["xaxis"][1:] or 1) - 1
        for column, entropy in zip(trace["x"], trace["y"], strict=True):
            drawn[80 * line + column] = (entropy, trace["name"])
    assert drawn == {i: (float(i), "starts a patch" if starts[i] else "continues a patch") for i in range(200)}
    assert [trace["y"] for trace in traces(chart, legendgroup="threshold")] == [[50.0, 50.0]] * 3
    edges = [x for trace in traces(chart, name="start of a patch") for x in trace["x"] if x is not None]
    assert len(edges) == 2 * sum(starts)
    assert chart
    letters = [letter for axis in ("xaxis", "xaxis2", "xaxis3") for letter in chart.layout[axis]["ticktext"]]
    assert [letters[index] for index in (0, 10, 32, 38, 60, 65, 195)] == [
        "0<br>0", "↵", "␣", "&amp;", "&lt;", "A", "c<br>3"
    ]  # fmt: skip


def test_a_tuning_is_drawn_in_the_order_of_its_thresholds() -> None:
    curve, ring, allowed = traces(tuning_chart((tuning(),)))
    assert curve["text"] == ["0.5", "1", "2"] and curve["x"] == [425.0, 450.0, 500.0]
    assert (ring["x"], ring["y"]) == ([500.0], [1.92]) and allowed["y"] == pytest.approx([1.93] * 2)
    assert tuning_chart((tuning(points=()),)) is None


def test_panels_lie_below_each_other() -> None:
    layout = stacked_panels([10.0, 30.0], gap=10.0)
    assert layout["yaxis"]["domain"] == pytest.approx([0.8, 1.0])
    assert layout["yaxis2"]["domain"] == pytest.approx([0.0, 0.6])


# The page.


class Elements(html.parser.HTMLParser):
    """All elements of a page with the ids of what they are in, and the text outside of scripts and styles."""

    EMPTY = ("meta", "br", "img", "link", "input", "hr", "wbr")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[str]]] = []
        self.text = ""
        self.text_in: dict[str, str] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.found.append((tag, values, [id_ for _, id_ in self._open if id_]))
        if tag not in self.EMPTY:
            self._open.append((tag, values.get("id", "")))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1][0] not in ("script", "style"):
            self.text += data
            for id_ in {id_ for _, id_ in self._open if id_}:
                self.text_in[id_] = self.text_in.get(id_, "") + data

    def count(self, tag: str, within: str = "") -> int:
        return sum(tag == found and (not within or within in ids) for found, _, ids in self.found)


def sections(source: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", source)


def test_a_section_is_there_where_it_has_data() -> None:
    everything = [
        "Summary",
        "Accuracy, size and speed",
        "Latency",
        "Entropy and patches",
        "Stages",
        "Patching threshold",
    ]
    assert sections(page.report_page(sample(), "")) == everything
    assert sections(page.report_page(Results((benchmark(),), (), ()), "")) == ["Summary", "Latency", "Stages"]
    assert sections(page.report_page(Results((), (validation(),), ()), "")) == [*everything[:2], everything[3]]
    assert sections(page.report_page(Results((), (), (tuning(),)), "")) == everything[-1:]


def test_what_the_summary_says() -> None:
    text = Elements(page.report_page(sample(), "")).text
    for said in (
        "1.9600",
        "+0.01000",
        "99.00%",
        "450 to 525",
        "250.0",
        "50.00%",
        "6.6\N{NO-BREAK SPACE}MB",
        HOSTILE,
        "From 4 validations, 5 benchmarks, 2 tunings, on 3 devices.",
        "for the benchmark of: broken, no drafts on first.",
        "for the validation of: alone on first; far on third.",
    ):
        assert said in text, said
    assert "nan" not in text and "inf" not in text.replace("information", "")
    assert f"On second, the accuracy of these was measured on first: int8, no drafts; {HOSTILE}, no drafts." in text
    texts = {"code": validation().texts["prose"]}
    mixed = page.report_page(Results((), (validation(), validation(bundle_id="b", texts=texts)), ()), "")
    assert "not all on the same texts" in mixed and "not all on the same texts" not in text


@settings(max_examples=50)
@example(HOSTILE)
@given(st.one_of(st.text(), st.text("<>/&;\"'=!- bpscript")))
def test_text_from_files_stays_text(name: str) -> None:
    def elements(name: str) -> Elements:
        named = validation(bundle=name, recipe=name, device=name, passage=dataclasses.replace(PASSAGE, text=name))
        timed = benchmark(bundle=name, recipe=name, device=name, stage_bytes={name: 1})
        return Elements(page.report_page(Results((timed,), (named,), (tuning(bundle=name, device=name),)), ""))

    plain, odd = elements("a name"), elements(name or "-")
    assert [(tag, sorted(values), ids) for tag, values, ids in odd.found] == [
        (tag, sorted(values), ids) for tag, values, ids in plain.found
    ]


def test_json_in_a_script_cannot_end_it() -> None:
    json_ = page.script_json({"</script><!--": math.nan})
    assert "<" not in json_ and json.loads(json_) == {"</script><!--": None}


def floats_replaced(result: Any, draw: Any) -> Any:
    """The same result with every float in it drawn anew."""
    if isinstance(result, float):
        return draw()
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        values = {
            field.name: floats_replaced(getattr(result, field.name), draw) for field in dataclasses.fields(result)
        }
        return dataclasses.replace(result, **values)
    if isinstance(result, dict):
        return {key: floats_replaced(value, draw) for key, value in result.items()}
    return tuple(floats_replaced(value, draw) for value in result) if isinstance(result, tuple) else result


@settings(max_examples=40)
@given(st.lists(st.floats(), min_size=1), st.integers(-(10**18), 10**18))
def test_no_number_breaks_the_page(values: list[float], size: int) -> None:
    endless = itertools.cycle([*values, 1.0])
    results = Results(
        tuple(floats_replaced(benchmark(device=device, bundle_bytes=size), lambda: next(endless)) for device in "ab"),
        tuple(floats_replaced(validation(device=device, bundle_bytes=size), lambda: next(endless)) for device in "ab"),
        (floats_replaced(tuning(), lambda: next(endless)),),
    )
    source = page.report_page(results, "")
    (charts,) = re.findall(r'id="charts">(.*?)</script>', source)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(charts, parse_constant=refuse)


def test_ticks_of_a_logarithmic_axis() -> None:
    few = logarithmic(0.3, 40.0)
    assert few["ticktext"] == ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50", "100", "200", "500"]
    assert few["tickvals"] == pytest.approx([float(text) for text in few["ticktext"]])
    assert few["range"] == pytest.approx([math.log10(0.3), math.log10(40)])
    assert logarithmic(1.0, 1e7)["ticktext"][-2:] == ["1,000,000", "10,000,000"]


def test_the_page_names_nothing_elsewhere() -> None:
    elements = Elements(page.report_page(sample(), "/* </ no end"))
    links = [values[name] for _, values, _ in elements.found for name in ("src", "href") if name in values]
    assert links and all(link.startswith("#section-") for link in links)
    (policy,) = [values["content"] for _, values, _ in elements.found if "http-equiv" in values]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def browse(source: str, directory: Path) -> tuple[Elements, list[str]]:
    """What chromium makes of the page once its scripts have run, and what it says on its console."""
    path = directory / "page.html"
    path.write_text(source, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
               "--enable-logging=stderr", "--host-resolver-rules=MAP * 127.0.0.1:9", "--dump-dom"]  # fmt: skip
    result = None
    for attempt in ("first", "second"):  # it was seen to hang, rarely, before it gave anything
        command = [CHROMIUM or "", *options, f"--user-data-dir={directory / attempt}", path.as_uri()]
        with contextlib.suppress(subprocess.TimeoutExpired):
            result = result or subprocess.run(command, capture_output=True, timeout=45)
    assert result and result.returncode == 0, result
    said = [line for line in result.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return Elements(result.stdout.decode()), said


needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no chromium (Debian: apt install chromium)")


@needs_chromium
def test_a_browser_draws_every_chart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results, out = sample(), tmp_path / "report.html"
    path = written(tmp_path / "results.json", *results.validations, *results.benchmarks, *results.tunings)
    out.write_text("an older report")
    assert run_command(capfd, "report", path, "-o", out).stdout == f"Written to {out}.\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.html", "results.json"]
    elements, said = browse(out.read_text(encoding="utf-8"), tmp_path)
    assert said == []  # no error, and nothing that the page's policy kept it from fetching
    charts = [values["id"] for tag, values, _ in elements.found if "chart" in values.get("class", "").split()]
    assert len(charts) == 9 and set(charts) >= {"accuracy-size", "accuracy-speed", "latency", "stage-size", "tuning"}
    assert all(elements.count("svg", chart) >= 1 for chart in charts)
    drawn: dict[str, Counter[str]] = {chart: Counter() for chart in charts}
    for _, values, ids in elements.found:
        for chart in drawn.keys() & set(ids):
            drawn[chart].update(values.get("class", "").split())
    assert drawn["stage-size"]["point"] == 3 * 4 and drawn["passage-1"]["point"] == 16
    assert drawn["latency"]["js-line"] == 5 + 4  # four names in the legend
    assert drawn["tuning"]["point"] == 2 * 3 + 1
    assert drawn["accuracy-size"]["point"] == 3 and drawn["accuracy-speed"]["point"] == 4
    assert elements.text.strip().startswith("edgeblt report")  # the title
    for chart in ("accuracy-size", "accuracy-speed", "latency", "stage-time", "stage-size", "tuning"):
        assert shortened(HOSTILE)[:-1] in elements.text_in[chart], chart


@needs_chromium
def test_the_browser_would_tell_of_an_error(tmp_path: Path) -> None:
    _, said = browse(page.report_page(sample(), "this is no library"), tmp_path)
    assert any("Unexpected identifier" in line for line in said) and any(
        "Plotly is not defined" in line for line in said
    )
    injected = page.report_page(sample(), "").replace("</main>", "<script>document.title = 'injected'</script></main>")
    elements, said = browse(injected, tmp_path)
    assert any("Content Security Policy" in line for line in said) and "injected" not in elements.text


def test_real_results(exported: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny: Exported = exported(10)
    validated = validate([tiny.model], ComputedRows(tiny.reference, [Text("text", b"It was the best of times, " * 4)]))
    timed = bench(tiny.bundle, [Setting(threads=1, prompt_bytes=9)], new_bytes=5, repeats=1, with_bandwidth=False)
    out = tmp_path / "report.html"
    files = [written(tmp_path / "validation.json", *validated), written(tmp_path / "benchmark.json", *timed)]
    assert run_command(capfd, "report", *files, "--out", out).code == 0
    source = out.read_text(encoding="utf-8")
    assert sections(source) == ["Summary", "Accuracy, size and speed", "Latency", "Entropy and patches", "Stages"]
    assert "No validation" not in source and "No benchmark" not in source
    assert Elements(source).count("span", "section-entropy-and-patches") == sum(validated[0].passage.patch_starts)


def test_rows_without_results_are_not_made() -> None:
    assert join(Results((), (), (tuning(),))) == ()
    with pytest.raises(EdgebltError, match="is not a regular file"):
        read_results([Path("/dev/null")])
    assert Row("bundle", "", benchmark(), None).label == "bundle"
