"""Benchmarks: what is counted is what happened, in every setting."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from conftest import Exported
from edgeblt.benchmark import Benchmark, Setting, bench
from edgeblt.benchmark_rows import csv_text, markdown, table
from edgeblt.energy import Energy
from edgeblt.errors import EdgebltError
from edgeblt.inspection import bundle_plan
from edgeblt.reference import Text
from edgeblt.speculation import DRAFTS
from edgeblt.work import weight_bytes_read
from test_commands import run_command


@pytest.fixture(scope="module")
def tiny(exported: Callable[[int], Exported]) -> Exported:
    return exported(10)


@pytest.fixture(scope="module")
def results(tiny: Exported) -> tuple[Benchmark, ...]:
    settings = [Setting(threads=1, draft=draft, prompt_bytes=size) for draft in ("none", "ngram") for size in (7, 20)]
    return bench(tiny.bundle, settings, 12, 2, Text("a|b", b"some text, some text"), 3.6, with_bandwidth=False)


def test_every_setting_has_its_row(results: tuple[Benchmark, ...]) -> None:
    assert [(row.draft, row.prompt_bytes) for row in results] == [
        ("none", 7),
        ("none", 20),
        ("ngram", 7),
        ("ngram", 20),
    ]
    for row in results:
        assert (row.threads, row.new_bytes, row.repeats, row.text) == (1, 12, 2, "a|b")
        low, high = row.spread["decode_bytes_per_s"].low, row.spread["decode_bytes_per_s"].high
        assert 0 < low <= row.decode_bytes_per_s <= high
        assert len(row.inter_byte_latency_quantiles_ms) == 101
        assert row.inter_byte_latency_ms.p95 == row.inter_byte_latency_quantiles_ms[95]
        assert row.cost_per_million_bytes == pytest.approx(1000 / row.decode_bytes_per_s)  # 3.6 an hour
        assert row.bandwidth_bytes_per_s is row.bandwidth_share is None
        assert 0 < sum(row.stage_s_per_byte.values()) < 1 / low
        assert (row.bytes_per_pass == 1 and row.draft_acceptance is None) or row.draft == "ngram"


def test_weights_read_are_counted(tiny: Exported, results: tuple[Benchmark, ...]) -> None:
    """Without drafts every byte runs three stages, and every patch that ends the fourth: as `edgeblt inspect` says."""
    stages = bundle_plan(tiny.model.bundle, 1.0).stages
    session = tiny.model.session()
    session.feed([1, *range(70, 77)])
    before, patches = session.work, session.patch_count
    for id in range(80, 100):
        session.feed([id])
    done = {name: work.since(before[name]) for name, work in session.work.items()}
    ended = session.patch_count - patches
    assert done["global"].runs == done["encoder"].patch_runs == done["decoder"].patch_runs == ended > 0
    expected = sum(
        20 * (stage.rows_per_byte * (name == "encoder" or name == "patcher") + stage.read_per_byte)
        + ended * stage.read_per_patch
        for name, stage in stages.items()
    )
    assert weight_bytes_read(stages, done) == expected
    per_byte = [stage.weight_bytes_per_byte(20 / ended) for stage in stages.values()]
    assert weight_bytes_read(stages, done) == pytest.approx(20 * sum(per_byte))
    assert results[0].weight_bytes_per_byte > 0


def test_one_pass_over_several_ids_reads_the_weights_once(tiny: Exported) -> None:
    stages = bundle_plan(tiny.model.bundle, 1.0).stages
    alone, together = tiny.model.session(), tiny.model.session()
    ids = [1, *range(70, 82)]
    for id in ids:
        alone.feed([id])
    together.feed(ids)
    assert together.work["decoder"].runs == 1 and together.work["decoder"].positions == len(ids)
    assert weight_bytes_read(stages, together.work) < weight_bytes_read(stages, alone.work) / 5


def test_the_bandwidth_is_measured_where_it_is_wanted(tiny: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        bytes_per_s = 1e9

    asked: list[int | None] = []

    def measured(threads: int | None) -> type[Found]:
        asked.append(threads)
        return Found

    monkeypatch.setattr("edgeblt.benchmark.measure_bandwidth", measured)
    rows = bench(tiny.bundle, [Setting(threads=1), Setting(threads=1, draft="none"), Setting(threads=2)], 4, 1)
    assert asked == [1, 2]
    for row in rows:
        assert row.bandwidth_share == pytest.approx(row.decode_bytes_per_s * row.weight_bytes_per_byte / 1e9)


def test_csv_has_every_figure(results: tuple[Benchmark, ...]) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(results))))
    assert len(rows) == len(results)
    for row, result in zip(rows, results, strict=True):
        assert float(row["decode_bytes_per_s"]) == result.decode_bytes_per_s
        assert float(row["spread.decode_bytes_per_s.low"]) == result.spread["decode_bytes_per_s"].low
        assert row["bandwidth_share"] == "" and row["text"] == "a|b"
        outer = {name.partition(".")[0] for name in row}
        assert outer == {field.name for field in fields(Benchmark)} - {"inter_byte_latency_quantiles_ms"}


def test_markdown_is_a_table(results: tuple[Benchmark, ...]) -> None:
    lines = markdown(results).splitlines()
    assert lines[0].startswith("| bundle | recipe | size, MB |") and set(lines[1]) <= set("|-: ")
    assert {line.count(" | ") for line in lines[: 2 + len(results)]} == {len(table(results)[0]) - 1}
    assert lines[-1].endswith("medians (extremes) of 2, 12 bytes after a prompt of a|b")
    headings, _ = table(results)
    assert "threshold" not in headings and "of the limit" not in headings and "per million bytes" in headings


@pytest.mark.parametrize(
    ("settings", "change", "said"),
    [
        ([Setting(draft="oracle")], {}, "draft is 'oracle'; use one of none, patcher, decoder, ngram, auto"),
        ([Setting(prompt_bytes=0)], {}, "prompt_bytes is 0; it must be at least 1"),
        ([Setting()], {"text": Text("empty.txt", b"")}, "empty.txt is empty; give a text to take the prompt from"),
        ([Setting()], {"price_per_hour": -1.0}, "the price is -1.0 an hour; give 0 or more"),
        ([Setting()], {"price_per_hour": float("nan")}, "the price is nan an hour; give 0 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    settings: list[Setting], change: dict[str, object], said: str, tiny: Exported
) -> None:
    with pytest.raises(EdgebltError) as error:
        bench(tiny.bundle, settings, 4, 1, **change)  # type: ignore[arg-type]
    assert str(error.value) == said


# The command.


def test_the_command_times_all_combinations(tiny: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", tiny.bundle, "--new-bytes", 3, "--repeats", 1, "--no-bandwidth"]
    several = [*arguments, "--draft", "none, auto", "--threads", "1,2", "--prompt-bytes", "5,9"]
    files = ["--json", tmp_path / "result.json", "--csv", tmp_path / "result.csv"]
    result = run_command(capfd, *several, *files)
    assert result.code == 0 and "prefill" in result.stdout and "weights/byte" in result.stdout
    rows = json.loads((tmp_path / "result.json").read_text())
    assert [(row["threads"], row["draft"], row["prompt_bytes"]) for row in rows] == [
        (threads, draft, size) for threads in (1, 2) for draft in ("none", "auto") for size in (5, 9)
    ]
    assert len((tmp_path / "result.csv").read_text().splitlines()) == 9
    assert run_command(capfd, *several, "--csv", "-").stdout.count("\n") == 9
    assert run_command(capfd, *several, "--markdown").stdout.count("\n| ") == 9
    (tmp_path / "mine.txt").write_bytes(b"a text of mine")
    result = run_command(capfd, *arguments, "--text", tmp_path / "mine.txt", "--json", "-")
    assert json.loads(result.stdout)["text"] == "mine.txt" and json.loads(result.stdout)["threads"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threads", "1,two"], "--threads is '1,two'; give numbers, with commas between"),
        (["--prompt-bytes", ""], "--prompt-bytes is ''; give numbers, with commas between"),
        (["--threshold", "1;2"], "--threshold is '1;2'; give numbers, with commas between"),
        (["--draft", "none,psychic"], f"draft is 'psychic'; use one of {', '.join(DRAFTS)}"),
        (["--json", "-", "--csv", "-"], "--json and --csv both want stdout; give one of them a file"),
        (["--text", "nowhere.txt"], "nowhere.txt cannot be read (No such file or directory); give a text file"),
        (["--provider", "tpu"], "provider 'tpu' is unknown; this version has cpu, cuda"),
    ],
)
def test_bad_options_are_one_sentence(
    options: list[str], said: str, tiny: Exported, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run_command(capfd, "bench", tiny.bundle, *options)
    assert (result.code, result.stdout, result.stderr) == (2, "", f"edgeblt: {said}\n")


# Energy.


def zone(powercap: Path, name: str, now: int, largest: int = 1000) -> Path:
    folder = powercap / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{now}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return folder


def test_energy_adds_up_packages_and_wraps(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 900)
    zone(tmp_path, "intel-rapl:1", 100)
    zone(tmp_path, "intel-rapl:0:0", 500)  # a part of the first
    energy = Energy(tmp_path)
    assert energy.joules() == 0
    zone(tmp_path, "intel-rapl:0", 49)  # 99 to the largest, one to 0, 49 more
    zone(tmp_path, "intel-rapl:1", 300)
    zone(tmp_path, "intel-rapl:0:0", 900)
    assert energy.joules() == pytest.approx(350e-6)
    assert energy.joules() == pytest.approx(350e-6)


def test_energy_is_not_known_everywhere(tmp_path: Path) -> None:
    assert Energy(tmp_path).joules() is None
    (zone(tmp_path, "intel-rapl:0", 5) / "energy_uj").unlink()
    assert Energy(tmp_path).joules() is None
