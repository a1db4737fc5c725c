"""Every configuration transformers accepts, fed in any way, gives what transformers' full forward gives."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from transformers.models.blt import modeling_blt

import patching_oracle
import tiny_models
from conftest import LONGEST, Exported, Text, tiny_oracle
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.bundle.contract import CacheSpec
from edgeblt.runtime.opened_graphs import CHUNK_BYTES
from edgeblt.runtime.session import ROLLBACK_BYTES, Session
from edgeblt.runtime.state.cache import KeyValueCache, rotation_frequencies
from float64_oracle import Float32Results, Float64Oracle
from sampled import mostly_slow

SEEDS = [seed for seed, _ in tiny_models.seeded_configs()]
CHUNKS = (1, 1, 1, 1, 2, 3, 5, 8, 17, 40, 64, 100, 150, CHUNK_BYTES + 20)
STEPS = 16


@dataclass
class Walk:
    """A session that wanders over two texts with a common beginning, going back and forking on its way."""

    session: Session
    texts: tuple[Text, Text]
    common: int
    text: int = 0

    def step(self, rng: random.Random) -> None:
        """Feed a chunk; then often go back, and where both texts agree perhaps go on with the other."""
        if self.session.position == LONGEST:
            self.session.rollback(rng.randrange(LONGEST))
        if self.session.position <= self.common:
            self.text = rng.randrange(2)
        text = self.texts[self.text]
        text.feed(self.session, min(self.session.position + rng.choice(CHUNKS), LONGEST))
        if rng.random() < 0.4:
            self.session.rollback(self._earlier(rng))

    def _earlier(self, rng: random.Random) -> int:
        """A position to go back to: near, just within reach, far, or where patches open again."""
        position = self.session.position
        starts = np.flatnonzero(self.texts[self.text].patch_starts[:position]) + 1
        near_start = int(rng.choice(starts[-12:])) - rng.randrange(2)
        back = rng.choice([1, rng.randint(2, 9), rng.randint(10, ROLLBACK_BYTES), ROLLBACK_BYTES, rng.randint(65, 150)])
        return rng.choice([near_start, near_start, *[max(position - back, 0)] * 6, 0])

    def fork(self) -> "Walk":
        return Walk(self.session.fork(), self.texts, self.common, self.text)


@pytest.mark.parametrize("seed", mostly_slow(SEEDS, tiny_models.VARIED_SEEDS))
def test_any_way_of_feeding_equals_the_full_forward(exported: Callable[[int], Exported], seed: int) -> None:
    model, rng = exported(seed), random.Random(seed)
    common = rng.randint(150, 300)
    texts = model.texts(seed, common)
    patching = model.model.config.patching
    for text in texts:
        expected = patching_oracle.patch_starts(patching, text.entropies, text.ids)
        np.testing.assert_array_equal(text.patch_starts, expected)

    whole = model.model.session()
    texts[0].check(slice(0, LONGEST), whole.feed(texts[0].ids))
    whole.rollback(0)
    texts[1].feed(whole, LONGEST)

    walks = [Walk(model.model.session(), texts, common)]
    for step in range(STEPS):
        for walk in list(walks):
            walk.step(rng)
        if step % 8 == 4:
            walks.append(rng.choice(walks).fork())
    for walk in walks:
        walk.texts[walk.text].feed(walk.session, LONGEST)


@pytest.mark.parametrize("seed", [0, 1, 24])
def test_the_reference_computes_in_float64(seed: int) -> None:
    """Nothing but angles, position times frequency, and what only moves numbers gives float32."""
    exact = Float64Oracle(tiny_oracle(seed))
    with Float32Results() as seen:
        exact.logits(tiny_models.random_ids(seed, 50))
        exact.entropies(tiny_models.random_ids(seed, 50))
    moves = {"slice", "select", "_to_copy", "unsqueeze", "view", "clone", "expand", "detach"}
    assert {name.split(".")[1] for name in seen.names} <= moves | {"mul"}


def test_walks_go_everywhere(exported: Callable[[int], Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    """Going back happens both ways, caches move their content, and a patch that was closed opens again."""
    seen = set()
    rollback = Session.rollback

    def watched(session: Session, position: int) -> None:
        before = session.patch_count
        if 0 < position < session.position:
            instant = session.state.can_rewind(position)
            seen.add("instant" if instant else "fed again")
            if instant and all(cache.first for cache in windowed(session)):
                seen.add("instant after a move")
        rollback(session, position)
        if session.patch_count < before:
            seen.add("opened again")

    monkeypatch.setattr(Session, "rollback", watched)
    rng = random.Random(0)
    walk = Walk(exported(0).model.session(), exported(0).texts(0, 200), 200)
    for _ in range(STEPS):
        walk.step(rng)
    assert seen == {"instant", "instant after a move", "fed again", "opened again"}


def windowed(session: Session) -> list[KeyValueCache]:
    caches = [cache for cache in session.state.caches.values() if cache.spec.window]
    assert len(caches) == 3
    return caches


def forward(oracle: Any, ids: Sequence[int], starts: NDArray[np.bool_]) -> NDArray[np.float32]:
    """transformers' logits [T, vocab] where position t + 1 starts a patch if `starts[t]`."""
    places = np.flatnonzero([True, *starts])
    lengths = np.diff(places, append=len(ids) + 1)  # as Meta's: they sum to one more than there are bytes
    with torch.inference_mode():
        output = oracle(torch.tensor([list(ids)]), patch_lengths=torch.from_numpy(lengths)[None], use_cache=False)
    logits: NDArray[np.float32] = output.logits[0].numpy()
    return logits


