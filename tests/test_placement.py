"""Which stage goes where: what is read, what is refused, and what is written for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeblt.bundle.contract import STAGES, TARGETS, StageName, Target
from edgeblt.bundle.placement import describe_placement, parse_placement
from edgeblt.errors import EdgebltError

OTHERS: dict[StageName, Target] = dict.fromkeys(STAGES, "cpu")


def test_what_is_read() -> None:
    assert parse_placement("cuda", "target", TARGETS, OTHERS) == dict.fromkeys(STAGES, "cuda")
    assert parse_placement("global=cuda", "target", TARGETS, OTHERS) == OTHERS | {"global": "cuda"}
    assert parse_placement(" patcher = cpu , global= cuda ", "target", TARGETS, dict.fromkeys(STAGES, "cuda")) == {
        "patcher": "cpu", "encoder": "cuda", "global": "cuda", "decoder": "cuda",
    }  # fmt: skip


@given(st.fixed_dictionaries({stage: st.sampled_from(TARGETS) for stage in STAGES}))
def test_what_is_written_is_read_again(placement: dict[StageName, Target]) -> None:
    text = describe_placement(placement)
    assert parse_placement(text, "target", TARGETS, OTHERS) == placement
    assert ("=" in text) == (len(set(placement.values())) > 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tpu", "target 'tpu' is unknown; this version has cpu, cuda"),
        ("", "target '' is unknown; this version has cpu, cuda"),
        ("global=tpu", "target 'tpu' is unknown; this version has cpu, cuda"),
        ("globe=cuda", "target 'globe=cuda' names the stage 'globe'; use patcher, encoder, global, decoder"),
        ("global=cuda,cpu", "target 'global=cuda,cpu' names the stage 'cpu'; use patcher, encoder, global, decoder"),
        ("global=cuda,global=cpu", "target 'global=cuda,global=cpu' names the stage global twice; name it once"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(EdgebltError) as raised:
        parse_placement(text, "target", TARGETS, OTHERS)
    assert str(raised.value) == said
