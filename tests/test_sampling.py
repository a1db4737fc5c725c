"""Choosing from any logits that float32 can hold, at any setting: a defined id or a sentence, and never a warning."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeblt.decoding.sampling import Sampler, Sampling, log_softmax
from edgeblt.errors import EdgebltError
from edgeblt.ids import EOS, OFFSET, VOCAB_SIZE

INF, NAN = np.inf, np.nan
SMALLEST, LARGEST = 5e-324, 1.7976931348623157e308
EDGES = [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 3.4028235e38, -3.4028235e38, 1e-45, -1e-45, 1e-40, 88.7, -103.9]
PATTERNS = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32))  # signaling NaN too
VALUES = st.sampled_from([np.float32(edge) for edge in EDGES]) | PATTERNS


@st.composite
def vectors(draw: st.DrawFn) -> NDArray[np.float32]:
    """Some one value in most places, others in a few; the special ids get values of their own."""
    logits = np.full(VOCAB_SIZE, draw(VALUES), np.float32)
    for place, value in draw(st.dictionaries(st.integers(0, VOCAB_SIZE - 1), VALUES, max_size=12)).items():
        logits[place : place + 1].view(np.uint32)[:] = np.float32(value).view(np.uint32)
    for special in range(OFFSET):
        logits[special] = draw(VALUES)
    return logits


TEMPERATURES = st.sampled_from([SMALLEST, 1e-300, 1e-3, 0.7, 1.0, 1e9, LARGEST]) | st.floats(SMALLEST, LARGEST)
TOP_KS = st.none() | st.sampled_from([1, 2, 259, 260, 10**30]) | st.integers(1, 300)
TOP_PS = st.none() | st.sampled_from([SMALLEST, 1e-12, 0.5, 1 - 2**-53, 1.0]) | st.floats(SMALLEST, 1.0)
ENDS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=3).map(tuple) | st.just((EOS,))


def undefined(logits: NDArray[np.float32], allowed: list[int]) -> str | None:
    if np.isnan(logits[allowed]).any():
        return "the model computes values that are not numbers"
    return "the model gives every byte a logit of -inf" if (logits[allowed] == -INF).all() else None


@settings(deadline=None, max_examples=400)
@given(vectors(), st.just(0.0) | TEMPERATURES, TOP_KS, TOP_PS, ENDS, st.integers(0, 5))
@example(np.full(VOCAB_SIZE, -INF, np.float32), 0.0, None, None, (EOS,), 0)
@example(np.full(VOCAB_SIZE, INF, np.float32), 1.0, 3, 0.5, (EOS,), 0)
@example(np.full(VOCAB_SIZE, 3.4e38, np.float32), SMALLEST, None, SMALLEST, (), 0)
def test_every_vector_has_an_id_or_a_sentence(
    logits: NDArray[np.float32],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    ends: tuple[int, ...],
    ahead: int,
) -> None:
    sampler = Sampler(Sampling(temperature, top_k, top_p, seed=1), ends=ends)
    allowed = sorted({*range(OFFSET, VOCAB_SIZE), *ends})
    before = logits.tobytes()
    if sentence := undefined(logits, allowed):
        calls: list[Callable[[], object]] = [lambda: sampler.choose(logits), lambda: sampler.likelihood(logits, 77)]
        calls += [lambda: sampler.distribution(logits)] if temperature else []
        for call in calls:
            with pytest.raises(EdgebltError) as refused:
                call()
            assert str(refused.value).startswith(sentence)
        return
    foreseen = sampler.foresee(logits, ahead)
    first = sampler.choose(logits)
    assert {foreseen, first} <= set(allowed) and logits.tobytes() == before
    largest = logits[allowed].max()
    if temperature == 0:
        assert first == foreseen == min(id for id in allowed if logits[id] == largest)
    else:
        chances = sampler.distribution(logits)
        assert chances.sum() == pytest.approx(1) and (chances >= 0).all()
        assert chances[first] > 0 and chances[foreseen] > 0
        assert not chances[[id for id in range(VOCAB_SIZE) if id not in allowed]].any()
        assert top_k is None or np.count_nonzero(chances) <= top_k
        if largest == INF:
            winners = [id for id in allowed if logits[id] == INF]
            assert set(np.flatnonzero(chances)) <= set(winners)
            assert len(set(chances[np.flatnonzero(chances)])) == 1  # evenly
            if top_k is None and top_p in (None, 1.0):
                assert np.flatnonzero(chances).tolist() == winners
    assert 0 <= sampler.likelihood(logits, first) <= 1


@pytest.mark.parametrize("temperature", [0.0, SMALLEST, 1.0, LARGEST])
def test_what_was_a_traceback(temperature: float) -> None:
    """+inf at a byte; nothing above -inf but at special ids; NaN where nothing is drawn."""
    sampler = Sampler(Sampling(temperature, seed=0))
    one = np.zeros(VOCAB_SIZE, np.float32)
    one[100] = INF
    assert sampler.choose(one) == 100
    one[[0, 1, 3]] = INF, NAN, INF
    assert sampler.choose(one) == 100
    none = np.full(VOCAB_SIZE, -INF, np.float32)
    none[[0, 1, 3]] = 9.0
    with pytest.raises(EdgebltError, match="every byte a logit of -inf"):
        sampler.choose(none)
    none[EOS] = -50.0
    assert sampler.choose(none) == EOS


def test_infinite_logits_share_evenly() -> None:
    logits = np.zeros(VOCAB_SIZE, np.float32)
    logits[[50, 60, 70]] = INF
    sampler = Sampler(Sampling(1e-3, seed=0))
    counts = np.bincount([sampler.choose(logits) for _ in range(3000)], minlength=VOCAB_SIZE)
    assert counts[[50, 60, 70]].sum() == 3000 and counts[[50, 60, 70]].min() > 850
    assert Sampler(Sampling()).choose(logits) == 50
    assert np.flatnonzero(Sampler(Sampling(1.0, top_k=2)).distribution(logits)).tolist() == [50, 60]


def test_ends_beyond_the_bytes() -> None:
    """A vocabulary with an id of its own for the end; other such ids are never drawn."""
    logits = np.zeros(263, np.float32)
    logits[260], logits[261], logits[262] = 9.0, 8.0, 7.0
    for temperature in (0.0, 1e-6):
        assert Sampler(Sampling(temperature, seed=0), ends=(261,)).choose(logits) == 261
        assert Sampler(Sampling(temperature, seed=0), ends=(2, 262)).choose(logits) == 262
        assert Sampler(Sampling(temperature, seed=0), endless=True, ends=(261,)).choose(logits) < 260


@settings(deadline=None, max_examples=150)
@given(st.lists(vectors(), min_size=1, max_size=3))
def test_log_softmax_of_anything(rows: list[NDArray[np.float32]]) -> None:
    """Without a warning, row by row: +inf shares evenly, NaN and nothing but -inf give NaN, all else in float64."""
    logits = np.stack(rows)
    found = log_softmax(logits)
    for row, result in zip(logits, found, strict=True):
        if np.isnan(row).any() or (row == -INF).all():
            assert np.isnan(result).all()
        elif (row == INF).any():
            count = int((row == INF).sum())
            np.testing.assert_allclose(result[row == INF], -math.log(count), rtol=1e-6, atol=1e-7)
            assert (result[row != INF] == -INF).all()
        else:
            wide = row.astype(np.float64)
            with np.errstate(all="ignore"):
                exact = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
            np.testing.assert_allclose(result[exact > -1e30], exact[exact > -1e30], rtol=1e-6, atol=1e-5)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "x"}, "temperature is 'x'; it must be 0 (greedy) or a positive number"),
    ({"temperature": True}, "temperature is True; it must be 0 (greedy) or a positive number"),
    ({"temperature": 10**400}, "temperature is 1000"),
    ({"min_p": 0}, "min_p is 0; it must be above 0 and at most 1"),
    ({"logit_bias": {"ab": 1}}, "logit_bias has 'ab', which is 2 bytes; give each byte its own nats"),
    ({"logit_bias": {"": 1}}, "logit_bias has '', which is 0 bytes; give each byte its own nats"),
    ({"logit_bias": {-1: 1}}, "an id in logit_bias is -1; it must not be negative"),
    ({"logit_bias": {b"a": math.inf}}, "logit_bias of b'a' is inf; it must be a number of nats, or -inf to forbid it"),
    ({"logit_bias": 3}, "logit_bias is 3; it must map bytes or ids to nats"),
    ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number"),
    ({"top_k": 10**5000, "top_p": "x"}, "top_p is 'x'; it must be above 0 and at most 1"),
    ({"top_k": -(10**5000)}, "top_k is a number of thousands of digits; it must be at least 1"),
    ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
    ({"seed": "1"}, "seed is '1'; it must be a whole number"),
]


@pytest.mark.parametrize(("settings", "sentence"), REFUSED)
def test_settings_of_other_types(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EdgebltError) as refused:
        Sampling(**settings)
    assert str(refused.value).startswith(sentence) and str(refused.value).isprintable()


def test_numbers_of_numpy_are_numbers() -> None:
    plain = Sampler(Sampling(0.5, 7, 0.25, 3))
    numpy = Sampler(Sampling(np.float32(0.5), np.int64(7), np.float64(0.25), np.uint8(3)))  # type: ignore[arg-type]
    logits = np.random.default_rng(0).normal(size=VOCAB_SIZE).astype(np.float32)
    for _ in itertools.repeat(None, 20):
        assert plain.choose(logits) == numpy.choose(logits)
