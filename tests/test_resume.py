"""Conversions that are killed, interrupted or run out of disk: nothing half-written is seen, nothing is done twice."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny_models
from conftest import tiny_oracle
from dying import FULL, INTERRUPT, Outcome, Runner
from edgeblt.bundle.whole_files import whole_directory, whole_file
from edgeblt.errors import EdgebltError
from edgeblt.export.graphs.weight_file import JOURNAL
from sampled import mostly_slow

SEED = 42  # a layer a stage, with a patcher
TEXT = b"It was the best of times, it was the worst of times, it was the age of wisdom, it was" * 2
TABLES = '[tables]\nformat = "int8"\nmethod = "{}"\n'
CALIBRATED = '[encoder]\nformat = "int4"\nmethod = "gptq"\n[decoder]\nformat = "int4"\nmethod = "gptq"\n'
RECIPES = {
    "gptq": CALIBRATED + TABLES.format("least-squares"),
    "plain": '[encoder]\nformat = "nf4"\n[global]\nformat = "int4"\n' + TABLES.format("least-squares"),
    "channels": CALIBRATED.replace("[decoder]", 'channels = "50%"\n[decoder]')
    + 'channels = "70%"\n[global]\nchannels = "60%"\n',
    "pruned": "table_hits = 0.9\n" + TABLES.format("least-squares"),
}
WITH_TEXT = ("gptq", "channels", "pruned")
CONVERSIONS = (*RECIPES, "fp32", "int8", "bundle")  # to checkpoints; to bundles, the last of a checkpoint of ours
LEFT = ".out.partial"
Contents = dict[str, bytes]


def contents(directory: Path) -> Contents:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@dataclass(frozen=True)
class Workshop:
    """A model, recipes, and who converts the one by the others."""

    home: Path
    runner: Runner
    wholes: dict[str, tuple[Contents, Outcome]]

    @property
    def checkpoint(self) -> Path:
        return self.home / "model"

    def out(self, name: str) -> Path:
        """In a new directory."""
        out = self.home / "written" / name / "out"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir(parents=True)
        return out

    def arguments(self, conversion: str, out: Path) -> list[object]:
        """Of the command line."""
        if conversion in RECIPES:
            text = ["--calibration", self.home / "text"] if conversion in WITH_TEXT else []
            return ["quantize", self.checkpoint, out, "--recipe", self.home / f"{conversion}.toml", *text]
        if conversion == "bundle":
            return ["export", self.home / "compressed", out]
        return ["export", self.checkpoint, out, "--recipe", conversion]

    def whole(self, conversion: str) -> tuple[Contents, Outcome]:
        """What nothing interrupted: its files, and how it went."""
        if conversion not in self.wholes:
            out = self.out(f"{conversion}-whole")
            outcome = self.runner.run(*self.arguments(conversion, out))
            assert outcome.code == 0, outcome.said
            self.wholes[conversion] = contents(out), outcome
        return self.wholes[conversion]

    def killed(self, conversion: str, name: str, share: float = 0.7) -> tuple[Path, Outcome]:
        """Where the conversion was to write, and how far it came until it was killed at that share of its steps."""
        out = self.out(name)
        step = int(share * self.whole(conversion)[1].steps)
        died = self.runner.run(*self.arguments(conversion, out), step=step)
        assert died.code == -9 and died.written and (out.parent / LEFT / JOURNAL).exists(), died
        return out, died

    def finish(self, conversion: str, out: Path) -> Outcome:
        """The conversion again: it gives what an uninterrupted one does, and leaves nothing beside it."""
        outcome = self.runner.run(*self.arguments(conversion, out))
        assert outcome.code == 0, outcome.said
        assert contents(out) == self.whole(conversion)[0]
        assert list(out.parent.iterdir()) == [out]
        return outcome


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    home = tmp_path_factory.mktemp("resume")
    tiny_models.save_model(tiny_oracle(SEED), home / "model")
    (home / "text").write_bytes(TEXT)
    for name, recipe in RECIPES.items():
        (home / f"{name}.toml").write_text(recipe)
    (home / "written").mkdir()
    with Runner(home / "written") as runner:
        shop = Workshop(home, runner, {})
        runner.prepare(*shop.arguments("gptq", home / "compressed"))
        runner.prepare(*shop.arguments("bundle", home / "unused"))
        yield shop


# Killed.


def check_killed(workshop: Workshop, conversion: str, step: int) -> None:
    """Killed at a step, the conversion has shown nothing; the next one makes what is missing, and only that."""
    through = workshop.whole(conversion)[1]
    out = workshop.out("killed")
    died = workshop.runner.run(*workshop.arguments(conversion, out), step=step)
    assert (died.code, died.steps) == (-9, step)
    assert set(os.listdir(out.parent)) <= {LEFT}
    known = (out.parent / LEFT / JOURNAL).exists()  # else nothing was complete, or all of it and about to be renamed
    resumed = workshop.finish(conversion, out)
    if known:
        assert sorted(died.written + resumed.written) == sorted(through.written)
        assert resumed.computed == (sum(map(calibrated, resumed.written)) if through.computed else 0)
    else:
        assert died.written in ([], through.written)


def calibrated(piece: str) -> int:
    """How many matrices of a piece GPTQ makes: of a layer that loses channels three, of rows, and in `global`, none."""
    if ", " in piece or piece.startswith("global."):
        return 0
    return 3 if piece[-1].isdigit() else 1


@pytest.mark.parametrize("conversion", mostly_slow(CONVERSIONS, ("gptq", "channels", "fp32", "bundle")))
def test_killed_at_some_steps(workshop: Workshop, conversion: str) -> None:
    steps = workshop.whole(conversion)[1].steps
    chosen = {int(steps * share) for share in (0.3, 0.9)}
    if conversion == "gptq":
        chosen |= {int(steps * 0.6), *range(steps - 2, steps + 1)}
    if conversion == "fp32":
        chosen |= {4, 7, *range(steps - 4, steps + 1)}  # where it begins and where it ends
    for step in sorted(chosen):
        check_killed(workshop, conversion, step)


@pytest.mark.slow
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_killed_at_every_step(workshop: Workshop, conversion: str) -> None:
    for step in range(1, workshop.whole(conversion)[1].steps + 1):
        check_killed(workshop, conversion, step)


@pytest.mark.parametrize("conversion", ["gptq", "fp32"])
def test_killed_again_and_again(workshop: Workshop, conversion: str) -> None:
    """Each run comes further, and what it completed stays, though it was killed in the middle of a line."""
    through, out = workshop.whole(conversion)[1], workshop.out("again")
    written: list[str] = []
    for _ in range(20):
        run = workshop.runner.run(*workshop.arguments(conversion, out), step=through.steps // 4 + 1)
        written += run.written
        if run.code == 0:
            break
        assert run.code == -9 and run.written and not out.exists()
    assert sorted(written) == sorted(through.written)
    assert contents(out) == workshop.whole(conversion)[0]


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 4, 8])
@pytest.mark.parametrize("conversion", ["gptq", "fp32"])
def test_a_real_kill(workshop: Workshop, conversion: str, lines: int) -> None:
    """A process of its own, nothing in it changed, killed from outside when it has printed some lines of progress."""
    out = workshop.out("real")
    code = (
        "import edgeblt.quant.calibration.layerwise as c; c.TEXT_BYTES = 64\n"
        "import edgeblt.progress as p; p.FIRST_LINE_AFTER = p.LINE_EVERY = p._LINE_EVERY_SHARE = 0.0\n"
        "import edgeblt.cli; edgeblt.cli.main()"
    )
    command = [sys.executable, "-c", code, *map(str, workshop.arguments(conversion, out))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process:
        assert process.stderr
        for _ in range(lines):
            assert process.stderr.readline()
        process.kill()
    assert process.returncode == -9 and os.listdir(out.parent) == [LEFT]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert contents(out).keys() == workshop.whole(conversion)[0].keys() and os.listdir(out.parent) == ["out"]
    whole = workshop.out("whole")
    command[command.index(str(out))] = str(whole)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert contents(out) == contents(whole)


# Quantizing on the way to a bundle.


@pytest.fixture(scope="module")
def in_two_commands(workshop: Workshop) -> Contents:
    small, out = workshop.out("two-small"), workshop.out("two")
    workshop.runner.run(*workshop.arguments("gptq", small))
    assert workshop.runner.run("export", small, out).code == 0
    return contents(out)


@pytest.fixture(scope="module")
def through(workshop: Workshop) -> Outcome:
    """How it goes in one command."""
    return workshop.runner.run(*at_once(workshop, workshop.out("at-once")))


def at_once(workshop: Workshop, out: Path) -> list[object]:
    _, checkpoint, _, *options = workshop.arguments("gptq", out)
    return ["export", checkpoint, out, *options]


def test_one_command_gives_what_two_do(workshop: Workshop, in_two_commands: Contents) -> None:
    out = workshop.out("at-once")
    ended = workshop.runner.run(*at_once(workshop, out))
    assert ended.code == 0 and contents(out) == in_two_commands and os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.8, 0.97])
def test_killed_on_the_way_to_a_bundle(
    workshop: Workshop, in_two_commands: Contents, through: Outcome, share: float
) -> None:
    """Neither the quantized weights nor the bundle's are made twice, and nothing stays beside it."""
    out = workshop.out("at-once")
    died = workshop.runner.run(*at_once(workshop, out), step=int(share * through.steps))
    assert died.code == -9 and set(os.listdir(out.parent)) <= {".out.partial", ".out.quantized"}
    resumed = workshop.runner.run(*at_once(workshop, out))
    assert resumed.code == 0 and contents(out) == in_two_commands and os.listdir(out.parent) == ["out"]
    assert sorted(died.written + resumed.written) == sorted(through.written)
    assert resumed.computed == sum(map(calibrated, set(resumed.written) & set(workshop.whole("gptq")[1].written)))


