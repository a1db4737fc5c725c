"""`edgeblt score`: rows of a corpus against the model's own scores and transformers', and what must not be lost."""

import io
import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq

from conftest import Exported
from edgeblt.corpus import parquet_source, processes, reading
from edgeblt.corpus.job import CorpusJob, Source, find_sources
from edgeblt.corpus.parts import Parts, parts_directory
from edgeblt.corpus.run import CorpusScores, score_corpus
from edgeblt.corpus.scoring import score_task
from edgeblt.corpus.workers import Workers
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from test_commands import run_command, sentence

ONE, TWO = Workers(1), Workers(2)
ROWS: list[Any] = ["It was the best of times", "größer, 最高", "", "x", "a text " * 60, "the age of wisdom"] * 3


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TASK_BYTES", 400)


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """The three formats; none of the rows of the last two is bad."""
    lines, table, text = (tmp_path / name for name in ("lines.jsonl", "table.parquet", "text.txt"))
    lines.write_text("\n".join(json.dumps({"text": row, "id": 1}) for row in ROWS) + "\n")
    pq.write_table(pa.table({"n": range(len(ROWS)), "text": ROWS}), table, row_group_size=5)
    text.write_bytes(bytes(range(256)) * 3)
    return [lines, table, text]


def scored(files: list[Path], bundle: Path, out: Path, workers: Workers = ONE, **options: Any) -> CorpusScores:
    return score_corpus(bundle, files, out, workers=workers, **options)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out).to_pylist()  # type: ignore[no-any-return]


# Rows.


def test_rows_are_the_models_own_scores(
    exported: Callable[[int], Exported], corpus: list[Path], tmp_path: Path
) -> None:
    tiny, out = exported(10), tmp_path / "out.parquet"
    result = scored(corpus, tiny.bundle, out, row_bytes=100, per_byte=True)
    pieces = [(bytes(range(256)) * 3)[start : start + 100] for start in range(0, 768, 100)]
    texts = [row.encode() for row in ROWS] * 2 + pieces
    rows = rows_of(out)
    numbers = [*range(len(ROWS))] * 2 + [*range(len(pieces))]
    names = [str(corpus[0])] * len(ROWS) + [str(corpus[1])] * len(ROWS) + [str(corpus[2])] * len(pieces)
    assert [(row["source"], row["row"]) for row in rows] == list(zip(names, numbers, strict=True))
    for row, text in zip(rows, texts, strict=True):
        alone = tiny.model.score(text)
        assert row["bytes"] == len(text) and row["patches"] == alone.patch_starts.sum() and row["problem"] is None
        assert np.array_equal(
            np.array(row["logprobs"], np.float32), alone.logprobs
        )  # bits are those of each text alone
        assert np.array_equal(np.array(row["entropies"], np.float32), alone.entropies)
        assert row["patch_starts"] == alone.patch_starts.tolist()
        assert row["bits_per_byte"] == (alone.bits_per_byte if text else None)
        assert row["nats"] == pytest.approx(-math.fsum(alone.logprobs.tolist()), rel=1e-12, abs=0)
        assert row["mean_entropy"] == (pytest.approx(np.mean(alone.entropies, dtype=np.float64)) if text else None)
    size = sum(map(len, texts))
    assert (result.rows, result.bad_rows, result.bytes) == (len(rows), 0, size)
    assert result.bits_per_byte == pytest.approx(math.fsum(row["nats"] for row in rows) / math.log(2) / size)
    assert result.patches == sum(row["patches"] for row in rows)
    entropies = np.concatenate([row["entropies"] for row in rows])
    assert result.mean_entropy == pytest.approx(float(entropies.mean()), rel=1e-6)


def test_rows_are_transformers_likelihoods(
    exported: Callable[[int], Exported], corpus: list[Path], tmp_path: Path
) -> None:
    """In float64, of the same weights."""
    tiny = exported(10)
    scored(corpus[:1], tiny.bundle, tmp_path / "out")
    for row, text in zip(rows_of(tmp_path / "out")[:6], ROWS[:6], strict=True):
        if len(text) < 2:
            continue  # nothing to compare, or nothing that decides about a patch
        targets = encode(text.encode())
        ids = np.concatenate([[BOS], targets])[: len(targets)]
        expected = tiny.text(ids.tolist())
        logits = expected.logits - expected.logits.max(axis=1, keepdims=True)
        logprobs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[np.arange(len(ids)), targets]
        assert row["nats"] == pytest.approx(-logprobs.sum(), rel=0, abs=4 * len(ids) * expected.logit_bound)
        assert row["patches"] == np.count_nonzero(expected.patch_starts)  # of the id after each id


