"""Generating, scoring and benchmarking: whole functions against plain recomputation."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import patching_oracle
import tiny_models
from conftest import Exported, export_oracle, tiny_oracle
from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.decoding.utf8 import utf8_pieces
from edgeblt.errors import EdgebltError
from edgeblt.export.reference import TransformersReference
from edgeblt.ids import BOE, BOS, BPE_DELIMITER, EOS, OFFSET, VOCAB_SIZE, encode
from edgeblt.measure.benchmark import Setting, bench, bench_model
from edgeblt.measure.texts import held_out_text
from edgeblt.model import load, open_model
from edgeblt.runtime.opened_graphs import CHUNK_BYTES
from edgeblt.runtime.session import Session

SEED = 10  # windows, a maximum patch length, tied embeddings
TEXT = bytes(id_ - OFFSET for id_ in tiny_models.random_ids(3, 701)[1:])


@pytest.fixture(scope="module")
def tiny(exported: Callable[[int], Exported]) -> Exported:
    return exported(SEED)


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model that likes to end its texts."""
    oracle = tiny_oracle(2)
    with torch.no_grad():
        oracle.lm_head.weight[EOS] *= 2
    return export_oracle(oracle, tmp_path_factory.mktemp("ending"))


def plain_greedy(reference: TransformersReference, prompt: bytes, count: int) -> bytes:
    """transformers' full forward for every byte, and the likeliest id that is a byte or EOS."""
    ids = [BOS, *encode(prompt).tolist()]
    while len(ids) <= len(prompt) + count:
        logits = reference.row(np.array(ids)).logits[-1]
        ranked = [id_ for id_ in np.argsort(-logits).tolist() if id_ not in (BOE, BOS, BPE_DELIMITER)]
        assert logits[ranked[0]] - logits[ranked[1]] > 1e-3, "rounding could choose: take another prompt"
        if ranked[0] == EOS:
            break
        ids.append(ranked[0])
    return bytes(id_ - OFFSET for id_ in ids[1 + len(prompt) :])


PROMPTS = [b"", b"a", b"The quick brown fox", "Müller ßß 東京".encode(), bytes(range(0, 250, 3)), b"\xff\xfe\x80"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_is_the_plain_loop(tiny: Exported, prompt: bytes) -> None:
    expected = plain_greedy(tiny.reference, prompt, 24)
    assert tiny.model.generate(prompt, 24) == expected
    assert list(tiny.model.stream(prompt, 24)) == [expected[place : place + 1] for place in range(len(expected))]
    for count in (0, 1, 2):
        assert tiny.model.generate(prompt, max_new_bytes=count) == expected[:count]


def test_greedy_ends_where_the_model_ends(ending: Exported) -> None:
    lengths = set()
    for prompt in PROMPTS:
        expected = plain_greedy(ending.reference, prompt, 30)
        assert ending.model.generate(prompt, 30) == expected
        lengths.add(len(expected))
    assert lengths - {0, 30}, "no prompt ended in between: make the end likelier"


def test_special_ids_are_never_chosen() -> None:
    logits = np.zeros(VOCAB_SIZE, np.float32)
    logits[[BOE, BOS, BPE_DELIMITER]], logits[EOS], logits[77] = 9, 5, 4
    assert Sampler(Sampling()).choose(logits) == EOS
    assert Sampler(Sampling(), endless=True).choose(logits) == 77
    assert logits[BOE] == 9  # the caller's array is not touched
    distribution = Sampler(Sampling(1.0)).distribution(logits)
    assert distribution[[BOE, BOS, BPE_DELIMITER]].tolist() == [0, 0, 0] and distribution[EOS] > 0
    assert Sampler(Sampling(1.0), endless=True).distribution(logits)[EOS] == 0


def test_text_prompts_are_utf8(tiny: Exported) -> None:
    for prompt in ("", "naïve", "東京 🗼"):
        assert tiny.model.generate(prompt, 6) == tiny.model.generate(prompt.encode(), 6)


def test_seeds_repeat(tiny: Exported) -> None:
    def sampled(**changes: Any) -> bytes:
        return tiny.model.generate(b"once", **({"max_new_bytes": 20, "temperature": 0.9, "seed": 1} | changes))

    assert sampled() == sampled() == b"".join(tiny.model.stream(b"once", 20, 0.9, seed=1))
    assert len({sampled(seed=seed) for seed in range(5)}) == 5
    assert sampled(seed=None) != sampled(seed=None)
    assert sampled(top_k=1) == sampled(temperature=0.0) == tiny.model.generate(b"once", 20)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -0.5}, "temperature is -0.5; it must be 0 (greedy) or a positive number"),
        ({"temperature": math.nan}, "temperature is nan; it must be 0 (greedy) or a positive number"),
        ({"temperature": math.inf}, "temperature is inf; it must be 0 (greedy) or a positive number"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1"),
        ({"top_p": math.nan}, "top_p is nan; it must be above 0 and at most 1"),
        ({"seed": -1}, "seed is -1; it must not be negative"),
        ({"max_new_bytes": -1}, "max_new_bytes is -1; it must not be negative"),
    ],
)
def test_settings_out_of_range(tiny: Exported, settings: dict[str, Any], sentence: str) -> None:
    for function in (tiny.model.generate, tiny.model.stream):  # stream too refuses when it is called
        with pytest.raises(EdgebltError) as refused:
            function(b"a", **settings)
        assert str(refused.value) == sentence


