"""`edgeblt sweep`: the space, the front, a study shared by several processes, and the command."""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Exported
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.measure.sweep_result import COMPLETE, STOPPED, SweepTrial, against_packaged, front_of
from edgeblt.quant.compress import Compression
from edgeblt.quant.piece_cache import PieceCache
from edgeblt.quant.recipes.recipe import Recipe, load_recipe, packaged_recipes
from edgeblt.quant.recipes.recipe_text import recipe_text
from test_commands import Result, run_command

pytest.importorskip("optuna")

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from edgeblt.export.sweep.ledger import Ledger
from edgeblt.export.sweep.measuring import Configuration, Measured, Measuring
from edgeblt.export.sweep.plan import Search, Settings
from edgeblt.export.sweep.space import Space, budget_bytes
from edgeblt.export.sweep.storage import open_study
from edgeblt.export.sweep.sweep import _Sweeper as Sweeper

TEXT = b"The history of the village begins with a mill by the river. " * 40


@pytest.fixture(scope="module")
def checkpoint(exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(0).checkpoint


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text"
    path.write_bytes(TEXT)
    return path


@pytest.mark.parametrize("name", packaged_recipes())
def test_the_text_of_a_recipe_is_read_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / f"{name}.toml").write_text(recipe_text(recipe, 'with "quotes"\nand a line'))
    assert load_recipe(tmp_path / f"{name}.toml") == recipe


def test_every_choice_makes_a_recipe_and_int4_is_among_them(checkpoint: Path) -> None:
    space = Space.of(open_checkpoint(checkpoint))
    drawn = random.Random(1)
    for _ in range(50):
        choices = {part: drawn.choice(list(named)) for part, named in space.parts.items()}
        assert space.choices(space.recipe(choices, "found")) == choices
    int4 = load_recipe("int4")
    chosen = space.choices(int4)
    assert chosen and space.recipe(chosen, "int4") == int4
    assert len({json.dumps(start) for start in space.starts()}) == len(space.starts())
    assert chosen in space.starts()


def test_the_ladder_adds_parts_by_what_they_gain_for_a_byte(checkpoint: Path) -> None:
    space = Space.of(open_checkpoint(checkpoint))
    gains = {part: float(number) for number, part in enumerate(space.parts)}
    ladder = space.ladder(gains)
    changed = [{part for part, choice in step.items() if choice != space.smallest()[part]} for step in ladder]
    order = list(reversed(space.parts))
    assert changed == [set(order[: count + 2]) for count in range(len(order) - 1)]


@pytest.mark.parametrize(
    ("words", "expected"), [("4MB", 4_000_000), ("900 kB", 900_000), ("4000000", 4_000_000), ("80%", 800), ("7b", 7)]
)
def test_budgets_are_read(words: str, expected: int) -> None:
    assert budget_bytes(words, 1000) == expected


@pytest.mark.parametrize("words", ["", "MB", "-1MB", "nan", "1e99", "four", "%"])
def test_a_budget_that_is_no_size_is_refused(words: str) -> None:
    with pytest.raises(EdgebltError, match="give one such as 4MB"):
        budget_bytes(words, 1000)


def swept(number: int, size: int, bits: float, rate: float, device: str = "a", packaged: str = "") -> SweepTrial:
    return SweepTrial(number, COMPLETE, {"part": str(number)}, size, bits, rate, device, packaged, "")


POINTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from("ab")), max_size=9)


@given(POINTS)
def test_the_front_holds_what_nothing_on_its_device_beats(points: list[tuple[int, int, int, str]]) -> None:
    trials = [swept(number, size, bits, rate, device) for number, (size, bits, rate, device) in enumerate(points)]
    front = set(front_of(trials))
    for trial, (size, bits, rate, device) in zip(trials, points, strict=True):
        others = [other for other in points if other[3] == device and other[:3] != (size, bits, rate)]
        beaten = any(other[0] <= size and other[1] <= bits and other[2] >= rate for other in others)
        assert (trial.number in front) == (not beaten)


