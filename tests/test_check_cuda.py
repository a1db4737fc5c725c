"""What `tools/check_cuda.sh` makes of figures, and what it says where there is no GPU. The figures are made up."""

import dataclasses
import functools
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cuda_stand_in
from edgeblt.inspection import ProviderNodes
from edgeblt.measure.benchmark import Benchmark
from edgeblt.measure.distribution import Percentiles
from edgeblt.measure.validation import Passage, Report, Validation
from edgeblt.report.results import read_results
from edgeblt.runtime import cuda

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import check_cuda
import cuda_stages
from cuda_results import (
    DECODE,
    PREFILL,
    Accuracy,
    Environment,
    Failure,
    Limit,
    Placement,
    Record,
    Results,
    SuiteRun,
    Timed,
    document,
    limits,
    markdown,
    read_records,
    write_record,
)

SCRIPT = Path(check_cuda.__file__).with_suffix(".sh")
ENVIRONMENT = Environment(
    gpu="a GPU", compute_capability="9.0", gpu_bytes=1 << 37, driver=None, driver_cuda="13.0", processor="a processor",
    cores=16, python="3.12.3", onnxruntime="1.31.1", onnxruntime_cuda="13.0", cudnn=True, torch="2.13.0",
    torch_gpu="a GPU", transformers="5.23.0", native_kernels="version 0.1.0, avx2", native_cuda_kernels="used",
)  # fmt: skip


BENCHMARK = Benchmark(
    bundle="int8", bundle_id="a" * 12, recipe="int8", provider="cuda", device="a GPU", threads=None, draft="none",
    threshold=None, text="prose", prompt_bytes=64, new_bytes=16, repeats=3, load_time_s=0.1, time_to_first_byte_s=0.25,
    prefill_bytes_per_s=256.0, decode_bytes_per_s=500.0, spread={}, inter_byte_latency_ms=Percentiles(1.0, 2.0, 3.0),
    inter_byte_latency_quantiles_ms=(1.0,) * 101, bytes_per_patch=4.5, bytes_per_pass=1.0, draft_acceptance=None,
    weight_bytes_per_byte=2.5e6, cache_bytes_per_byte=5e5,
    bandwidth_bytes_per_s=None, bandwidth_share=None, cpu_s_per_byte=0.002,
    energy_j_per_byte=None, cost_per_million_bytes=None, stage_s_per_byte={}, stage_weight_bytes_per_byte={},
    stage_cache_bytes_per_byte={},
    stage_bytes={}, anonymous_bytes=None, mapped_bytes=None, peak_rss_bytes=1 << 20, prepared=False,
    unprepared_because=None, bundle_bytes=6_600_000, gpu_memory_bytes=1 << 25,
)  # fmt: skip


def report(bits: float, provider: str, boundary_agreement: float = 0.99) -> Report:
    figures = Validation(bits, 1.95, boundary_agreement, 0.001, 0.98, 0.75, 0.5, 1000, provider)
    passage = Passage("prose", "ab", (0.5, 1.5), (True, False), 1.25)
    return Report(
        **vars(figures), bundle="int8", bundle_id="a" * 12, recipe="int8", bundle_bytes=6_600_000, device="a GPU",
        threshold=None, texts={"prose": figures}, passage=passage,
    )  # fmt: skip


def placed(recipe: str, **on_cpu: int) -> Placement:
    stages = [ProviderNodes("decoder", "CUDAExecutionProvider", 90, {"MatMul": 90})]
    if on_cpu:
        stages.append(ProviderNodes("decoder", "CPUExecutionProvider", sum(on_cpu.values()), on_cpu))
    return Placement(recipe, tuple(stages))


# Both hold all limits by a hair. Round by round they decode 25, 20 and 30, and 40, 10 and 20 times as fast.
GOOD: tuple[Record, ...] = (
    ENVIRONMENT,
    Accuracy("fp16", "cpu", report(1.95, "cpu", boundary_agreement=1.0)),
    Accuracy("fp16", "cuda", report(1.9482, "cuda", boundary_agreement=0.995)),
    Accuracy("int8", "cpu", report(1.97, "cpu")),
    Accuracy("int8", "cuda", report(1.9, "cpu")),
    Accuracy("int8", "cuda", report(1.9719, "cuda", boundary_agreement=0.9)),
    placed("fp16", Concat=3, Cast=1),
    placed("int8"),
    Timed(DECODE, "transformers float32 on cuda", 10, (2.0, 2.0, 2.0)),
    Timed(DECODE, "transformers float16 on cuda", 10, (1.0,)),  # of the first round alone
    Timed(DECODE, "transformers float16 on cuda", 10, (1.0, 0.8, 1.2)),
    Timed(DECODE, "fp16 on cuda", 100, (0.4, 0.4, 0.4)),
    Timed(DECODE, "int8 on cuda", 100, (0.25, 0.8, 0.6)),
    Timed(DECODE, "fp32 on cpu", 100, (1.0, 1.0, 1.0)),
    Timed(PREFILL, "fp16 on cuda", 4096, (0.5,)),
    BENCHMARK,
    SuiteRun(40, 0, 2, 30.0, ()),
)