# The distribution, in plain float64.


def plain_distribution(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """Refuses cases on which rounding decides where top_p cuts."""
    allowed = [id_ for id_ in range(VOCAB_SIZE) if id_ not in (BOE, BOS, BPE_DELIMITER)]
    ranked = sorted(allowed, key=lambda id_: (-logits[id_], id_))[:top_k]
    weights = [math.exp((logits[id_] - logits[ranked[0]]) / temperature) for id_ in ranked]
    total = math.fsum(weights)
    if top_p is not None:
        reached = [math.fsum(weights[:end]) / total for end in range(1, len(weights) + 1)]
        assume(min(abs(share - top_p) for share in reached) > 1e-9)
        weights = weights[: 1 + sum(share < top_p for share in reached)]
        total = math.fsum(weights)
    result = [0.0] * VOCAB_SIZE
    for id_, weight in zip(ranked, weights, strict=False):
        result[id_] = weight / total
    return result


LOGITS = st.lists(st.integers(-30, 30).map(lambda step: step / 4), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE)


@settings(deadline=None, max_examples=150)
@given(
    logits=LOGITS,
    temperature=st.floats(0.05, 20),
    top_k=st.none() | st.integers(1, 300),
    top_p=st.none() | st.floats(0.01, 0.999),
)
def test_distribution(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> None:
    expected = plain_distribution(logits, temperature, top_k, top_p)
    actual = Sampler(Sampling(temperature, top_k, top_p)).distribution(np.array(logits, np.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-300)
    assert np.array_equal(actual > 0, np.array(expected) > 0)


def test_distribution_worked() -> None:
    logits = np.full(VOCAB_SIZE, -1e9, np.float32)
    logits[[10, 20, 30, 40]] = np.log([4, 3, 2, 1])  # 40, 30, 20 and 10 percent

    def shares(**settings: Any) -> list[float]:
        distribution = Sampler(Sampling(**({"temperature": 1.0} | settings))).distribution(logits)
        return np.round(distribution[[10, 20, 30, 40]], 6).tolist()  # type: ignore[no-any-return]

    assert shares() == [0.4, 0.3, 0.2, 0.1]
    assert shares(top_k=2) == [0.571429, 0.428571, 0, 0]
    assert shares(top_p=0.5) == [0.571429, 0.428571, 0, 0]
    assert shares(top_p=0.75) == [0.444444, 0.333333, 0.222222, 0]
    assert shares(top_p=0.3) == [1, 0, 0, 0]
    assert shares(top_k=2, top_p=0.56) == [1, 0, 0, 0]  # of what top_k left
    assert shares(temperature=0.5) == [0.533333, 0.3, 0.133333, 0.033333]
    assert shares(temperature=1e-6) == [1, 0, 0, 0]


@pytest.mark.parametrize("cut", [{}, {"top_k": 7}, {"top_p": 0.8}])
def test_draws_follow_the_distribution(cut: dict[str, Any]) -> None:
    """Pearson's chi-squared of 20,000 draws of a fixed seed, at most six deviations above its mean."""
    logits = np.random.default_rng(0).normal(size=VOCAB_SIZE).astype(np.float32) * 2
    sampler, draws = Sampler(Sampling(1.0, seed=3, **cut)), 20_000
    expected = sampler.distribution(logits) * draws
    counts = np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=VOCAB_SIZE)
    assert not counts[expected == 0].any()
    often = expected >= 5
    degrees = int(often.sum()) - (1 if (often == (expected > 0)).all() else 0)
    chi_squared = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    assert chi_squared < degrees + 6 * math.sqrt(2 * degrees)


# Scores.


@pytest.mark.parametrize("seed", [SEED, 7, 23])
def test_scores_are_the_references(exported: Callable[[int], Exported], seed: int) -> None:
    model = exported(seed)
    ids = [BOS, *encode(TEXT).tolist()]
    row = model.reference.row(np.array(ids))
    log_p = patching_oracle.log_probabilities(row.logits)
    expected = log_p[np.arange(len(TEXT)), ids[1:]]
    scores = model.model.score(TEXT)
    assert len(TEXT) > 2 * CHUNK_BYTES
    np.testing.assert_allclose(scores.logprobs, expected, rtol=0, atol=1e-4)
    assert scores.bits_per_byte == pytest.approx(-expected.mean() / math.log(2), abs=1e-5)
    np.testing.assert_array_equal(scores.patch_starts, row.patch_starts[:-1])
    entropies = np.zeros(len(ids), np.float32)
    if model.model.config.patcher:
        entropies = tiny_models.reference_entropies(model.reference.model, ids).numpy()
    np.testing.assert_allclose(scores.entropies, entropies[:-1], rtol=0, atol=1e-5)
    assert [x.dtype for x in (scores.logprobs, scores.entropies, scores.patch_starts)] == [np.float32, np.float32, bool]


def test_scores_of_nothing_and_of_a_byte(tiny: Exported) -> None:
    empty = tiny.model.score(b"")
    assert empty.logprobs.shape == empty.entropies.shape == empty.patch_starts.shape == (0,)
    assert math.isnan(empty.bits_per_byte)
    one = tiny.model.score(b"x")
    assert one.patch_starts.tolist() == [True]
    assert one.bits_per_byte == pytest.approx(-float(one.logprobs[0]) / math.log(2))


# Text on a stream.


@settings(deadline=None, max_examples=100)
@given(text=st.text(), cuts=st.lists(st.integers(0, 60)))
def test_pieces_are_whole_characters_as_soon_as_possible(text: str, cuts: list[int]) -> None:
    data = text.encode("utf-8", "replace")
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    parts = [data[start:end] for start, end in itertools.pairwise(places)]
    assert "".join(utf8_pieces(parts)) == data.decode()
    fed, shown = b"", ""

    def watched() -> Iterator[bytes]:
        nonlocal fed
        for part in parts:
            assert shown == fed.decode(errors="ignore")  # all that was complete, and no more
            fed += part
            yield part

    for piece in utf8_pieces(watched()):
        assert piece
        shown += piece


@settings(deadline=None, max_examples=100)
@given(data=st.binary(), size=st.integers(1, 5))
def test_pieces_of_any_bytes(data: bytes, size: int) -> None:
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    assert "".join(utf8_pieces(parts)) == data.decode("utf-8", "replace")


def test_pieces_worked() -> None:
    assert list(utf8_pieces([b"a", b"\xc3", b"\xa9", b"\xe6\x9d", b"\xb1b"])) == ["a", "é", "東b"]
    assert list(utf8_pieces([b"\xff", b"a", b"\xe6\x9d"])) == ["�", "a", "�"]
    assert list(utf8_pieces([])) == list(utf8_pieces([b"", b""])) == []


# Benchmarks.


def test_bench_feeds_what_it_is_asked_to(tiny: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[list[int]] = []
    feed = Session.feed

    def watched(session: Session, ids: Any) -> NDArray[np.float32]:
        fed.append([int(id_) for id_ in ids])
        return feed(session, ids)

    monkeypatch.setattr(Session, "feed", watched)
    (result,) = bench(tiny.bundle, [Setting(draft="none", prompt_bytes=40)], 5, 2, with_bandwidth=False)
    prompts = [ids for ids in fed if len(ids) > 1]
    assert prompts == [[BOS, *encode(held_out_text("prose")[:40]).tolist()]] * 3  # one to warm up
    assert [len(ids) for ids in fed] == [41, 1, 1, 1, 1, 1] * 3
    assert all(ids[0] >= OFFSET for ids in fed if len(ids) == 1)
    latency = result.inter_byte_latency_ms
    figures = [result.time_to_first_byte_s, result.prefill_bytes_per_s, result.decode_bytes_per_s]
    assert all(math.isfinite(x) and x > 0 for x in [*figures, latency.p50, latency.p95, latency.p99])
    assert latency.p50 <= latency.p95 <= latency.p99
    assert result.prefill_bytes_per_s == pytest.approx(40 / result.time_to_first_byte_s)
    session = tiny.model.session()
    session.feed([id_ for ids in fed[:6] for id_ in ids])
    assert result.bytes_per_patch == session.position / session.patch_count
    assert result.peak_rss_bytes > 10e6
    assert result.bundle_bytes == sum(file.stat().st_size for file in tiny.bundle.iterdir() if file.suffix != ".json")
    assert result.provider == "cpu" and result.device


def test_bench_takes_longer_prompts_than_there_is_text(tiny: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeblt.measure.benchmark.held_out_text", lambda name: b"abc")
    assert bench_model(tiny.model, prompt_bytes=8, new_bytes=1, repeats=1).prefill_bytes_per_s > 0


@pytest.mark.parametrize("name", ["prompt_bytes", "new_bytes", "repeats"])
def test_bench_refuses_counts_below_one(tiny: Exported, name: str) -> None:
    with pytest.raises(EdgebltError, match=f"^{name} is 0; it must be at least 1$"):
        bench_model(tiny.model, **{name: 0})


def test_load_takes_text_paths_and_threads(tiny: Exported, tmp_path: Path) -> None:
    assert load(str(tiny.bundle), threads=2, verify=True).generate(b"a", 3) == tiny.model.generate(b"a", 3)
    with pytest.raises(EdgebltError, match="threads is 0; it must be at least 1"):
        load(tiny.bundle, threads=0)
    with pytest.raises(EdgebltError, match="provider 'tpu' is unknown"):
        open_model(tiny.bundle, provider="tpu")
    with pytest.raises(EdgebltError, match="is not a bundle directory"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_no_numbers_are_reported(temperature: float) -> None:
    """As a model has that is exported for a number format too narrow for it."""
    logits = np.zeros(260, np.float32)
    logits[77] = np.nan
    with pytest.raises(EdgebltError, match=r"values that are not numbers.*; export it for the target cpu"):
        Sampler(Sampling(temperature, seed=0)).choose(logits)
