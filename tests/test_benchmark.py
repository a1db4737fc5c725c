"""Benchmarks: what is counted is what happened, in every setting."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from conftest import Exported
from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.decoding.speculation import DRAFTS, AcceptanceCounts, generate_ids
from edgeblt.errors import EdgebltError
from edgeblt.ids import encode
from edgeblt.inspection import bundle_plan
from edgeblt.measure.benchmark import Benchmark, Setting, bench
from edgeblt.measure.benchmark_runs import FollowedText, Run, arrivals, timed_run
from edgeblt.measure.reference import Text
from edgeblt.measure.weight_traffic import weight_bytes_read
from edgeblt.model import Model
from edgeblt.report.benchmark_table import csv_text, decoded, markdown, table
from edgeblt.runtime.machine.energy import Energy
from test_commands import run_command
from tiny_models import BLT_DRAFTS


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


def test_keys_and_values_read_are_counted(tiny: Exported) -> None:
    """Those within the windows of a run's positions; the patcher runs ahead of the others."""
    session, ids = tiny.model.session(), [1, *range(70, 170)]
    session.feed(ids[:90])
    for count in (1, 11):
        before, position = session.work, session.position
        session.feed(ids[position : position + count])
        for name, contract in tiny.model.bundle.manifest.contracts.items():
            done, cache = session.work[name].since(before[name]), contract.cache
            assert cache is not None
            if name == "global" or done.runs != 1:
                continue
            assert cache.window is not None and cache.window < 90
            element, elements = 4, 2 * cache.layer_count * cache.kv_head_count * cache.head_dim
            assert done.cache_bytes == (cache.window - 1 + done.positions) * elements * element


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

    monkeypatch.setattr("edgeblt.measure.benchmark.measure_bandwidth", measured)
    rows = bench(tiny.bundle, [Setting(threads=1), Setting(threads=1, draft="none"), Setting(threads=2)], 4, 1)
    assert asked == [1, 2]
    for row in rows:
        read = row.weight_bytes_per_byte + row.cache_bytes_per_byte
        assert row.bandwidth_share == pytest.approx(row.decode_bytes_per_s * read / 1e9)


def test_the_buffer_of_the_bandwidth_is_not_in_the_peak(tiny: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class Found:
        bytes_per_s = 1e9

    def happens(what: str, result: object) -> Callable[..., object]:
        def happen(*arguments: object) -> object:
            happened.append(what)
            return result(*arguments) if callable(result) else Found

        return happen

    monkeypatch.setattr("edgeblt.measure.benchmark.measure_bandwidth", happens("bandwidth", None))
    monkeypatch.setattr("edgeblt.measure.benchmark.peak_resident_bytes", happens("peak", lambda: 1000 * len(happened)))
    monkeypatch.setattr("edgeblt.measure.benchmark.timed_run", happens("run", timed_run))
    rows = bench(tiny.bundle, [Setting(threads=1, prompt_bytes=4), Setting(threads=2, prompt_bytes=4)], 2, 1)
    assert happened == [*["run"] * 4, "peak", "bandwidth", "bandwidth"]
    assert [row.peak_rss_bytes for row in rows] == [5000, 5000]


# What is decoded, and when it arrives.


def test_bytes_of_a_draft_arrive_together_and_share_their_time() -> None:
    gaps, sizes = arrivals([10, 12, 12.001, 12.002, 15, 16, 16.5], [0, 1, 1, 1, 2, 3, 3])
    np.testing.assert_allclose(gaps, [2, 3, 1])
    assert sizes.tolist() == [3, 1, 2]
    run = Run(1.0, gaps, sizes, 0.0, None, {}, AcceptanceCounts(), 1.0)
    np.testing.assert_allclose(run.byte_seconds, [2 / 3, 2 / 3, 2 / 3, 3, 0.5, 0.5])
    assert run.seconds == run.byte_seconds.sum() == 6
    gaps, sizes = arrivals([5, 6, 8], [0, 1, 2])  # without drafts every byte arrives alone
    assert gaps.tolist() == [1, 2] and sizes.tolist() == [1, 1]


def test_arrivals_are_what_the_passes_gave(tiny: Exported) -> None:
    """Repetition, so that drafts are right, and a clock that counts its readings."""
    text = b"again and " * 40
    run = timed_run(tiny.model, "ngram", text[:100], FollowedText(encode(text[100:141]).tolist()), 40)
    assert run.sizes.sum() == 40 and len(run.sizes) == len(run.gaps) == run.counts.passes
    assert run.counts.accepted == 40 - run.counts.passes > 0 and run.sizes.max() > 1
    assert (run.gaps > 0).all() and len(run.byte_seconds) == 40


@pytest.mark.parametrize("draft", BLT_DRAFTS)
def test_a_text_is_decoded_as_it_is(draft: str, tiny: Exported) -> None:
    ids = [1, *np.random.default_rng(3).integers(4, 260, 60).tolist()]
    session, counts = tiny.model.session(), AcceptanceCounts()
    logits = session.feed(ids[:30])[-1]
    found = list(generate_ids(session, logits, FollowedText(ids[30:]), tiny.model.draft_statistics(draft), 31, counts))
    assert found == ids[30:] and session.ids.tolist() == ids[:-1]
    assert counts.accepted < counts.drafted or counts.drafted == 0  # drafts do not see what they are to guess


def test_what_is_foreseen_is_the_models_own_guess() -> None:
    sampler, logits = FollowedText([70, 71]), np.zeros(260, np.float32)
    logits[100] = 1
    assert [sampler.foresee(logits, ahead) for ahead in range(3)] == [100] * 3
    assert [sampler.choose(logits), sampler.choose(logits)] == [70, 71]
    logits[5] = np.nan
    with pytest.raises(EdgebltError, match="not numbers"):
        FollowedText([70]).choose(logits)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes, Sampler]]:
    """What each run was made with: the way to draft, the prompt and the sampler."""
    made: list[tuple[str, bytes, Sampler]] = []

    def run(model: Model, draft: str, prompt: bytes, sampler: Sampler, new_bytes: int) -> Run:
        made.append((draft, prompt, sampler))
        return timed_run(model, draft, prompt, sampler, new_bytes)

    monkeypatch.setattr("edgeblt.measure.benchmark.timed_run", run)
    return made


