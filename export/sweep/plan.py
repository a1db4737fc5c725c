"""Plans of a sweep: all combinations of recipes and settings, or a search over formats by part."""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from edgeblt.errors import EdgebltError
from edgeblt.export.sweep.measuring import Configuration
from edgeblt.export.sweep.space import PACKAGED_STARTS, Space
from edgeblt.measure.sweep_result import SweepTrial
from edgeblt.quant.recipes.recipe import load_recipe, packaged_recipes
from edgeblt.quant.recipes.recipe_text import recipe_text

OWN = "own"  # the value of a setting that is left to the bundle
_DRAWS = 200  # random changes of good configurations to try for one that is new


class Plan(Protocol):
    """Parameters of the trials, and what they mean."""

    distributions: dict[str, BaseDistribution]
    sampler: BaseSampler
    wanted: int  # trials, those over the budget of size not counted

    def described(self) -> object:
        """Everything that processes with one study must agree on."""
        ...

    def starts(self) -> list[dict[str, str]]:
        """Parameters of the first trials."""
        ...

    def following(self, trials: Sequence[SweepTrial]) -> list[dict[str, str]]:
        """Parameters of trials that follow from those settled."""
        ...

    def unseen(self, seen: Sequence[dict[str, Any]], best: Sequence[dict[str, str]]) -> dict[str, str] | None:
        """Parameters that no trial has, near one of the best; None where there are no others."""
        ...

    def configuration(self, parameters: dict[str, Any]) -> Configuration: ...

    def packaged(self, parameters: dict[str, Any]) -> str:
        """The recipe of the package with these parameters, or an empty text."""
        ...

    def sensitivity(self, trials: Sequence[SweepTrial]) -> dict[str, float]:
        """Gain of each part's finest choice, in bits per byte."""
        ...


@dataclass(frozen=True)
class Settings:
    """Values of the settings beside the recipe; in a search one of each. Raises EdgebltError for one out of range."""

    thresholds: tuple[float | None, ...] = (None,)
    providers: tuple[str | None, ...] = (None,)
    threads: tuple[int | None, ...] = (None,)

    def __post_init__(self) -> None:
        for threshold in self.thresholds:
            if threshold is not None and not math.isfinite(threshold):
                raise EdgebltError(f"a threshold is {threshold:g}; give numbers of nats, such as 1.5")
        for threads in self.threads:
            if threads is not None and threads < 1:
                raise EdgebltError(f"a number of threads is {threads}; it must be at least 1")


class Grid:
    """All combinations of recipes, thresholds, providers and numbers of threads."""

    def __init__(self, recipes: Sequence[str | Path], settings: Settings) -> None:
        """Raises EdgebltError for a recipe that cannot be read."""
        self._recipes = {str(recipe): load_recipe(recipe) for recipe in recipes}
        self._values: dict[str, dict[str, Any]] = {
            "recipe": self._recipes,
            "threshold": {_named(value): value for value in settings.thresholds},
            "provider": {_named(value): value for value in settings.providers},
            "threads": {_named(value): value for value in settings.threads},
        }
        self.distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(list(values)) for name, values in self._values.items()
        }
        self.sampler: BaseSampler = RandomSampler()  # never asked: every combination is a trial from the start
        self._all = [dict(zip(self._values, row, strict=True)) for row in itertools.product(*self._values.values())]
        self.wanted = len(self._all)

    def described(self) -> object:
        recipes = {name: recipe_text(recipe) for name, recipe in self._recipes.items()}
        return {name: list(values) for name, values in self._values.items()} | {"recipes": recipes}

    def starts(self) -> list[dict[str, str]]:
        return self._all

    def following(self, trials: Sequence[SweepTrial]) -> list[dict[str, str]]:
        return []

    def unseen(self, seen: Sequence[dict[str, Any]], best: Sequence[dict[str, str]]) -> dict[str, str] | None:
        return None

    def configuration(self, parameters: dict[str, Any]) -> Configuration:
        chosen = {name: values[parameters[name]] for name, values in self._values.items()}
        return Configuration(**chosen)

    def packaged(self, parameters: dict[str, Any]) -> str:
        name: str = parameters["recipe"]
        own = all(parameters[setting] == OWN for setting in ("threshold", "provider", "threads"))
        return name if own and name in packaged_recipes() else ""

    def sensitivity(self, trials: Sequence[SweepTrial]) -> dict[str, float]:
        return {}


