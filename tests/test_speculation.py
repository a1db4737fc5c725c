"""Drafts change the time a text takes, and nothing else."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from conftest import Exported
from edgeblt import native
from edgeblt.drafting import DRAFTERS, LENGTHS, NgramDrafter
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import BOS, encode
from edgeblt.model import Model, load
from edgeblt.samples import DEMO_CHECKPOINT, held_out_texts
from edgeblt.sampling import Sampler, Sampling
from edgeblt.session import ROLLBACK_BYTES, Session
from edgeblt.speculation import AUTO, DRAFTS, NONE, Costs, DraftCounts, generate_ids

SEEDS = (2, 5, 10, 12, 15, 16)  # windows or none, maximum patch lengths, k from 1 to 4, no patcher (15)
needs_library = pytest.mark.skipif(not native.status().levels, reason="no native library")


@pytest.fixture(scope="module")
def tiny(exported: Callable[[int], Exported]) -> Callable[[int], Model]:
    return lambda seed: load(exported(seed).bundle)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(export_bundle(DEMO_CHECKPOINT, tmp_path_factory.mktemp("demo") / "bundle", "int8").path)


def continuation(model: Model, prompt: list[int], draft: str, sampling: Sampling, count: int = 60) -> list[int]:
    session = model.session()
    logits = session.feed(prompt)[-1]
    return list(generate_ids(session, logits, Sampler(sampling), draft, count, DraftCounts()))


@pytest.mark.parametrize("seed", SEEDS)
@settings(deadline=None, max_examples=8)
@given(choices=st.integers(0, 2**32 - 1))
def test_reading_ahead_changes_nothing(seed: int, tiny: Callable[[int], Model], choices: int) -> None:
    """Whatever is read ahead, tried with the decoder alone, rolled back or forked between: the logits of feeding."""
    model, ids = tiny(seed), np.array(tiny_models.random_ids(seed, 100))
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


@pytest.mark.parametrize("draft", [*DRAFTERS, AUTO])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_models_say_the_same(seed: int, draft: str, tiny: Callable[[int], Model]) -> None:
    model, prompt = tiny(seed), tiny_models.random_ids(seed, 30)
    for sampling in (Sampling(), Sampling(0.8, seed=3), Sampling(1.5, top_k=20, top_p=0.9, seed=4)):
        assert continuation(model, prompt, draft, sampling) == continuation(model, prompt, NONE, sampling)


@needs_library
@pytest.mark.parametrize("draft", [*DRAFTERS, AUTO])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_bundled_model_says_the_same(draft: str, temperature: float, demo: Model) -> None:
    """Prose, code and languages it does not know; to the byte."""
    for number, text in enumerate(held_out_texts()):
        prompt = [BOS, *encode(text.data[300 * number :][:80]).tolist()]
        sampling = Sampling(temperature, seed=number)
        assert continuation(demo, prompt, draft, sampling, 50) == continuation(demo, prompt, NONE, sampling, 50)


def test_repetition_takes_few_passes(tiny: Callable[[int], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """A greedy text of a small model ends up repeating itself: that is recognised, and long drafts are accepted."""
    monkeypatch.setattr(Costs, "share", 0.2)
    session = tiny(10).session()
    logits, counts = session.feed(tiny_models.random_ids(10, 20))[-1], DraftCounts()
    generated = list(generate_ids(session, logits, Sampler(Sampling()), "ngram", 300, counts))
    assert len(generated) / counts.passes > 2 and counts.accepted <= counts.drafted


@pytest.mark.parametrize("most", [0, 1, 2])
def test_no_more_than_asked_for(most: int, tiny: Callable[[int], Model]) -> None:
    for draft in DRAFTS:
        assert len(continuation(tiny(10), tiny_models.random_ids(10, 20), draft, Sampling(), most)) <= most


def test_unknown_drafts_are_refused(tiny: Callable[[int], Model]) -> None:
    with pytest.raises(EdgebltError, match="draft is 'oracle'; use one of none, patcher, decoder, ngram, auto"):
        tiny(10).generate("x", draft="oracle")


def test_ngrams_find_the_newest_place(tiny: Callable[[int], Model]) -> None:
    session: Session = tiny(10).session()
    drafter = NgramDrafter()
    shortest = LENGTHS[-1]
    context = list(range(10, 10 + shortest))
    for id in [*context, 100, 101, 102, *context, 200, 201, 202, *context]:
        drafter.append(id)

    def pick(logits: object, ahead: int) -> tuple[int, float]:
        raise AssertionError

    assert drafter.draft(session, context[-1], pick, 0.5)[:3] == [200, 201, 202]
    assert drafter.draft(session, context[-1], pick, 0.99) == []
    for _ in range(40):  # it learns that this is never right
        drafter.judge(3, 0)
    assert drafter.draft(session, context[-1], pick, 0.5) == []


@given(st.floats(1e-5, 1e-1), st.floats(0.02, 1.0))
def test_costs_are_a_line_through_what_was_measured(single: float, share: float) -> None:
    costs = Costs()
    for count in [1, 1, 5, 1, 9, 3] * 20:
        costs.add(count, single * (1 + share * (count - 1)))
    assert abs(costs.share - share) < 0.05
