"""Constraints: what is generated always matches, from the distribution that the mask leaves, whatever the drafts."""

import itertools
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from conftest import Exported
from edgeblt.decoding import constraints
from edgeblt.decoding.constraints import Constraint, ConstraintRule
from edgeblt.decoding.draft_costs import BreakEven, PassCosts
from edgeblt.decoding.output import TextEnd
from edgeblt.decoding.settings import GenerationSettings, text_sampler
from edgeblt.decoding.speculation import AcceptanceCounts, generate_ids
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import EOS, OFFSET, VOCAB_SIZE
from edgeblt.measure.texts import DEMO_CHECKPOINT
from edgeblt.model import Model, load
from edgeblt.names import Name
from sampled import mostly_slow
from tiny_models import BLT_DRAFTS

ENOUGH = 600  # bytes, more than any text that a constraint below allows


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts as long as they may be, however unlikely."""
    monkeypatch.setattr(PassCosts, "break_even", lambda *_: BreakEven(0.0, 0.0))


@pytest.fixture
def tiny(exported: Callable[[int], Exported]) -> Model:
    return exported(10).model


def random_schema(chance: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema whose texts have a limited length."""
    kinds = ["boolean", "null", "integer", "string", "enum", "const"] + ["object", "array", "anyOf"] * (depth > 0)
    match chance.choice(kinds):
        case "integer":
            least = chance.randint(-50, 50)
            return {"type": "integer", "minimum": least, "maximum": least + chance.randint(0, 300)}
        case "string":
            return {"type": "string", "minLength": chance.randint(0, 3), "maxLength": chance.randint(3, 8)}
        case "enum":
            return {"enum": chance.sample(["red", "green", 1, 2.5, None, True, "blü"], chance.randint(1, 4))}
        case "const":
            return {"const": chance.choice(["a constant", 7, False])}
        case "object":
            names = chance.sample(["name", "age", "größe", "a b", "tags"], chance.randint(0, 4))
            needed = chance.sample(names, chance.randint(0, len(names)))
            parts = {name: random_schema(chance, depth - 1) for name in names}
            return {"type": "object", "properties": parts, "required": needed, "additionalProperties": False}
        case "array":
            least, more = chance.randint(0, 2), chance.randint(0, 2)
            items = random_schema(chance, depth - 1)
            return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}
        case "anyOf":
            return {"anyOf": [random_schema(chance, depth - 1) for _ in range(2)]}
        case kind:
            return {"type": kind}