def results(*changed: Record, without: type[Any] | None = None) -> Results:
    """GOOD, but for records in the place of those of their kind."""
    records = [
        record for record in GOOD if not isinstance(record, (*map(type, changed), *([without] if without else [])))
    ]
    return Results(("fp16", "int8"), False, [*records, *changed])


def broken(found: Results) -> list[str]:
    return [limit.what for limit in limits(found) if not limit.held]


def test_what_holds() -> None:
    assert broken(results()) == []
    by_name = {limit.what: limit for limit in limits(results())}
    assert len(by_name) == 9
    for name, value in {
        "fp16 on cuda: bits per byte from float32": 0.0018,
        "fp16 on cuda: patch boundaries as in float32": 0.995,
        "fp16 on cuda: decoding, times transformers float16 on cuda": 25,
        "int8 on cuda: decoding, times transformers float16 on cuda": 20,
        "int8 on cuda: bits per byte from the cpu's": 0.0019,
        "int8 on cuda: nodes on the CPU, but those on shapes": 0,
        "tests on cuda that pass": 40,
    }.items():
        assert by_name[name].value == pytest.approx(value)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            [Accuracy("fp16", "cuda", report(1.9479, "cuda", boundary_agreement=0.9949))],
            ["fp16 on cuda: bits per byte from float32", "fp16 on cuda: patch boundaries as in float32"],
        ),
        ([Accuracy("int8", "cuda", report(1.9679, "cuda"))], ["int8 on cuda: bits per byte from the cpu's"]),
        ([Accuracy("int8", "cuda", report(float("nan"), "cuda"))], ["int8 on cuda: bits per byte from the cpu's"]),
        ([placed("int8", Concat=1, Gather=2)], ["int8 on cuda: nodes on the CPU, but those on shapes"]),
        (
            [Timed(DECODE, "int8 on cuda", 100, (0.55, 0.55, 0.55))],
            ["int8 on cuda: decoding, times transformers float16 on cuda"],
        ),
        ([SuiteRun(40, 1, 0, 1.0, ("test_x",))], ["tests on cuda that fail"]),
        ([SuiteRun(0, 0, 40, 1.0, ())], ["tests on cuda that pass"]),
    ],
)
def test_what_does_not_hold(changed: list[Record], expected: list[str]) -> None:
    """In the place of the record about the same."""
    found = Results(("fp16", "int8"), False, [*changed, *GOOD])
    found.records = [
        one for number, one in enumerate(found.records) if number < len(changed) or not same(one, changed[0])
    ]
    assert broken(found) == expected


def same(one: Record, other: Record) -> bool:
    keys = {"recipe", "target", "work", "name"}

    def key(record: Record) -> dict[str, Any]:
        described = {name: value for name, value in vars(record).items() if name in keys}
        return described | ({"provider": record.report.provider} if isinstance(record, Accuracy) else {})

    return type(one) is type(other) and key(one) == key(other)


@pytest.mark.parametrize("kind", [Accuracy, Placement, Timed, SuiteRun])
def test_what_was_not_measured_is_not_held_and_not_in_the_table(kind: type[Any]) -> None:
    found = results(without=kind)
    missing = {Accuracy: "bits per byte", Placement: "nodes on the CPU", Timed: "decoding", SuiteRun: "tests"}[kind]
    assert broken(found) and all(missing in what or "boundaries" in what for what in broken(found))
    assert {limit.value for limit in limits(found) if not limit.held} == {None}
    assert markdown(found).count("| not measured |") == len(broken(found))
    if kind is Timed:
        assert "transformers float" not in markdown(found)


def test_transformers_on_the_cpu_is_no_comparison() -> None:
    """Its figures are in the table, and no ratio to them."""
    found = results(Timed(DECODE, "transformers float32 on cpu", 10, (5.0,)), Timed(DECODE, "int8 on cuda", 10, (1.0,)))
    assert found.speedup(DECODE, "int8 on cuda") is None
    assert "| transformers float32 |  | cpu |  |  |  |  |  | 2.0 |  |  |  |" in markdown(found)
    assert "int8 on cuda: decoding, times transformers on the same GPU" in broken(found)


