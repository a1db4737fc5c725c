"""The prefix cache: what a model generates and computes is the same with and without it."""

import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiny_bundles
from conftest import Exported
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.model import Model, load
from edgeblt.runtime.opened_graphs import CHUNK_BYTES
from edgeblt.runtime.saved.prefix_cache import LEAST_IDS, PrefixCache, PromptReader
from edgeblt.runtime.session import ROLLBACK_BYTES

WINDOWS = 2  # a seed of `tiny_models`: windows everywhere and a maximum patch length
SAMPLED = GenerationSettings(temperature=1.0, seed=3, max_new_bytes=12)
LARGE = 1 << 30


@pytest.fixture(scope="module")
def bundle(exported: Callable[[int], Exported]) -> Path:
    return exported(WINDOWS).bundle


@pytest.fixture(scope="module")
def plain(bundle: Path) -> Model:
    """Without a prefix cache."""
    return load(bundle, prefix_cache_bytes=0)


@pytest.fixture
def model(bundle: Path) -> Model:
    return load(bundle)


def text(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count)


def ids_of(prompt: bytes) -> NDArray[np.int64]:
    return np.concatenate([[BOS], encode(prompt)])


def read(reader: PromptReader) -> NDArray[np.float32]:
    """Logits after a prompt, which the cache has read."""
    logits = np.stack([chunk.logits[-1] for chunk in reader.run()])
    reader.end()
    last: NDArray[np.float32] = logits[-1]
    return last


def began(cache: PrefixCache, model: Model, prompt: bytes, exact: bool = True) -> PromptReader:
    return cache.begin(ids_of(prompt), model.session, None, lambda: exact)


def started_at(reader: PromptReader) -> int:
    return reader.session.position


# One text, and others that have some of it in common.
PROMPTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 700), st.integers(0, 90)), min_size=2, max_size=6)


@settings(deadline=None, max_examples=40)
@given(prompts=PROMPTS, limit=st.sampled_from([200_000, 1_000_000, LARGE]), exact=st.booleans())
def test_any_prompts_give_what_they_give_alone(
    plain: Model, prompts: list[tuple[int, int, int]], limit: int, exact: bool
) -> None:
    cache = PrefixCache(limit)
    for seed, common, more in prompts:
        prompt = text(0, common) + text(seed, more)
        reader = began(cache, plain, prompt, exact)
        if not exact:
            assert started_at(reader) % CHUNK_BYTES == 0
        found = read(reader)
        whole = [chunk.logits[-1].copy() for chunk in plain.session().run(ids_of(prompt))][-1]
        if plain.is_exact or not exact:
            np.testing.assert_array_equal(found, whole)
        assert reader.session.position == len(prompt) + 1
        assert cache.statistics.nbytes <= limit


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_texts_are_the_same(recipe: str, tmp_path: Path) -> None:
    """Quantized weights: the same bytes in every order of prompts, with drafts."""
    (path,) = tiny_bundles.small_bundles(tmp_path, ((recipe, "cpu", None),)).values()
    with load(path) as model, load(path, prefix_cache_bytes=0) as plain:
        beginning = text(1, 900)
        for prompt in (beginning, beginning + b"a", beginning, beginning[:-20], beginning + b"b" * 50, beginning[:500]):
            assert model.generate(prompt, settings=SAMPLED) == plain.generate(prompt, settings=SAMPLED)
            assert model.generate(prompt, max_new_bytes=9) == plain.generate(prompt, max_new_bytes=9)
        assert model.prefix_cache.statistics.hits >= 9
        assert plain.prefix_cache.statistics == PrefixCache(0).statistics


def test_where_texts_start(plain: Model) -> None:
    """As far on as a kept state and the bytes that a rollback takes back allow."""
    beginning, cache = text(1, 1000), PrefixCache(LARGE)
    first = began(cache, plain, beginning)
    assert started_at(first) == 0
    read(first)
    assert started_at(began(cache, plain, beginning)) == 1000  # but for the last id, whose logits are not kept
    assert started_at(began(cache, plain, beginning + b"more")) == 1001
    assert (
        started_at(began(cache, plain, beginning[: 1000 - ROLLBACK_BYTES + 1] + b"more")) == 1001 - ROLLBACK_BYTES + 1
    )
    assert started_at(began(cache, plain, beginning[:900] + b"\0more")) == 512  # kept on the way
    other = began(cache, plain, beginning[:960] + text(2, 200))
    assert started_at(other) == 512
    read(other)
    assert started_at(began(cache, plain, beginning[:960] + text(3, 200))) == 961  # where two texts parted
    found = cache.statistics
    assert (found.texts, found.hits) == (7, 6)
    assert found.ids_read == 1001 * 2 + 1005 + 974 + 906 + 1161 * 2
    assert found.ids_saved == 1000 + 1001 + 970 + 512 + 512 + 961


def test_without_exact_results_texts_start_at_chunks(plain: Model) -> None:
    beginning, cache = text(1, 1000), PrefixCache(LARGE)
    read(began(cache, plain, beginning, exact=False))
    assert started_at(began(cache, plain, beginning + b"more", exact=False)) == 768
    assert started_at(began(cache, plain, beginning[:700], exact=False)) == 512
    assert started_at(began(cache, plain, beginning[:100], exact=False)) == 0


