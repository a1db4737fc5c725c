"""Generation settings: what they are refused for, and what each does to the distribution of the next byte."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgeblt
from conftest import Exported
from edgeblt.bundle.config import Generation
from edgeblt.decoding.sampling import Sampler
from edgeblt.decoding.settings import GenerationSettings, merged_settings
from edgeblt.errors import EdgebltError
from edgeblt.ids import EOS, OFFSET, VOCAB_SIZE

INF = math.inf


def plain_distribution(logits: NDArray[np.float32], chosen: GenerationSettings, ends: list[int]) -> NDArray[np.float64]:
    """What docs/generation.md says, id by id, in float64: biases, temperature, top-k, top-p, min-p."""
    biases = dict(chosen.logit_bias)
    allowed = [id for id in (*ends, *range(OFFSET, VOCAB_SIZE)) if biases.get(id) != -INF]
    heights = {id: (float(logits[id]) + biases.get(id, 0.0)) / (chosen.temperature or 1.0) for id in sorted(allowed)}
    top = max(heights.values())
    kept = {id: math.exp(height - top) for id, height in heights.items()}
    ranked = sorted(kept, key=lambda id: -kept[id])
    for id in ranked[chosen.top_k or VOCAB_SIZE :]:
        del kept[id]
    total, before = sum(kept.values()), 0.0
    for id in ranked[: len(kept)]:
        share = kept[id] / total
        if chosen.top_p is not None and chosen.top_p < 1 and before >= chosen.top_p:
            del kept[id]
        before += share
    most = max(kept.values())
    kept = {id: weight for id, weight in kept.items() if weight >= (chosen.min_p or 0.0) * most}
    chances = np.zeros(VOCAB_SIZE)
    for id, weight in kept.items():
        chances[id] = weight / sum(kept.values())
    return chances


BIASES = st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.just(-INF) | st.floats(-9, 9), max_size=8)


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, 10**6),
    st.floats(0.1, 3.0),
    st.none() | st.integers(1, 260),
    st.none() | st.floats(0.01, 1.0),
    st.none() | st.floats(0.001, 1.0),
    BIASES,
)
def test_samplers_act_in_the_stated_order(
    seed: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    biases: dict[int | bytes | str, float],
) -> None:
    logits = np.random.default_rng(seed).normal(scale=3, size=VOCAB_SIZE).astype(np.float32)
    chosen = GenerationSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, logit_bias=biases)
    found = Sampler(chosen).distribution(logits)
    expected = plain_distribution(logits, chosen, [EOS])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_biases_move_greedy_choices_too() -> None:
    logits = np.zeros(VOCAB_SIZE, np.float32)
    logits[[70, 71, 72]] = 3.0, 2.0, 1.0
    for biases, expected in (
        ({}, 70),
        ({70: -INF}, 71),
        ({b"B": -1.5}, 71),
        ({"D": 2.5}, 72),
        ({70: -INF, 71: -INF, 72: -INF, 200: 0.5}, 200),
        ({EOS: 4.0}, EOS),
        ({0: 9.0, 5000: 9.0}, 70),  # never sampled, whatever their bias
    ):
        assert Sampler(GenerationSettings(logit_bias=biases)).choose(logits) == expected
    everything = dict.fromkeys([EOS, *range(OFFSET, VOCAB_SIZE)], -INF)
    with pytest.raises(EdgebltError, match="together forbid every byte that the model gives a probability"):
        Sampler(GenerationSettings(logit_bias=everything)).choose(logits)


def test_the_page_has_every_setting() -> None:
    page = (Path(__file__).parents[1] / "docs" / "generation.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(field.name for field in fields(GenerationSettings))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_new_bytes": -1}, "max_new_bytes is -1; it must not be negative"),
    ({"max_new_bytes": 1.5}, "max_new_bytes is 1.5; it must be a whole number"),
    ({"ignore_eos": 1}, "ignore_eos is 1; it must be True or False"),
    ({"draft": "x"}, "draft is 'x'; use one of none, patcher, decoder, heads, ngram, auto"),
    ({"min_p": 2}, "min_p is 2; it must be above 0 and at most 1"),
    ({"repetition_penalty": 1.1}, "repetition_penalty is not offered: counted by byte it forbids the letters of the"),
    ({"settings": {"top_k": 3}}, "settings is {'top_k': 3}; it must be edgeblt.GenerationSettings"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
def test_what_is_no_setting(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EdgebltError) as refused:
        merged_settings(**({"settings": None} | arguments))
    assert str(refused.value).startswith(sentence)
    if arguments.keys() <= GenerationSettings.__dataclass_fields__.keys():
        with pytest.raises(EdgebltError):
            GenerationSettings(**arguments)


def test_arguments_replace_settings_and_the_checkpoint_completes_them() -> None:
    base = GenerationSettings(temperature=0.5, top_k=9, logit_bias={"a": 1})
    merged = merged_settings(base, top_k=3, seed=None, temperature=None)
    assert merged == GenerationSettings(temperature=0.5, top_k=3, logit_bias={"a": 1})
    assert hash(merged) == hash(replace(merged)) and merged.logit_bias == ((ord("a") + OFFSET, 1.0),)
    stated = Generation(temperature=0.7, top_k=40, top_p=0.9)
    assert merged.completed(stated) == replace(merged, top_p=0.9)
    assert GenerationSettings().completed(stated) == GenerationSettings(temperature=0.7, top_k=40, top_p=0.9)


def test_settings_and_arguments_say_the_same(exported: Callable[[int], Exported]) -> None:
    model = exported(10).model
    expected = model.generate(b"once", 20, 0.9, 50, 0.9, 1)
    chosen = edgeblt.GenerationSettings(max_new_bytes=20, temperature=0.9, top_k=50, top_p=0.9, seed=1)
    assert model.generate(b"once", settings=chosen) == expected
    assert b"".join(model.stream(b"once", settings=replace(chosen, seed=5), seed=1)) == expected
    assert len(model.generate(b"once", settings=chosen, max_new_bytes=7)) <= 7
    likeliest = model.generate(b"once", 20, min_p=1.0, temperature=1.0)
    assert likeliest == model.generate(b"once", 20, 0.0)
    assert len(model.generate(b"once", 300, ignore_eos=True, temperature=2.0, seed=1)) == 300
