"""`edgeblt sweep`: one process's part in a study of recipes and settings, and what the study has found."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from edgeblt.bundle.result_files import write_result
from edgeblt.bundle.whole_files import cannot_write
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.checkpoints.naming import checkpoint_name
from edgeblt.export.sweep.importance import importance
from edgeblt.export.sweep.ledger import SURPLUS, Ledger, is_settled, refusal
from edgeblt.export.sweep.measuring import Measured, Measuring
from edgeblt.export.sweep.plan import Grid, Plan, Search, Settings, digest
from edgeblt.export.sweep.space import Space, budget_bytes
from edgeblt.export.sweep.storage import open_study
from edgeblt.measure.reference import Text
from edgeblt.measure.sweep_result import (
    COMPLETE,
    OVER_BUDGET,
    REFUSED,
    STOPPED,
    Sweep,
    SweepTrial,
    against_packaged,
    front_of,
)
from edgeblt.measure.texts import held_out_text
from edgeblt.measure.tuning import check_lengths
from edgeblt.progress import Advance, progress, progress_is_shown, show_progress
from edgeblt.quant.calibration.layerwise import read_calibration
from edgeblt.quant.memory_limit import DEFAULT_LIMIT
from edgeblt.quant.recipes.recipe import load_recipe
from edgeblt.quant.recipes.recipe_text import recipe_text
from edgeblt.quant.torch_threads import keep_to_usable_cores

DEFAULT_TEXTS = ("prose", "code", "typos")
LEASE = 60.0  # seconds
STUDY = "sweep"
_JOB, _STATE, _MEASURED = "edgeblt", "edgeblt_state", "edgeblt_measured"
_REFERENCE = "int4"  # the recipe that a share of size refers to
_POLL_SHARE = 0.1  # share of a lease between looks at other processes
_DRAWS = 2  # proposals of the sampler, if known already, before one on the front is changed at random
_MOST_OVER_BUDGET = 20  # for each trial wanted


def sweep(
    checkpoint: str | Path,
    directory: str | Path,
    recipes: Sequence[str | Path] = (),
    settings: Settings | None = None,
    trials: int = 60,
    at_most: str | None = None,
    at_least: float | None = None,
    texts: Sequence[Text] = (),
    calibration: str | Path | None = None,
    patcher: str | Path | None = None,
    storage: str | None = None,
    study: str = STUDY,
    lease: float = LEASE,
    memory_limit: int = DEFAULT_LIMIT,
    seed: int = 0,
) -> Sweep:
    """Measures recipes and settings until the study has them all, beside other processes that do the same.

    checkpoint: a directory, or a model on the hub, not quantized.
    directory: the place of quantized weights that trials share, of the study unless `storage` is given, and of
        what is found: `recipes/trial-N.toml` for each trial on the front.
    recipes: names or files, of which all combinations with `settings` are measured; empty is a search over a format for
        each part of the model.
    trials: configurations that a search measures, those stopped early included.
    at_most: largest bundle, such as `4MB`, or `80%` of what int4 has; None is no limit.
    at_least: fewest bytes per second of decoding, which the search prefers to keep to; None is no limit.
    texts: texts to score, at least `SHORTEST_TEXT` bytes each; by default English prose, Python and prose with typos.
    storage: where the study lies, for several machines: see `open_study`.
    lease: seconds without a sign of life after which another process takes over a trial.

    A process that is interrupted gives its trial back; the same call goes on. Raises EdgebltError for arguments out of
    range, a checkpoint that cannot be opened or is quantized, and a study of other texts, recipes or another model.
    """
    keep_to_usable_cores()
    if trials < 1 or not 1 <= lease < 1e6:
        raise EdgebltError(f"trials is {trials} and lease {lease:g} s; both are at least 1")
    if at_least is not None and not 0 < at_least < math.inf:
        raise EdgebltError(f"the least speed is {at_least:g} bytes/s; give a number above 0 such as 1000")
    opened, path = open_checkpoint(checkpoint, patcher), Path(directory)
    opened.warn()
    space, settings = Space.of(opened), settings or Settings()
    texts = texts or [Text(name, held_out_text(name)) for name in DEFAULT_TEXTS]
    check_lengths(texts)
    plan: Plan = Grid(recipes, settings) if recipes else Search(space, settings, trials, seed)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    measuring = Measuring(opened, texts, path, calibration, memory_limit)
    most = None if at_most is None else budget_bytes(at_most, measuring.expected_bytes(load_recipe(_REFERENCE)))
    opened_study = open_study(study, storage, path)
    with _explained(storage):
        _agree(opened_study, opened, texts, plan, calibration)
        opened_study.sampler = plan.sampler
        sweeper = _Sweeper(Ledger(opened_study, plan.distributions, lease), plan, measuring, most, at_least)
        with measuring.place():
            sweeper.work()
        result = _result(opened_study, opened, texts, sweeper, most, at_least)
    _write_recipes(path / "recipes", result, plan)
    return result


class _Sweeper:
    """One process's trials."""

    def __init__(self, ledger: Ledger, plan: Plan, measuring: Measuring, most: int | None, least: float | None) -> None:
        self.ledger, self.plan, self._measuring, self._most, self._least = ledger, plan, measuring, most, least
        self._starts = plan.starts()
        self._settled = 0

    def work(self) -> None:
        """Measures trials until none is left to measure, and no other process measures one."""
        try:
            self._measure_all()
        except BaseException:
            self.ledger.give_back()
            raise

    def _measure_all(self) -> None:
        ledger = self.ledger
        ledger.add(self._starts, ledger.recover())
        with progress("sweeping", self.plan.wanted, "trials", even=False) as advance, _without_other_progress():
            while True:
                trials = self._with_following(ledger.recover())
                self._report(trials, advance)
                if self._has_more(trials):
                    self._measure_one()
                elif ledger.others_running(trials):
                    time.sleep(_POLL_SHARE * ledger.lease)
                else:
                    return

    def settled(self, trials: Sequence[FrozenTrial]) -> list[SweepTrial]:
        return [_swept(trial, self.ledger, self.plan) for trial in self.ledger.settled(trials)]

    def _report(self, trials: Sequence[FrozenTrial], advance: Advance) -> None:
        settled = min(sum(trial.state != OVER_BUDGET for trial in self.settled(trials)), self.plan.wanted)
        if settled > self._settled:
            advance(settled - self._settled)
            self._settled = settled

    def _has_more(self, trials: Sequence[FrozenTrial]) -> bool:
        if self._settled >= self.plan.wanted:
            return False
        if any(trial.state == TrialState.WAITING for trial in trials):
            return True
        over = sum(trial.user_attrs.get(_STATE) == OVER_BUDGET for trial in trials)
        return self._taken(trials) < self.plan.wanted and over < _MOST_OVER_BUDGET * self.plan.wanted

    def _taken(self, trials: Sequence[FrozenTrial]) -> int:
        """How many of the trials wanted are settled, waiting or running."""
        open_states = (TrialState.WAITING, TrialState.RUNNING)
        counted = (trial for trial in trials if trial.state in open_states or is_settled(trial))
        return len({self.ledger.key(trial) for trial in counted if trial.user_attrs.get(_STATE) != OVER_BUDGET})

    def _with_following(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """The trials after those were added that follow from the settled ones."""
        room = self.plan.wanted - self._taken(trials)
        following = self.plan.following(self.settled(trials)) if room > 0 else []
        return self.ledger.add([each for each in following if not self._is_over(each)][:room], trials)

    def _is_over(self, parameters: dict[str, Any]) -> bool:
        if self._most is None or parameters in self._starts:
            return False
        return self._measuring.expected_bytes(self.plan.configuration(parameters).recipe) > self._most

    def _claim(self) -> tuple[optuna.Trial, list[FrozenTrial]] | None:
        """A trial to measure, beside all; None where the last of those wanted went to another process."""
        for _ in range(_DRAWS):
            if claimed := self.ledger.claim():
                return claimed
            trials = self.ledger.trials()
            if not self._has_more(trials):
                return None
        seen = [self.ledger.parameters(trial) for trial in trials if self.ledger.key(trial)]
        settled = {trial.number: trial for trial in self.settled(trials)}
        front = partial(front_of, list(settled.values()), self._most)
        best = [settled[number].settings for number in front(self._least) or front()]
        if unseen := self.plan.unseen(seen, best):
            self.ledger.add([unseen], trials)
        else:
            self.plan.wanted = self._taken(trials)  # there are no other configurations
        return None

    def _measure_one(self) -> None:
        claimed = self._claim()
        if claimed is None:
            return
        (trial, trials), ledger, plan = claimed, self.ledger, self.plan
        try:
            if self._taken(trials[: trial.number]) >= plan.wanted:
                ledger.drop(trial, SURPLUS)
                return
            parameters = ledger.parameters(trials[trial.number])
            wanted = plan.configuration(parameters)
            if self._is_over(parameters):
                size = self._measuring.expected_bytes(wanted.recipe)
                ledger.settle(trial, {_STATE: OVER_BUDGET, _MEASURED: {"bundle_bytes": size}}, None)
                return
            others = [] if parameters in self._starts else self._complete(trials)
            with ledger.alive(trial):
                found = self._measuring.measure(wanted, others)
        except EdgebltError as error:
            ledger.refuse(trial, str(error))
        else:
            values = None
            if found.bits_per_byte is not None:
                values = (float(found.bundle_bytes), found.bits_per_byte, found.decode_bytes_per_s)
            short = None if self._least is None else self._least - found.decode_bytes_per_s
            ledger.settle(trial, {_STATE: COMPLETE if values else STOPPED, _MEASURED: vars(found)}, values, short)

    def _complete(self, trials: Sequence[FrozenTrial]) -> list[Measured]:
        return [Measured(**trial.user_attrs[_MEASURED]) for trial in trials if trial.state == TrialState.COMPLETE]


def _swept(trial: FrozenTrial, ledger: Ledger, plan: Plan) -> SweepTrial:
    parameters, measured = ledger.parameters(trial), trial.user_attrs.get(_MEASURED, {})
    return SweepTrial(
        number=trial.number,
        state=trial.user_attrs.get(_STATE, REFUSED),
        settings={name: str(value) for name, value in parameters.items()},
        bundle_bytes=measured.get("bundle_bytes"),
        bits_per_byte=measured.get("bits_per_byte"),
        decode_bytes_per_s=measured.get("decode_bytes_per_s"),
        device=measured.get("device", ""),
        packaged=plan.packaged(parameters),
        reason=refusal(trial),
    )


def _result(
    study: optuna.Study,
    checkpoint: Checkpoint,
    texts: Sequence[Text],
    sweeper: _Sweeper,
    most: int | None,
    least: float | None,
) -> Sweep:
    trials = tuple(sweeper.settled(sweeper.ledger.trials()))
    return Sweep(
        study=study.study_name,
        checkpoint=checkpoint_name(checkpoint),
        texts={text.name: len(text.data) for text in texts},
        at_most_bytes=most,
        at_least_bytes_per_s=least,
        trials=trials,
        front=front_of(trials, most, least),
        against=against_packaged(trials),
        sensitivity=sweeper.plan.sensitivity(trials),
        importance=importance(study),
    )


def _agree(
    study: optuna.Study, checkpoint: Checkpoint, texts: Sequence[Text], plan: Plan, calibration: str | Path | None
) -> None:
    """Raises EdgebltError where the study was begun with another model, or other texts or recipes."""
    shapes = [(name, checkpoint.shape(name)) for name in checkpoint.names()]
    given = {
        "model": digest(
            repr(checkpoint.config), shapes, checkpoint.tensor(checkpoint.names()[0]).tobytes().hex()[:4096]
        ),
        "texts": digest([(text.name, text.data.hex()) for text in texts]),
        "recipes or settings": digest(plan.described()),
        "calibration text": digest(read_calibration(calibration)[1]),
    }
    begun = study.user_attrs.get(_JOB)
    if begun is None:
        study.set_user_attr(_JOB, given)
        return
    other = [name for name, value in given.items() if begun.get(name) != value]
    if other:
        raise EdgebltError(
            f"the study {study.study_name!a:.60} was begun with another {', another '.join(other)}; give the same, or "
            "another name with --study"
        )


def _write_recipes(directory: Path, result: Sweep, plan: Plan) -> None:
    """A recipe for each trial on the front; those of an earlier front are removed. Raises EdgebltError."""
    by_number = {trial.number: trial for trial in result.trials}
    try:
        directory.mkdir(exist_ok=True)
        for number in result.front:
            trial = by_number[number]
            comment = (
                f"Trial {number} of the study {result.study} on {result.checkpoint}: {trial.bundle_bytes:,} bytes, "
                f"{trial.bits_per_byte:.4f} bits per byte,\n{trial.decode_bytes_per_s:,.0f} bytes/s on {trial.device}."
            )
            recipe = plan.configuration(dict(trial.settings)).recipe
            write_result(directory / f"trial-{number}.toml", recipe_text(recipe, comment).encode())
        names = {f"trial-{number}.toml" for number in result.front}
        for file in directory.glob("trial-*.toml"):
            if file.name not in names:
                file.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(directory, error) from None


@contextmanager
def _without_other_progress() -> Iterator[None]:
    """No progress is shown of what begins in the block."""
    shown = progress_is_shown()
    show_progress(False)
    try:
        yield
    finally:
        show_progress(shown)


@contextmanager
def _explained(storage: str | None) -> Iterator[None]:
    """Turns what a storage raises into EdgebltError."""
    try:
        yield
    except (SQLAlchemyError, OptunaError, OSError) as error:
        place = "the study's file" if storage is None else "the storage of the study"
        reason = str(error.__cause__ or error).strip().partition("\n")[0][:160]
        raise EdgebltError(f"{place} stopped answering ({reason}); repair it, and run the same command again") from None
