"""From logits to the next byte, defined for every vector of float32.

Only bytes and ids that end a text are sampled; the logits of other ids have no effect. If one that may be sampled has
NaN, or none is above -inf, the model has failed: that is an EdgebltError. Ids with +inf share all probability evenly.

The order of what acts on the logits: biases, rules (a penalty on repetition, UTF-8, a constraint), temperature, top-k,
top-p, min-p; each sees the distribution that those before it leave. docs/generation.md has the table of all settings.
"""

import copy
import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.random import SeedSequence, default_rng  # imported by name, or numpy would load it only with the first text
from numpy.typing import NDArray

from edgeblt.arguments import real_number, whole_number
from edgeblt.decoding.cuts import Cuts
from edgeblt.decoding.rules import ForcingRule, TextRules
from edgeblt.errors import EdgebltError, shown
from edgeblt.ids import EOS, OFFSET, VOCAB_SIZE

Float = TypeVar("Float", np.float32, np.float64)
_SMALLEST_WEIGHT = 1e-100  # beside 1: smaller ones are near where float64 loses digits


LogitBias = Mapping[Any, float] | tuple[tuple[int | bytes | str, float], ...]


@dataclass(frozen=True)
class Sampling:
    """How an id is chosen from logits: greedy at temperature 0, else sampled from the distribution that the cuts leave.

    temperature: 0 or more; None is 0.
    top_k, top_p, min_p: cuts, in this order; None is no cut.
    seed: makes samples repeatable; None gives others every time.
    logit_bias: nats added to the logits of bytes (as bytes or str of one byte) and of ids (as int); -inf forbids one.
        Kept as pairs of id and nats.

    Raises EdgebltError for values out of range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    min_p: float | None = None
    logit_bias: LogitBias = ()

    def __post_init__(self) -> None:
        if self.temperature is not None:
            rest = "it must be 0 (greedy) or a positive number"
            temperature = real_number("temperature", self.temperature, rest)
            if temperature < 0:
                raise EdgebltError(f"temperature is {shown(self.temperature)}; {rest}")
            object.__setattr__(self, "temperature", temperature)
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole_number("top_k", self.top_k, 1))
        for name in ("top_p", "min_p"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _share(name, getattr(self, name)))
        if self.seed is not None:
            object.__setattr__(self, "seed", whole_number("seed", self.seed))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))


def _share(name: str, value: object) -> float:
    """`value` as a share above 0 and at most 1. Raises EdgebltError."""
    rest = "it must be above 0 and at most 1"
    share = real_number(name, value, rest)
    if not 0 < share <= 1:
        raise EdgebltError(f"{name} is {shown(value)}; {rest}")
    return share


def _biases(given: object) -> tuple[tuple[int, float], ...]:
    """Pairs of id and nats, by id. Raises EdgebltError."""
    try:
        pairs = dict(given)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise EdgebltError(f"logit_bias is {shown(given)}; it must map bytes or ids to nats") from None
    return tuple(sorted({_biased_id(key): _nats(key, nats) for key, nats in pairs.items()}.items()))


def _biased_id(key: object) -> int:
    if isinstance(key, bytes | str):
        data = key if isinstance(key, bytes) else key.encode(errors="surrogatepass")
        if len(data) != 1:
            raise EdgebltError(f"logit_bias has {shown(key)}, which is {len(data)} bytes; give each byte its own nats")
        return data[0] + OFFSET
    return whole_number("an id in logit_bias", key)


def _nats(key: object, nats: object) -> float:
    if isinstance(nats, float) and nats == -math.inf:
        return nats
    return real_number(f"logit_bias of {shown(key)}", nats, "it must be a number of nats, or -inf to forbid it")


class Sampler:
    """Samples ids one after the other; the same seed and logits give the same ids.

    Each position has its own random numbers. `foresee` uses those of later positions, so that a drafter's logits, which
    resemble the model's, mostly give the id that the model's will. Besides bytes only `ends` are sampled, the ids that
    end a text, which may be ids of bytes too; with `endless` there are none. `rules` are those of one text, which
    follow the ids sampled; without them a sampler may be used for several.

    kind: samplers of one kind, unless it is empty, can be asked together (`sampling_rows.py`).
    """

    def __init__(
        self,
        sampling: Sampling,
        endless: bool = False,
        ends: Collection[int] = (EOS,),
        rules: TextRules | None = None,
    ) -> None:
        self.ends = frozenset(() if endless else ends)
        self.sampling, self._rules, self.has_rules = sampling, rules, rules is not None
        self._random = default_rng(sampling.seed)
        # A model may have more ids, which stand for no byte.
        self._width = max([VOCAB_SIZE, *(end + 1 for end in self.ends)])
        others = (*range(OFFSET), *range(VOCAB_SIZE, self._width))
        never = {id for id in others if id not in self.ends}
        biases = {id: nats for id, nats in sampling.logit_bias if isinstance(id, int) and id < self._width}
        self._sampled = [id for id in range(self._width) if id not in never]  # where nothing is forbidden
        self._never = sorted(never | {id for id, nats in biases.items() if nats == -math.inf})
        finite = {id: nats for id, nats in biases.items() if nats != -math.inf and id not in never}
        self._biased, self._nats = list(finite), np.array(list(finite.values()), np.float64)
        self._is_plain = not finite and rules is None
        self.temperature = sampling.temperature or 0.0
        self.cuts = Cuts.of(sampling.top_k, sampling.top_p, sampling.min_p)
        self._has_cuts = any(self.cuts.kinds)
        self.kind = (self._width, *self._never, *self.cuts.kinds) if self._is_plain and self.temperature else ()
        self._times: deque[NDArray[np.float64]] = deque()  # for each coming position, exponential random times by id

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Sample the next id from `logits` [vocab]. Raises EdgebltError as `foresee`."""
        chosen = self.foresee(logits, 0)
        self.take(chosen)
        return chosen

    def take(self, id: int) -> None:
        """Go on to the next position, after `id`, which `choose` gives for this one."""
        if self._times:
            self._times.popleft()
        if self._rules:
            self._rules.take(id)

    @property
    def entropy(self) -> int:
        """The number that the random numbers are made from: the seed, or another one."""
        sequence = self._random.bit_generator.seed_seq
        assert isinstance(sequence, SeedSequence) and isinstance(sequence.entropy, int)
        return sequence.entropy

    def resume(self, ids: Sequence[int], entropy: int) -> None:
        """Go on after `ids` of this text, which a sampler with this `entropy` sampled; for a new sampler only."""
        self._random = default_rng(entropy)
        for id in ids:
            if self.temperature:
                self._random.standard_exponential(self._width)
            if self._rules:
                self._rules.take(id)

    @property
    def is_complete(self) -> bool:
        """Whether the rules allow no byte after the text."""
        return self._rules is not None and self._rules.is_complete

    def forced(self, most: int) -> list[int]:
        """At most `most` ids that must follow whatever the logits, as if they had been sampled."""
        taken: list[int] = []
        if self._rules is None or self._rules.is_complete:
            return taken
        for id in self._rules.forced()[:most]:
            if id in self._never or id in self.ends:  # an error at the next choice
                break
            if self._times:
                self._times.popleft()
            elif self.temperature:
                self._random.standard_exponential(self._width)
            self._rules.take(id)
            taken.append(id)
        return taken

    def trial(self) -> "Sampler":
        """A sampler for drafts after the text, with the same random numbers; `suppose` leaves this one as it is."""
        if self._rules is None:
            return self
        other = copy.copy(self)
        other._rules = self._rules.fork()
        return other

    def suppose(self, id: int) -> None:
        """Go on to the text that `id` continues, drafted with the random numbers of its position."""
        if self._rules:
            self._rules.take(id)

    def allowed_ids(self, ids: list[int]) -> int:
        """How many of `ids`, one after the other, the rules allow."""
        if self._rules is None:
            return len(ids)
        return self._rules.permitted(ids)

    def foresee(self, logits: NDArray[np.float32], ahead: int) -> int:
        """Id that `choose` would give for these logits after `ahead` other ids.

        Raises EdgebltError where an id that may be sampled has NaN, or all have -inf.
        """
        if self.temperature:
            self._draw(ahead)
        if self._rules and self._rules.forcing and (self.temperature == 0 or not self._has_cuts):
            chosen = self._permitted(self._rules.forcing, logits, ahead)
            if chosen is not None:
                return chosen
        if self.temperature == 0:
            return self._likeliest(logits)
        return int(self._arrivals(self.distribution(logits), ahead).argmin())

    def _draw(self, ahead: int) -> None:
        while len(self._times) <= ahead:
            self._times.append(self._random.standard_exponential(self._width))

    @property
    def times(self) -> NDArray[np.float64]:
        """Exponential random times by id of the next position, above temperature 0."""
        self._draw(0)
        return self._times[0]

    def without_forbidden(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows [n, vocab] of logits as [n, ids], -inf at ids that are never sampled, without biases and rules."""
        allowed = rows[:, : self._width].copy()
        allowed[:, self._never] = -np.inf
        return allowed

    def _arrivals(self, weights: NDArray[np.float64], ahead: int) -> NDArray[np.float64]:
        """Times of exponential events with these rates; the first of them is a sample."""
        times = np.full(self._width, np.inf)
        with np.errstate(all="ignore"):
            np.divide(self._times[ahead], weights, out=times, where=weights > 0)
        return times

    def _permitted(self, forcing: ForcingRule, logits: NDArray[np.float32], ahead: int) -> int | None:
        """The id that is sampled from what `forcing` permits; None where float64 cannot tell.

        Without cuts the id sampled from all is the one sampled from fewer, if it is among them: mostly it need only be
        asked whether that id is permitted, not which ids are.
        """
        try:
            allowed = self._allowed(logits, with_forcing=False)
        except EdgebltError:  # perhaps because of ids that are not permitted
            return None
        if self.temperature == 0:
            scores = allowed
        else:
            weights = _weights(allowed, self.temperature)
            scores = -self._arrivals(weights, ahead)
        chosen = int(scores.argmax())
        if forcing.permitted([chosen]):
            return chosen
        scores = scores.astype(np.float64)
        forcing.adjust(scores)
        chosen = int(scores.argmax())
        certain = scores[chosen] > -math.inf and (self.temperature == 0 or weights[chosen] > _SMALLEST_WEIGHT)
        return chosen if certain else None

    def likelihood(self, logits: NDArray[np.float32], id: int) -> float:
        """Heuristic probability that the model's logits give `id`, which `foresee` gave for a drafter's `logits`."""
        weights = _weights(self._allowed(logits), 1.0)
        share = float(weights[id] / weights.sum())
        return share if self.temperature == 0 else 0.5 + share / 2  # both use the same random numbers

    def distribution(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probability of each id, float64, in what `choose` samples at a temperature above 0. Raises as `foresee`."""
        weights = _weights(self._allowed(logits), self.temperature)[None]
        self.cuts.normalize(weights)
        distribution: NDArray[np.float64] = weights[0]
        return distribution

    def _likeliest(self, logits: NDArray[np.float32]) -> int:
        likeliest = int(logits[: self._width].argmax())  # the first NaN, if there is one
        if self._is_plain and likeliest not in self._never and -math.inf < logits[likeliest]:
            return likeliest
        return int(self._allowed(logits).argmax())

    def _allowed(self, logits: NDArray[np.float32], with_forcing: bool = True) -> NDArray[Any]:
        """Logits, biased in float64, with -inf at ids that are never sampled. Raises EdgebltError as `foresee`."""
        allowed: NDArray[Any] = logits[: self._width].astype(np.float32 if self._is_plain else np.float64)
        if self._biased:
            allowed[self._biased] += self._nats
        if self._rules:
            self._rules.adjust(allowed, with_forcing)
        allowed[self._never] = -np.inf
        largest = allowed[allowed.argmax()]
        if math.isnan(largest):
            raise EdgebltError(
                "the model computes values that are not numbers, too large for its number format; export it for the"
                " target cpu, or see with `edgeblt validate` which text does it"
            )
        if largest == -math.inf and logits[: self._width][self._sampled].max() > -math.inf:
            raise EdgebltError(
                "logit_bias, utf8 and constraint together forbid every byte that the model gives a probability; forbid"
                " fewer"
            )
        if largest == -math.inf:
            raise EdgebltError(
                "the model gives every byte a logit of -inf, so there is nothing to choose from; export it for the"
                " target cpu, or give another checkpoint"
            )
        return allowed


def _weights(logits: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Unnormalized probabilities, float64, the largest being 1."""
    largest = logits.max()
    if largest == np.inf:
        return np.isposinf(logits).astype(np.float64)
    wide = logits.astype(np.float64)
    with np.errstate(all="ignore"):  # a temperature near 0 may divide beyond float64; exp makes that 0
        weights: NDArray[np.float64] = np.exp((wide - np.float64(largest)) / temperature)
    return weights


def log_softmax(logits: NDArray[Float]) -> NDArray[Float]:
    """Log-probabilities in nats along the last axis, in the logits' own precision.

    Entries of +inf share all the probability; a row with NaN, or with nothing above -inf, has NaN everywhere.
    """
    with np.errstate(all="ignore"):
        largest = logits.max(axis=-1, keepdims=True)
        if np.isposinf(largest).any():
            logits = np.where(np.isposinf(largest), np.where(np.isposinf(logits), 0, -np.inf), logits)
            largest = np.where(np.isposinf(largest), 0, largest)
        shifted = logits - largest
        result: NDArray[Float] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