def test_runs_on_a_text_begin_at_places_of_their_own(tiny: Exported, ran: list[tuple[str, bytes, Sampler]]) -> None:
    text = Text("t", bytes(range(100, 160)))
    (row,) = bench(tiny.bundle, [Setting(prompt_bytes=10, decode="text")], 9, 4, text, with_bandwidth=False)
    assert [prompt for _, prompt, _ in ran] == [text.data[at : at + 10] for at in (0, 0, 10, 20, 30)]
    assert all(isinstance(sampler, FollowedText) for _, _, sampler in ran)
    assert (row.decode, row.temperature, row.seed, decoded(row)) == ("text", 0.0, None, "the text")


def test_sampled_runs_have_seeds_of_their_own(tiny: Exported, ran: list[tuple[str, bytes, Sampler]]) -> None:
    settings = [Setting(prompt_bytes=5, temperature=temperature) for temperature in (0.0, 0.7)]
    greedy, sampled = bench(tiny.bundle, settings, 3, 2, Text("t", b"abc"), with_bandwidth=False, seed=7)
    assert [sampler.sampling for _, _, sampler in ran] == [
        Sampling(temperature, seed=seed)
        for temperature, seed in ((0.0, 7), (0.7, 7), (0.0, 7), (0.7, 7), (0.0, 8), (0.7, 8))
    ]
    assert {prompt for _, prompt, _ in ran} == {b"abcab"}  # a short text is repeated
    assert (greedy.seed, greedy.temperature, decoded(greedy)) == (None, 0.0, "greedy")
    assert (sampled.seed, sampled.temperature, decoded(sampled)) == (7, 0.7, "temperature 0.7")
    assert greedy.arrival_gap_ms and sampled.arrival_gap_ms


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
        ([Setting(draft="oracle")], {}, "draft is 'oracle'; use one of none, patcher, decoder, heads, ngram, auto"),
        ([Setting(decode="dreams")], {}, "decode is 'dreams'; use one of generated, text"),
        (
            [Setting(decode="text", temperature=0.5)],
            {},
            "temperature is 0.5, but a text is decoded as it is; leave it out, or decode what is generated",
        ),
        (
            [Setting(decode="text", prompt_bytes=10)],
            {"text": Text("short.txt", b"x" * 14)},
            "short.txt has 14 bytes, but 15 would be read and decoded; give a longer text, or ask for fewer bytes",
        ),
        ([Setting(temperature=-1.0)], {}, "temperature is -1.0; it must be 0 (greedy) or a positive number"),
        ([Setting()], {"seed": -1}, "seed is -1; it must not be negative"),
        ([Setting(prompt_bytes=10**23)], {}, f"prompt_bytes is {10**23}; it must be at most 10,000,000"),
        (
            [Setting(prompt_bytes=10**5000)],
            {},
            "prompt_bytes is a number of thousands of digits; it must be at most 10,000,000",
        ),
        ([Setting(prompt_bytes=0)], {}, "prompt_bytes is 0; it must be at least 1"),
        ([Setting()], {"text": Text("empty.txt", b"")}, "empty.txt is empty; give a text to take the prompt from"),
        ([Setting()], {"price_per_hour": -1.0}, "the price is -1.0 an hour; it must be from 0 to 1,000,000,000"),
        (
            [Setting()],
            {"price_per_hour": float("nan")},
            "the price is nan an hour; it must be from 0 to 1,000,000,000",
        ),
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
    mixed = [*arguments, "--prompt-bytes", 9, "--decode", "generated,text", "--temperature", "0,0.7", "--csv", "-"]
    rows = list(csv.DictReader(io.StringIO(run_command(capfd, *mixed).stdout)))
    assert [(row["decode"], row["temperature"], row["seed"]) for row in rows] == [
        ("generated", "0.0", ""), ("generated", "0.7", "0"), ("text", "0.0", ""),
    ]  # fmt: skip
    (tmp_path / "mine.txt").write_bytes(b"a text of mine")
    result = run_command(capfd, *arguments, "--text", tmp_path / "mine.txt", "--json", "-")
    assert json.loads(result.stdout)["text"] == "mine.txt" and json.loads(result.stdout)["threads"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threads", "1,two"], "--threads is '1,two'; give comma-separated numbers"),
        (["--prompt-bytes", ""], "--prompt-bytes is ''; give comma-separated numbers"),
        (["--threshold", "1;2"], "--threshold is '1;2'; give comma-separated numbers"),
        (
            ["--decode", "text", "--temperature", "1"],
            "temperature is 1.0, but a text is decoded as it is; leave it out, or decode what is generated",
        ),
        (["--temperature", "hot"], "--temperature is 'hot'; give comma-separated numbers"),
        (["--repeats", 10**23], f"repeats is {10**23}; it must be at most 10,000"),
        (["--draft", "none,psychic"], f"draft is 'psychic'; use one of {', '.join(DRAFTS)}"),
        (["--json", "-", "--csv", "-"], "--json and --csv would both write to stdout; give one of them a file"),
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
