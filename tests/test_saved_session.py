"""Saved sessions: restored, they go on as if they had never stopped; no file can make them do anything else."""

import hashlib
import itertools
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import session_states
import tiny_bundles
from conftest import Exported
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.model import Model, load
from edgeblt.runtime import native
from edgeblt.runtime.saved.session_file import (
    CacheCounts,
    CacheShape,
    Form,
    Header,
    Owner,
    RowCounts,
    SavedText,
    read_session_file,
    write_session_file,
)
from edgeblt.runtime.session import ROLLBACK_BYTES, Session
from sampled import mostly_slow
from session_states import wander, wandered

WINDOWS = 2  # a seed of `tiny_models`: windows everywhere and a maximum patch length
KINDS = ("fp32", "int8", "monotonic")
Models = Callable[[str], Model]


@pytest.fixture(scope="module")
def models(exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Models by kind, each opened once."""
    opened: dict[str, Model] = {}

    def model(kind: str) -> Model:
        if kind not in opened:
            folder = tmp_path_factory.mktemp("models")
            if kind == "fp32":
                opened[kind] = exported(WINDOWS).model
            elif kind == "monotonic":
                rule = PatchingRule(Rule.MONOTONIC, 0.1, max_patch_length=4)
                opened[kind] = exported(WINDOWS).with_rule(rule, folder / "bundle")
            else:
                (bundle,) = tiny_bundles.small_bundles(folder, (("int8", "cpu", None),)).values()
                opened[kind] = load(bundle)
        return opened[kind]

    return model


def goes_on_alike(one: Session, other: Session, seed: int) -> None:
    """The same bits whatever is done next."""
    assert one.position == other.position and one.patch_count == other.patch_count
    np.testing.assert_array_equal(one.ids, other.ids)
    assert reach(one) == reach(other)
    for first, second in zip(wander(one, seed, 4), wander(other, seed, 4), strict=True):
        np.testing.assert_array_equal(first, second)
    assert one.patch_count == other.patch_count


def reach(session: Session) -> list[int]:
    """Positions that a rollback reaches at once."""
    start = max(session.position - 3 * ROLLBACK_BYTES, 0)
    return [position for position in range(start, session.position) if session.state.can_rewind(position)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_session_goes_on(models: Models, kind: str, tmp_path: Path) -> None:
    for seed in range(12):
        session = wandered(models(kind), seed)
        session.save(tmp_path / "state")
        goes_on_alike(session, models(kind).restore(tmp_path / "state"), 1000 + seed)


# Across the positions at which windowed caches shift their content.
SAVED_AT = list(itertools.product(KINDS, (127, 129, 131, 140, 160, 250, 257, 259, 290)))


@pytest.mark.parametrize(("kind", "count"), mostly_slow(SAVED_AT, SAVED_AT[::2]))
def test_a_restored_session_is_rolled_back(models: Models, kind: str, count: int, tmp_path: Path) -> None:
    """Wherever it reaches."""
    model, ids = models(kind), session_states.random_ids(5, 300)
    session = model.session()
    session.feed(ids[:count])
    session.save(tmp_path / "state")
    for position in reach(session):
        restored, forked = model.restore(tmp_path / "state"), session.fork()
        restored.rollback(position)
        forked.rollback(position)
        np.testing.assert_array_equal(restored.feed(ids[7:9]), forked.feed(ids[7:9]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_200_points(models: Models, kind: str, tmp_path: Path) -> None:
    """A third of 200 points each, every fifth saved by a process that is killed then."""
    for seed in range(67):
        path = tmp_path / f"state{seed}"
        if seed % 5 == 0:
            saved_and_killed(models(kind), seed, path)
        else:
            wandered(models(kind), seed).save(path)
        goes_on_alike(wandered(models(kind), seed), models(kind).restore(path), 1000 + seed)


def saved_and_killed(model: Model, seed: int, path: Path, **settings: str) -> None:
    command = [sys.executable, session_states.__file__, str(model.bundle.path), str(seed), str(path)]
    ended = subprocess.run(command, env=os.environ | settings, check=False, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (-9, b"")


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_saves(models: Models, kind: str, tmp_path: Path) -> None:
    saved_and_killed(models(kind), 3, tmp_path / "state")
    goes_on_alike(wandered(models(kind), 3), models(kind).restore(tmp_path / "state"), 1)


@pytest.mark.skipif(native.library_path() is None, reason="needs the native library")
def test_the_native_library_does_not_matter(models: Models, tmp_path: Path) -> None:
    """Caches of portable bodies go on with native kernels, to float32's precision."""
    model = models("fp32")
    saved_and_killed(model, 3, tmp_path / "state", **{native.VARIABLE: "0"})
    restored, session = model.restore(tmp_path / "state"), wandered(model, 3)
    assert restored.position == session.position and restored.patch_count == session.patch_count
    first, second = restored.feed([70, 71, 72]), session.feed([70, 71, 72])
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-4 * float(np.abs(second).max()))