@pytest.mark.parametrize("seed", [2, 10, 13, 35, 46])
def test_maximum_length_at_the_last_position(exported: Callable[[int], Exported], seed: int) -> None:
    """A patch forced to start right behind the last byte starts there, as in Meta's code."""
    model = exported(seed)
    config, ids = model.model.config, tiny_models.random_ids(seed, 100)
    entropies = tiny_models.reference_entropies(model.reference.model, ids).numpy()
    starts = patching_oracle.patch_starts(config.patching, entropies, ids)
    free = dataclasses.replace(config.patching, max_patch_length=None)
    forced = np.flatnonzero(starts & ~patching_oracle.patch_starts(free, entropies, ids)) + 1
    assert len(forced) >= 3
    for end in map(int, forced):
        logits = forward(model.reference.model, ids[:end], starts[:end])
        text = Text.of(model.exact, ids[:end], logits, starts[:end])
        text.feed(model.model.session(), end)


RULES = {
    "monotonic": Rule.MONOTONIC,
    "threshold and rise": Rule.THRESHOLD_AND_RISE,
    "space": Rule.SPACE,
    "threshold": Rule.THRESHOLD,
}


RULE_SEEDS = (5, 23, 32)
RULE_CASES = list(itertools.product(RULES, (None, 4)))


@pytest.mark.parametrize(
    ("rule_name", "maximum", "seed"),
    mostly_slow(
        [(*case, seed) for case in RULE_CASES for seed in RULE_SEEDS],
        keep=[(*case, RULE_SEEDS[number % 3]) for number, case in enumerate(RULE_CASES)],
    ),
)
def test_rules_that_transformers_lacks(
    exported: Callable[[int], Exported],
    tmp_path: Path,
    rule_name: str,
    maximum: int | None,
    seed: int,
) -> None:
    """Its forward takes patch lengths, so the rest of the model can be compared under any rule."""
    rule = RULES[rule_name]
    model, ids = exported(seed), tiny_models.random_ids(seed, 200)
    oracle = model.reference.model
    entropies = tiny_models.reference_entropies(oracle, ids).numpy()
    patching = PatchingRule(rule, *thresholds(rule, entropies), max_patch_length=maximum)
    starts = patching_oracle.patch_starts(patching, entropies, ids)
    assert len(ids) / 10 < np.count_nonzero(starts) < 0.7 * len(ids)

    session = model.with_rule(patching, tmp_path / "bundle").session()
    text, rng = Text.of(model.exact, ids, forward(oracle, ids, starts), starts), random.Random(seed)
    if not rule.needs_entropies:
        text = text.without_entropies()
    while session.position < len(ids):
        text.feed(session, min(session.position + rng.choice(CHUNKS), len(ids)))
        if rng.random() < 0.5:
            session.rollback(max(session.position - rng.choice([1, 2, 9, 70]), 0))


def thresholds(rule: Rule, entropies: NDArray[np.float32]) -> tuple[float, float]:
    """(threshold, threshold_add) that start a patch at some positions, each away from every value it is compared to."""
    rises = np.diff(entropies)
    if rule is Rule.MONOTONIC:
        return between(rises, 0.7), 0.0
    if rule is Rule.THRESHOLD_AND_RISE:
        return between(entropies, 0.3), between(rises, 0.4)
    return between(entropies, 0.7), 0.0


def between(values: NDArray[np.float32], share: float) -> float:
    """The middle of the widest gap near the value that `share` of all are below."""
    ordered = np.sort(values.astype(np.float64))
    first = int(share * len(ordered)) - 5
    widest = first + int(np.diff(ordered[first : first + 10]).argmax())
    assert ordered[widest + 1] - ordered[widest] > 1e-3
    return float(ordered[widest] + ordered[widest + 1]) / 2


@pytest.mark.parametrize("theta", [100.0, 10000.0, 500000.0, 1e6])
@pytest.mark.parametrize("rotary_dim", [2, 4, 6, 10, 16, 48, 64, 128])
def test_frequencies_are_those_of_transformers(theta: float, rotary_dim: int) -> None:
    """A step of float32 in a frequency is an error of an angle that grows with the position."""
    spec = CacheSpec("fp32", "float32", 1, 1, rotary_dim, None, rotary_dim, theta)
    ours = rotation_frequencies(spec)
    config = transformers.BltConfig().patcher_config
    config.head_dim, config.rope_parameters = rotary_dim, {"rope_type": "default", "rope_theta": theta}
    theirs = modeling_blt.BltRotaryEmbedding(config).inv_freq.numpy()
    steps = np.abs(ours.astype(np.float64) - theirs) / np.spacing(theirs)
    assert steps.max() <= 1 and np.count_nonzero(steps) <= rotary_dim // 32