def test_the_table() -> None:
    lines = markdown(results(Failure("nf4 on cuda", "it broke"))).splitlines()
    header = next(line for line in lines if line.startswith("| recipe"))
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    rows = [line for line in lines if line.count("|") == header.count("|")][2:]
    cells = [dict(zip(columns[:9], map(str.strip, row.strip("|").split("|")), strict=False)) for row in rows]
    places = [(row["recipe"], row["bundle for"], row["runs on"]) for row in cells]
    assert places == [
        ("fp32", "cpu", "cpu"), ("fp16", "cuda", "cuda"),  # nothing was measured of fp16 for cuda on the cpu
        ("int8", "cpu", "cpu"), ("int8", "cuda", "cpu"), ("int8", "cuda", "cuda"),
        ("transformers float32", "", "cuda"), ("transformers float16", "", "cuda"),
    ]  # fmt: skip
    half = cells[1]
    assert (half["bits per byte"], half["from float32"], half["boundaries"]) == ("1.9482", "-0.00180", "99.5000%")
    assert (half["decode, bytes/s"], cells[0]["decode, bytes/s"], cells[3]["decode, bytes/s"]) == ("250.0", "100.0", "")
    assert "- gpu: a GPU" in lines and not any(line.startswith("- driver:") for line in lines)
    assert "- nf4 on cuda: it broke" in lines and "Tests on cuda: 40 passed, 0 failed, 2 skipped, in 30 s." in lines
    assert "- fp16, of 94: decoder 3 Concat, 1 Cast" in lines and "- int8, of 90: none" in lines


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Of a line that was cut short nothing, and nothing of what is not there."""
    lines = [write_record(record) + "\n" for record in (*GOOD, Failure("a", "b\nc"))]
    path = tmp_path / "records"
    path.write_text("".join(lines) + lines[1][:-9])
    assert read_records(path) == [*GOOD, Failure("a", "b\nc")]
    assert read_records(tmp_path / "none") == []


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(Failure("nf4 on cuda", "it broke"))
    found.stage_seconds["speed"] = 12.5
    assert check_cuda.write(found, tmp_path) == 0
    assert (tmp_path / "check_cuda.md").read_text() == markdown(found)
    assert capsys.readouterr().out == markdown(found) + "\nevery limit held\n"
    written = json.loads((tmp_path / "check_cuda.json").read_text())
    assert written == document(found)
    assert written["environment"]["gpu"] == "a GPU" and written["stage_seconds"] == {"speed": 12.5}
    assert written["speedups"]["decode, int8 on cuda"] == pytest.approx(20)
    assert len(written["timed"]) == 6 and all(limit["held"] for limit in written["limits"])
    assert written["failures"] == [{"what": "nf4 on cuda", "reason": "it broke"}]
    read = read_results([tmp_path / "validations.json", tmp_path / "benchmarks.json"])
    assert read.validations == tuple(each.report for each in found.of(Accuracy))
    assert read.benchmarks == (BENCHMARK,)

    found = results(Accuracy("int8", "cuda", report(float("nan"), "cuda")))
    assert check_cuda.write(found, tmp_path) == 1
    assert capsys.readouterr().out.endswith("\n3 of 9 limits NOT held\n")
    accuracy = json.loads((tmp_path / "check_cuda.json").read_text(), parse_constant=pytest.fail)["accuracy"]
    assert accuracy[0]["report"]["bits_per_byte"] is None


def test_rounds_go_on_without_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuda_stages._PAUSE", 0)
    order: list[str] = []

    def run(name: str, seconds: Iterator[float]) -> float:
        order.append(name)
        return next(seconds)  # the end of them is an error

    runs = {
        name: (10, functools.partial(run, name, iter(seconds)))
        for name, seconds in {"a": [9.0, 1.0, 2.0], "b": [9.0, 3.0], "c": []}.items()
    }
    found = list(cuda_stages.in_turn(DECODE, 2, runs))
    assert order == ["a", "b", "c", "a", "b", "a", "b"]
    assert found == [
        Failure("c: decode", "StopIteration: "),
        Timed(DECODE, "a", 10, (1.0,)), Timed(DECODE, "b", 10, (3.0,)),
        Failure("b: decode", "StopIteration: "), Timed(DECODE, "a", 10, (1.0, 2.0)),
    ]  # fmt: skip


def test_what_pytest_said_is_read(tmp_path: Path) -> None:
    module, xml = tmp_path / "test_some.py", tmp_path / "tests.xml"
    module.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n"
        "@pytest.mark.skip\ndef test_c(): pass\n@pytest.fixture\ndef bad(): 1/0\ndef test_d(bad): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={xml}", str(module)]
    subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert dataclasses.replace(cuda_stages.read_tests(xml), seconds=0) == SuiteRun(1, 2, 1, 0, ("test_b", "test_d"))


class Stopped:
    """A check whose stages are these sources of Python."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, budget: float = 60) -> None:
        (tmp_path / "cuda_stages.py").write_text(source)
        monkeypatch.setattr(check_cuda, "HERE", tmp_path)
        work = cuda_stages.Work(str(tmp_path), ("fp16",), None, True)
        self.results = Results(("fp16",), True)
        self.check = check_cuda.Check(work, self.results, tmp_path / "check_cuda.log", budget)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("sys.exit(3)", "ended by exit code 3; see check_cuda.log"),
        ("os.kill(os.getpid(), 11)", "ended by SIGSEGV; see check_cuda.log"),
        ("threading.Event().wait()", "stopped after 2 s, all that the budget left it"),
    ],
)
def test_what_a_stage_measured_before_it_ended_is_kept(
    end: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = write_record(Failure("a", "b"))
    source = f"import os, sys, threading\nprint('told')\nopen(sys.argv[3], 'w').write({line!r} + '\\n')\n{end}\n"
    stopped = Stopped(tmp_path, monkeypatch, source, 2.3 if "wait" in end else 60)
    assert not stopped.check.stage("tests")
    assert stopped.results.records == [Failure("a", "b"), Failure("tests", reason)]
    assert (tmp_path / "check_cuda.log").read_text().startswith("== tests\n")


def test_stages_whose_time_is_over_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Stopped(tmp_path, monkeypatch, "raise SystemExit", budget=1)
    assert not stopped.check.stage("speed")
    assert stopped.results.records == [Failure("speed", "left out: its time was over before it began")]


def test_limits_are_where_they_are_said_to_be() -> None:
    for is_least, value in itertools.product((True, False), (0.9, 1.0, 1.1)):
        assert Limit("", value, 1.0, is_least).held == (value >= 1 if is_least else value <= 1)
        assert not Limit("", float("nan"), 1.0, is_least).held and not Limit("", None, 1.0, is_least).held


def run_script(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), "--python", sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, **settings)


