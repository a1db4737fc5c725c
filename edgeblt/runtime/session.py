"""Decoding with exact incremental state: feed ids in chunks of any size, roll back, fork.

For each chunk the patcher decides which positions start a patch, the encoder computes byte vectors and pools those of
completed patches, the global transformer maps patch vectors to latents, and the decoder reads byte vectors and latents.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeblt.arguments import whole_number
from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STAGES, StageContract, StageName, cross_row_width
from edgeblt.errors import EdgebltError
from edgeblt.runtime.buffers import Buffers, Homes, PatchBuffers
from edgeblt.runtime.cache import IdHistory, RowHistory, pieces
from edgeblt.runtime.device_array import Array, zeros
from edgeblt.runtime.patch_reader import Patcher, Patching
from edgeblt.runtime.stage import MANY, OpenedGraph, StageRunner
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.turn import Turn

ROLLBACK_BYTES = 32  # rolling back by at most so many is instant; further back the text is fed again
CHUNK_BYTES = 256  # most bytes in one chunk, whose patches the global stage computes in one run

_NO_PATCHING = Patching(
    logits=np.empty((0, 0), np.float32),
    entropies=np.empty(0, np.float32),
    patch_starts=np.empty(0, np.bool_),
    states=np.empty((0, 0), np.float32),
)


class Chunk(NamedTuple):
    """Results for T ids from `position` on: views that later chunks may overwrite."""

    position: int
    logits: NDArray[np.float32]  # [T, vocab]: for the id after each id
    entropies: NDArray[np.float32]  # [T]: the patcher's uncertainty about the id after each id, nats
    patch_starts: NDArray[np.bool_]  # [T]: whether the id after each id starts a patch


class Session:
    """One sequence on one model, made by `Model.session`. Sessions are independent of each other.

    A session is used by one thread at a time: EdgebltError is raised where two use it at once, and where it is used
    while a `run` of it is not at its end. After an error or Ctrl-C it is at its former position. Full memory is an
    EdgebltError too.
    """

    def __init__(
        self,
        config: ModelConfig,
        graphs: dict[StageName, OpenedGraph],
        contracts: dict[StageName, StageContract],
        threshold: float | None = None,
    ) -> None:
        self.config, self._threshold = config, threshold
        self._graphs, self._contracts = graphs, contracts
        self._stages = {name: StageRunner(graphs[name], contracts[name], ROLLBACK_BYTES) for name in graphs}
        self._ids = IdHistory(config.hashes.context)
        self._patcher = Patcher(config, self._stages.pop("patcher"), ROLLBACK_BYTES, threshold)
        self._homes = Homes.of(self._stages, contracts)
        homes, row_width = self._homes, cross_row_width(config)
        self._byte_vectors = RowHistory(config.encoder.hidden_size, memory=homes.byte_vectors)  # by position
        self._cross_rows = RowHistory(row_width, homes.row_dtype, homes.rows)  # by patch
        self._carried_row: Array = zeros((1, row_width), homes.row_dtype, homes.rows)
        self._kept_buffers: dict[int, Buffers] = {}
        self._single = self._buffers(1)
        self._unsettled: int | None = None  # the position to return to, while an operation is under way
        self._turn = Turn()
        self._clear()

    def _clear(self) -> None:
        self._position = 0
        self._patch_starts = [0]  # positions known to start a patch
        self._carried_patch = -1  # the patch whose latent `_carried_row` comes from
        self._patcher.clear()
        for history in (self._byte_vectors, self._cross_rows):
            history.clear()
        for stage in self._stages.values():
            stage.clear()

    @property
    def position(self) -> int:
        """Number of ids fed."""
        return self._position if self._unsettled is None else self._unsettled

    @property
    def ids(self) -> NDArray[np.int64]:
        """All ids fed, int64, as a copy."""
        return self._ids.ids(self.position)

    @property
    def patch_count(self) -> int:
        """Number of completed patches, whose successor is known to start at `position` or before."""
        if self._unsettled is not None:
            with self._turn:
                self._settle()
        return self._completed

    @property
    def _completed(self) -> int:
        return len(self._patch_starts) - 1

    def feed(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Logits after each id, float32 [len(ids), vocab].

        ids: any number of integers from 0 to vocab - 1; byte b is id b + 4. A sequence starts with id 1, BOS, which
            the caller gives.

        Raises EdgebltError for ids that are not integers of the vocabulary, and where a stage cannot run.
        """
        array = self._checked(ids)
        with self._turn:
            if len(array) == 1:
                return self._run_chunk(array)[0].logits.copy()
            logits = np.empty((len(array), self.config.vocab_size), np.float32)
            self._settle()
            self._unsettled = start = self._position  # all or nothing
            for first in range(0, len(array), CHUNK_BYTES):
                for chunk in self._advance(array[first : first + CHUNK_BYTES]):
                    offset = chunk.position - start
                    logits[offset : offset + len(chunk.logits)] = chunk.logits
            self._unsettled = None
            return logits

    def run(self, ids: ArrayLike) -> Iterator[Chunk]:
        """Feed ids chunk by chunk, yielding the results of each; they are views that the next chunk may overwrite.

        ids: as `feed` takes them.

        Raises EdgebltError as `feed` does, and where the session was used between two chunks.
        """
        array = self._checked(ids)
        turns = self._turn.count
        for start in range(0, len(array), CHUNK_BYTES):
            with self._turn:
                turns += 1
                self._turn.check(turns)
                chunks = self._run_chunk(array[start : start + CHUNK_BYTES])
            yield from chunks

    def rollback(self, position: int) -> None:
        """Forget everything after the first ids; instant for the newest 32, further back they are fed again.

        position: how many ids to keep, from 0 to the session's own position.

        Raises EdgebltError for another position, and where a stage cannot run.
        """
        position = whole_number("position", position, None)
        if not 0 <= position <= self.position:
            raise EdgebltError(f"cannot roll back to position {position}; this session is at {self.position}")
        with self._turn:
            self._roll_back(position)

    def _roll_back(self, position: int) -> None:
        self._settle()
        if position == self._position:
            return
        self._unsettled = position
        if self._can_rewind(position):
            self._rewind(position)
            self._unsettled = None
        else:
            self._settle()

    def fork(self) -> "Session":
        """An independent session in the same state."""
        with self._turn:
            return self._fork()

    def _fork(self) -> "Session":
        self._settle()
        other = Session(self.config, self._graphs, self._contracts, self._threshold)
        other._position = self._position
        other._patch_starts = self._patch_starts.copy()
        other._carried_patch = self._carried_patch
        other._carried_row[:] = self._carried_row
        other._ids.copy_from(self._ids)
        self._patcher.rewind(self._position)
        other._patcher.copy_from(self._patcher)
        other._byte_vectors.copy_from(self._byte_vectors)
        other._cross_rows.copy_from(self._cross_rows)
        for name, stage in self._stages.items():
            other._stages[name].copy_from(stage)
        return other

    def _settle(self) -> None:
        """Feed the ids again up to where the session was before an operation that an exception or Ctrl-C cut short."""
        if self._unsettled is None:
            return
        ids = self._ids.ids(self._unsettled)
        self._clear()
        for start in range(0, len(ids), CHUNK_BYTES):
            self._advance(ids[start : start + CHUNK_BYTES])
        self._unsettled = None

    def _rewind(self, position: int) -> None:
        del self._patch_starts[bisect_right(self._patch_starts, position) :]
        patch_count = self._completed
        for name, stage in self._stages.items():
            if stage.cache:
                stage.cache.rewind(patch_count if name == "global" else position)
        self._patcher.rewind(position)
        self._byte_vectors.rewind(position)
        self._cross_rows.rewind(patch_count)
        if self._carried_patch >= patch_count:
            self._carried_patch = -1
        self._position = position

    def read_ahead(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Logits [vocab] of the patcher for the id after `ids`; the session's position does not change.

        No id is read twice: neither when `ids` grow from call to call, nor when they are fed. All 0 where the patching
        rule has no patcher model.

        ids: 1 to 32 that may be fed next.

        Raises EdgebltError as `feed` does, and for none or more ids.
        """
        array = self._checked(ids)
        if not 0 < len(array) <= ROLLBACK_BYTES:
            raise EdgebltError(f"{len(array)} ids cannot be read ahead; give 1 to {ROLLBACK_BYTES}")
        with self._turn:
            self._settle()
            self._unsettled = self._position
            logits = self._patcher.read_ahead(self._position, array).copy()
            self._unsettled = None
            return logits

    @contextmanager
    def within_patch(self) -> Iterator[Callable[[int], NDArray[np.float32]]]:
        """Context with a function that feeds one id to encoder and decoder alone, as if no patch ended.

        The function returns logits [vocab] and may be called for at most 32 ids. Within the context the session cannot
        be used otherwise; afterwards it is at its former position.
        """
        with self._turn:
            self._settle()
            self._unsettled = self._position
            turns = self._turn.count
            yield self._single_feed()
            self._turn.check(turns)
            for name in ("encoder", "decoder"):
                cache = self._stages[name].cache
                assert cache is not None
                cache.rewind(self._position)
            self._unsettled = None

    def _single_feed(self) -> Callable[[int], NDArray[np.float32]]:
        ahead, turns = 0, self._turn.count

        def feed(id: int) -> NDArray[np.float32]:
            nonlocal ahead
            self._turn.check(turns)
            self._ids.store(self._position + ahead, np.array([id]))
            self._single.windows[:] = self._ids.windows(self._position + ahead, 1)
            piece = _Piece(self._position, self._completed, self._single, _NO_PATCHING, self._single.patches(0))
            self._run_encoder(piece)
            ahead += 1
            logits: NDArray[np.float32] = self._decode(piece, piece.patches.latents)[0].copy()
            return logits

        return feed

    def __repr__(self) -> str:
        return f"<edgeblt.Session at position {self.position}>"

    def __reduce__(self) -> NoReturn:
        raise EdgebltError(
            "a Session cannot be pickled or copied; use fork() in this process, or pickle the Model and session.ids"
            " and feed them again"
        )

    @property
    def work(self) -> dict[StageName, StageWork]:
        """Runs, positions and seconds of each stage in this session so far, as a copy."""
        stages = {"patcher": self._patcher.stage, **self._stages}
        return {name: replace(stages[name].work) for name in STAGES}

    @property
    def cache_bytes(self) -> dict[StageName, int]:
        """Bytes of key-value cache by stage; only the global one grows with the text."""
        stages = {"patcher": self._patcher.stage, **self._stages}
        return {name: stage.cache.nbytes if stage.cache else 0 for name, stage in stages.items()}

    def _can_rewind(self, position: int) -> bool:
        patch_count = bisect_right(self._patch_starts, position) - 1
        return (
            position > 0
            and self._patcher.can_rewind(position)
            and self._byte_vectors.first <= self._patch_starts[patch_count]
            and (patch_count == 0 or self._cross_rows.first <= patch_count - 1)
            and all(
                stage.cache.can_rewind(position)
                for name, stage in self._stages.items()
                if stage.cache and name != "global"
            )
        )

    def _checked(self, ids: ArrayLike) -> NDArray[np.int64]:
        try:
            array = np.asarray(ids)
        except ValueError:  # lists of different lengths
            raise EdgebltError("ids must be a sequence of integers, not lists of different lengths") from None
        if array.size == 0:
            return np.zeros(0, np.int64)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise EdgebltError(f"ids must be a sequence of integers, not {array.dtype} of shape {array.shape}")
        ids = array.astype(np.int64, copy=False)
        if ids.view(np.uint64).max() >= self.config.vocab_size:  # negative ones are the largest then
            raise EdgebltError(f"ids must lie in 0..{self.config.vocab_size - 1}, not {array.min()}..{array.max()}")
        return ids

    def _run_chunk(self, ids: NDArray[np.int64]) -> list[Chunk]:
        self._settle()
        self._unsettled = self._position
        chunks = self._advance(ids)
        self._unsettled = None
        return chunks

    def _advance(self, ids: NDArray[np.int64]) -> list[Chunk]:
        """Run a chunk through the stages: the local ones piece by piece, the global one with all patches at once.

        Attention computes what lies outside its window too, so local stages gain from small pieces; the global stage
        gains from reading its weights once for many patches.
        """
        first_patch, cuts = self._completed, list(pieces(self._position, len(ids)))
        encoded = [self._encode(ids[cut], len(cuts) == 1) for cut in cuts]
        latents = self._run_global(first_patch, encoded)
        chunks = []
        for piece in encoded:
            start = piece.first_patch - first_patch
            patch_latents = latents[start : start + piece.patches.count] if len(encoded) > 1 else latents
            logits, patching = self._decode(piece, patch_latents), piece.patching
            chunks.append(Chunk(piece.position, logits, patching.entropies, patching.patch_starts))
        return chunks

    def _encode(self, ids: NDArray[np.int64], alone: bool) -> "_Piece":
        """Patch starts, byte vectors and patch vectors of the next ids; `alone`: the chunk has no other piece."""
        count = len(ids)
        buffers = self._buffers(count) if alone else Buffers(self.config, self._homes, count)
        self._ids.store(self._position, ids)
        buffers.windows[:] = self._ids.windows(self._position, count)
        patching = self._patcher.read(self._position, ids)
        if not alone:  # the next piece may be as long
            patching = patching.copy()
        patches = buffers.patches(int(np.count_nonzero(patching.patch_starts)))
        piece = _Piece(self._position, self._completed, buffers, patching, patches)
        self._run_encoder(piece)

        keep = max(self._position + count - ROLLBACK_BYTES, 0)
        oldest_patch = bisect_right(self._patch_starts, keep) - 1
        self._byte_vectors.append(buffers.byte_vectors, self._patch_starts[oldest_patch])
        if patches.count:
            starts = np.flatnonzero(patching.patch_starts) + (self._position + 1)
            self._patch_starts.extend(starts.tolist())
        self._position += count
        return piece

    def _run_encoder(self, piece: "_Piece") -> None:
        buffers, patches = piece.buffers, piece.patches
        if buffers.count == 1:
            buffers.latent_index[0] = patches.count  # patch_index stays 0
        else:
            starts = piece.patching.patch_starts
            np.cumsum(starts, out=buffers.latent_index)
            np.subtract(buffers.latent_index, starts, out=buffers.patch_index)
        stage = self._stages["encoder"]
        buffers.total_length["encoder"][0] = stage.advance(buffers.count)
        if patches.count:
            patches.encoder_inputs["open_vectors"] = self._byte_vectors.rows(self._patch_starts[-1])
        stage.run(patches.encoder_inputs, patches.encoder_outputs, buffers.count, patches.count)

    def _run_global(self, first_patch: int, pieces: "list[_Piece]") -> Array:
        """Latents [P, width] of the patches that the pieces complete."""
        patches = pieces[0].patches
        if len(pieces) > 1:
            patches = PatchBuffers(self.config, self._homes, None, sum(piece.patches.count for piece in pieces))
            end = 0
            for piece in pieces:
                patches.vectors[end : end + piece.patches.count] = piece.patches.vectors
                end += piece.patches.count
        if patches.count:
            stage = self._stages["global"]
            stage.advance(patches.count)
            patches.total_length[0] = first_patch + patches.count
            stage.run(patches.global_inputs, patches.global_outputs, patches.count, patches.count)
        return patches.latents

    def _decode(self, piece: "_Piece", latents: Array) -> NDArray[np.float32]:
        """Logits of a piece, given the latents of the patches it completes."""
        buffers, patches = piece.buffers, piece.patches
        if piece.first_patch == 0:
            self._carried_row[:] = 0  # there is no latent yet; nothing of a text rolled back may stay
        elif self._carried_patch != piece.first_patch - 1:  # rolled back
            self._carried_row[:] = self._cross_rows.rows(piece.first_patch - 1, piece.first_patch)
        stage = self._stages["decoder"]
        buffers.total_length["decoder"][0] = stage.advance(buffers.count)
        patches.decoder_inputs["latents"] = latents
        patches.decoder_inputs["carried_row"] = self._carried_row
        stage.run(patches.decoder_inputs, patches.decoder_outputs, buffers.count, patches.count)
        if patches.count:
            self._carried_row[:] = patches.cross_rows[patches.count - 1 :]
            self._keep_cross_rows(piece.first_patch, patches.cross_rows)
        self._carried_patch = piece.first_patch + patches.count - 1
        return buffers.logits

    def _keep_cross_rows(self, first_patch: int, rows: Array) -> None:
        """Keep only rows that may be rolled back to; a long chunk has more."""
        skipped = max(len(rows) - ROLLBACK_BYTES - 1, 0)
        if skipped:
            self._cross_rows.restart(first_patch + skipped)
        oldest_patch = bisect_right(self._patch_starts, max(self._position - ROLLBACK_BYTES, 0)) - 1
        self._cross_rows.append(rows[skipped:], oldest_patch - 1)

    def _buffers(self, count: int) -> Buffers:
        buffers = self._kept_buffers.get(count)
        if buffers is None:
            buffers = Buffers(self.config, self._homes, count)
            if count < MANY:
                self._kept_buffers[count] = buffers
        return buffers


class _Piece(NamedTuple):
    """Part of a chunk between encoder and decoder."""

    position: int
    first_patch: int  # patches completed before it
    buffers: Buffers
    patching: Patching
    patches: PatchBuffers
