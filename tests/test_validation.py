"""Accuracy figures against plain recomputation, limits, and the rows they are made of."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from conftest import Exported
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, OFFSET, VOCAB_SIZE, encode
from edgeblt.measure.reference import CONTINUATION_BYTES, ComputedRows, ReferenceRow, Text, TextRow
from edgeblt.measure.texts import HELD_OUT_TEXTS, held_out_text, held_out_texts
from edgeblt.measure.validation import PASSAGE_BYTES, Limits, Passage, Report, Validation, validate
from edgeblt.model import Model
from edgeblt.runtime.buffers import Chunk, Take

NOT_ACCURACY = ("bundle", "bundle_id", "recipe", "bundle_bytes", "device", "threshold", "passage")
TEXT = bytes(id_ - OFFSET for id_ in tiny_models.random_ids(3, 701)[1:])


class Scripted:
    """A model and a reference at once; its logits and patch starts are drawn from the ids so far."""

    bundle = SimpleNamespace(
        directory_name="bundle", id="0123456789ab", size=17, manifest=SimpleNamespace(recipe="int8")
    )
    config = SimpleNamespace(patching=PatchingRule(Rule.THRESHOLD, 1.5))
    threshold: float | None = None
    device = "a device"

    def __init__(self, seed: int, vocab_size: int = VOCAB_SIZE, provider: str = "cpu") -> None:
        self.seed, self.vocab_size, self.provider_name = seed, vocab_size, provider
        self.asked: list[list[int]] = []

    def after(self, ids: list[int]) -> tuple[NDArray[np.float32], bool]:
        rng = np.random.default_rng([self.seed, *ids])
        common = np.random.default_rng(ids).normal(size=self.vocab_size) * 3  # what all seeds believe
        return (common + rng.normal(size=self.vocab_size)).astype(np.float32), bool(rng.random() < 0.7)

    def all_after(self, ids: list[int]) -> ReferenceRow:
        results = [self.after(ids[: end + 1]) for end in range(len(ids))]
        return ReferenceRow(np.array([logits for logits, _ in results]), np.array([start for _, start in results]))

    def row(self, ids: NDArray[np.int64]) -> ReferenceRow:
        self.asked.append(ids.tolist())
        return self.all_after(ids.tolist())

    def session(self) -> "ScriptedSession":
        return ScriptedSession(self)


class ScriptedSession:
    def __init__(self, model: Scripted) -> None:
        self.model, self.ids = model, list[int]()

    def run(self, ids: NDArray[np.int64]) -> Iterator[Chunk]:
        whole = self.model.all_after(ids.tolist())
        entropies = np.empty(3, np.float32)  # written over by the next chunk, as a session may
        for start in range(0, len(ids), 3):  # the last chunk may be shorter
            logits, starts = whole.logits[start : start + 3], whole.patch_starts[start : start + 3]
            entropies[: len(logits)] = start + np.arange(len(logits))
            yield Chunk(start, logits, entropies[: len(logits)], starts)

    def read(self, ids: NDArray[np.int64], take: Take) -> None:
        for chunk in self.run(ids):
            take(chunk)

    def feed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        before, self.ids = len(self.ids), self.ids + ids.tolist()
        return self.model.all_after(self.ids).logits[before:]


def compare(model: Scripted, rows: ComputedRows) -> Report:
    (report,) = validate([cast(Model, model)], rows)
    return report


# The figures.


def plain_log_softmax(logits: NDArray[np.float32]) -> list[float]:
    total = math.fsum(math.exp(float(x)) for x in logits)
    return [float(x) - math.log(total) for x in logits]


def plain_greedy(model: Scripted, prompt: bytes) -> list[int]:
    ids = [BOS, *(byte + OFFSET for byte in prompt)]
    for _ in range(16):
        logits = model.after(ids)[0]
        ids.append(max(range(OFFSET, 260), key=lambda id_: logits[id_]))
    return ids[-16:]


def plain_figures(model: Scripted, reference: Scripted, texts: list[list[bytes]]) -> dict[str, Any]:
    """In plain Python over texts that are lists of rows, of which the first two are continued."""
    bits, reference_bits, kl, starts, top, widest, same = [], [], [], [], [], [], []
    for text in texts:
        for number, row in enumerate(text):
            for place, byte in enumerate(row):
                ids = [BOS, *(b + OFFSET for b in row[:place])]
                (ours, our_start), (theirs, their_start) = model.after(ids), reference.after(ids)
                q, p = plain_log_softmax(ours), plain_log_softmax(theirs)
                bits.append(-q[byte + OFFSET] / math.log(2))
                reference_bits.append(-p[byte + OFFSET] / math.log(2))
                kl.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
                starts.append(our_start == their_start)
                top.append(q.index(max(q)) == p.index(max(p)))
                widest.append(max(abs(float(a) - float(b)) for a, b in zip(ours, theirs, strict=True)))
            if number < 2:
                prompt = row[: len(row) // 2]
                pairs = zip(plain_greedy(model, prompt), plain_greedy(reference, prompt), strict=True)
                same += [a == b for a, b in pairs]

    def mean(values: list[Any]) -> float:
        return math.fsum(values) / len(values)

    return {
        "bits_per_byte": pytest.approx(mean(bits), rel=1e-9),
        "reference_bits_per_byte": pytest.approx(mean(reference_bits), rel=1e-9),
        "boundary_agreement": mean(starts),
        "mean_kl": pytest.approx(mean(kl), rel=1e-9),
        "top1_agreement": mean(top),
        "greedy_agreement": mean(same),
        "max_abs_logit_difference": pytest.approx(max(widest), rel=1e-6),
        "bytes": len(bits),
        "provider": "cpu",
    }


def test_figures_are_those_of_plain_python() -> None:
    model, reference = Scripted(1), Scripted(2)
    texts = {"first": [b"abcdefg", b"hijklmn", b"op"], "second": [b"\xff\x00"], "third": [b"abcdefg", b"z"]}
    rows = ComputedRows(reference, [Text(name, b"".join(text)) for name, text in texts.items()], row_bytes=7, prompts=2)
    result = compare(model, rows)
    document = {name: value for name, value in dataclasses.asdict(result).items() if name not in NOT_ACCURACY}
    by_text = {name: plain_figures(model, reference, [text]) for name, text in texts.items()}
    assert document == plain_figures(model, reference, list(texts.values())) | {"texts": by_text}
    assert 0 < document["greedy_agreement"] < 1 and 0 < document["top1_agreement"] < 1  # else little is tested
    assert 0 < document["boundary_agreement"] < 1


def test_divergence_is_from_the_reference_to_the_model() -> None:
    """The reference gives `a` half of everything, the model gives all ids the same."""
    uniform, half = np.zeros(VOCAB_SIZE, np.float32), np.zeros(VOCAB_SIZE, np.float32)
    half[97 + OFFSET] = np.log(259)
    model, reference = Scripted(0), Scripted(0)
    model.after, reference.after = lambda ids: (uniform, True), lambda ids: (half, True)  # type: ignore[method-assign]
    result = compare(model, ComputedRows(reference, [Text("text", b"aab")]))
    assert result.bits_per_byte == pytest.approx(math.log2(260), rel=1e-6)
    assert result.reference_bits_per_byte == pytest.approx((2 + math.log2(518)) / 3, rel=1e-6)
    assert result.mean_kl == pytest.approx(0.5 * math.log(260 / 2) + 0.5 * math.log(260 / 518), rel=1e-5)
    assert (result.top1_agreement, result.greedy_agreement, result.boundary_agreement) == (0, 0, 1)


def test_validation_of_the_same_model(exported: Callable[[int], Exported]) -> None:
    tiny = exported(10)
    rows = ComputedRows(tiny.reference, [Text("text", TEXT)], row_bytes=300, prompts=3)
    (result,) = validate([tiny.model], rows)
    expected = -np.concatenate([tiny.model.score(TEXT[start : start + 300]).logprobs for start in (0, 300, 600)])
    assert (result.bytes, result.provider) == (700, "cpu")
    assert (result.boundary_agreement, result.top1_agreement, result.greedy_agreement) == (1, 1, 1)
    assert 0 <= result.max_abs_logit_difference < 1e-4 and abs(result.mean_kl) < 1e-5
    assert result.bits_per_byte == pytest.approx(expected.mean(dtype=np.float64) / math.log(2), rel=1e-6)
    assert abs(result.bits_per_byte_increase) < 1e-5
    assert Limits(1e-4, 1e-5, 1.0, 1.0, 1.0).violations(result) == []


def test_one_reference_serves_all_models() -> None:
    reference, models = Scripted(2), [Scripted(1), Scripted(3, provider="other")]
    recorded: list[TextRow] = []
    rows = ComputedRows(reference, [Text("text", b"some bytes")], row_bytes=4)
    reports = validate([cast(Model, model) for model in models], rows, recorded.append)
    assert [report.provider for report in reports] == ["cpu", "other"]
    assert reports == (compare(models[0], rows), compare(models[1], rows))
    assert b"".join(row.data for row in recorded) == b"some bytes"
    assert len(reference.asked) == 3 * (3 + CONTINUATION_BYTES)  # three rows, and a continuation, for each call


def test_a_model_that_gives_no_numbers() -> None:
    broken = Scripted(1)
    broken.after = lambda ids: (np.full(VOCAB_SIZE, np.nan, np.float32), True)  # type: ignore[method-assign]
    result = compare(broken, ComputedRows(Scripted(2), [Text("text", b"ab"), Text("other", b"c")]))
    assert all(map(math.isnan, [result.bits_per_byte, result.mean_kl, result.max_abs_logit_difference]))
    assert len(Limits(max_bpb_increase=100, max_kl=100).violations(result)) == 4  # on both texts


# What the figures belong to, and the passage.


def test_what_was_compared_is_named(exported: Callable[[int], Exported]) -> None:
    tiny = exported(10)
    (result,) = validate([tiny.model], ComputedRows(tiny.reference, [Text("text", TEXT)], row_bytes=300))
    files = sum(path.stat().st_size for path in tiny.bundle.iterdir() if path.name != "bundle.json")
    assert (result.bundle, result.bundle_id, result.recipe) == (tiny.bundle.name, tiny.model.bundle.id, "fp32")
    assert (result.bundle_bytes, result.threshold, bool(result.device)) == (files, None, True)


def test_the_passage_is_the_beginning_of_the_first_text(exported: Callable[[int], Exported]) -> None:
    tiny = exported(10)
    assert tiny.model.config.patching.rule is Rule.THRESHOLD
    texts = [Text("first", TEXT), Text("second", b"other bytes")]
    passage = validate([tiny.model], ComputedRows(tiny.reference, texts))[0].passage
    data, scores = TEXT[:PASSAGE_BYTES], tiny.model.score(TEXT[:PASSAGE_BYTES])
    assert (passage.text, passage.data.encode("latin-1")) == ("first", data)
    assert passage.entropies == pytest.approx(scores.entropies.tolist(), abs=1e-5)
    assert list(passage.patch_starts) == scores.patch_starts.tolist()
    assert passage.threshold == tiny.model.config.patching.threshold
    assert b"".join(passage.patches) == data and len(passage.patches) == sum(passage.patch_starts) > 1
    assert len(passage.patches[0]) == passage.patch_starts.index(True, 1)


@pytest.mark.parametrize(
    ("rule", "has_entropies", "own"),
    [
        (Rule.THRESHOLD, True, 1.5),
        (Rule.THRESHOLD_AND_RISE, True, 1.5),
        (Rule.MONOTONIC, True, None),
        (Rule.SPACE, False, None),
    ],
)
def test_what_a_passage_has_depends_on_the_rule(rule: Rule, has_entropies: bool, own: float | None) -> None:
    model = Scripted(1)
    model.config = SimpleNamespace(patching=PatchingRule(rule, 1.5))
    rows = ComputedRows(Scripted(2), [Text("text", b"\xff seven")])
    passage = compare(model, rows).passage
    assert passage.entropies == ((0, 1, 2, 3, 4, 5, 6) if has_entropies else None) and passage.threshold == own
    model.threshold = 0.5
    assert compare(model, rows).passage.threshold == (None if own is None else 0.5)
    assert compare(model, rows).threshold == 0.5


def test_patches_of_a_passage_that_starts_within_one() -> None:
    passage = Passage("text", "a\xe9bc", None, (False, False, True, True), None)
    assert passage.patches == [b"a\xe9", b"b", b"c"]
    assert Passage("text", "", (), (), None).patches == []


@pytest.mark.parametrize(
    ("data", "entropies", "starts"),
    [("ab", (0.5,), (True, True)), ("ab", None, (True,)), ("a", (0.5, 0.5), (True, True)), ("\u0100", None, (True,))],
)
def test_a_passage_that_cannot_be(data: str, entropies: tuple[float, ...] | None, starts: tuple[bool, ...]) -> None:
    with pytest.raises(EdgebltError, match=r"^a passage .*; validate the bundle again$"):
        Passage("text", data, entropies, starts, None)


# Limits.


def test_limits() -> None:
    result = Validation(2.5, 2.0, 0.75, 0.125, 0.875, 0.5, 1.0, 10, "cpu")
    assert result.bits_per_byte_increase == 0.5
    good = dataclasses.replace(result, bits_per_byte=0.0, mean_kl=0.0, boundary_agreement=1.0, top1_agreement=1.0,
                               greedy_agreement=1.0, bytes=10_000)  # fmt: skip

    def violations(limits: Limits, on: Validation = result) -> list[str]:
        """By a report in which a long, good text outweighs the one in question, and is never named."""
        passage = Passage("long", "x", (0.5,), (True,), None)
        report = Report(**vars(good), bundle="b", bundle_id="0", recipe="int8", bundle_bytes=1, device="",
                        threshold=None, texts={"long": good, "short": on}, passage=passage)  # fmt: skip
        sentences = limits.violations(report)
        assert all(sentence.startswith("on the text short, ") for sentence in sentences)
        return [sentence.removeprefix("on the text short, ") for sentence in sentences]

    assert violations(Limits()) == violations(Limits(0.5, 0.125, 0.75, 0.875, 0.5)) == []
    assert violations(Limits(max_bpb_increase=0.25)) == ["bits per byte rise by 0.500000, more than 0.25"]
    assert violations(Limits(max_kl=0.1)) == ["mean KL is 0.125000, more than 0.1"]
    assert violations(Limits(min_boundary_agreement=0.8)) == ["boundary agreement is 0.750000, below 0.8"]
    assert violations(Limits(min_top1=0.9)) == ["top-1 agreement is 0.875000, below 0.9"]
    assert violations(Limits(min_greedy_agreement=0.6)) == ["greedy agreement is 0.500000, below 0.6"]
    small = dataclasses.replace(result, mean_kl=4.5e-13)
    assert violations(Limits(max_kl=0.0), small) == ["mean KL is 4.5e-13, more than 0.0"]
    nan = math.nan
    broken = dataclasses.replace(
        result, bits_per_byte=nan, boundary_agreement=nan, mean_kl=nan, top1_agreement=nan, greedy_agreement=nan
    )
    assert len(violations(Limits(100, 100, 0, 0, 0), broken)) == 5  # NaN violates every limit


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_a_limit_that_is_no_number(name: str) -> None:
    with pytest.raises(EdgebltError, match=f"^{name} is nan; it must be a number$"):
        Limits(**{name: math.nan})


# Rows.


def test_rows() -> None:
    reference = Scripted(1)
    texts = [Text("long", bytes(range(256)) * 5), Text("short", b"abc")]
    rows = list(ComputedRows(reference, texts, row_bytes=600).rows())
    assert [(row.text, len(row.data)) for row in rows] == [("long", 600), ("long", 600), ("long", 80), ("short", 3)]
    assert b"".join(row.data for row in rows) == texts[0].data + texts[1].data
    assert [len(row.prompt) for row in rows] == [256, 256, 40, 1]
    assert [bool(row.continuation) for row in rows] == [True, False, False, True]
    assert rows[3].ids.tolist() == [BOS, 101, 102, 103] and rows[3].prompt == b"a"
    assert rows[3].reference.logits.shape == (3, VOCAB_SIZE) and rows[3].reference.patch_starts.shape == (3,)
    assert [id_ - OFFSET for id_ in plain_greedy(reference, b"a")] == list(rows[3].continuation)
    assert reference.asked[0] == [BOS, *encode(texts[0].data[:599]).tolist()]  # the last byte predicts nothing
    assert reference.asked[-1] == [BOS, 101, *encode(rows[3].continuation[:-1]).tolist()]
    assert next(ComputedRows(reference, [Text("x", b"y")]).rows()).prompt == b""


def test_held_out_texts() -> None:
    assert {text.name: text.data for text in held_out_texts()} == {name: held_out_text(name) for name in HELD_OUT_TEXTS}


@pytest.mark.parametrize(
    ("texts", "settings", "sentence"),
    [
        ([], {}, "there is no text to validate on; give one with some bytes in it"),
        (["a", ""], {}, "the text '1' to validate on is empty; give a file with some bytes in it"),
        (["a"], {"row_bytes": 0}, "row_bytes is 0; it must be at least 1"),
        (["a"], {"prompts": 0}, "prompts is 0; it must be at least 1"),
    ],
)
def test_nothing_to_validate(texts: list[str], settings: dict[str, int], sentence: str) -> None:
    named = [Text(str(index), text.encode()) for index, text in enumerate(texts)]
    with pytest.raises(EdgebltError) as refused:
        ComputedRows(Scripted(1), named, **settings)
    assert str(refused.value) == sentence


def test_two_texts_of_one_name() -> None:
    with pytest.raises(EdgebltError, match=r"^the text 'x' is given twice; give each text once, under its own name$"):
        ComputedRows(Scripted(1), [Text("x", b"a"), Text("x", b"b")])


def test_a_reference_without_numbers() -> None:
    broken = Scripted(1)
    broken.after = lambda ids: (np.full(VOCAB_SIZE, np.inf, np.float32), True)  # type: ignore[method-assign]
    with pytest.raises(EdgebltError, match="logits on the text 'x' are not all finite; give a checkpoint that works"):
        next(ComputedRows(broken, [Text("x", b"a")]).rows())


def test_a_reference_of_another_vocabulary() -> None:
    with pytest.raises(EdgebltError, match="a vocabulary of 300 ids and the bundle one of 260; give the checkpoint"):
        compare(Scripted(1), ComputedRows(Scripted(1, vocab_size=300), [Text("x", b"a")]))