@pytest.mark.skipif(cuda.has_driver(), reason="there is an NVIDIA driver")
def test_without_a_gpu(tmp_path: Path) -> None:
    ended = run_script("--out", str(tmp_path / "out"))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("check_cuda: ") and ended.stderr.count("\n") == 1
    assert "there is no NVIDIA driver (libcuda.so.1); install it" in ended.stderr or "edgeblt[cuda]" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_python(tmp_path: Path) -> None:
    ended = run_script("--quick", "--python", str(tmp_path / "none"))  # the last one wins
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"check_cuda: {tmp_path / 'none'} is no Python 3.11 or newer; give one with --python\n"


def test_a_python_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_cuda, "NEEDED", ("numpy", "no_such_module", "nor_this"))
    assert check_cuda.missing() == (
        f"{sys.executable} lacks no_such_module, nor_this; give another Python with --python"
    )


@pytest.mark.slow
def test_the_whole_over_a_stand_in(stand_in: cuda_stand_in.StandIn, tmp_path: Path) -> None:
    """It comes to its end, and says that nothing which nothing computed holds."""
    environment = stand_in.environment() | {"EDGEBLT_NATIVE": "0"}  # our own kernels need a driver that runs them
    ended = run_script("--quick", "--recipes", "fp16", "--budget", "900", "--out", str(tmp_path), env=environment)
    assert (ended.returncode, ended.stderr) == (1, "")
    written = json.loads((tmp_path / "check_cuda.json").read_text())
    assert written["environment"]["gpu"] == "stand-in" and written["failures"] == []
    held = {limit["what"].partition(": ")[2]: limit["held"] for limit in written["limits"] if "fp16" in limit["what"]}
    assert not held["bits per byte from float32"] and held["nodes on the CPU, but those on shapes"]
    assert [row["report"]["provider"] for row in written["accuracy"]] == ["cuda", "cpu", "cpu"]
    assert all(abs(row["report"]["mean_kl"]) < 1e-5 for row in written["accuracy"][1:])
    assert written["tests"][0]["failed"] > 10 and written["tests"][0]["passed"] > 0
    assert (tmp_path / "check_cuda.md").read_text() in ended.stdout
    assert np.isfinite([timed["seconds"] for timed in written["timed"] if "cuda" in timed["name"]]).all()
