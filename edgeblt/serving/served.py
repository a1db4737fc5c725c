"""Models that are served: an engine each, its slots, and what has come out of it lately."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgeblt.batching.engine import Engine
from edgeblt.errors import shown
from edgeblt.model import Model
from edgeblt.runtime.machine.memory import available_memory
from edgeblt.serving.api.refusals import RefusedError
from edgeblt.serving.options import ServingLimits
from edgeblt.serving.slots import Slots

_MEMORY = 4 << 30  # bytes taken to be free where nothing says how many are
_WINDOW_S = 5.0  # seconds over which the bytes a second are counted


@dataclass
class ServedModel:
    """One bundle, open, with its engine.

    created: when it was opened, seconds since 1970.
    scoring: held while a text is scored with another threshold, on an engine of its own.
    """

    name: str
    model: Model
    engine: Engine
    slots: Slots
    created: int = field(default_factory=lambda: int(time.time()))
    scoring: asyncio.Lock = field(default_factory=asyncio.Lock)
    _seen: deque[tuple[float, int]] = field(default_factory=deque)  # times, bytes generated until then

    @property
    def has_failed(self) -> bool:
        """Whether the engine takes no texts any more."""
        return not self.engine.is_running

    @property
    def threshold(self) -> float | None:
        """Patching threshold in nats; None where the rule has none."""
        rule = self.model.config.patching
        if not rule.rule.needs_entropies:
            return None
        return rule.threshold if self.model.threshold is None else self.model.threshold

    @property
    def fingerprint(self) -> str:
        """Short identity of the bundle and of its threshold."""
        changed = "" if self.model.threshold is None else f"-{self.model.threshold:g}"
        return f"{self.model.bundle.id}{changed}"

    def bytes_per_second(self) -> float:
        """Bytes generated a second in the last seconds, to be asked for from time to time."""
        now, count = time.monotonic(), self.engine.counts.generated_bytes
        while len(self._seen) > 1 and self._seen[1][0] <= now - _WINDOW_S:
            self._seen.popleft()
        self._seen.append((now, count))
        since, before = self._seen[0]
        return (count - before) / (now - since) if now > since else 0.0

    def close(self) -> None:
        """End the engine and free the model."""
        self.engine.close()
        self.model.close()


class ServedModels:
    """All models by name, in the order given."""

    def __init__(self, models: Sequence[tuple[str, Model]], limits: ServingLimits) -> None:
        """Start an engine for each model; the memory that is free is divided among them."""
        memory = (available_memory() or _MEMORY) // 2 // len(models)
        self._by_name = {
            name: ServedModel(name, model, model.engine(limits.slots, memory), Slots(limits)) for name, model in models
        }

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._by_name.values())

    def chosen(self, name: str | None) -> ServedModel:
        """The model of a name, the first for None. Raises RefusedError for an unknown one."""
        if name is None:
            return next(iter(self._by_name.values()))
        if name not in self._by_name:
            there = ", ".join(self._by_name)
            raise RefusedError(
                404, f"there is no model {shown(name)}; use {there}", param="model", code="model_not_found"
            )
        return self._by_name[name]

    def close(self) -> None:
        for served in self._by_name.values():
            served.close()