def test_answers_are_kept(model: Model) -> None:
    """The next prompt of a conversation holds the text that the model wrote."""
    prompt = text(1, 300)
    answer = model.generate(prompt, max_new_bytes=100, ignore_eos=True)
    saved = model.prefix_cache.statistics.ids_saved
    model.generate(prompt + answer + b"and?", max_new_bytes=1)
    assert model.prefix_cache.statistics.ids_saved - saved >= 300 + 100 - 1


def test_short_prompts_are_read(model: Model) -> None:
    for _ in range(2):
        model.generate(text(1, LEAST_IDS - 10), max_new_bytes=5)
    assert (model.prefix_cache.statistics.hits, model.prefix_cache.statistics.states) == (0, 0)


def test_exactness_is_tested_where_it_matters(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a text is long enough to be kept, and not before."""
    trials: list[object] = []

    def trial(new_session: object) -> bool:
        trials.append(new_session)
        return True

    monkeypatch.setattr("edgeblt.model.is_exact", trial)
    with load(bundle) as model:
        for _ in range(2):
            model.generate(text(1, LEAST_IDS - 2), max_new_bytes=0, draft="none")
        assert trials == []
        model.generate(text(1, LEAST_IDS - 1), max_new_bytes=0, draft="none")  # and BOS
        assert len(trials) == 1 and model.prefix_cache.statistics.states == 1
    with load(bundle) as model:
        model.generate(text(1, 10), max_new_bytes=90, draft="none", ignore_eos=True)  # the end is kept
        assert len(trials) == 2 and model.prefix_cache.statistics.states == 1
    with load(bundle, prefix_cache_bytes=0) as model:
        model.generate(text(1, 300), max_new_bytes=0, draft="none")
        assert len(trials) == 2


def test_the_state_used_longest_ago_is_dropped(plain: Model) -> None:
    cache = PrefixCache(LARGE)
    read(began(cache, plain, text(1, 100)))
    size = cache.statistics.nbytes
    cache = PrefixCache(3 * size)
    for seed in (1, 2, 3, 1, 4):
        read(began(cache, plain, text(seed, 100)))
    assert cache.statistics.states == 3 and cache.statistics.nbytes <= cache.limit
    kept = {seed for seed in (1, 2, 3, 4) if started_at(began(cache, plain, text(seed, 100)))}
    assert kept == {1, 3, 4}
    read(began(PrefixCache(size - 1), plain, text(1, 100)))  # no room at all
    assert "of 9 texts, 3 states" in repr(cache)
    cache.clear()
    assert cache.statistics.states == cache.statistics.nbytes == 0


def test_texts_share_their_patches(exported: Callable[[int], Exported]) -> None:
    """The global cache, which grows with the text, takes memory once."""
    model = exported(WINDOWS).model
    cache = PrefixCache(LARGE)
    read(began(cache, model, text(1, 3000)))
    longest = max((kept.snapshot for kept in cache._kept), key=lambda snapshot: snapshot.position)
    whole = sum(array.nbytes for segment in longest.caches["global"].segments for array in segment)
    alone = sum(
        sum(array.nbytes for array in kept.snapshot.arrays())
        - sum(array.nbytes for segment in kept.snapshot.caches["global"].segments for array in segment)
        for kept in cache._kept
    )
    assert len(cache._kept) > 4
    assert cache.statistics.nbytes == whole + alone


def test_thresholds_have_their_own_states(model: Model) -> None:
    prompt = text(1, 300)
    model.generate(prompt, max_new_bytes=1)
    other = model.with_threshold(0.5)
    assert other.prefix_cache is model.prefix_cache
    other.generate(prompt, max_new_bytes=1)
    assert model.prefix_cache.statistics.hits == 0
    other.generate(prompt, max_new_bytes=1)
    assert model.prefix_cache.statistics.hits == 1


def test_several_threads(model: Model, plain: Model) -> None:
    prompts = [text(0, 400)[: 100 * (number % 4 + 1)] + text(number, 20) for number in range(24)]
    wanted = [plain.generate(prompt, settings=SAMPLED) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: model.generate(prompt, settings=SAMPLED), prompts)) == wanted


def test_no_memory_for_copies(model: Model, plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text goes on without them."""
    prompt = text(1, 300)
    model.generate(prompt, max_new_bytes=3)

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("edgeblt.runtime.state.sequence.SequenceState.snapshot", full)
    assert model.generate(prompt + b"a", settings=SAMPLED) == plain.generate(prompt + b"a", settings=SAMPLED)
    assert model.prefix_cache.statistics.states == 0


def test_no_memory_to_start_from_a_copy(model: Model, plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is read instead."""
    prompt = text(1, 300)
    wanted = [model.generate(prompt, settings=SAMPLED), plain.generate(prompt, settings=SAMPLED)]

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("edgeblt.runtime.state.sequence.SequenceState.load", full)
    assert {model.generate(prompt, settings=SAMPLED), *wanted} == {wanted[0]}
    found = model.prefix_cache.statistics
    assert (found.texts, found.hits, found.ids_saved) == (2, 0, 0)


def test_the_limit_goes_with_the_model(bundle: Path) -> None:
    with load(bundle, prefix_cache_bytes=12345) as model:
        assert pickle.loads(pickle.dumps(model)).prefix_cache.limit == 12345
    with pytest.raises(EdgebltError, match="prefix_cache_bytes is -1; it must not be negative"):
        load(bundle, prefix_cache_bytes=-1)


def test_closing_frees_the_states(bundle: Path) -> None:
    with load(bundle) as model:
        model.generate(text(1, 300), max_new_bytes=1)
        assert model.prefix_cache.statistics.states
    assert model.prefix_cache.statistics.states == 0