def test_bad_rows_are_reported_counted_and_kept(
    exported: Callable[[int], Exported], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cases = {
        b'{"text": "fine"}': None, b'{"text": null}': "text is null", b'{"other": "a"}': "the line has no text",
        b"no json": "the line is no JSON", b"": ..., b"   ": ..., b"[1, 2]": "the line is [1, 2], no JSON object",
        b'{"text": 7}': "text is 7, no text", b'{"text": ["a"]}': "text is ['a'], no text",
        b'{"text": "\xff"}': "the line is not UTF-8", b"[" * 100_000: "the line is no JSON",
        b'{"text": "\\ud800"}': "text holds half a surrogate pair, which is no text",
        b'{"n": ' + b"9" * 5000 + b', "text": "a"}': "the line is no JSON", b'{"text": "the end"}': None,
    }  # fmt: skip
    file, table, out = tmp_path / "a.jsonl", tmp_path / "b.parquet", tmp_path / "out"
    file.write_bytes(b"\n".join(cases))  # no newline at the end
    pq.write_table(pa.table({"text": ["a", None, "b"]}), table)
    result = run_command(capfd, "score", exported(10).bundle, file, table, "-o", out, "--processes", 1, "--json", "-")
    expected = [(number, case) for number, case in enumerate(cases.values()) if case is not ...]
    assert result.code == 1
    assert [(row["row"], row["problem"]) for row in rows_of(out)][:-3] == expected
    assert [(row["row"], row["problem"]) for row in rows_of(out)][-3:] == [(0, None), (1, "text is null"), (2, None)]
    bad = [row for row in rows_of(out) if row["problem"]]
    assert all(row["nats"] is row["bits_per_byte"] is row["patches"] is None for row in bad)
    document = json.loads(result.stdout)
    assert (document["rows"], document["bad_rows"], document["bytes"]) == (len(expected) + 3, len(bad), 13)
    said = result.stderr.splitlines()
    assert said[0] == f"edgeblt: {file}, row 1: text is null" and len(said) == 6
    assert said[-1] == f"edgeblt: {len(bad) - 5} more rows cannot be scored; column problem of the output says why"


def test_a_row_on_which_the_model_fails_is_kept(
    exported: Callable[[int], Exported], corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, out = type(exported(10).model).score, tmp_path / "out"

    def failing(model: Any, data: bytes) -> Any:
        if data == b"x":
            raise EdgebltError("logits that are no numbers")
        return score(model, data)

    def fail_together(model: Any, texts: list[bytes]) -> Any:
        raise EdgebltError("text 1: logits that are no numbers")

    monkeypatch.setattr("edgeblt.model.Model.score", failing)
    monkeypatch.setattr("edgeblt.model.Model.score_batch", fail_together)
    result = scored(corpus[:1], exported(10).bundle, out)
    problems = [row["problem"] for row in rows_of(out)]
    assert problems == ["logits that are no numbers" if row == "x" else None for row in ROWS]
    assert (result.rows, result.bad_rows) == (18, 3)


# The same from any number of processes, and after an interruption.


def test_two_processes_give_the_same_file_and_one_may_die(
    exported: Callable[[int], Exported], corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, add, killed = exported(10).bundle, Parts.add, list[int]()
    scored(corpus, bundle, tmp_path / "one")

    def add_and_kill(parts: Parts, number: int, part: bytes) -> None:
        add(parts, number, part)
        if not killed:
            worker = multiprocessing.active_children()[0]
            worker.kill()
            killed.append(number)

    monkeypatch.setattr(Parts, "add", add_and_kill)
    result = scored(corpus, bundle, tmp_path / "two", TWO)
    assert killed and result.processes == 2
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert multiprocessing.active_children() == []


def test_a_run_that_was_cut_short_is_gone_on_with(
    exported: Callable[[int], Exported], corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, out, done = exported(10).bundle, tmp_path / "out", list[int]()
    whole = scored(corpus, bundle, tmp_path / "whole")
    add = Parts.add

    def add_some(parts: Parts, number: int, part: bytes) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        add(parts, number, part)
        done.append(number)

    monkeypatch.setattr(Parts, "add", add_some)
    with pytest.raises(KeyboardInterrupt):
        scored(corpus, bundle, out)
    folder = parts_directory(out)
    assert not out.exists() and sorted(path.name for path in folder.iterdir())[0] == "job.json"
    (folder / "part-00000001.arrow").write_bytes(b"damaged")  # made again
    (folder / ".part-00000003.arrow.partial").write_bytes(b"cut sh")
    monkeypatch.setattr(Parts, "add", add)
    again: list[int] = []

    def score_and_count(model: Any, job: CorpusJob, task: Any) -> bytes:
        again.append(task.number)
        return score_task(model, job, task)

    monkeypatch.setattr("edgeblt.corpus.scoring.score_task", score_and_count)
    result = scored(corpus, bundle, out)
    assert done == [0, 1, 2] and again[:2] == [1, 3]
    assert out.read_bytes() == (tmp_path / "whole").read_bytes() and not folder.exists()
    assert 0 < result.resumed_bytes < result.bytes == whole.bytes and whole.resumed_bytes == 0


def test_parts_of_another_job_are_refused(
    exported: Callable[[int], Exported], corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, out = exported(10).bundle, tmp_path / "out"
    assemble = Parts.assemble

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "assemble", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scored(corpus, bundle, out)
    monkeypatch.setattr(Parts, "assemble", assemble)
    changes: dict[str, tuple[list[Path], Path, dict[str, Any]]] = {
        "bundle_id": (corpus, exported(7).bundle, {}),
        "sources": (corpus[:2], bundle, {}),
        "row_bytes": (corpus, bundle, {"row_bytes": 10}),
        "per_byte": (corpus, bundle, {"per_byte": True}),
    }
    for wanted, (files, other, options) in changes.items():
        with pytest.raises(EdgebltError, match=rf"out\.parts belongs to a job with other {wanted}; give the same"):
            scored(files, other, out, **options)
    before = corpus[0].read_bytes()
    corpus[0].write_bytes(before.replace(b"best", b"last"))  # of the same length
    with pytest.raises(EdgebltError, match="holds rows of other texts: a source was changed"):
        scored(corpus, bundle, out)
    corpus[0].write_bytes(before)
    assert scored(corpus, bundle, out).resumed_bytes > 0


def test_a_directory_of_others_is_left_alone(exported: Callable[[int], Exported], corpus: list[Path]) -> None:
    out = corpus[0].with_name("out")
    parts_directory(out).mkdir()
    (parts_directory(out) / "thesis.tex").write_text("x")
    with pytest.raises(EdgebltError, match="is in the way"):
        scored(corpus, exported(10).bundle, out)
    assert (parts_directory(out) / "thesis.tex").exists() and not out.exists()


@pytest.mark.slow
def test_workers_that_die_again_and_again_end_the_job(
    exported: Callable[[int], Exported], corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_work", os.abort)  # takes no arguments: a TypeError, exit code 1
    with pytest.raises(EdgebltError, match="3 processes in turn ended by exit code 1 at their start"):
        scored(corpus, exported(10).bundle, tmp_path / "out", TWO)
    assert multiprocessing.active_children() == []


# Sources that lie.


def job_of(*files: Path, column: str = "text") -> CorpusJob:
    return CorpusJob(find_sources(files, None), column, 4096, False, "", "cpu", None)


@pytest.mark.slow
def test_a_line_without_end_takes_bounded_memory(tmp_path: Path) -> None:
    """A line of 1 GB, for which a process grows by less than 100 MB."""
    file = tmp_path / "a.jsonl"
    with file.open("wb") as lines:
        lines.truncate(1 << 30)  # zeros that take no place
        lines.seek(0, io.SEEK_END)
        lines.write(b'\n{"text": "fine"}\n')
    program = (
        "import resource, sys; from test_corpus import job_of; from edgeblt.corpus.reading import read_tasks;"
        "from pathlib import Path; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "rows = [row for task in read_tasks(job_of(Path(sys.argv[1]))) for row in task.rows];"
        "print([(row.number, row.data, row.problem) for row in rows]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, cwd=Path(__file__).parent)
    rows, grown = run.stdout.decode().splitlines()
    assert rows == "[(0, None, 'the line is longer than 8 MB'), (1, b'fine', None)]"
    assert int(grown) < 100_000  # kB


def test_long_texts_are_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGEST_ROW", 10)
    pq.write_table(pa.table({"text": ["x" * 10, "x" * 11]}), tmp_path / "a.parquet")
    (rows,) = (task.rows for task in reading.read_tasks(job_of(tmp_path / "a.parquet")))
    assert [(row.data, bool(row.problem)) for row in rows] == [(b"x" * 10, False), (None, True)]
    (tmp_path / "a.jsonl").write_bytes(b"[" * 9 + b"\n" + b"{" * 10 + b"\n" + b"x" * 11 + b"\n" + b" " * 35 + b"\n7\n8")
    (rows,) = (task.rows for task in reading.read_tasks(job_of(tmp_path / "a.jsonl")))
    problems = ["no JSON", "no JSON", "longer than", "longer than", "is 7", "is 8"]
    assert [row.number for row in rows] == [*range(6)]
    assert all(word in str(row.problem) for word, row in zip(problems, rows, strict=True))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_columns_of_text(kind: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a b": pa.array(["ä", None, "b"], pa.string()).cast(kind)}), tmp_path / "a.parquet")
    (rows,) = (task.rows for task in reading.read_tasks(job_of(tmp_path / "a.parquet", column="a b")))
    assert [row.data for row in rows] == ["ä".encode(), None, b"b"]


def test_what_is_no_column_of_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [1], "text": ["a"], "l": [["a"]]}), file)
    for column, words in {"n": "is of type int64", "l": "is of type list", "other": "has 0 columns 'other'"}.items():
        with pytest.raises(EdgebltError, match=words):
            list(reading.read_tasks(job_of(file, column=column)))
    monkeypatch.setattr(parquet_source, "LARGEST_ROW_GROUP", 10)
    with pytest.raises(EdgebltError, match="row group 0 declares"):
        list(reading.read_tasks(job_of(file)))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(EdgebltError, match=r"b\.parquet cannot be read as Parquet"):
        list(reading.read_tasks(job_of(tmp_path / "b.parquet")))


@pytest.mark.slow
def test_parquet_changed_at_random_is_read_or_refused(tmp_path: Path) -> None:
    """In a process with a limit on its memory."""
    run = subprocess.run(
        [sys.executable, "-c", "import test_corpus as t, sys; t.read_changed(sys.argv[1])", str(tmp_path)],
        capture_output=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-500:]
    read, refused = map(int, run.stdout.split())
    assert read > 50 and refused > 50


def read_changed(folder: str, count: int = 1500) -> None:
    """Prints how many of `count` changed files were read, and how many refused."""
    random, file, found = np.random.default_rng(1), Path(folder) / "a.parquet", [0, 0]
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    for kind in ("snappy", "zstd", "none"):
        pq.write_table(pa.table({"text": [f"row {n} " * 40 for n in range(500)]}), file, compression=kind)
        good = file.read_bytes()
        for _ in range(count // 3):
            changed = bytearray(good)
            for place in random.integers(0, len(good), 3):
                changed[place] = random.integers(256)
            for place in random.integers(max(len(good) - 700, 0), len(good), 2):
                changed[place] = random.integers(256)
            file.write_bytes(changed)
            try:
                list(reading.read_tasks(job_of(file)))
                found[0] += 1
            except EdgebltError:
                found[1] += 1
    print(*found)


# The command.


def test_the_command(
    exported: Callable[[int], Exported], corpus: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["score", exported(10).bundle, *corpus, "--out", tmp_path / "out", "--processes", 1]
    result = run_command(capfd, *arguments)
    assert result.code == 0 and "bits per byte" in result.stdout and str(tmp_path / "out") in result.stdout
    assert "exists already; replace it with --force" in sentence(run_command(capfd, *arguments))
    again = run_command(capfd, *arguments, "--force", "--json", "-")
    assert again.code == 0 and json.loads(again.stdout)["rows"] == 37
    assert "is one of the files to score" in sentence(
        run_command(capfd, "score", exported(10).bundle, corpus[0], "-o", corpus[0], "--force")
    )
    assert "belong" not in sentence(run_command(capfd, *arguments, "--force", "--column", "no"))
    for option, value, words in (
        ("--column", "no", "has 0 columns 'no'"), ("--format", "csv", "must be one of text, jsonl, parquet"),
        ("--row-bytes", 0, "row_bytes"), ("--processes", 2000, "at most 1,024"), ("--threads", 0, "threads"),
        ("--threshold", "nan", "threshold"), ("--provider", "tpu", "provider"),
    ):  # fmt: skip
        assert words in sentence(run_command(capfd, *arguments, "--force", option, value))
    assert "--ray" in sentence(run_command(capfd, *arguments, "--force", "--shared-bundle"))
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in sentence(
        run_command(capfd, *arguments[:2], tmp_path / "pipe", *arguments[-4:], "--force")
    )


# On a Ray cluster.


def on_ray(bundle: Path, files: list[Path], out: Path, *options: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "edgeblt", "score", str(bundle), *map(str, files), "-o", str(out), "--quiet"]
    return subprocess.Popen([*command, "--processes", "2", *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def actors(process: Any) -> Iterator[Any]:
    """Workers of a cluster that a process has started."""
    for child in process.children(recursive=True):
        if "TaskScorer" in " ".join(child.cmdline()):
            yield child


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_file_though_a_worker_is_killed(
    tiny_bundle: tuple[Path, Path], tmp_path: Path
) -> None:
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray")
    text, lines, bundle = tmp_path / "text", tmp_path / "lines.jsonl", tiny_bundle[1]
    text.write_bytes(np.random.default_rng(0).integers(32, 127, 1 << 20, np.uint8).tobytes())
    lines.write_text('{"text": "a"}\n{"text": null}\n{"text": "b"}\n')
    command = on_ray(bundle, [text, lines], tmp_path / "ray", "--ray", "local")
    folder, killed = parts_directory(tmp_path / "ray"), 0
    while command.poll() is None and not killed:
        if len(list(folder.glob("part-*"))) >= 4:
            victim = next(actors(psutil.Process(command.pid)))
            victim.kill()
            killed = victim.pid
        time.sleep(0.05)
    left = len(list(folder.glob("part-*")))
    _, said = command.communicate()
    assert command.returncode == 1, said  # the row that is null
    assert killed and left < 16
    plain = on_ray(bundle, [text, lines], tmp_path / "plain")
    plain.communicate()
    assert plain.returncode == 1
    assert pq.read_table(tmp_path / "ray").equals(pq.read_table(tmp_path / "plain"))
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "plain").read_bytes()
    assert not folder.exists()


@pytest.mark.slow
def test_a_bundle_travels_to_a_machine_that_lacks_it(
    tiny_bundle: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"""
import ray, tempfile
from dataclasses import replace
from pathlib import Path
from edgeblt.bundle.manifest import open_bundle
from edgeblt.corpus.opening import BundleOpening
from edgeblt.corpus.shipping import ship_bundle
tempfile.tempdir = {str(tmp_path)!r}
ray.init(address="local", num_cpus=1, include_dashboard=False)
opening = BundleOpening({str(tiny_bundle[1])!r}, open_bundle({str(tiny_bundle[1])!r}).id, None, 1, None)
shipped = ship_bundle(opening)
assert shipped.opening_here(opening) == opening  # it is there
elsewhere = replace(opening, path="/no/such")
for _ in range(2):
    found = shipped.opening_here(elsewhere)
    assert found.verify and Path(found.path).name == opening.bundle_id, found
with found.open() as model:
    print(model.score(b"a text").bits_per_byte)
"""
    pytest.importorskip("ray")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert run.returncode == 0, run.stderr[-800:]
    from edgeblt.model import load

    assert float(run.stdout.split()[-1]) == load(tiny_bundle[1]).score(b"a text").bits_per_byte


def test_sources_are_found_by_suffix(tmp_path: Path) -> None:
    for name in ("a.txt", "b.JSONL", "c.parquet", "d"):
        (tmp_path / name).write_bytes(b"12")
    found = find_sources([tmp_path / name for name in ("a.txt", "b.JSONL", "c.parquet", "d")], None)
    assert [source.format for source in found] == ["text", "jsonl", "parquet", "text"]
    assert found[0] == Source(str(tmp_path / "a.txt"), str(tmp_path / "a.txt"), "text", 2)
