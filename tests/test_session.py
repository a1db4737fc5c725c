"""What must hold of a session however it is used: exact, bounded, safe to interrupt, independent of others."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.models.blt.modeling_blt import compute_hash_embeddings

import tiny_models
from conftest import LONGEST, Exported, Text
from edgeblt.bundle.config import HashConfig, PatchingRule, Rule
from edgeblt.bundle.contract import TARGETS, StageContract, Target, TensorSpec
from edgeblt.bundle.hashing import PRIMES
from edgeblt.errors import EdgebltError
from edgeblt.export.graphs.encoder import table_rows
from edgeblt.export.graphs.graph import GraphBuilder
from edgeblt.ids import BOS, encode
from edgeblt.runtime.opened_graphs import CHUNK_BYTES
from edgeblt.runtime.session import ROLLBACK_BYTES
from edgeblt.runtime.stage import StageRunner
from edgeblt.runtime.state.cache import PIECE_BYTES
from interruptions import InterruptAt

WINDOWS, NO_WINDOWS = 2, 42  # seeds: windows everywhere and a maximum patch length; none of these
COMMON = 150


@pytest.fixture(scope="module", params=[WINDOWS, NO_WINDOWS], ids=["windows", "no windows"])
def tiny(request: pytest.FixtureRequest, exported: Callable[[int], Exported]) -> Exported:
    return exported(request.param)


@pytest.fixture(scope="module")
def texts(tiny: Exported) -> tuple[Text, Text]:
    return tiny.texts(5, COMMON)


SIZES = st.integers(1, 12) | st.integers(1, CHUNK_BYTES + 40)
OPERATIONS = st.tuples(st.sampled_from(["feed", "feed", "rollback", "fork"]), SIZES, st.integers(0, 3))


@settings(deadline=None, max_examples=120)
@given(operations=st.lists(OPERATIONS, min_size=2, max_size=12))
def test_any_operations_give_what_the_whole_gives(
    tiny: Exported, texts: tuple[Text, Text], operations: list[tuple[str, int, int]]
) -> None:
    """Sessions and their forks, each on either text, which differ after `COMMON` ids; `Text.feed` compares."""
    tracks = [(tiny.model.session(), texts[0])]
    for kind, number, which in operations:
        session, text = tracks[which % len(tracks)]
        if kind == "feed":
            text = texts[number % 2] if session.position <= COMMON else text
            tracks[which % len(tracks)] = (session, text)
            text.feed(session, min(session.position + number, LONGEST))
        elif kind == "rollback":
            session.rollback(max(session.position - number, 0))
        else:
            tracks.append((session.fork(), text))
    for session, text in tracks:
        text.feed(session, min(session.position + 3, LONGEST))


@settings(deadline=None, max_examples=20)
@given(end=st.integers(1, LONGEST - 1), split=st.integers(0, LONGEST))
def test_decisions_on_a_prefix_are_the_prefix_of_the_decisions(
    tiny: Exported, texts: tuple[Text, Text], end: int, split: int
) -> None:
    ids = texts[0].ids
    whole = np.concatenate([chunk.patch_starts.copy() for chunk in tiny.model.session().run(ids)])
    session = tiny.model.session()
    parts = [ids[: min(split, end)], ids[min(split, end) : end]]
    prefix = np.concatenate([chunk.patch_starts.copy() for part in parts for chunk in session.run(part)])
    np.testing.assert_array_equal(prefix, whole[:end])
    changed = np.concatenate([ids[:end], 259 - ids[end:]])
    decided = np.concatenate([chunk.patch_starts.copy() for chunk in tiny.model.session().run(changed)])
    np.testing.assert_array_equal(decided[:end], prefix)


def test_going_back_is_instant_within_reach_and_exact_beyond(
    tiny: Exported, texts: tuple[Text, Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every distance around `ROLLBACK_BYTES` and around what the caches happen to hold."""
    runs, run = 0, StageRunner.run

    def counted(self: StageRunner, *arguments: Any) -> None:
        nonlocal runs
        runs += 1
        run(self, *arguments)

    monkeypatch.setattr(StageRunner, "run", counted)
    session = tiny.model.session()
    for position in range(1, 331):
        texts[0].feed(session, position)
        if position not in (90, 160, 229, 330):
            continue
        for back in (*range(1, 5), *range(ROLLBACK_BYTES - 1, min(ROLLBACK_BYTES + PIECE_BYTES + 4, position))):
            fork, runs = session.fork(), 0
            fork.rollback(position - back)
            if back <= ROLLBACK_BYTES:
                assert runs == 0, f"{back} from {position}"
            texts[0].feed(fork, position - back + 1)
            texts[0].feed(fork, position - back + 3)


