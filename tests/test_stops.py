"""Stop sequences: what a naive search finds in the whole text, and no byte held back in vain."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Exported
from edgeblt.decoding.output import Output, TextEnd
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.errors import EdgebltError
from edgeblt.names import Name
from tiny_models import BLT_DRAFTS

TEXTS = st.binary(max_size=60).map(lambda data: bytes(byte % 3 + 97 for byte in data))
STOPS = st.lists(TEXTS.filter(bool).map(lambda stop: stop[:7]), min_size=1, max_size=5)


def searched(text: bytes, stops: list[bytes]) -> tuple[bytes, bytes | None]:
    """The text before the first stop sequence to be complete, the longest of those that end together."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


def may_go_on(text: bytes, stops: list[bytes]) -> int:
    """Number of newest bytes that may still become a stop sequence."""
    return max(size for size in range(len(text) + 1) if any(
        size < len(stop) and stop.startswith(text[len(text) - size :]) for stop in stops
    ))  # fmt: skip


@settings(deadline=None, max_examples=500)
@given(TEXTS, STOPS)
def test_any_text_and_any_stops(text: bytes, stops: list[bytes]) -> None:
    output, given_so_far = Output(stops), b""
    for place, byte in enumerate(text, 1):
        given_so_far += b"".join(output.take(byte))
        if output.stop is not None:
            break
        assert len(given_so_far) == place - may_go_on(text[:place], stops)
    else:
        given_so_far += b"".join(output.finish())
    assert (given_so_far, output.stop) == searched(text, stops)


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_whole_characters(text: str, stops: list[str]) -> None:
    """With stop sequences in UTF-8 a text ends between characters, and every piece is a character."""
    output, pieces = Output([stop.encode() for stop in stops], utf8_state=0), []
    for byte in text.encode():
        pieces += output.take(byte)
        if output.stop is not None:
            break
    else:
        pieces += output.finish()
    assert [len(piece.decode()) for piece in pieces] == [1] * len(pieces)
    assert b"".join(pieces) == searched(text.encode(), [stop.encode() for stop in stops])[0]


def test_half_a_character_is_left_out() -> None:
    output = Output(utf8_state=0)
    assert [output.take(byte) for byte in "aé".encode()[:2]] == [[b"a"], []] and output.finish() == []
    after_half = Output(utf8_state=1)  # the prompt ended with the first byte of two
    assert [after_half.take(byte) for byte in b"\xa9a"] == [[b"\xa9"], [b"a"]]


@pytest.mark.parametrize("draft", BLT_DRAFTS)
def test_models_stop_as_a_search_says(draft: str, exported: Callable[[int], Exported]) -> None:
    """Across the borders of drafts; the text and the reason of its end."""
    model = exported(10).model
    chosen = GenerationSettings(max_new_bytes=80, temperature=0.8, seed=2, ignore_eos=True, draft=Name(draft))
    text = model.generate(b"some", settings=chosen)
    assert len(text) == 80
    for stops in ([text[30:34]], [text[70:72], text[41:49]], [text[20:21]], [b"\0nowhere"], [text[79:80], text[76:]]):
        stream = model.stream(b"some", settings=chosen, stop=stops)
        assert stream.end is None
        expected, stop = searched(text, stops)
        assert b"".join(stream) == expected
        assert stream.end == (TextEnd("stop", stop) if stop else TextEnd("length"))


def test_ends_are_told_apart(exported: Callable[[int], Exported]) -> None:
    model = exported(10).model
    stream = model.stream(b"some", 300, logit_bias={2: 30.0})
    assert list(stream) == [] and stream.end == TextEnd("eos")
    stream = model.stream(b"some", 0)
    assert list(stream) == [] and stream.end == TextEnd("length")
    stream = model.stream(b"some", 50)
    next(stream)
    stream.close()
    assert list(stream) == [] and stream.end is None


@pytest.mark.parametrize(
    ("stop", "utf8", "sentence"),
    [
        (3, False, "stop is 3; it must be bytes or str, or several of them"),
        ([b"a", ""], False, "a stop sequence is empty; give at least one byte"),
        ([b"a", 3], False, "a stop sequence is 3; it must be bytes or str"),
        (b"\xa9", True, r"the stop sequence b'\xa9' is not UTF-8, which utf8 promises; leave one of them out"),
    ],
)
def test_what_is_no_stop_sequence(stop: object, utf8: bool, sentence: str) -> None:
    with pytest.raises(EdgebltError) as refused:
        GenerationSettings(stop=stop, utf8=utf8)  # type: ignore[arg-type]
    assert str(refused.value) == sentence
    assert GenerationSettings(stop=["a", b"a", "é"]).stop == (b"a", "é".encode())
