"""JSON documents become dataclasses exactly or not at all."""

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeblt.bundle.config import (
    ACTIVATIONS,
    HashConfig,
    ModelConfig,
    PatchingRule,
    Rule,
    TransformerConfig,
)
from edgeblt.bundle.dataclass_json import dataclass_document, parse_dataclass
from edgeblt.bundle.manifest import FileRecord, Manifest, StageRecord
from edgeblt.errors import EdgebltError


class Color(IntEnum):
    RED = 1
    DARK_BLUE = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5

    def __post_init__(self) -> None:
        if self.x > 100:
            raise EdgebltError(f"x is {self.x}; it must be at most 100")


@dataclass(frozen=True)
class Everything:
    count: int
    ratio: float
    name: str
    flag: bool
    color: Color
    global_: Point
    maybe: int | None
    maybe_point: Point | None
    sizes: tuple[int, ...]
    points: tuple[Point, ...]
    by_name: dict[str, Point]
    later: tuple[int, ...] = ()


DOCUMENT: dict[str, Any] = {
    "count": -3,
    "ratio": 0.25,
    "name": "ä",
    "flag": True,
    "color": "dark_blue",
    "global": {"x": 1, "y": 2.0},
    "maybe": None,
    "maybe_point": {"x": 2, "y": 3.0},
    "sizes": [1, 2],
    "points": [{"x": 3, "y": 4.0}],
    "by_name": {"a": {"x": 4, "y": 5.0}},
    "later": [],
}
EVERYTHING = Everything(
    -3, 0.25, "ä", True, Color.DARK_BLUE, Point(1, 2.0), None, Point(2, 3.0), (1, 2), (Point(3, 4.0),),
    {"a": Point(4, 5.0)},
)  # fmt: skip


def refusal(document: object, cls: type[object] = Everything) -> str:
    with pytest.raises(EdgebltError) as caught:
        parse_dataclass(cls, document, "FILE")
    return str(caught.value)


def test_every_type() -> None:
    assert parse_dataclass(Everything, DOCUMENT, "FILE") == EVERYTHING
    assert dataclass_document(EVERYTHING) == DOCUMENT
    assert list(dataclass_document(EVERYTHING)) == list(DOCUMENT)  # in field order


def test_defaults() -> None:
    assert parse_dataclass(Point, {"x": 1}, "FILE") == Point(1, 0.5)
    assert parse_dataclass(Everything, {k: v for k, v in DOCUMENT.items() if k != "later"}, "FILE") == EVERYTHING


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("count", True, "FILE: count is True; it must be of type int"),
        ("count", 1.0, "FILE: count is 1.0; it must be of type int"),
        ("count", "1", "FILE: count is '1'; it must be of type int"),
        ("count", None, "FILE: count is None; it must be of type int"),
        ("count", 1 << 64, f"FILE: count is {1 << 64}; it must be a number of at most 64 bits"),
        ("count", [1], "FILE: count is [1]; it must be of type int"),
        ("ratio", True, "FILE: ratio is True; it must be of type float"),
        ("ratio", "0.5", "FILE: ratio is '0.5'; it must be of type float"),
        ("ratio", 1 << 53, f"FILE: ratio is {1 << 53}; it must be of type float"),
        ("ratio", -(10**400), "FILE: ratio is -" + "1" + "0" * 95 + "...; it must be of type float"),
        ("name", 1, "FILE: name is 1; it must be of type str"),
        ("name", None, "FILE: name is None; it must be of type str"),
        ("flag", 1, "FILE: flag is 1; it must be of type bool"),
        ("flag", "true", "FILE: flag is 'true'; it must be of type bool"),
        ("color", "green", "FILE: color is 'green'; it must be one of red, dark_blue"),
        ("color", 1, "FILE: color is 1; it must be one of red, dark_blue"),
        ("color", None, "FILE: color is None; it must be one of red, dark_blue"),
        ("global", [1, 2.0], "FILE: global must be a JSON object, not [1, 2.0]; write it again with edgeblt"),
        ("global", {"x": True}, "FILE: global: x is True; it must be of type int"),
        ("global", {"x": 101}, "FILE: global: x is 101; it must be at most 100"),
        ("global", {"y": 1.0}, "FILE: global lacks the field 'x'; write it again with edgeblt"),
        ("maybe", "x", "FILE: maybe is 'x'; it must be of type int"),
        ("maybe", False, "FILE: maybe is False; it must be of type int"),
        ("maybe_point", 3, "FILE: maybe_point must be a JSON object, not 3; write it again with edgeblt"),
        ("sizes", 1, "FILE: sizes is 1; it must be of type tuple"),
        ("sizes", "12", "FILE: sizes is '12'; it must be of type tuple"),
        ("sizes", {"0": 1}, "FILE: sizes is {'0': 1}; it must be of type tuple"),
        ("sizes", [1, 2.5], "FILE: sizes[1] is 2.5; it must be of type int"),
        ("points", [{"x": 1}, {"x": "y"}], "FILE: points[1]: x is 'y'; it must be of type int"),
        ("by_name", [], "FILE: by_name is []; it must be of type dict"),
        ("by_name", {"a\n": 1}, r"FILE: by_name.a\n must be a JSON object, not 1; write it again with edgeblt"),
        ("by_name", {"a" * 99: {}}, f"FILE: by_name.{'a' * 60} lacks the field 'x'; write it again with edgeblt"),
        ("colour\n", 1, "FILE has the unknown field 'colour\\n'; this version knows " + ", ".join(DOCUMENT)),
        ("global_", {"x": 1}, "FILE has the unknown field 'global_'; this version knows " + ", ".join(DOCUMENT)),
    ],
)  # fmt: skip
def test_refused_values(name: str, value: object, said: str) -> None:
    assert refusal(DOCUMENT | {name: value}) == said