def test_budgets_leave_trials_off_the_front_and_packaged_recipes_are_compared() -> None:
    trials = [swept(0, 100, 2.0, 50.0, packaged="int4"), swept(1, 90, 1.9, 40.0), swept(2, 200, 1.5, 90.0)]
    trials.append(dataclasses.replace(swept(3, 1, 9.0, 1.0), state=STOPPED, bits_per_byte=None))
    assert front_of(trials) == (1, 0, 2)
    assert front_of(trials, at_most_bytes=150) == (1, 0)
    assert front_of(trials, at_least_bytes_per_s=45.0) == (0, 2)
    (against,) = against_packaged(trials)
    assert (against.packaged, against.trial) == ("int4", 1)
    assert against.sentence == "Trial 1 needs 0.1000 bits per byte less than int4 at 90.0% of its size."
    assert against_packaged(trials[:1])[0].sentence.startswith("No trial of int4's size or less")


def test_a_trial_is_left_only_where_another_is_better_in_all() -> None:
    ahead, behind = Measured(100, 50.0, 2.0, 2.0, "a"), Measured(100, 50.0, 2.1, None, "a")
    assert behind.is_behind(ahead)
    for change in ({"bundle_bytes": 99}, {"decode_bytes_per_s": 60.0}, {"first_text_bits": 2.01}, {"device": "b"}):
        assert not dataclasses.replace(behind, **change).is_behind(ahead)


# The cache of quantized pieces.


def compressed(checkpoint: Path, recipe: Recipe, out: Path, cache: PieceCache | None, text: Path) -> bytes:
    out.mkdir()
    Compression(open_checkpoint(checkpoint), recipe, text, cache=cache).write(out).finish()
    return b"".join(path.read_bytes() for path in sorted(out.iterdir()) if path.suffix == ".safetensors")


def changed(recipe: Recipe, part: str) -> Recipe:
    weights = dataclasses.replace(getattr(recipe, part), block_size=16, input_block_size=None)
    return dataclasses.replace(recipe, **{part: weights})