def allowed(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a schema made by `random_schema` allows a value."""
    if "anyOf" in schema:
        return any(allowed(value, each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(value == each and isinstance(value, bool) == isinstance(each, bool)
                   for each in schema.get("enum", [schema.get("const")]))  # fmt: skip
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
        case "array":
            return (isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
                    and all(allowed(each, schema["items"]) for each in value))  # fmt: skip
    parts = schema["properties"]
    return (isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(parts)
            and all(allowed(each, parts[name]) for name, each in value.items()))  # fmt: skip


def random_regex(chance: random.Random, depth: int = 3) -> str:
    """A regular expression, in a syntax that Python shares, whose texts have a limited length."""
    match chance.choice(["literal", "class", "literal"] + ["group", "repeat", "row"] * 2 * (depth > 0)):
        case "literal":
            return chance.choice(["a", "bc", "é", "0", r"\.", "x y"])
        case "class":
            return chance.choice(["[a-f]", "[^a-z]", "[0-9]", "[äöü]", "."])
        case "group":
            return f"({'|'.join(random_regex(chance, depth - 1) for _ in range(chance.randint(1, 3)))})"
        case "repeat":
            least = chance.randint(0, 2)
            return f"({random_regex(chance, depth - 1)}){{{least},{least + chance.randint(0, 3)}}}"
    return "".join(random_regex(chance, depth - 1) for _ in range(chance.randint(1, 3)))


def check_constraint(model: Model, number: int) -> None:
    """A random schema and a random regular expression, at temperature 1, with drafts and without."""
    chance = random.Random(number)
    schema, pattern = random_schema(chance), random_regex(chance)
    for constraint in (Constraint.json_schema(schema), Constraint.regex(pattern)):
        chosen = GenerationSettings(max_new_bytes=ENOUGH, temperature=1.0, seed=number, constraint=constraint)
        draft = Name(BLT_DRAFTS[number % len(BLT_DRAFTS)])
        stream = model.stream("{", settings=chosen, draft=draft)
        text = b"".join(stream)
        assert stream.end in (TextEnd("constraint"), TextEnd("eos")), (constraint, text)
        if constraint.kind == "json_schema":
            assert allowed(json.loads(text), schema), (schema, text)
        else:
            assert re.fullmatch(pattern, text.decode()), (pattern, text)
        assert model.generate("{", settings=chosen, draft="none") == text, constraint


@pytest.mark.usefixtures("eager")
def test_texts_match(tiny: Model) -> None:
    for number in range(60):
        check_constraint(tiny, number)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_a_thousand_texts_match(tiny: Model) -> None:
    for number in range(1000):
        check_constraint(tiny, number)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("draft", mostly_slow(BLT_DRAFTS, keep=("none", "patcher", "auto")))
def test_the_distribution_is_what_the_mask_leaves(draft: str, tiny: Model) -> None:
    """Chi-squared against the model's probabilities, renormalised over what is allowed, byte by byte."""
    chosen = GenerationSettings(temperature=1.0, constraint=Constraint.regex("[ab](c|d)ef[gh]i"), ignore_eos=True)
    prompt = tiny_models.random_ids(10, 30)
    session = tiny.session()
    first = session.feed(prompt)[-1]
    exact: dict[bytes, float] = {}
    for text in map(bytes, itertools.product(b"ab", b"cd", b"e", b"f", b"gh", b"i")):
        rows = np.concatenate([first[None], session.feed([byte + OFFSET for byte in text])]).astype(np.float64)
        session.rollback(len(prompt))
        exact[text] = 1.0
        for place, choice in ((0, b"ab"), (1, b"cd"), (4, b"gh")):
            weights = {byte: math.exp(rows[place][byte + OFFSET]) for byte in choice}
            exact[text] *= weights[text[place]] / sum(weights.values())
    assert math.isclose(sum(exact.values()), 1.0)
    drawn, draws, counts = dict.fromkeys(exact, 0), 400, AcceptanceCounts()
    for seed in range(draws):
        sampler = text_sampler(replace(chosen, seed=seed), [EOS], b"")
        ids = generate_ids(session, first, sampler, tiny.draft_statistics(draft), 50, counts)
        drawn[bytes(id - OFFSET for id in ids)] += 1
        session.rollback(len(prompt))
    statistic = sum((drawn[text] - draws * share) ** 2 / (draws * share) for text, share in exact.items())
    assert statistic < 35  # 7 degrees of freedom: 1e-5
    assert counts.drafted > 0 or draft in ("none", "ngram", "auto")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(export_bundle(DEMO_CHECKPOINT, tmp_path_factory.mktemp("demo") / "bundle", "int8").path)


def test_a_mask_that_never_bites_changes_nothing(demo: Model) -> None:
    """Any UTF-8 is allowed, so a text that is UTF-8 stays the same to the byte, with the same seed and any draft."""
    anything, compared = Constraint.regex("(?s:.)*"), 0
    for seed, temperature in itertools.product(range(3), (0.0, 0.7)):
        for draft in ("none", "auto"):
            chosen = GenerationSettings(max_new_bytes=60, temperature=temperature, seed=seed, draft=Name(draft))
            free = demo.generate("It was a bright", settings=chosen)
            if free.decode(errors="ignore").encode() == free:
                compared += 1
                assert demo.generate("It was a bright", settings=chosen, constraint=anything) == free
    assert compared >= 6


def test_forced_bytes_are_fed_at_once(tiny: Model) -> None:
    constraint = Constraint.regex("(yes|no), because of the weather[.!]")
    session = tiny.session()
    first = session.feed([1, 70])[-1]
    sampler = text_sampler(GenerationSettings(constraint=constraint), [EOS], b"")
    counts = AcceptanceCounts()
    ids = list(generate_ids(session, first, sampler, tiny.draft_statistics("none"), 100, counts))
    text = bytes(id - OFFSET for id in ids)
    assert re.fullmatch(r"(yes|no), because of the weather[.!]", text.decode())
    assert counts.passes == 1 and session.position == 2 + len(text) - 1  # the last byte is not fed


def test_a_constant_takes_no_pass(tiny: Model) -> None:
    stream = tiny.stream("x", constraint=Constraint.lark('start: "a constant"'))
    assert b"".join(stream) == b"a constant" and stream.end == TextEnd("constraint")
    assert tiny.generate("x", 4, constraint=Constraint.lark('start: "a constant"')) == b"a co"
    stream = tiny.stream("x", constraint=Constraint.regex(""))
    assert b"".join(stream) == b"" and stream.end == TextEnd("constraint")


def test_ends_only_where_the_constraint_is_met() -> None:
    rule = ConstraintRule(Constraint.regex("ab?"), [EOS])
    logits = np.zeros(VOCAB_SIZE)
    rule.adjust(logits)
    assert np.flatnonzero(logits == 0).tolist() == [0, 1, 3, ord("a") + OFFSET]
    rule.take(ord("a") + OFFSET)
    logits = np.zeros(VOCAB_SIZE)
    rule.adjust(logits)
    assert np.flatnonzero(logits == 0).tolist() == [0, 1, EOS, 3, ord("b") + OFFSET] and not rule.is_complete
    rule.take(ord("b") + OFFSET)
    assert rule.is_complete


@pytest.mark.parametrize("pattern", ["[ab]*", "ab?(é|ü)+c", "(a|é){2}b"])
def test_drafts_are_cut_where_the_rules_say(pattern: str) -> None:
    """As many ids as a walk through the masks allows, alone and with UTF-8."""
    chance = random.Random(pattern)
    for utf8 in (False, True):
        chosen = GenerationSettings(constraint=Constraint.regex(pattern), utf8=utf8, ignore_eos=True)
        for _ in range(30):
            ids = [byte + OFFSET for byte in chance.choices("abcéü".encode(), k=6)]
            sampler, count = text_sampler(chosen, [EOS], b""), 0
            logits = np.full(VOCAB_SIZE, -np.inf, np.float32)
            while count < len(ids) and not sampler.is_complete:
                logits[:] = -np.inf
                logits[ids[count]] = 0
                try:
                    sampler.choose(logits)
                except EdgebltError:
                    break
                count += 1
            assert text_sampler(chosen, [EOS], b"").allowed_ids(ids) == count
        assert text_sampler(chosen, [EOS], b"").allowed_ids([]) == 0


def test_rules_that_contradict_each_other(tiny: Model) -> None:
    with pytest.raises(EdgebltError, match="logit_bias, utf8 and constraint together forbid every byte"):
        tiny.generate("x", constraint=Constraint.regex("abc"), logit_bias={"b": -math.inf})


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: Constraint.regex("("), "the regular expression '(' cannot be used (unclosed group); correct it"),
    (lambda: Constraint.regex(r"[^\x00-\U0010ffff]"), "the regular expression"),
    (lambda: Constraint.regex(3), "the regular expression is 3; it must be a str"),  # type: ignore[arg-type]
    (lambda: Constraint.regex("\udcff"), r"the regular expression is '\udcff', which has no UTF-8 form; give bytes"),
    (lambda: Constraint.json_schema("{"), "the JSON schema '{' cannot be used (EOF while parsing"),
    (lambda: Constraint.json_schema({"a": {1, 2}}), "the JSON schema is {'a': {1, 2}}; it must be JSON text or a dict"),
    (lambda: Constraint.json_schema({"type": "integer", "minimum": 5, "maximum": 3}),
     """the JSON schema '{"type": "integer", "minimum": 5, "maximum": 3}' cannot be used (Unsatisfiable schema: """),
    (lambda: Constraint.json_schema({"not": {}}), "the JSON schema '{\"not\": {}}' cannot be used (Unimplemented keys"),
    (lambda: Constraint.json_schema("3"), "the JSON schema '3' cannot be used (Expecting object schema"),
    (lambda: Constraint.lark("start: b"), "the grammar 'start: b' cannot be used ("),
    (lambda: Constraint.lark(""), "the grammar '' cannot be used ("),
    (lambda: Constraint("xml", "<"), "the kind of constraint is 'xml'; use regex, json_schema, lark"),  # type: ignore[arg-type]
    (lambda: GenerationSettings(constraint="abc"), "constraint is 'abc'; it must be made by edgeblt.Constraint"),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_no_constraint(number: int) -> None:
    call, sentence = REFUSED[number]
    with pytest.raises(EdgebltError) as refused:
        call()
    assert str(refused.value).startswith(sentence) and str(refused.value).isprintable()


def test_without_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    constraints._tokenizer.cache_clear()
    constraints._compiled.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EdgebltError, match=r"constraints need llguidance; install it with: .*constraints"):
        Constraint.regex("a")


def test_white_space_where_the_schema_asks_for_it(tiny: Model, tmp_path: Path) -> None:
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}
    assert tiny.generate("x", constraint=Constraint.json_schema(schema)) == b"[1,1]"
    flexible = Constraint.json_schema({**schema, "x-guidance": {"whitespace_flexible": True}})
    text = tiny.generate("x", 30, constraint=flexible, logit_bias={" ": 50.0})
    assert b" " in text


def test_a_pattern_that_grows_too_large(tiny: Model) -> None:
    """Found only as the text goes on: 250,000 bytes are forced at once, and no more fit."""
    with pytest.raises(EdgebltError) as refused:
        tiny.generate("a", 5, constraint=Constraint.regex("a{1000000}"))
    assert str(refused.value) == (
        "the regular expression cannot be followed any further (lexer error: too many expressions constructed);"
        " simplify it"
    )