@pytest.mark.parametrize("how", [FULL, INTERRUPT])
def test_stopped_on_the_way_to_a_bundle(workshop: Workshop, through: Outcome, how: str) -> None:
    for share in (0.3, 0.9):
        out = workshop.out("at-once")
        ended = workshop.runner.run(*at_once(workshop, out), step=int(share * through.steps), how=how)
        assert ended.code != 0 and os.listdir(out.parent) == [], ended


def test_force_replaces_what_it_wrote_and_nothing_else(workshop: Workshop) -> None:
    out = workshop.out("forced")
    for conversion, kind in (("fp32", "bundle"), ("gptq", "compressed checkpoint")):
        arguments = workshop.arguments(conversion, out)
        other = ["export", workshop.checkpoint, out] if kind == "bundle" else ["quantize", workshop.checkpoint, out]
        assert workshop.runner.run(*other, "--recipe", "int8").code == 0
        before = contents(out)
        refused = workshop.runner.run(*arguments)
        assert refused.said.endswith(f"{out} exists already; replace it with --force, or choose another name\n")
        assert contents(out) == before
        assert workshop.runner.run(*arguments, "--force").code == 0
        assert contents(out) == workshop.whole(conversion)[0] and os.listdir(out.parent) == ["out"]
        (out / "thesis.txt").write_text("mine")
        before = contents(out)
        refused = workshop.runner.run(*arguments, "--force")
        assert refused.code == 2 and f"exists already and is not a {kind} alone, so it is not replaced" in refused.said
        assert contents(out) == before
        shutil.rmtree(out)