def test_the_cache_gives_the_same_weights_and_makes_only_what_a_change_touches(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    recipe, cache = load_recipe("int4"), PieceCache(tmp_path / "cache")
    plain = compressed(checkpoint, recipe, tmp_path / "plain", None, text)
    assert compressed(checkpoint, recipe, tmp_path / "first", cache, text) == plain
    pieces = cache.stored
    assert cache.hits == 0 and pieces > 0
    assert compressed(checkpoint, recipe, tmp_path / "second", cache, text) == plain
    assert cache.stored == pieces and cache.hits >= pieces
    made = {}
    for part in ("patcher", "global_", "decoder"):
        other, stored = changed(recipe, part), cache.stored
        expected = compressed(checkpoint, other, tmp_path / f"{part}-plain", None, text)
        assert compressed(checkpoint, other, tmp_path / f"{part}-cached", cache, text) == expected
        made[part] = cache.stored - stored
    assert 0 < made["patcher"] < pieces and 0 < made["decoder"] < made["global_"] < pieces


def test_damaged_entries_of_the_cache_are_made_again(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    recipe, cache = load_recipe("int4"), PieceCache(tmp_path / "cache")
    plain = compressed(checkpoint, recipe, tmp_path / "first", cache, text)
    for number, entry in enumerate(sorted((tmp_path / "cache").iterdir())):
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 1
        entry.write_bytes(bytes(content) if number % 3 else content[: number % 40])
    assert compressed(checkpoint, recipe, tmp_path / "second", cache, text) == plain


# A study that several processes share.

CONFIGURATIONS = [{"x": str(x), "y": str(y)} for x in range(3) for y in range(2)]
DISTRIBUTIONS = {"x": CategoricalDistribution(["0", "1", "2"]), "y": CategoricalDistribution(["0", "1"])}

STEPS = ("claim", "settle", "die", "back", "recover", "wait")


class Died(BaseException):
    """The end of a process, wherever it was."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def drained(ledger: Ledger) -> None:
    """What one process does when no other is left."""
    ledger.add(CONFIGURATIONS, ledger.recover())
    while any(trial.state == TrialState.WAITING for trial in ledger.trials()):
        if claimed := ledger.claim():
            ledger.settle(claimed[0], {}, [1.0, 2.0, 3.0])


def counted(ledger: Ledger) -> Counter[Any]:
    return Counter(ledger.key(trial) for trial in ledger.trials() if trial.state == TrialState.COMPLETE)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(STEPS)), max_size=40))
def test_no_configuration_is_lost_or_measured_twice(steps: list[tuple[int, str]]) -> None:
    """Three processes in any order of steps, each of which may die with a trial in hand."""
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr("edgeblt.export.sweep.ledger.time", clock)
        ledgers, held = [Ledger(study, DISTRIBUTIONS, 10.0) for _ in range(3)], dict[int, list[Any]]()
        for ledger in ledgers:
            ledger.add(CONFIGURATIONS, ledger.trials())
        for who, what in steps:
            ledger, mine = ledgers[who], held.setdefault(who, [])
            if what == "claim":
                mine += [claimed[0]] if (claimed := ledger.claim()) else []
            elif what == "settle" and mine:
                ledger.settle(mine.pop(), {}, [1.0, 2.0, 3.0])
            elif what == "back" and mine:
                ledger.give_back()
                mine.clear()
            elif what == "die":
                ledgers[who], held[who] = Ledger(study, DISTRIBUTIONS, 10.0), []
            elif what == "recover":
                ledger.recover()
            else:
                clock.now += 6.0
        last = Ledger(study, DISTRIBUTIONS, 10.0)
        last.recover()
        clock.now += 11.0
        drained(last)
        assert counted(last) == Counter(tuple(each.values()) for each in CONFIGURATIONS)


def test_a_signal_while_a_trial_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupted process gives the trial back; another, whose new trial it took for its own, begins again."""
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    first, second = Ledger(study, DISTRIBUTIONS, 10.0), Ledger(study, DISTRIBUTIONS, 10.0)
    ask = study.ask

    def interrupted(*arguments: Any) -> optuna.Trial:
        ask(*arguments)
        raise KeyboardInterrupt

    def beside(*arguments: Any) -> optuna.Trial:
        trial = ask(*arguments)
        first.give_back()
        return trial

    first.add(CONFIGURATIONS, [])
    monkeypatch.setattr(study, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.claim()
    monkeypatch.setattr(study, "ask", beside)
    assert second.claim() is None
    monkeypatch.setattr(study, "ask", ask)
    states = Counter(trial.state for trial in first.trials())
    assert states == {TrialState.FAIL: 2, TrialState.WAITING: len(CONFIGURATIONS)}
    drained(second)
    assert counted(second) == Counter(tuple(each.values()) for each in CONFIGURATIONS)


@pytest.mark.parametrize("fatal", range(1, 40))
def test_a_process_may_end_between_any_two_steps(fatal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process dies at its `fatal`th call of the storage; another finishes the study."""
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    clock, calls = Clock(), iter(range(1, 10**6))
    monkeypatch.setattr("edgeblt.export.sweep.ledger.time", clock)
    real = study._storage

    class Deadly:
        def __getattr__(self, name: str) -> Any:
            found = getattr(real, name)
            writes = name.startswith(("create_new_trial", "set_trial"))

            def call(*arguments: Any, **named: Any) -> Any:
                if writes and next(calls) == fatal:
                    raise Died
                return found(*arguments, **named)

            return call if callable(found) else found

    first = Ledger(study, DISTRIBUTIONS, 10.0)
    monkeypatch.setattr(study, "_storage", Deadly())
    with suppress(Died):
        drained(first)
    monkeypatch.setattr(study, "_storage", real)
    second = Ledger(study, DISTRIBUTIONS, 10.0)
    second.recover()
    clock.now += 11.0
    drained(second)
    assert counted(second) == Counter(tuple(each.values()) for each in CONFIGURATIONS)


# A search by one process, on a model that is not measured.


class Unmeasured(Measuring):
    """A recipe's figures from its choices: the finer, the larger, the better and the slower; the decoder's alone counts
    for speed."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def expected_bytes(self, recipe: Recipe) -> int:
        return 1000 + sum(self._ranks(recipe).values())

    def measure(self, wanted: Configuration, others: Sequence[Measured]) -> Measured:
        ranks = self._ranks(wanted.recipe)
        bits = 3 - 0.1 * sum(ranks.values())
        return Measured(self.expected_bytes(wanted.recipe), 100.0 - 10 * ranks["decoder"], bits, bits, "a")

    def _ranks(self, recipe: Recipe) -> dict[str, int]:
        choices = self._space.choices(recipe)
        assert choices is not None
        return {part: [*named][::-1].index(choices[part]) for part, named in self._space.parts.items()}


def searched(
    checkpoint: Path, trials: int, monkeypatch: pytest.MonkeyPatch, least: float | None = None
) -> tuple[list[SweepTrial], int]:
    """The trials of a search, and how often it read the study."""
    space = Space.of(open_checkpoint(checkpoint))
    plan = Search(space, Settings(), trials, 1)
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"], sampler=plan.sampler)
    reads, read = Counter[str](), study.get_trials
    monkeypatch.setattr(study, "get_trials", lambda **named: reads.update(["read"]) or read(**named))
    sweeper = Sweeper(Ledger(study, plan.distributions, 60.0), plan, Unmeasured(space), None, least)
    sweeper.work()
    return sweeper.settled(study.trials), reads["read"]


def test_a_study_is_read_once_in_a_turn_and_as_a_trial_begins_and_ends(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, reads = searched(checkpoint, 40, monkeypatch)
    assert len(trials) == 40 and reads < 6 * len(trials)  # some of the sampler's proposals are known already


def test_a_search_prefers_what_is_fast_enough(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it begins with is the same with a least speed and without; of the trials after it more are fast enough."""
    fast = []
    for least in (None, 100.0):
        trials, _ = searched(checkpoint, 60, monkeypatch, least)
        rates = [trial.decode_bytes_per_s or 0 for trial in sorted(trials, key=lambda trial: trial.number)]
        fast.append(sum(rate >= 100 for rate in rates[20:]))
    assert fast[1] > 1.6 * fast[0]


# The command.


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return partial(run_command, capfd)


def words(*arguments: object) -> list[str]:
    return [str(argument) for argument in arguments]


def test_a_grid_is_measured_once_and_then_read_from_the_study(
    checkpoint: Path, text: Path, tmp_path: Path, run: Run
) -> None:
    given = words("sweep", checkpoint, tmp_path / "out", "--text", text, "--calibration", text, "-q")
    given += words("--recipe", "int8", "--recipe", "fp32", "--threads", "1,2", "--json", tmp_path / "sweep.json")
    done = run(*given)
    assert done.code == 0, done.stderr
    result = json.loads((tmp_path / "sweep.json").read_text())
    settings = {(trial["settings"]["recipe"], trial["settings"]["threads"]) for trial in result["trials"]}
    assert settings == {(recipe, threads) for recipe in ("int8", "fp32") for threads in ("1", "2")}
    by_recipe = {trial["settings"]["recipe"]: trial for trial in result["trials"]}
    assert by_recipe["int8"]["bundle_bytes"] < by_recipe["fp32"]["bundle_bytes"]
    assert {trial["state"] for trial in result["trials"]} == {"complete"}
    recipes = {path.name for path in (tmp_path / "out/recipes").iterdir()}
    assert recipes == {f"trial-{number}.toml" for number in result["front"]}
    page = (tmp_path / "out/report.html").read_text()
    assert "Pareto" in done.stdout and "Search: sweep" in page
    first = (tmp_path / "sweep.json").read_bytes()
    assert run(*given).code == 0
    assert (tmp_path / "sweep.json").read_bytes() == first


@pytest.mark.slow
def test_a_search_finds_recipes_that_export_takes(checkpoint: Path, text: Path, tmp_path: Path, run: Run) -> None:
    given = words("sweep", checkpoint, tmp_path / "out", "--text", text, "--calibration", text, "-q", "--threads", 1)
    given += words("--trials", 16, "--at-most", "110%", "--json", tmp_path / "sweep.json")
    done = run(*given)
    assert done.code == 0, done.stderr
    result = json.loads((tmp_path / "sweep.json").read_text())
    inside = [trial for trial in result["trials"] if trial["state"] != "over budget"]
    assert len(inside) == 16 and len({json.dumps(trial["settings"]) for trial in result["trials"]}) == len(
        result["trials"]
    )
    assert set(result["sensitivity"]) == {"patcher", "encoder", "global", "decoder", "heads", "tables"}
    (int4,) = (trial for trial in result["trials"] if trial["packaged"] == "int4")
    (against,) = (each for each in result["against"] if each["packaged"] == "int4")
    assert against["bits_per_byte"] <= int4["bits_per_byte"] and against["bundle_bytes"] <= int4["bundle_bytes"]
    by_number = {trial["number"]: trial for trial in result["trials"]}
    assert result["front"]
    assert all(by_number[number]["bundle_bytes"] <= result["at_most_bytes"] for number in result["front"])
    recipe = tmp_path / f"out/recipes/trial-{result['front'][0]}.toml"
    exported = words("export", checkpoint, tmp_path / "bundle", "--recipe", recipe, "--calibration", text, "-q")
    assert run(*exported).code == 0
    size = sum(path.stat().st_size for path in (tmp_path / "bundle").iterdir())
    assert size == pytest.approx(by_number[result["front"][0]]["bundle_bytes"], rel=0.02)


def test_what_cannot_be_measured_is_refused_once_and_said(
    checkpoint: Path, text: Path, tmp_path: Path, run: Run
) -> None:
    given = words("sweep", checkpoint, tmp_path / "out", "--text", text, "--recipe", "fp32", "--provider", "cuda,cpu")
    done = run(*given, "-q", "--json", str(tmp_path / "sweep.json"))
    assert done.code == 0, done.stderr
    states = {
        trial["settings"]["provider"]: trial for trial in json.loads((tmp_path / "sweep.json").read_text())["trials"]
    }
    assert states["cpu"]["state"] == "complete"
    assert states["cuda"]["state"] == "refused" and "cuda" in states["cuda"]["reason"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--storage", "nonsense"], "no URL"),
        (["--storage", "oracle://host/base"], "use one of sqlite, postgresql, mysql"),
        (["--storage", "postgresql://me:secret@127.0.0.1:1/base"], "cannot be used"),
        (["--storage", "sqlite:////dev/null/x"], "cannot be used"),
        (["--trials", "0"], "at least 1"),
        (["--lease", "0"], "at least 1"),
        (["--at-most", "much"], "give one such as 4MB"),
        (["--at-least", "nan"], "the least speed is nan"),
        (["--at-least", "-1"], "give a number above 0"),
        (["--threads", "1,2"], "a search has one value of threads"),
        (["--recipe", "int8", "--threads", "1,0"], "a number of threads is 0"),
        (["--recipe", "int8", "--threshold", "1,nan"], "a threshold is nan"),
        (["--recipe", "int3"], "there is no recipe"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_bad_values_get_a_sentence(
    options: list[str], said: str, checkpoint: Path, text: Path, tmp_path: Path, run: Run
) -> None:
    done = run(*words("sweep", checkpoint, tmp_path / "out", "--text", text, "-q"), *options)
    assert done.code == 2 and said in done.stderr and "secret" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_study_is_of_one_model_and_one_set_of_texts(checkpoint: Path, text: Path, tmp_path: Path, run: Run) -> None:
    given = words("sweep", checkpoint, tmp_path / "out", "--recipe", "fp32", "-q", "--text", text)
    assert run(*given).code == 0
    (tmp_path / "other").write_bytes(TEXT[::-1])
    done = run(*given[:-1], str(tmp_path / "other"))
    assert done.code == 2 and "was begun with another texts" in done.stderr
    done = run(*given, "--recipe", "int8")
    assert done.code == 2 and "another recipes or settings" in done.stderr


def test_a_study_of_other_objectives_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study'}"
    optuna.create_study(storage=url, study_name="mine")
    with pytest.raises(EdgebltError, match="'mine'"):
        open_study("mine", url, tmp_path)