class Search:
    """A search over a format for each part: first what the package has and each part alone, then a sampler's trials."""

    def __init__(self, space: Space, settings: Settings, wanted: int, seed: int) -> None:
        """Raises EdgebltError for several values of a setting."""
        for name, values in vars(settings).items():
            if len(values) > 1:
                raise EdgebltError(f"a search has one value of {name}, not {len(values)}; give --recipe for a grid")
        self._space, self._settings, self.wanted, self._seed = space, settings, wanted, seed
        self.distributions: dict[str, BaseDistribution] = {
            part: CategoricalDistribution(list(choices)) for part, choices in space.parts.items()
        }
        self.sampler: BaseSampler = TPESampler(seed=seed)
        self._packaged = {
            _key(choices): name
            for name in (*PACKAGED_STARTS, *packaged_recipes())
            if (choices := space.choices(load_recipe(name)))
        }

    def described(self) -> object:
        parts = {
            part: {name: repr(choice) for name, choice in choices.items()}
            for part, choices in self._space.parts.items()
        }
        return {"parts": parts, "settings": vars(self._settings), "kv_cache": self._space.kv_cache}

    def starts(self) -> list[dict[str, str]]:
        return self._space.starts()

    def following(self, trials: Sequence[SweepTrial]) -> list[dict[str, str]]:
        smallest, measured = self._smallest(trials), _by_settings(trials)
        gains = {}
        for part, gain in self.sensitivity(trials).items():
            finest = measured[_key(self._space.smallest() | {part: self._space.finest(part)})]
            assert smallest and smallest.bundle_bytes is not None and finest.bundle_bytes is not None
            gains[part] = gain / max(finest.bundle_bytes - smallest.bundle_bytes, 1)
        return self._space.ladder(gains) if len(gains) == len(self._space.parts) else []

    def unseen(self, seen: Sequence[dict[str, Any]], best: Sequence[dict[str, str]]) -> dict[str, str] | None:
        known = {_key(parameters) for parameters in seen}
        drawn = random.Random(f"{self._seed} {len(seen)}")
        for _ in range(_DRAWS):
            choices = dict(drawn.choice(best)) if best else self._space.smallest()
            for part in drawn.sample(list(self._space.parts), drawn.choice((1, 2))):
                choices[part] = drawn.choice(list(self._space.parts[part]))
            if _key(choices) not in known:
                return choices
        return self._space.unseen(seen)

    def configuration(self, parameters: dict[str, Any]) -> Configuration:
        settings = self._settings
        recipe = self._space.recipe(parameters, self.packaged(parameters) or "found")
        return Configuration(recipe, settings.thresholds[0], settings.providers[0], settings.threads[0])

    def packaged(self, parameters: dict[str, Any]) -> str:
        return self._packaged.get(_key(parameters), "")

    def sensitivity(self, trials: Sequence[SweepTrial]) -> dict[str, float]:
        smallest, measured = self._smallest(trials), _by_settings(trials)
        if smallest is None or smallest.bits_per_byte is None:
            return {}
        found = {}
        for part in self._space.parts:
            finest = measured.get(_key(self._space.smallest() | {part: self._space.finest(part)}))
            if finest and finest.bits_per_byte is not None:
                found[part] = smallest.bits_per_byte - finest.bits_per_byte
        return found

    def _smallest(self, trials: Sequence[SweepTrial]) -> SweepTrial | None:
        return _by_settings(trials).get(_key(self._space.smallest()))


def digest(*described: object) -> str:
    """A short text that changes with what is described."""
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=repr).encode()).hexdigest()[:32]


def _named(value: float | str | None) -> str:
    return OWN if value is None else str(value)


def _key(parameters: dict[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)


def _by_settings(trials: Sequence[SweepTrial]) -> dict[str, SweepTrial]:
    return {_key(trial.settings): trial for trial in trials}