# What is not used again.


def other_method(workshop: Workshop, arguments: list[object]) -> list[object]:
    """A recipe of the same name and formats that chooses other codes."""
    other = workshop.home / "other"
    other.mkdir(exist_ok=True)
    place = arguments.index("--recipe") + 1
    recipe = other / "plain.toml"
    recipe.write_text(RECIPES["plain"].replace("least-squares", "nearest"))
    return [*arguments[:place], recipe, *arguments[place + 1 :]]


def other_text(workshop: Workshop, arguments: list[object]) -> list[object]:
    (workshop.home / "other.txt").write_bytes(TEXT[::-1])
    place = arguments.index("--calibration") + 1
    return [*arguments[:place], workshop.home / "other.txt"]


def other_checkpoint(workshop: Workshop, arguments: list[object]) -> list[object]:
    """In the same place; only the time tells."""
    weights = workshop.checkpoint / "model.safetensors"
    status = weights.stat()
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    return arguments


def other_place(workshop: Workshop, arguments: list[object]) -> list[object]:
    other = workshop.home / "moved"
    shutil.copytree(workshop.checkpoint, other, dirs_exist_ok=True)
    return [other if argument == workshop.checkpoint else argument for argument in arguments]


@pytest.mark.parametrize(
    ("conversion", "change"),
    [
        ("plain", other_method), ("gptq", other_text), ("pruned", other_text), ("gptq", other_checkpoint),
        ("fp32", other_checkpoint), ("fp32", other_place),
    ],
)  # fmt: skip
def test_another_conversion_starts_anew(
    workshop: Workshop, conversion: str, change: Callable[[Workshop, list[object]], list[object]]
) -> None:
    out, _ = workshop.killed(conversion, "changed")
    arguments = change(workshop, workshop.arguments(conversion, out))
    outcome = workshop.runner.run(*arguments)
    assert outcome.code == 0, outcome.said
    expected = workshop.out("expected")
    alone = workshop.runner.run(*[expected if argument == out else argument for argument in arguments])
    assert contents(out) == contents(expected)
    assert outcome.written == alone.written == workshop.whole(conversion)[1].written or change == other_text
    assert outcome.computed == workshop.whole(conversion)[1].computed


