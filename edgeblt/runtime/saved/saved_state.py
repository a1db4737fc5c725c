"""Snapshots of sequences as files: everything in a file is checked before a session starts from it.

A file may come from a stranger. Counts and positions in it decide which slots and rows are read, so they must be as a
session leaves them; then nothing beyond the model's own arrays is ever read or written.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import StageName
from edgeblt.errors import EdgebltError
from edgeblt.ids import OFFSET, VOCAB_SIZE
from edgeblt.runtime.saved.session_file import (
    CacheCounts,
    CacheShape,
    Form,
    Header,
    Owner,
    RowCounts,
    SavedText,
    damaged,
    read_session_file,
    write_session_file,
)
from edgeblt.runtime.state.device_array import Array, DeviceArray
from edgeblt.runtime.state.sequence import SequenceState
from edgeblt.runtime.state.snapshot import CacheSnapshot, RowsSnapshot, StateSnapshot

_ENTROPY = re.compile(r"[0-9a-f]{1,4096}")
_NOT_FINITE = 127  # last code of a slot in int8 that had a value that is not finite


@dataclass(frozen=True)
class TextState:
    """Text that was generated on a session and may go on.

    generated: number of its bytes, the newest that the session has read.
    entropy: what its random numbers were made from, as `numpy.random.SeedSequence` takes it.
    """

    generated: int
    entropy: int


def _form(state: SequenceState) -> Form:
    caches: dict[str, CacheShape] = {
        name: CacheShape(2 * cache.spec.layer_count, cache.spec.kv_head_count, cache.spec.slot_width, cache.spec.dtype)
        for name, cache in state.caches.items()
    }
    return Form({name: history.form for name, history in state.histories.items()}, caches)


def save_state(path: Path, snapshot: StateSnapshot, text: TextState | None, owner: Owner) -> None:
    """Write a snapshot, and how far its text had come, to a file that is whole or not there.

    Raises EdgebltError where it cannot be written, or the state holds values that are not finite numbers.
    """
    header = Header(
        owner,
        snapshot.position,
        snapshot.patch_count,
        {name: RowCounts(rows.first, rows.end) for name, rows in snapshot.histories.items()},
        {name: _counts(cache) for name, cache in snapshot.caches.items()},
        SavedText(text.generated, f"{text.entropy:x}") if text else None,
    )
    if text and not _ENTROPY.fullmatch(f"{text.entropy:x}"):
        raise EdgebltError("the seed has too many digits to be saved; use a smaller one")
    write_session_file(path, header, _host_arrays(snapshot))


def restore_state(
    path: Path, state: SequenceState, vocab_size: int, owner: Owner
) -> tuple[StateSnapshot, TextState | None]:
    """Read what `save_state` wrote; nothing is read where it does not fit `state`, that of a new sequence.

    Raises EdgebltError for a file that is damaged, or belongs to another bundle, threshold or provider.
    """
    form = _form(state)
    header, arrays = read_session_file(path, owner, form)
    reason = _fault(header, arrays, state, vocab_size)
    if reason:
        raise damaged(path, reason)
    caches: dict[StageName, CacheSnapshot] = {}
    for name in state.caches:
        slots, forgotten = (
            tuple(arrays[f"{name}_{part}_{index}"] for index in range(form.caches[name].buffers))
            for part in ("slots", "forgotten")
        )
        counts = header.caches[name]
        caches[name] = CacheSnapshot(counts.first, counts.length, (slots,), forgotten if counts.forgotten else ())
    histories = {name: RowsSnapshot(rows.first, arrays[name]) for name, rows in header.histories.items()}
    snapshot = StateSnapshot(arrays["ids"], arrays["patch_starts"], caches, histories)
    if header.text is None:
        return snapshot, None
    return snapshot, TextState(header.text.generated, int(header.text.entropy, 16))


def _counts(cache: CacheSnapshot) -> CacheCounts:
    return CacheCounts(cache.first, cache.length, cache.forgotten[0].shape[2] if cache.forgotten else 0)


def _host_arrays(snapshot: StateSnapshot) -> Iterator[NDArray[Any]]:
    """Arrays in the file's order. Raises EdgebltError for values that are not finite."""
    yield snapshot.ids
    yield snapshot.patch_starts
    for rows in snapshot.histories.values():
        yield _saved(rows.rows)
    for cache in snapshot.caches.values():
        buffers = len(cache.segments[0]) if cache.segments else 0
        for index in range(buffers):
            yield _saved(np.concatenate([_on_host(segment[index]) for segment in cache.segments], axis=2))
        for slots in cache.forgotten:
            yield _saved(slots)


def _on_host(array: Array) -> NDArray[Any]:
    return array.numpy() if isinstance(array, DeviceArray) else array


def _saved(array: Array) -> NDArray[Any]:
    host = _on_host(array)
    if not _is_finite(host):
        raise EdgebltError(
            "this session holds values that are not finite numbers, so it cannot be saved; roll back to before the text"
            " on which the model fails"
        )
    return host


def _is_finite(array: NDArray[Any]) -> bool:
    if array.dtype == np.int8:
        return bool((array[..., -1] != _NOT_FINITE).all() and (array[..., :-1] != -128).all())
    return bool(np.isfinite(array).all())


def _fault(header: Header, arrays: Mapping[str, NDArray[Any]], state: SequenceState, vocab_size: int) -> str | None:
    """Why no session can have been saved so; None where one can."""
    ids, starts = arrays["ids"], arrays["patch_starts"]
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        return "an id is not in the vocabulary"
    if starts[0] != 0 or (starts[1:] <= starts[:-1]).any() or starts[-1] > header.position:
        return "patches start at impossible positions"
    if header.text and not _is_text(header.text, ids):
        return "its generated text is impossible"
    return (
        _rows_fault(header, starts.tolist())
        or _cache_fault(header, state)
        or next(
            (f"{name} holds values that are not finite" for name, value in arrays.items() if not _plain(value)), None
        )
    )


def _is_text(text: SavedText, ids: NDArray[np.int32]) -> bool:
    if not 0 <= text.generated <= len(ids) or not _ENTROPY.fullmatch(text.entropy):
        return False
    newest = ids[len(ids) - text.generated :]
    return bool(((newest >= OFFSET) & (newest < VOCAB_SIZE)).all())


def _plain(array: NDArray[Any]) -> bool:
    return array.dtype in (np.int32, np.int64) or _is_finite(array)


def _rows_fault(header: Header, starts: list[int]) -> str | None:
    """The rows that the next id reads must be there, and none beyond the sequence."""
    position, patches = header.position, header.patch_count
    latest = {
        "patcher_states": max(position - 1, 0),
        "byte_vectors": starts[-1],
        "cross_rows": max(patches - 1, 0),
        "recurrent_states": max(position - 1, 0),
    }
    for name, rows in header.histories.items():
        if rows.end != (patches if name == "cross_rows" else position) or not 0 <= rows.first <= latest[name]:
            return f"{name} holds other rows than it must"
    return None


def _cache_fault(header: Header, state: SequenceState) -> str | None:
    """Caches end where the sequence does, and hold what the next position attends to."""
    for name, cache in state.caches.items():
        counts, end = header.caches[name], header.patch_count if name == "global" else header.position
        if not cache.can_hold(counts.first, counts.length, counts.forgotten, end):
            return f"the cache of the stage {name} holds other positions than it must"
    return None