def test_nothing_of_a_text_is_left_after_going_back(exported: Callable[[int], Exported], tmp_path: Path) -> None:
    """Under a rule that compares each entropy with the one before, which a session remembers."""
    patching, count = PatchingRule(Rule.MONOTONIC, 0.1, max_patch_length=4), 110
    model = exported(WINDOWS).with_rule(patching, tmp_path / "bundle")
    ids, forgotten = tiny_models.random_ids(1, count), tiny_models.random_ids(2, count)
    whole = model.session().feed(ids)
    for position in range(50, 62):
        session = model.session()
        session.feed([*ids[:position], *forgotten[position:]])
        session.rollback(position)
        while session.position < count:
            start, size = session.position, 1 + session.position % 3
            logits = session.feed(ids[start : start + size])
            np.testing.assert_allclose(logits, whole[start : start + size], rtol=0, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize(
    "patching",
    [PatchingRule(Rule.STATIC, patch_size=3), PatchingRule(Rule.STATIC, patch_size=9, max_patch_length=4)],
    ids=["3", "9, at most 4"],
)
def test_going_back_to_before_the_first_patch_ended(
    exported: Callable[[int], Exported], tmp_path: Path, patching: PatchingRule
) -> None:
    """Only the static rule leaves bytes at the beginning without any latent."""
    model, ids = exported(NO_WINDOWS).with_rule(patching, tmp_path / "bundle"), tiny_models.random_ids(1, 40)
    whole = model.session().feed(ids)
    session, bound = model.session(), 1e-5 * np.abs(whole).max()
    for end, position in [(40, 0), (20, 1), (3, 2), (6, 2), (40, 8), (9, 0), (2, 1), (40, 40)]:
        start = session.position
        np.testing.assert_allclose(session.feed(ids[start:end]), whole[start:end], rtol=0, atol=bound)
        session.rollback(position)


@pytest.mark.parametrize("at_once", [1, 600], ids=["bytes", "chunks"])
def test_only_the_global_cache_grows(exported: Callable[[int], Exported], at_once: int) -> None:
    model, ids = exported(WINDOWS).model, tiny_models.random_ids(7, 1800)
    session, longest_patch = model.session(), model.config.patching.max_patch_length
    largest = min(at_once, CHUNK_BYTES)
    assert longest_patch is not None
    bytes_at = {}
    while session.position < 1800:
        session.feed(ids[session.position : session.position + at_once])
        bytes_at[session.position] = session.cache_bytes
    for name, cache in session.state.caches.items():
        if name == "global":
            assert bytes_at[600][name] < bytes_at[1800][name]
            continue
        assert bytes_at[600][name] == bytes_at[1800][name]
        assert cache.spec.window is not None
        assert cache.capacity <= cache.spec.window + PIECE_BYTES
    for rows in (session.state.patcher_states, session.state.byte_vectors, session.state.cross_rows):
        assert rows.capacity <= max(128, 2 * (2 * ROLLBACK_BYTES + longest_patch + 1 + largest))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stage", ["patcher", "encoder", "global", "decoder"])
def test_an_interrupted_chunk_leaves_no_trace(
    tiny: Exported, texts: tuple[Text, Text], monkeypatch: pytest.MonkeyPatch, stage: str, after: bool
) -> None:
    """Interrupted at a stage, before it ran or after it wrote into the caches, in the midst of anything."""
    run, due = StageRunner.run, False

    def interrupted(self: StageRunner, *arguments: Any) -> None:
        nonlocal due
        now, due = due and self.name == stage, due and self.name != stage
        if not now or after:
            run(self, *arguments)
        if now:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageRunner, "run", interrupted)
    session, rng, text, interruptions = tiny.model.session(), random.Random(stage), texts[0], 0
    while session.position < LONGEST:
        due, end = rng.random() < 0.5, min(session.position + rng.choice([1, 1, 2, 30, 70, 256, 300]), LONGEST)
        try:
            if rng.random() < 0.3:
                session.rollback(max(session.position - rng.choice([3, 40, 110]), 0))
            text.feed(session, max(end, session.position))
        except KeyboardInterrupt:
            interruptions += 1
            assert session.patch_count == np.count_nonzero(text.patch_starts[: session.position])
        due = False
    assert interruptions > 2
    text.feed(session.fork(), LONGEST)
    session.rollback(LONGEST - 10)
    text.feed(session, LONGEST)


