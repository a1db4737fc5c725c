"""Drafts change the time a text takes, and nothing else."""

import itertools
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from conftest import Exported
from edgeblt.decoding.draft_costs import BreakEven, DraftSelector, ExponentialMean, PassCosts
from edgeblt.decoding.drafters import (
    DRAFTERS,
    LENGTHS,
    MOST_DRAFTED,
    AcceptanceRates,
    Draft,
    NgramDrafter,
    initial_rates,
)
from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.decoding.speculation import AUTO, DRAFTS, NONE, AcceptanceCounts, DraftStatistics, generate_ids
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import BOS, EOS, OFFSET, encode
from edgeblt.measure.benchmark import Setting, bench
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_texts
from edgeblt.model import Model, load
from edgeblt.names import Name
from edgeblt.runtime import native
from edgeblt.runtime.session import ROLLBACK_BYTES, Session
from sampled import mostly_slow

SEEDS = (2, 5, 6, 10, 12, 15)  # windows or none, maximum patch lengths, k from 1 to 4, no patcher (6)
DRAFTED = list(itertools.product(SEEDS, (*DRAFTERS, AUTO)))
needs_library = pytest.mark.skipif(not native.status().levels, reason="no native library")


@pytest.fixture(scope="module")
def tiny(exported: Callable[[int], Exported]) -> Callable[[int], Model]:
    return lambda seed: load(exported(seed).bundle)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(export_bundle(DEMO_CHECKPOINT, tmp_path_factory.mktemp("demo") / "bundle", "int8").path)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts as long as they may be, however unlikely."""
    monkeypatch.setattr(PassCosts, "break_even", lambda *_: BreakEven(0.0, 0.0))


def all_asked(model: Model, draft: str) -> DraftStatistics:
    """Also those that a model as small as these would not ask."""
    return DraftStatistics(draft, [name for name in DRAFTERS if name != "patcher" or model.config.patcher])


def continuation(model: Model, prompt: list[int], draft: str, sampling: Sampling, count: int = 60) -> list[int]:
    session = model.session()
    logits = session.feed(prompt)[-1]
    return list(generate_ids(session, logits, Sampler(sampling), all_asked(model, draft), count))


@pytest.mark.parametrize("seed", mostly_slow(SEEDS, keep=(6, 10, 12)))
@settings(deadline=None, max_examples=4)
@given(choices=st.integers(0, 2**32 - 1))
def test_reading_ahead_changes_nothing(seed: int, tiny: Callable[[int], Model], choices: int) -> None:
    """Whatever is read ahead, tried with the decoder alone, rolled back or forked between: the logits of feeding."""
    model, ids = tiny(seed), np.array(tiny_models.random_ids(seed, 60))
    expected = model.session().feed(ids)
    scale = float(np.abs(expected).max())
    session, other, chance = model.session(), np.array(tiny_models.random_ids(seed + 1, 100)), random.Random(choices)
    while session.position < len(ids):
        here = session.position
        step = chance.randint(1, min(12, len(ids) - here))
        match chance.randint(0, 4):
            case 0:  # what will be fed, perhaps more of it
                session.read_ahead(ids[here : here + chance.randint(1, min(ROLLBACK_BYTES, len(ids) - here))])
            case 1:  # something else from some place on
                guess = np.concatenate([ids[here : here + chance.randint(0, step)], other[: chance.randint(1, 9)]])
                session.read_ahead(guess)
            case 2:
                with session.within_patch() as feed:
                    for id in other[: chance.randint(1, 20)]:
                        feed(int(id))
            case 3:
                session.rollback(max(here - chance.randint(0, 20), 0))
                session = session.fork() if chance.random() < 0.3 else session
            case _:
                found = session.feed(ids[here : here + step])
                np.testing.assert_allclose(found, expected[here : here + step], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_read_ahead_are_the_patchers(seed: int, tiny: Callable[[int], Model]) -> None:
    """The same whether an id is read on its own, with others, or again."""
    model, ids = tiny(seed), tiny_models.random_ids(seed, 40)
    session = model.session()
    session.feed(ids[:20])
    one_by_one = [session.read_ahead(ids[20:end]) for end in range(21, 30)]
    again = model.session()
    again.feed(ids[:20])
    at_once = again.read_ahead(ids[20:29])
    np.testing.assert_allclose(one_by_one[-1], at_once, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(session.read_ahead(ids[20:23]), one_by_one[2])
    if model.config.patcher is None:
        assert not at_once.any()


@pytest.mark.parametrize("count", [0, ROLLBACK_BYTES + 1])
def test_too_few_or_too_many_are_refused(count: int, tiny: Callable[[int], Model]) -> None:
    with pytest.raises(EdgebltError, match=f"{count} ids cannot be read ahead; give 1 to 32"):
        tiny(10).session().read_ahead([BOS] * count)


@pytest.mark.parametrize(("seed", "draft"), mostly_slow(DRAFTED, DRAFTED[::3]))
def test_random_models_say_the_same(seed: int, draft: str, tiny: Callable[[int], Model]) -> None:
    model, prompt = tiny(seed), tiny_models.random_ids(seed, 30)
    for sampling in (Sampling(), Sampling(0.8, seed=3), Sampling(1.5, top_k=20, top_p=0.9, seed=4)):
        assert continuation(model, prompt, draft, sampling) == continuation(model, prompt, NONE, sampling)


@needs_library
@pytest.mark.parametrize(
    ("temperature", "draft"),
    mostly_slow(
        itertools.product((0.0, 0.8), (*DRAFTERS, AUTO)),
        [(0.0, "decoder"), (0.0, "ngram"), (0.8, "patcher"), (0.8, AUTO)],
    ),
)
def test_the_bundled_model_says_the_same(draft: str, temperature: float, demo: Model) -> None:
    """Prose, code and languages it does not know; to the byte."""
    for number, text in enumerate(held_out_texts()):
        prompt = [BOS, *encode(text.data[300 * number :][:80]).tolist()]
        sampling = Sampling(temperature, seed=number)
        assert continuation(demo, prompt, draft, sampling, 50) == continuation(demo, prompt, NONE, sampling, 50)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("seed", "draft"), mostly_slow(DRAFTED, DRAFTED[1::3]))
def test_long_wrong_drafts_leave_no_trace(seed: int, draft: str, tiny: Callable[[int], Model]) -> None:
    model, prompt = tiny(seed), tiny_models.random_ids(seed + 1, 30)
    for sampling in (Sampling(), Sampling(0.8, seed=3)):
        assert continuation(model, prompt, draft, sampling) == continuation(model, prompt, NONE, sampling)


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("draft", [*DRAFTERS, AUTO])
def test_two_hundred_prompts(draft: str, demo: Model) -> None:
    """Six languages and kinds of text, greedy; each text goes on from a prompt that was rolled back to."""
    texts = held_out_texts()
    for number in range(200):
        data = texts[number % len(texts)].data[37 * number :][:50]
        prompt = [BOS, *encode(data).tolist()]
        plain = continuation(demo, prompt, NONE, Sampling(), 40)
        session = demo.session()
        session.feed(prompt)
        session.feed(plain[:20])
        session.rollback(len(prompt) - 1)
        logits = session.feed(prompt[-1:])[0]
        assert list(generate_ids(session, logits, Sampler(Sampling()), all_asked(demo, draft), 40)) == plain


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("draft", mostly_slow([*DRAFTERS, AUTO], keep=["patcher", "ngram", AUTO]))
def test_the_distribution_is_the_models(draft: str, tiny: Callable[[int], Model]) -> None:
    """Chi-squared of what is drawn, three ids at a time, against the exact probabilities of all such threes."""
    model, prompt, kept = tiny(10), tiny_models.random_ids(10, 30), 3
    sampling = Sampling(1.0, top_k=kept)
    distribution = Sampler(sampling, endless=True).distribution
    session = model.session()
    first = session.feed(prompt)[-1]

    def expand(ids: tuple[int, ...], chance: float, logits: np.ndarray) -> dict[tuple[int, ...], float]:
        chances = distribution(logits)
        found: dict[tuple[int, ...], float] = {}
        for id in np.flatnonzero(chances).tolist():
            longer = (*ids, id)
            if len(longer) == 3:
                found[longer] = chance * float(chances[id])
                continue
            found |= expand(longer, chance * float(chances[id]), session.feed([id])[0])
            session.rollback(len(prompt) + len(ids))
        return found

    exact = expand((), 1.0, first)
    assert len(exact) == kept**3 and math.isclose(sum(exact.values()), 1.0)
    drawn = dict.fromkeys(exact, 0)
    counts, draws = AcceptanceCounts(), 500
    sampler, statistics = Sampler(replace(sampling, seed=5), endless=True), all_asked(model, draft)
    for _ in range(draws):
        ids = tuple(generate_ids(session, first, sampler, statistics, 5, counts))  # drafts reach beyond the three
        drawn[ids[:3]] += 1
        session.rollback(len(prompt))
    statistic = sum((drawn[ids] - draws * chance) ** 2 / (draws * chance) for ids, chance in exact.items())
    assert statistic < 66  # of 26 degrees of freedom: 2e-5
    assert counts.drafted > {"patcher": draws, "decoder": draws, "auto": 50}.get(draft, 0) or draft == "ngram"


def test_repetition_takes_few_passes(tiny: Callable[[int], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """A greedy text of a small model ends up repeating itself: that is recognised, and long drafts are accepted."""
    monkeypatch.setattr(PassCosts, "break_even", lambda *_: BreakEven(0.3, 0.3))
    session = tiny(10).session()
    logits, counts = session.feed(tiny_models.random_ids(10, 20))[-1], AcceptanceCounts()
    statistics = tiny(10).draft_statistics("ngram")
    generated = list(generate_ids(session, logits, Sampler(Sampling(), endless=True), statistics, 300, counts))
    assert len(generated) == 300 and 300 / counts.passes > 2 and counts.accepted <= counts.drafted


@pytest.mark.parametrize("most", [0, 1, 2])
def test_no_more_than_asked_for(most: int, tiny: Callable[[int], Model]) -> None:
    for draft in DRAFTS:
        assert len(continuation(tiny(10), tiny_models.random_ids(10, 20), draft, Sampling(), most)) <= most


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(EdgebltError) as caught:
        act()
    return str(caught.value)


def test_drafts_that_a_model_cannot_make_are_refused(tiny: Callable[[int], Model]) -> None:
    """Before anything is computed, however texts are generated."""
    with_patcher, without = tiny(10), tiny(6)
    said = "this model cannot draft by heads; use one of none, patcher, decoder, ngram, auto"
    assert refusal(lambda: with_patcher.stream("x", draft="heads")) == said
    assert refusal(lambda: with_patcher.stream_batch(["x"], draft="heads")) == said
    assert (
        refusal(lambda: bench(with_patcher.bundle.path, [Setting(draft="heads")], 4, 1, with_bandwidth=False)) == said
    )
    with with_patcher.engine() as engine:
        assert refusal(lambda: engine.submit("x", draft="heads")) == said
        assert engine.is_running and b"".join(engine.submit("x", draft="patcher", max_new_bytes=3)[0])
    said = "this model cannot draft by patcher; use one of none, decoder, ngram, auto"
    assert refusal(lambda: without.generate("x", draft="patcher")) == said


def test_unknown_drafts_are_refused(tiny: Callable[[int], Model]) -> None:
    with pytest.raises(EdgebltError, match="draft is 'oracle'; use one of none, patcher, decoder, heads, ngram, auto"):
        tiny(10).generate("x", draft=Name("oracle"))


def pick(logits: object, ahead: int) -> tuple[int, float]:
    raise AssertionError


def test_ngrams_find_the_newest_place(tiny: Callable[[int], Model]) -> None:
    session: Session = tiny(10).session()
    drafter = NgramDrafter(initial_rates("ngram"))
    context = list(range(10, 10 + LENGTHS[0]))
    drafter.extend([BOS, *context, 100, 101, 102])
    assert drafter.draft(session, 102, pick, 0.0) == Draft([], 0.0)
    drafter.extend([*context, 200, 201, 202, *context])
    assert drafter.draft(session, context[-1], pick, 0.2).ids[:3] == [200, 201, 202]
    assert drafter.draft(session, context[-1], pick, 0.99) == Draft([], 0.0)
    period = [*range(200, 203), *context]  # the text goes round
    assert drafter.draft(session, context[-1], pick, 0.0).ids == (period * 9)[:MOST_DRAFTED]
    for _ in range(40):  # it learns that this is never right
        drafter.judge(3, 0)
    assert drafter.draft(session, context[-1], pick, 0.5) == Draft([], 0.0)


@given(st.lists(st.sampled_from([BOS, EOS, 70, 71, 72]), max_size=80))
def test_ngrams_are_the_longest_that_are_known(ids: list[int]) -> None:
    """Against a search of all places; ids that stand for no byte are all one."""
    drafter = NgramDrafter(initial_rates("ngram"))
    for id in ids:
        drafter.extend([id])
    seen = [id if id >= OFFSET else 0 for id in ids]
    expected = None
    for length in LENGTHS:
        ends = [end for end in range(length, len(seen)) if seen[end - length : end] == seen[-length:]]
        if not ends:
            break
        expected = max(ends)
    following = [] if expected is None else (seen[expected:] * MOST_DRAFTED)[:MOST_DRAFTED]
    assert drafter.draft(cast(Session, None), 0, pick, 0.0).ids == [id or 0xFF + OFFSET for id in following]


# What is learned from what drafts cost.


@given(st.floats(1e-5, 1e-1), st.floats(0.0, 1.0), st.floats(0.02, 1.0))
def test_the_break_even_follows_from_what_passes_took(plain: float, start: float, more: float) -> None:
    costs = PassCosts()
    assert costs.break_even("patcher") is None  # the first pass tells what a byte is worth
    costs.add(None, 0, 1, plain)
    assert costs.break_even("patcher") == pytest.approx((0.1, 0.3))
    for drafted in [4, 1, 9, 2] * 60:
        costs.add("patcher", drafted, 1, plain * (1 + start + more * drafted))
        costs.add(None, 0, 1, plain)
    first = costs.break_even("patcher")
    assert first and first.per_draft == pytest.approx(start, abs=0.3)
    assert first.per_id == pytest.approx(more, abs=0.1)
    for _ in range(100):  # nearly all are accepted: a byte takes less time than before, so its draft must bring more
        costs.add("patcher", 9, 9, plain * (1 + start + more * 9))
        costs.add(None, 0, 1, plain)
    later = costs.break_even("patcher")
    assert later and later.per_id >= 0.9 * first.per_id


def test_passes_without_drafts_are_measured_again() -> None:
    costs = PassCosts()
    costs.add(None, 0, 1, 1.0)
    passes = 0
    while costs.break_even("ngram"):
        costs.add("ngram", 5, 6, 2.0)
        passes += 1
    assert 10 < passes < 100
    costs.add(None, 0, 1, 1.0)
    assert costs.break_even("ngram")


def test_the_best_way_is_found_and_kept_to() -> None:
    seconds = {"none": 3.0, "patcher": 2.0, "decoder": 5.0}
    selector, used = DraftSelector(list(seconds)), dict.fromkeys(seconds, 0)
    for index in range(4000):
        if index == 2000:
            seconds["decoder"] = 1.0  # the text has changed
        name = selector.choose()
        used[name] += 1
        selector.add(name, 2, 2 * seconds[name])
    assert used["none"] < 120 and used["patcher"] > 1850 and used["decoder"] > 1500


def test_a_bundle_may_go_once_it_is_open(tiny: Callable[[int], Model], tmp_path: Path) -> None:
    copy = shutil.copytree(tiny(10).bundle.path, tmp_path / "bundle")
    model = load(copy)
    shutil.rmtree(copy)
    assert model.generate("x", 5) == tiny(10).generate("x", 5)
    assert model.draft_statistics(AUTO).names == ("ngram",)


def test_rates_are_of_what_was_seen_lately() -> None:
    rates = AcceptanceRates([0.5, 0.9])
    assert (rates[0], rates[1]) == (0.5, 0.9)
    for _ in range(300):
        rates.add(0, True)
    assert rates[0] > 0.99 and rates[1] == 0.9
    for _ in range(300):
        rates.add(0, False)
    assert rates[0] < 0.01


def test_auto_asks_no_model_that_is_too_large(tiny: Callable[[int], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tiny model every stage is a good part; and what is asked is not asked where there is none."""
    monkeypatch.setattr("edgeblt.decoding.speculation.LARGEST_DRAFTER", 1.0)
    assert load(tiny(10).bundle.path).draft_statistics(AUTO).names == ("patcher", "decoder", "ngram")
    assert load(tiny(6).bundle.path).draft_statistics(AUTO).names == ("decoder", "ngram")
    monkeypatch.setattr("edgeblt.decoding.speculation.LARGEST_DRAFTER", 0.0)
    assert load(tiny(10).bundle.path).draft_statistics(AUTO).names == ("ngram",)
    assert load(tiny(10).bundle.path).draft_statistics("patcher").names == ("patcher",)


def test_one_slow_pass_does_not_decide() -> None:
    mean = ExponentialMean()
    for value in [1.0, 1.0, 1000.0, 1.0]:
        mean.add(value)
    assert mean.value is not None and mean.value < 2