@pytest.mark.parametrize("format", ["fp16", "int8"])
def test_compact_caches(exported: Callable[[int], Exported], format: str, tmp_path: Path) -> None:
    bundle = export_bundle(exported(WINDOWS).checkpoint, tmp_path / "bundle", kv_cache=format)
    with load(bundle.path) as model:
        session = wandered(model, 5)
        session.save(tmp_path / "state")
        goes_on_alike(session, model.restore(tmp_path / "state"), 1)


def test_an_empty_session(models: Models, tmp_path: Path) -> None:
    models("fp32").session().save(tmp_path / "state")
    restored = models("fp32").restore(tmp_path / "state")
    assert restored.position == restored.patch_count == 0
    goes_on_alike(models("fp32").session(), restored, 2)


def test_saving_leaves_the_session_as_it_is(models: Models, tmp_path: Path) -> None:
    session, other = wandered(models("int8"), 4), wandered(models("int8"), 4)
    session.read_ahead([70, 71])
    session.save(tmp_path / "state")
    goes_on_alike(session, other, 3)


# Texts.

SETTINGS = (
    GenerationSettings(),
    GenerationSettings(temperature=1.0, seed=5),
    GenerationSettings(temperature=1.0, seed=5, draft="none"),
    GenerationSettings(temperature=1.2, seed=6, dry_multiplier=2.0, dry_allowed_length=1, ignore_eos=True),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_text_goes_on_with_the_same_samples(
    models: Models, kind: str, settings: GenerationSettings, tmp_path: Path
) -> None:
    model, count, path = models(kind), 60, tmp_path / "state"
    whole = b"".join(model.stream("ab", max_new_bytes=count, settings=settings, session=model.session()))
    for cut in (0, 1, 23, count):
        session = model.session()
        text = b"".join(model.stream("ab", max_new_bytes=cut, settings=settings, session=session))
        session.save(path)
        text += b"".join(model.stream("", max_new_bytes=count - cut, settings=settings, session=model.restore(path)))
        assert text == whole


def test_random_numbers_without_a_seed_go_on(models: Models, tmp_path: Path) -> None:
    """Twice the same, though nobody knows which."""
    model, session = models("fp32"), models("fp32").session()
    list(model.stream("ab", max_new_bytes=9, temperature=1.0, ignore_eos=True, session=session))
    session.save(tmp_path / "state")
    texts = [
        b"".join(model.stream("", 40, 1.0, ignore_eos=True, session=restored))
        for restored in (model.restore(tmp_path / "state"), model.restore(tmp_path / "state"), session)
    ]
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) == 40


def test_a_stream_that_is_closed_is_a_text_too(models: Models, tmp_path: Path) -> None:
    model, session, chosen = models("int8"), models("int8").session(), GenerationSettings(temperature=1.0, seed=2)
    stream = model.stream("ab", settings=chosen, ignore_eos=True, session=session)
    text = next(stream) + next(stream) + next(stream)
    stream.close()
    session.save(tmp_path / "state")
    restored = model.restore(tmp_path / "state")
    restored.save(tmp_path / "state")  # as it was restored
    restored = model.restore(tmp_path / "state")
    text += b"".join(model.stream("", 20, settings=chosen, ignore_eos=True, session=restored))
    assert text == model.generate("ab", 23, settings=chosen, ignore_eos=True)


def test_a_session_that_was_used_is_no_text(models: Models) -> None:
    session = models("int8").session()
    list(models("int8").stream("ab", max_new_bytes=3, session=session))
    assert session.saved_text
    session.feed([70])
    assert session.saved_text is None