@pytest.mark.parametrize("operation", ["feed", "rollback"])
def test_an_interruption_at_any_line_loses_nothing(exported: Callable[[int], Exported], operation: str) -> None:
    """At position 200 the next chunk moves the caches' content and completes patches; 30 back is within reach."""
    tiny = exported(WINDOWS)
    text = tiny.text(tiny_models.random_ids(WINDOWS, LONGEST))
    line, finished = 0, False
    while not finished:
        line += 3  # every third line, from another start for each operation
        session = tiny.model.session()
        text.feed(session, 200)
        with InterruptAt(line + (operation == "rollback")):
            try:
                if operation == "feed":
                    session.feed(text.ids[200:220])
                else:
                    session.rollback(170)
                finished = True
            except KeyboardInterrupt:
                pass
        assert session.position in ((200, 220) if operation == "feed" else (200, 170))
        text.feed(session, session.position + 60)
    assert line > 60


def test_sessions_in_threads_give_what_they_give_alone(tiny: Exported) -> None:
    def work(seed: int) -> bytes:
        session, rng, ids = tiny.model.session(), random.Random(seed), tiny_models.random_ids(seed, 300)
        rows = []
        while session.position < len(ids):
            rows.append(session.feed(ids[session.position : session.position + rng.choice([1, 1, 4, 60])]))
            if rng.random() < 0.2:
                session.rollback(rng.randrange(max(session.position - 90, 0), session.position))
        return b"".join(row.tobytes() for row in rows)

    alone = [work(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == alone


def test_position_and_patch_count(exported: Callable[[int], Exported]) -> None:
    session = exported(7).model.session()  # no entropy model: every byte is a patch
    assert (session.position, session.patch_count) == (0, 0)
    for position in range(1, 5):
        session.feed([BOS + position])
        assert (session.position, session.patch_count) == (position, position)
    session.rollback(4)
    session.rollback(2)
    assert (session.position, session.patch_count) == (2, 2)
    fork = session.fork()
    fork.feed([9, 9, 9])
    assert (fork.position, fork.patch_count, session.position, session.patch_count) == (5, 5, 2, 2)
    session.rollback(0)
    assert (session.position, session.patch_count) == (0, 0)


def test_feeding_gives_float32_of_its_own(exported: Callable[[int], Exported]) -> None:
    session = exported(7).model.session()
    first = session.feed([BOS])
    assert first.shape == (1, 260) and first.dtype == np.float32
    kept = first.copy()
    second = session.feed(np.array([104], np.uint8))
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)
    assert session.feed([]).shape == (0, 260) and session.position == 2
    ids = encode(b"abc")
    session.feed(ids)
    np.testing.assert_array_equal(ids, [101, 102, 103])


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([1.0, 2.0], "ids must be a sequence of integers, not float64 of shape (2,)"),
        ([[1, 2], [3, 4]], "ids must be a sequence of integers, not int64 of shape (2, 2)"),
        (1, "ids must be a sequence of integers, not int64 of shape ()"),
        ([True], "ids must be a sequence of integers, not bool of shape (1,)"),
        (["a"], "ids must be a sequence of integers, not <U1 of shape (1,)"),
        (b"abc", "ids must be a sequence of integers, not |S3 of shape ()"),
        ([1, None], "ids must be a sequence of integers, not object of shape (2,)"),
        ([2**70], "ids must be a sequence of integers, not object of shape (1,)"),
        ([1, 260], "ids must lie in 0..259, not 1..260"),
        ([-1, 7], "ids must lie in 0..259, not -1..7"),
        ([2**64 - 1], "ids must lie in 0..259, not 18446744073709551615..18446744073709551615"),
    ],
)
def test_bad_ids_are_refused_whole(exported: Callable[[int], Exported], ids: Any, sentence: str) -> None:
    session = exported(7).model.session()
    session.feed([BOS, 100])
    with pytest.raises(EdgebltError) as refused:
        session.feed(ids)
    assert str(refused.value) == sentence
    assert session.position == 2