@pytest.mark.parametrize("document", [None, 3, "x", [], [["count", 1]], True])
def test_what_is_no_object(document: object) -> None:
    assert refusal(document) == f"FILE must be a JSON object, not {document!r}; write it again with edgeblt"


@pytest.mark.parametrize("name", [name for name in DOCUMENT if name != "later"])
def test_missing_fields(name: str) -> None:
    document = {key: value for key, value in DOCUMENT.items() if key != name}
    assert refusal(document) == f"FILE lacks the field {name!r}; write it again with edgeblt"


def test_numbers_that_python_does_not_write_out() -> None:
    shown = "a number of thousands of digits"
    assert (
        refusal(DOCUMENT | {"count": -(10**5000)}) == f"FILE: count is {shown}; it must be a number of at most 64 bits"
    )
    assert refusal(DOCUMENT | {"name": [10**5000]}) == f"FILE: name is {shown}; it must be of type str"


def test_long_values_are_cut() -> None:
    said = refusal(DOCUMENT | {"count": "x" * 10_000})
    assert said == f"FILE: count is '{'x' * 96}...; it must be of type int"
    assert len(refusal(DOCUMENT | {"y" * 10_000: 1})) < 300


def test_integers_are_floats_where_exact() -> None:
    parsed = parse_dataclass(Point, {"x": 1, "y": (1 << 53) - 1}, "FILE")
    assert type(parsed.y) is float and parsed.y == (1 << 53) - 1


COUNTS = st.integers(1, 1 << 20)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
POSITIVE = st.floats(min_value=1e-30, max_value=1e30)


@st.composite
def stacks(draw: st.DrawFn) -> TransformerConfig:
    kv_heads, group, head_dim = draw(st.integers(1, 9)), draw(st.integers(1, 9)), 2 * draw(st.integers(1, 99))
    heads = kv_heads * group
    return TransformerConfig(
        hidden_size=heads * head_dim + draw(st.integers(0, heads - 1)),
        layer_count=draw(st.integers(1, 1024)),
        head_count=heads,
        kv_head_count=kv_heads,
        intermediate_size=draw(COUNTS),
        norm_epsilon=draw(POSITIVE),
        rope_theta=draw(POSITIVE),
        window=draw(st.none() | COUNTS),
        activation=draw(st.sampled_from(ACTIVATIONS)),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    rule = draw(st.sampled_from(Rule))
    config = ModelConfig(
        vocab_size=draw(COUNTS),
        cross_attention_k=draw(COUNTS),
        patcher=draw(stacks() if rule.needs_entropies else st.none() | stacks()),
        encoder=draw(stacks()),
        global_=draw(stacks()),
        decoder=draw(stacks()),
        decoder_cross_all_layers=draw(st.booleans()),
        hashes=HashConfig(draw(COUNTS), draw(st.lists(st.integers(1, 64), min_size=1).map(tuple)), draw(COUNTS)),
        patching=PatchingRule(rule, draw(FINITE), draw(FINITE), draw(st.none() | COUNTS), draw(COUNTS)),
    )
    texts = st.text(max_size=5)
    records = st.builds(FileRecord, st.integers(-(1 << 63), 1 << 63), texts)
    stages = st.builds(StageRecord, texts, st.lists(texts).map(tuple), texts)
    return Manifest(
        format_version=draw(st.integers(-(1 << 63), 1 << 63)),
        name=draw(texts),
        target=draw(texts),
        recipe=draw(texts),
        kv_cache=draw(texts),
        config=config,
        stages=draw(st.dictionaries(texts, stages, max_size=3)),
        files=draw(st.dictionaries(texts, records, max_size=3)),
        made_by=draw(st.dictionaries(texts, texts, max_size=3)),
    )


@given(manifests())
def test_a_round_trip_through_json_changes_nothing(manifest: Manifest) -> None:
    text = json.dumps(dataclass_document(manifest))
    parsed = parse_dataclass(Manifest, json.loads(text), "FILE", {"config": ModelConfig})
    assert parsed == manifest
    assert json.dumps(dataclass_document(parsed)) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*DOCUMENT, "x"]), JSON) | JSON, st.booleans())
def test_any_document_is_parsed_or_refused(document: Any, filled: bool) -> None:
    if filled and isinstance(document, dict):
        document = DOCUMENT | document
    try:
        parsed = parse_dataclass(Everything, document, "FILE")
    except EdgebltError as error:
        assert str(error).startswith("FILE") and str(error).isprintable() and len(str(error)) < 400
    else:
        assert dataclass_document(parsed).keys() == DOCUMENT.keys()
