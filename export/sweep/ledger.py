"""Trials of a study that several processes share: each configuration is measured once, and none is lost.

Optuna's storage holds the trials; this module says which of them count. A configuration is known by its parameters. Of
several trials of one configuration that are waiting, running or settled, the settled one counts, or else that of the
lowest number: whoever holds another drops it, when it begins and again before it records a result. A process shows that
it is alive by a growing number in its trial. Another process that has seen no growth for the time of a lease gives the
configuration back. So does every process at its start and end for those of trials that failed without a word, which
also covers a process that ended between the two steps of giving back. Clocks need not agree, and no server is asked for
more than the storage itself.
"""

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

Parameters = Mapping[str, Any]
_FIXED = "fixed_params"  # Optuna's name for the parameters of a trial that was asked for
_BEAT, _DROPPED, _REFUSED = "beat", "dropped", "refused"
_SETTLED = (TrialState.COMPLETE, TrialState.PRUNED)
_SPEED = "speed"  # Optuna's constraint
SURPLUS = "surplus"  # dropped because there are enough trials without it
_BEATS_A_LEASE = 6


class Ledger:
    """The trials of a study, for one process."""

    def __init__(self, study: optuna.Study, distributions: Mapping[str, BaseDistribution], lease: float) -> None:
        """`lease`: seconds without a sign of life after which a running trial is taken from its process."""
        self.study, self.lease = study, lease
        self._distributions = dict(distributions)
        self._seen: dict[int, tuple[int, float]] = {}  # by trial: its last beat, and when that was new
        self._mine: set[int] = set()

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def key(self, trial: FrozenTrial) -> tuple[Any, ...] | None:
        """The configuration of a trial; None while its parameters are still being drawn."""
        found = trial.system_attrs.get(_FIXED) or trial.params
        if any(name not in found for name in self._distributions):
            return None
        return tuple(found[name] for name in self._distributions)

    def parameters(self, trial: FrozenTrial) -> dict[str, Any]:
        key = self.key(trial)
        assert key is not None
        return dict(zip(self._distributions, key, strict=True))

    def settled(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The trial that counts of each configuration that is measured, stopped early or refused, by number."""
        found: dict[tuple[Any, ...] | None, FrozenTrial] = {}
        for trial in trials:
            if is_settled(trial):
                found.setdefault(self.key(trial), trial)
        return list(found.values())

    def add(self, configurations: Sequence[Parameters], trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Adds the configurations that have none of these trials yet, in order; gives the trials as they are then."""
        known = {self.key(trial) for trial in trials if _counts(trial)}
        new = {tuple(parameters[name] for name in self._distributions): parameters for parameters in configurations}
        return self._enqueued([parameters for key, parameters in new.items() if key not in known], trials)

    def recover(self) -> list[FrozenTrial]:
        """Gives back the configurations of processes that died; gives the trials as they are then."""
        trials = self.trials()
        running = (trial for trial in trials if trial.state == TrialState.RUNNING and trial.number not in self._mine)
        if stale := [trial for trial in running if self._is_stale(trial)]:
            for trial in stale:
                self._fail(trial.number)
            trials = self.trials()
        known = {self.key(trial) for trial in trials if _counts(trial) or trial.user_attrs.get(_DROPPED) == SURPLUS}
        lost = {
            key: self.parameters(trial)
            for trial in trials
            if trial.state == TrialState.FAIL and not _counts(trial) and _DROPPED not in trial.user_attrs
            if (key := self.key(trial)) is not None and key not in known
        }
        return self._enqueued(list(lost.values()), trials)

    def _enqueued(self, configurations: Sequence[Parameters], trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """The trials after these configurations were added to them."""
        for parameters in configurations:
            self.study.enqueue_trial(dict(parameters))
        return self.trials() if configurations else trials

    def claim(self) -> tuple[optuna.Trial, list[FrozenTrial]] | None:
        """A trial to measure: one that waits, or else a new one of the sampler's; None where another process has it.

        Beside it are all trials, as they are after it began.
        """
        trial = self.study.ask(self._distributions)
        self._mine.add(trial.number)
        try:
            trial.set_user_attr(_BEAT, 0)
        except OptunaError:  # given back by a process that could not tell whose it was
            return None
        trials = self.trials()
        if self._has_rival(trial.number, trials):
            self.drop(trial, "duplicate")
            return None
        return trial, trials

    def drop(self, trial: optuna.Trial, reason: str) -> None:
        """Ends a trial that does not count."""
        self._end(trial, TrialState.FAIL, {_DROPPED: reason})

    def give_back(self) -> None:
        """Ends the trials of this process; another one, or a later one, shall measure what they are of.

        So are those without a sign of life: a signal may have come before this process knew that it has one.
        """
        for trial in self.trials():
            is_new = _BEAT not in trial.user_attrs
            if trial.state == TrialState.RUNNING and (is_new or trial.number in self._mine):
                self._fail(trial.number)
        self.recover()

    def settle(
        self,
        trial: optuna.Trial,
        attributes: Mapping[str, Any],
        values: Sequence[float] | None,
        short: float | None = None,
    ) -> bool:
        """Records a result; `values` None is a trial that was stopped early. False where it counts no longer.

        short: what it lacks of the least speed, for the sampler, which prefers trials that lack nothing.
        """
        if self._has_rival(trial.number, self.trials()):
            self.drop(trial, "duplicate")
            return False
        state = TrialState.PRUNED if values is None else TrialState.COMPLETE
        return self._end(trial, state, attributes, values, short)

    def refuse(self, trial: optuna.Trial, reason: str) -> None:
        """Records that a configuration cannot be measured, so that nobody tries again."""
        self._end(trial, TrialState.FAIL, {_REFUSED: reason})

    def _end(
        self,
        trial: optuna.Trial,
        state: TrialState,
        attributes: Mapping[str, Any] | None = None,
        values: Sequence[float] | None = None,
        short: float | None = None,
    ) -> bool:
        """Ends a trial; False where it was taken from this process, which was thought dead."""
        try:
            for name, value in (attributes or {}).items():
                trial.set_user_attr(name, value)
            if short is not None:
                trial.set_constraint(_SPEED, short)
            self.study.tell(trial, values, state)
        except (OptunaError, ValueError):
            return False
        return True

    @contextmanager
    def alive(self, trial: optuna.Trial) -> Iterator[None]:
        """Shows signs of life in a trial while the block runs."""
        ended = threading.Event()

        def beat() -> None:
            for count in itertools.count(1):
                if ended.wait(self.lease / _BEATS_A_LEASE):
                    return
                with suppress(OptunaError, SQLAlchemyError, OSError):  # settling reports a storage that is gone
                    trial.set_user_attr(_BEAT, count)

        thread = threading.Thread(target=beat, name="sign of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def others_running(self, trials: Sequence[FrozenTrial]) -> bool:
        return any(trial.state == TrialState.RUNNING and trial.number not in self._mine for trial in trials)

    def _has_rival(self, number: int, trials: Sequence[FrozenTrial]) -> bool:
        """Whether another trial of the same configuration counts instead of this one."""
        key = self.key(trials[number])
        same = (trial for trial in trials if trial.number != number and _counts(trial) and self.key(trial) == key)
        return any(is_settled(trial) or trial.number < number for trial in same)

    def _is_stale(self, trial: FrozenTrial) -> bool:
        beat, now = int(trial.user_attrs.get(_BEAT, -1)), time.monotonic()
        last, since = self._seen.get(trial.number, (None, now))
        if last != beat:
            since = now
        self._seen[trial.number] = (beat, since)
        return now - since >= self.lease

    def _fail(self, number: int) -> None:
        with suppress(OptunaError, ValueError):  # it ended just now
            self.study.tell(number, state=TrialState.FAIL)


def is_settled(trial: FrozenTrial) -> bool:
    return trial.state in _SETTLED or _REFUSED in trial.user_attrs


def refusal(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(_REFUSED, ""))


def _counts(trial: FrozenTrial) -> bool:
    """Whether the configuration needs no other trial."""
    if trial.state == TrialState.FAIL:
        return _REFUSED in trial.user_attrs
    return _DROPPED not in trial.user_attrs