@pytest.mark.parametrize("position", [-1, 4, 10**9])
def test_bad_rollback_positions(exported: Callable[[int], Exported], position: int) -> None:
    session = exported(7).model.session()
    session.feed([BOS, 100, 101])
    with pytest.raises(EdgebltError) as refused:
        session.rollback(position)
    assert str(refused.value) == f"cannot roll back to position {position}; this session is at 3"
    assert (session.position, session.patch_count) == (3, 3)


def wrapped(value: int) -> int:
    """As int64 arithmetic gives it."""
    return (value + 2**63) % 2**64 - 2**63


def rows_by_big_integers(hashes: HashConfig, ids: list[int]) -> list[list[int]]:
    """Rows [T, tables] of the fused hash tables, in unbounded integers wrapped at every step."""
    rows = []
    for end in range(1, len(ids) + 1):
        row: list[int] = []
        for function in range(hashes.function_count):
            for size in hashes.group_sizes:
                gram = [ids[place] if place >= 0 else 0 for place in range(end - size, end)]
                hashed, power = 0, 1
                for id_ in gram:
                    hashed, power = wrapped(hashed + id_ * power), wrapped(power * PRIMES[function % len(PRIMES)])
                row.append(len(row) * hashes.vocab_size + hashed % hashes.vocab_size)
        rows.append(row)
    return rows


def rows_of_transformers(hashes: HashConfig, ids: list[int]) -> NDArray[np.int64]:
    """[T, tables]: the rows that its own code looks up, written down by an embedding that only listens."""
    seen: list[torch.Tensor] = []

    def embedding(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows[0])
        return torch.zeros(*rows.shape, 1)

    encoder = SimpleNamespace(embed_tokens=lambda rows: torch.zeros(*rows.shape, 1))
    compute_hash_embeddings(
        torch.tensor([ids]), encoder, embedding, hashes.function_count, list(hashes.group_sizes), hashes.vocab_size
    )
    return torch.stack(seen, 1).numpy()


def rows_of_the_graph(hashes: HashConfig, ids: list[int], target: Target) -> NDArray[np.int64]:
    longest = max(hashes.group_sizes)
    windows = TensorSpec("windows", "int64", ("T", longest))
    rows = TensorSpec("rows", "int64", ("T", hashes.table_count))
    graph = GraphBuilder(StageContract("encoder", target, (windows,), (), (rows,), None))
    stage = graph.finish({"rows": table_rows(graph, hashes, graph.inputs["windows"])})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    opened = onnxruntime.InferenceSession(
        ir.serde.serialize_model(stage.model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    padded = np.array([0] * (longest - 1) + ids)
    (result,) = opened.run(None, {"windows": np.lib.stride_tricks.sliding_window_view(padded, longest)})
    return np.asarray(result)


@settings(deadline=None, max_examples=60)
@given(
    vocab_size=st.sampled_from([1, 2, 997, 500002, 2**31 - 1]),
    group_sizes=st.lists(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 20, 64]), min_size=1, max_size=6, unique=True),
    function_count=st.integers(1, 13),
    ids=st.lists(st.integers(0, 259), min_size=1, max_size=70) | st.just([259] * 64),
)
def test_hashes_wrap_and_are_never_negative(
    vocab_size: int, group_sizes: list[int], function_count: int, ids: list[int]
) -> None:
    hashes = HashConfig(function_count, tuple(group_sizes), vocab_size)
    for target in TARGETS:
        rows = rows_of_the_graph(hashes, ids, target)
        np.testing.assert_array_equal(rows, rows_by_big_integers(hashes, ids))
        np.testing.assert_array_equal(rows, rows_of_transformers(hashes, ids))


def test_the_released_hashes_do_overflow() -> None:
    """Of the released tables and ids, some products leave int64: a graph that saturates or goes negative would show."""
    exact = sum(259 * PRIMES[0] ** power for power in range(8))
    assert exact > 2**63 and wrapped(exact) != exact
    assert any(wrapped(sum(259 * PRIMES[0] ** power for power in range(size))) < 0 for size in range(3, 9))