def test_another_recipe_of_the_same_name_starts_an_export_anew(workshop: Workshop) -> None:
    """Same name, same formats, same layout of the files: only the method differs."""
    out, expected, recipe = workshop.out("method"), workshop.out("expected"), workshop.home / "tables.toml"
    recipe.write_text(TABLES.format("nearest"))
    arguments = ["export", workshop.checkpoint, out, "--recipe", recipe]
    whole = workshop.runner.run(*["export", workshop.checkpoint, expected, "--recipe", recipe])
    shutil.rmtree(out.parent / LEFT, ignore_errors=True)
    recipe.write_text(TABLES.format("least-squares"))
    died = workshop.runner.run(*arguments, step=int(0.9 * whole.steps))
    assert died.code == -9 and any("hash_tables" in piece for piece in died.written)
    recipe.write_text(TABLES.format("nearest"))
    outcome = workshop.runner.run(*arguments)
    assert outcome.code == 0 and outcome.written == whole.written
    ours, theirs = contents(out), contents(expected)
    assert ours["encoder.weights"] == theirs["encoder.weights"] and ours.keys() == theirs.keys()


@pytest.mark.parametrize("conversion", ["gptq", "fp32"])
def test_another_version_starts_anew(workshop: Workshop, conversion: str) -> None:
    out = workshop.out("version")
    steps = workshop.whole(conversion)[1].steps
    died = workshop.runner.run(*workshop.arguments(conversion, out), step=steps // 2, version="0.0.9")
    assert died.code == -9 and died.written
    assert workshop.finish(conversion, out).written == workshop.whole(conversion)[1].written


# Damage to what was left.


def places(weights: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file lies: its first byte, and the one after its last."""
    data = weights.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    return {
        name: (8 + size + entry["data_offsets"][0], 8 + size + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def flip(file: Path, place: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 16]))


def test_damaged_pieces_are_made_again(workshop: Workshop) -> None:
    """One bit in a part of each; and in the file's header, which is no piece."""
    out, died = workshop.killed("gptq", "damaged", 0.5)
    weights, damaged = out.parent / LEFT / "model.safetensors", died.written[2:8:2]
    where = places(weights)
    for piece, part in zip(damaged, ("codes", "scales", "zero_points"), strict=True):
        flip(weights, where[f"{piece}.{part}"][1] - 1)
    flip(weights, 20)
    resumed = workshop.finish("gptq", out)
    assert resumed.written == [
        piece for piece in workshop.whole("gptq")[1].written if piece in damaged or piece not in died.written
    ]


@pytest.mark.parametrize("change", [-1, None], ids=["short", "gone"])
def test_a_file_of_another_size_is_made_again(workshop: Workshop, change: int | None) -> None:
    out, died = workshop.killed("fp32", "damaged")
    weights = out.parent / LEFT / "patcher.weights"
    if change is None:
        weights.unlink()
    else:
        os.truncate(weights, weights.stat().st_size + change)
    resumed = workshop.finish("fp32", out)
    assert [piece for piece in resumed.written if piece in died.written] == [
        piece for piece in died.written if piece.startswith("patcher.")
    ]


def test_damaged_lines_cost_their_pieces(workshop: Workshop) -> None:
    """One that says something else now, one that is not JSON any more, one that was cut short."""
    out, died = workshop.killed("gptq", "journal", 0.5)
    journal = out.parent / LEFT / JOURNAL
    lines = journal.read_bytes().split(b"\n")[1 : len(died.written) + 2]  # the key, and a line for each piece
    lines[2] = re.sub(rb'"error": \[[^,]*,', b'"error": [0.0,', lines[2])
    lines[4] = lines[4].replace(b'"', b"'", 1)
    lines[-1] = lines[-1][:-9]
    journal.write_bytes(b"\n" + b"\n".join(lines))
    resumed = workshop.finish("gptq", out)
    lost = [died.written[index] for index in (1, 3, -1)]
    assert [piece for piece in resumed.written if piece in died.written] == lost


def test_a_journal_of_garbage(workshop: Workshop) -> None:
    out, _ = workshop.killed("fp32", "garbage")
    (out.parent / LEFT / JOURNAL).write_bytes(b'{"key": 1}\n\xff\xfe\n5\nnull\n{"piece": 1}\n' + b"[" * 100_000)
    assert workshop.finish("fp32", out).written == workshop.whole("fp32")[1].written


def test_what_else_was_left_goes(workshop: Workshop) -> None:
    """Files without a name of ours, half-written ones, directories; links, and not what they point to."""
    out, died = workshop.killed("fp32", "strays")
    left, precious = out.parent / LEFT, workshop.home / "precious"
    precious.write_text("precious")
    (left / "tmp1234").write_text("x")
    (left / "config.json").write_text("{")
    (left / "bundle.json").symlink_to(precious)
    (left / "directory").mkdir()
    (left / "directory" / "file").write_text("x")
    assert not set(workshop.finish("fp32", out).written) & set(died.written)
    out, died = workshop.killed("fp32", "strays")
    weights = out.parent / LEFT / "patcher.weights"
    elsewhere = weights.rename(workshop.home / "elsewhere")
    before = elsewhere.read_bytes()
    weights.symlink_to(elsewhere)
    workshop.finish("fp32", out)
    assert elsewhere.read_bytes() == before and precious.read_text() == "precious"


# In the way.


@pytest.mark.parametrize("conversion", ["gptq", "fp32"])
def test_two_at_once(workshop: Workshop, conversion: str) -> None:
    out, died = workshop.killed(conversion, "two")
    with whole_directory(out, resume=True) as partial:
        before = contents(partial)
        second = workshop.runner.run(*workshop.arguments(conversion, out))
        assert second.code == 2 and second.said == (
            f"edgeblt: {out} is being written by another process; wait for it, or choose another name\n"
        )
        assert contents(partial) == before
        copy = workshop.out("copy")
        shutil.copytree(partial, copy.parent / LEFT)
    shutil.rmtree(out)
    assert not set(workshop.finish(conversion, copy).written) & set(died.written)


def test_no_link_is_followed(workshop: Workshop, tmp_path: Path) -> None:
    out, precious = workshop.out("links"), tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    left = out.parent / LEFT
    for target in (precious, precious / "file", Path("nowhere")):
        left.symlink_to(target)
        outcome = workshop.runner.run(*workshop.arguments("plain", out))
        said = f"edgeblt: {left} is in the way; remove it, or choose another name\n"
        assert (outcome.code, outcome.said) == (2, said)
        assert os.readlink(left) == str(target) and contents(precious) == {"file": b"precious"}
        left.unlink()
    left.write_text("a file")
    outcome = workshop.runner.run(*workshop.arguments("plain", out))
    assert (outcome.code, outcome.said) == (2, said) and left.read_text() == "a file"


def test_a_file_follows_no_link(tmp_path: Path) -> None:
    precious, left = tmp_path / "precious", tmp_path / ".whole.partial"
    precious.write_text("precious")
    for kind in ("link", "directory"):
        if kind == "link":
            left.symlink_to(precious)
        else:
            left.unlink()
            left.mkdir()
        with pytest.raises(EdgebltError) as caught, whole_file(tmp_path / "whole"):
            pass
        assert str(caught.value) == f"{left} is in the way; remove it, or choose another name"
    assert precious.read_text() == "precious" and sorted(tmp_path.iterdir()) == [left, precious]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make somebody else's directory")
def test_what_somebody_else_left_is_not_used(workshop: Workshop) -> None:
    out, _ = workshop.killed("fp32", "owner")
    os.chown(out.parent / LEFT, 12345, 12345)
    outcome = workshop.runner.run(*workshop.arguments("fp32", out))
    assert (outcome.code, outcome.said) == (
        2, f"edgeblt: {out.parent / LEFT} is somebody else's; remove it, or choose another name\n",
    )  # fmt: skip


@pytest.mark.parametrize("options", [["--recipe", "nonsense"], ["--memory-limit", "0.001"], ["--target", "tpu"]])
def test_a_refusal_keeps_what_was_left(workshop: Workshop, options: list[str]) -> None:
    out, died = workshop.killed("fp32", "refused")
    outcome = workshop.runner.run("export", workshop.checkpoint, out, *options)
    assert outcome.code == 2
    assert not set(workshop.finish("fp32", out).written) & set(died.written)


# Replacing, and files.


@pytest.fixture
def shelf(workshop: Workshop) -> Path:
    return workshop.out("shelf").parent


OLD, NEW = ({name: text.encode() for name in ("first", "second")} for text in ("old", "new"))


def test_a_replacement_killed_at_every_step(workshop: Workshop, shelf: Path) -> None:
    """A directory is there, the old or the new one, or comes back; a half removed one never does."""
    path, run = shelf / "path", workshop.runner.run
    run("replace", path, "old")
    seen = []
    for step in range(1, run("replace", path, "new").steps + 1):
        for removed in (False, True):
            run("replace", path, "old")
            assert contents(path) == OLD and os.listdir(shelf) == ["path"]
            assert run("replace", path, "new", step=step).code == -9
            seen.append(contents(path) if path.exists() else None)
            assert seen[-1] in (OLD, NEW, None)
            if removed:
                shutil.rmtree(path, ignore_errors=True)
            assert run("replace", path, "newest", step=3, how=FULL).code == 2  # fails, and cleans up
            left = contents(path) if path.exists() else None
            assert left in (None, OLD) if removed else left == (seen[-1] or OLD)
            assert set(os.listdir(shelf)) <= {"path"}
            if seen[-1] != NEW:
                break  # nothing of the old one is being removed yet
    assert OLD in seen and NEW in seen and seen.count(None) == 1


def test_a_bundle_whose_replacement_was_killed(workshop: Workshop, shelf: Path) -> None:
    path, run, (whole, through) = shelf / "out", workshop.runner.run, workshop.whole("fp32")
    for step, seen in [(through.steps, True), (through.steps + 1, False), (through.steps + 2, True)]:
        shutil.copytree(workshop.home / "unused", path)
        assert run("replace_bundle", workshop.checkpoint, path, step=step).code == -9
        assert path.exists() == seen
        assert run("replace_bundle", workshop.checkpoint, path).code == 0
        assert contents(path) == whole and os.listdir(shelf) == ["out"]
        shutil.rmtree(path)


def test_what_a_killed_file_left_is_taken_over(workshop: Workshop, shelf: Path) -> None:
    path, run = shelf / "file", workshop.runner.run
    steps = run("write_file", shelf / "another", "content").steps
    for step in range(1, steps + 1):
        (shelf / ".file.partial").write_text("a longer content, left by one that was killed")
        assert run("write_file", path, "content", step=step).code == -9
        assert not path.exists()
        assert run("write_file", path, "content").code == 0
        assert path.read_text() == "content" and sorted(os.listdir(shelf)) == ["another", "file"]
        path.unlink()


# A full disk, and interruptions that can be cleaned up after.


FULL_DISK = "{} cannot be written (No space left on device); free some space or choose another place"


def last_line(outcome: Outcome) -> str:
    lines = [line for line in outcome.said.splitlines() if not line.startswith(("quantizing ", "exporting "))]
    assert len(lines) == 1, outcome.said
    return lines[0]


def check_full(workshop: Workshop, conversion: str, out: Path, step: int) -> None:
    outcome = workshop.runner.run(*workshop.arguments(conversion, out), step=step, how=FULL)
    assert outcome.code == 2, outcome.said
    assert last_line(outcome) == f"edgeblt: {FULL_DISK.format(out)}"
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_full_disk(workshop: Workshop, conversion: str) -> None:
    """At any step that needs space, in the first run or in one that goes on: one sentence, and nothing left."""
    steps = workshop.whole(conversion)[1].steps
    chosen = {int(steps * 0.8)}
    if conversion == "fp32":
        chosen |= {*range(2, 8), *range(steps - 6, steps - 2)}
    for step in sorted(chosen):
        check_full(workshop, conversion, workshop.out("full"), step)
    check_full(workshop, conversion, workshop.killed(conversion, "full")[0], 20)


@pytest.mark.parametrize("conversion", ["gptq", "fp32"])
@pytest.mark.parametrize("limit", [2000, 20_000])
def test_a_limit_on_files(workshop: Workshop, conversion: str, limit: int) -> None:
    """The system's own refusal; the whole file is set aside at the beginning."""
    out = workshop.out("limit")
    outcome = workshop.runner.run(*workshop.arguments(conversion, out), limit=limit)
    assert outcome.code == 2 and outcome.written == []
    assert re.fullmatch(
        rf"edgeblt: {out} cannot be written \((File too large|\d+ requested and \d+ written)\); free some space or "
        "choose another place",
        last_line(outcome),
    )
    assert os.listdir(out.parent) == []


@pytest.mark.slow
def test_a_disk_that_is_really_full(workshop: Workshop, tmp_path: Path) -> None:
    """A small one, in a mount namespace of its own."""
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc"]
    mount = 'mount -t tmpfs -o size=100k none "$1"'
    try:
        possible = subprocess.run([*inside, mount, "sh", str(tmp_path)], stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("no file system can be mounted here")
    script = mount + '; shift; code=0; "$@" || code=$?; ls -A "$0"; exit $code'
    command = [sys.executable, "-c", "from edgeblt.cli import main; main()"]
    arguments = workshop.arguments("fp32", tmp_path / "out")
    result = subprocess.run(
        [*inside, script, str(tmp_path), str(tmp_path), *command, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, capture_output=True, text=True,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.splitlines()[-1] == f"edgeblt: {FULL_DISK.format(tmp_path / 'out')}"


@pytest.mark.parametrize("conversion", ["gptq", "fp32"])
def test_an_interruption_leaves_nothing(workshop: Workshop, conversion: str) -> None:
    steps = workshop.whole(conversion)[1].steps
    for step in (3, steps // 2, steps - 1, steps):
        out = workshop.out("interrupted")
        outcome = workshop.runner.run(*workshop.arguments(conversion, out), step=step, how=INTERRUPT)
        assert outcome.code == 130, outcome.said
        assert os.listdir(out.parent) == []