def test_a_text_that_is_interrupted_leaves_the_session(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the last id was about to be read again for its logits."""
    session = models("int8").session()
    list(models("int8").stream("ab", max_new_bytes=3, session=session))
    ids = session.ids

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgeblt.runtime.saved.prefix_cache.PromptReader.run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(models("int8").stream("", max_new_bytes=3, session=session))
    np.testing.assert_array_equal(session.ids, ids)


# The file.

FORM = Form(
    {"rows": (2, "float32")}, {"global": CacheShape(1, 2, 2, "float16"), "encoder": CacheShape(1, 1, 3, "int8")}
)
HEADER = Header(
    Owner("0123456789ab", 1.5, "cpu"),
    2,
    1,
    {"rows": RowCounts(1, 2)},
    {"global": CacheCounts(0, 1, 0), "encoder": CacheCounts(1, 1, 1)},
    SavedText(1, "ff"),
)
ARRAYS: dict[str, NDArray[Any]] = {
    "ids": np.array([1, 70], np.int32),
    "patch_starts": np.array([0, 2], np.int64),
    "rows": np.array([[1.0, -2.0]], np.float32),
    "global_slots_0": np.array([[[[1, 2]], [[3, 4]]]], np.float16),
    "global_forgotten_0": np.zeros((1, 2, 0, 2), np.float16),
    "encoder_slots_0": np.array([[[[1, -1, 127]]]], np.int8),
    "encoder_forgotten_0": np.array([[[[2, -2, 5]]]], np.int8),
}
LITERAL = (
    b"EBLTSESS\x01\0\0\0\x38\x01\0\0"
    b'{"caches":{"encoder":{"first":1,"forgotten":1,"length":1},"global":{"first":0,"forgotten":0,"length":1}},'
    b'"histories":{"rows":{"end":2,"first":1}},'
    b'"owner":{"bundle":"0123456789ab","provider":"cpu","threshold":1.5},'
    b'"patch_count":1,"position":2,"text":{"entropy":"ff","generated":1}}'
    b"PADDING"
    b"\x01\0\0\0\x46\0\0\0"
    b"\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0"
    b"\0\0\x80\x3f\0\0\0\xc0"
    b"\0\x3c\0\x40\0\x42\0\x44"
    b"\x01\xff\x7f"
    b"\x02\xfe\x05"
)


def test_literal_bytes(tmp_path: Path) -> None:
    write_session_file(tmp_path / "state", HEADER, iter(ARRAYS.values()))
    found = (tmp_path / "state").read_bytes()
    start, _, rest = LITERAL.partition(b"PADDING")
    padding = b" " * (-len(start) % 8)
    length = struct.pack("<I", len(start) - 16 + len(padding))
    wanted = start[:12] + length + start[16:] + padding + rest
    assert found == wanted + hashlib.sha256(wanted).digest()
    header, arrays = read_session_file(tmp_path / "state", HEADER.owner, FORM)
    assert header == HEADER and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_what_belongs_elsewhere(models: Models, exported: Callable[[int], Exported], tmp_path: Path) -> None:
    path, model = tmp_path / "state", models("fp32")
    wandered(model, 3).save(path)
    with pytest.raises(
        EdgebltError, match=f"was saved with the bundle '{model.bundle.id}', and this is '.*'; open that"
    ):
        models("int8").restore(path)
    threshold = model.config.patching.threshold
    with pytest.raises(EdgebltError, match=f"the patching threshold {threshold}, and this model has 0.25; open the"):
        model.with_threshold(0.25).restore(path)
    assert model.with_threshold(threshold).restore(path).position == wandered(model, 3).position
    owner = Owner(model.bundle.id, threshold, "cuda")
    state = model.session().state
    with pytest.raises(
        EdgebltError, match="was saved on 'cpu', and this model runs on 'cuda'; open the bundle with that"
    ):
        from edgeblt.runtime.saved.saved_state import restore_state

        restore_state(path, state, 260, owner)
    content = path.read_bytes()
    path.write_bytes(content[:8] + struct.pack("<I", 7) + content[12:])
    with pytest.raises(
        EdgebltError, match="has format version 7; this edgeblt reads 1: save the session again with this"
    ):
        model.restore(path)


def test_what_is_no_saved_session(models: Models, tmp_path: Path) -> None:
    model, path = models("fp32"), tmp_path / "state"
    for wrong, said in ((tmp_path / "none", "cannot be read"), (tmp_path, "is not a regular file")):
        with pytest.raises(EdgebltError, match=said):
            model.restore(wrong)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EdgebltError, match="is not a regular file"):
        model.restore(tmp_path / "pipe")
    with pytest.raises(EdgebltError, match="it must be a str or a Path"):
        model.restore(3)  # type: ignore[arg-type]
    path.write_bytes(b"Once upon a time")
    with pytest.raises(
        EdgebltError, match=r"is not a saved session; give a file that Session\.save or --save-state wrote"
    ):
        model.restore(path)
    with pytest.raises(
        EdgebltError, match="exists already and is not a saved session; remove it or choose another name"
    ):
        model.session().save(path)
    assert path.read_bytes() == b"Once upon a time"
    path.unlink()
    wandered(model, 3).save(path)
    content = path.read_bytes()
    for changed in (content[:-1], content + b"\0", content[:40]):
        path.write_bytes(changed)
        with pytest.raises(EdgebltError, match=r"is damaged \(.*\); save the session again"):
            model.restore(path)
    path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    with pytest.raises(EdgebltError, match=r"is damaged \(its sha256 is another\); save the session again"):
        model.restore(path)
    model.session().save(path)  # a saved session is replaced, even a damaged one
    assert model.restore(path).position == 0
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_values_that_are_not_finite_are_not_saved(models: Models, tmp_path: Path) -> None:
    session = wandered(models("fp32"), 3)
    buffer = session.state.caches["global"].buffers[0]
    assert isinstance(buffer, np.ndarray)
    buffer[0, 0, 0, 0] = np.nan
    with pytest.raises(EdgebltError, match="holds values that are not finite numbers, so it cannot be saved"):
        session.save(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def changed_header(content: bytes, change: Callable[[Any], None]) -> bytes:
    """The file with another header and the right sha256."""
    (length,) = struct.unpack_from("<I", content, 12)
    document = json.loads(content[16 : 16 + length])
    change(document)
    header = json.dumps(document).encode()
    return signed(content[:12] + struct.pack("<I", len(header)) + header + content[16 + length : -32])


def signed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


NUMBERS: tuple[object, ...] = (
    -1,
    0,
    1,
    2,
    127,
    128,
    129,
    255,
    1 << 31,
    (1 << 63) - 1,
    -(1 << 63),
    10**30,
    1.5,
    None,
    "a",
    [],
    {},
)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A damaged or hostile file; mostly its sha256 is right."""
    (length,) = struct.unpack_from("<I", content, 12)
    kind = rng.randrange(6)
    if kind == 0:  # a count, or something else of the header

        def change(document: Any) -> None:
            place = document
            while True:
                name = rng.choice(list(place))
                if not isinstance(place[name], dict) or rng.random() < 0.1:
                    break
                place = place[name]
            value = place[name]
            near = [value + step for step in (-129, -128, -1, 1, 128)] if isinstance(value, int) else []
            place[name] = rng.choice([*near, *NUMBERS])

        return changed_header(content, change)
    if kind == 1:  # positions moved consistently, so that sizes stay right

        def move(document: Any) -> None:
            cache, step = rng.choice(list(document["caches"].values())), rng.choice([-128, -1, 1, 128])
            moved = rng.choice(["first", "length", "forgotten"])
            cache[moved] += step
            cache[rng.choice([name for name in cache if name != moved])] -= step

        return changed_header(content, move)
    data = bytearray(content[:-32])
    for _ in range(rng.choice([1, 1, 8])):
        place = rng.randrange(16, 16 + length) if kind == 2 else rng.randrange(len(data))
        if kind == 3:  # among ids, patch starts and rows
            place = rng.randrange(16 + length, min(16 + length + 4000, len(data)))
        data[place] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    if kind == 5:
        data = data[: rng.randrange(len(data))]
    return bytes(data) + content[-32:] if rng.random() < 0.2 else signed(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files(models: Models, kind: str, tmp_path: Path) -> None:
    """500 of them: each is refused in one sentence, or is a state that a session goes on from."""
    model, rng, path, refused = models(kind), random.Random(kind), tmp_path / "state", 0
    sessions = [wandered(model, seed) for seed in (3, 5, 9)]
    list(model.stream("ab", max_new_bytes=30, session=sessions[0]))
    contents = []
    for session in sessions:
        session.save(path)
        contents.append(path.read_bytes())
    for number in range(500 if kind == "int8" else 170):
        path.write_bytes(mutated(contents[number % 3], rng))
        try:
            restored = model.restore(path)
        except EdgebltError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        wander(restored, number, 2)
    assert refused > 60
