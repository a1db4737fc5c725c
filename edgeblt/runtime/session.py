"""Decoding with exact incremental state: feed ids in chunks of any size, roll back, fork.

For each chunk the patcher decides which positions start a patch, the encoder computes byte vectors and pools those of
completed patches, the global transformer maps patch vectors to latents, and the decoder reads byte vectors and latents.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeblt.arguments import checked_ids, whole_number
from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STAGES, StageName
from edgeblt.errors import EdgebltError
from edgeblt.runtime.buffers import Buffers, Chunk, EncodedPiece, Take, open_index
from edgeblt.runtime.opened_graphs import CHUNK_BYTES, OpenedGraphs, slices
from edgeblt.runtime.patch_reader import NO_PATCHING, Patching, PatchReader
from edgeblt.runtime.saved.save_calls import SaveCalls
from edgeblt.runtime.side_by_side import SideBySide, can_begin, stages_side_by_side
from edgeblt.runtime.stage import KeptArrays, StageRunner
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.cache import pieces
from edgeblt.runtime.state.device_array import Array
from edgeblt.runtime.state.sequence import SequenceState
from edgeblt.runtime.turn import Turn

ROLLBACK_BYTES = 32  # rolling back by at most so many is instant; further back the text is fed again


class Session(SaveCalls):
    """One sequence on one model, made by `Model.session`. Sessions are independent of each other.

    A session is used by one thread at a time. EdgebltError is raised where two use it at once, where it is used while a
    `run` of it is not at its end, and where memory is full. After an error or Ctrl-C it is at its former position.
    """

    def __init__(self, config: ModelConfig, graphs: OpenedGraphs, threshold: float | None = None) -> None:
        self.config, self._blt, self._graphs, self._threshold = config, config, graphs, threshold
        self.state = SequenceState(config, graphs.contracts, graphs.memories, ROLLBACK_BYTES)
        self._stages = {name: StageRunner(name, graphs[name], self.state.caches.get(name)) for name in STAGES}
        self._patch_reader = PatchReader(config, self._stages["patcher"], self.state, ROLLBACK_BYTES, threshold)
        homes = self.state.homes
        self._buffers = KeptArrays(lambda count: Buffers(config, homes, count))
        self._single = self._buffers[1]
        self._unsettled: int | None = None  # the position to return to, while an operation is under way
        self._at_work: SideBySide | None = None
        self._turn = Turn()

    @property
    def position(self) -> int:
        """Number of ids fed."""
        return self.state.position if self._unsettled is None else self._unsettled

    @property
    def ids(self) -> NDArray[np.int64]:
        """All ids fed, int64, as a copy."""
        return self.state.ids.ids(self.position)

    @property
    def patch_count(self) -> int:
        """Number of completed patches, whose successor is known to start at `position` or before."""
        if self._unsettled is not None:
            with self._turn:
                self._settle()
        return self.state.patch_count

    def feed(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Logits after each id, float32 [len(ids), vocab].

        ids: any number of integers from 0 to vocab - 1; byte b is id b + 4. A sequence starts with id 1, BOS, which
            the caller gives.

        Raises EdgebltError for ids that are not integers of the vocabulary, and where a stage cannot run.
        """
        array = checked_ids(ids, self.config.vocab_size)
        with self._turn:
            if len(array) == 1:
                return self._run_span(array)[0].logits.copy()
            logits, start = np.empty((len(array), self.config.vocab_size), np.float32), self.position
            self._feed_all(
                array, lambda chunk: np.copyto(logits[chunk.position - start :][: len(chunk.logits)], chunk.logits)
            )
            return logits

    def read(self, ids: ArrayLike, take: Take) -> None:
        """Feed ids, giving the results of each chunk to a function, in order; the next may overwrite them.

        ids: as `feed` takes them.
        take: may be called in another thread, beside the stages' work on the next chunks.

        Raises EdgebltError as `feed` does, and what `take` raises.
        """
        array = checked_ids(ids, self.config.vocab_size)
        with self._turn:
            self._feed_all(array, take)

    def run(self, ids: ArrayLike) -> Iterator[Chunk]:
        """Feed ids chunk by chunk, yielding the results of each; they are views that the next chunk may overwrite.

        ids: as `feed` takes them.

        Raises EdgebltError as `feed` does, and where the session was used between two chunks.
        """
        array = checked_ids(ids, self.config.vocab_size)
        turns = self._turn.count
        spans = self._graphs.spans(len(array))
        while spans:
            span = spans.pop(0)
            with self._turn:
                turns += 1
                self._turn.check(turns)
                try:
                    chunks = self._run_span(array[span])
                except EdgebltError:
                    if span.stop - span.start <= CHUNK_BYTES:
                        raise
                    spans[:0] = slices(span, CHUNK_BYTES)  # chunks before the error are yielded
                    continue
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
            self._settle()
            if position == self.state.position:
                return
            self._unsettled = position
            if not self.state.can_rewind(position):
                return self._settle()
            self._patch_reader.clear()
            self.state.rewind(position)
            self._unsettled = None

    def fork(self) -> "Session":
        """An independent session in the same state."""
        with self._turn:
            self._settle()
            self._patch_reader.forget_ahead()
            other = Session(self._blt, self._graphs, self._threshold)
            other.state.copy_from(self.state)
            return other

    def _settle(self) -> None:
        """Feed the ids again up to where the session was before an operation that an exception or Ctrl-C cut short.

        Every operation begins with it. Raises EdgebltError where the model was closed.
        """
        self._graphs.check()
        if self._unsettled is None:
            return
        if self._at_work:
            self._at_work.stop()
        ids = self.state.ids.ids(self._unsettled)
        self.state.clear()
        self._patch_reader.clear()
        for stage in self._stages.values():
            stage.release()
        self._advance(ids, lambda _: None)
        self._unsettled = None

    def further_logits(self) -> NDArray[np.float32]:
        """Logits [n, vocab] for ids after the next, where the model guesses them; here none."""
        return np.empty((0, self.config.vocab_size), np.float32)

    def read_ahead(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Logits [vocab] of the patcher for the id after `ids`; the session's position does not change.

        No id is read twice: neither when `ids` grow from call to call, nor when they are fed. All 0 where the patching
        rule has no patcher model.

        ids: 1 to 32 that may be fed next.

        Raises EdgebltError as `feed` does, and for none or more ids.
        """
        array = checked_ids(ids, self.config.vocab_size)
        if not 0 < len(array) <= ROLLBACK_BYTES:
            raise EdgebltError(f"{len(array)} ids cannot be read ahead; give 1 to {ROLLBACK_BYTES}")
        with self._turn:
            self._settle()
            self._unsettled = self.state.position
            logits = self._patch_reader.read_ahead(array).copy()
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
            self._unsettled = self.state.position
            turns = self._turn.count
            positions = itertools.count(self.state.position)

            def feed(id: int) -> NDArray[np.float32]:
                self._turn.check(turns)
                position, state = next(positions), self.state
                state.ids.store(position, np.array([id]))
                single = self._single
                single.windows[:] = state.ids.windows(position, 1)
                piece = EncodedPiece(state.position, state.patch_count, single, NO_PATCHING, single.patches(0))
                self._run_encoder(piece)
                logits: NDArray[np.float32] = self._decode(piece, piece.patches.latents)[0].copy()
                return logits

            yield feed
            self._turn.check(turns)
            self.state.rewind_local()
            self._unsettled = None

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
        return {name: replace(stage.work) for name, stage in self._stages.items()}

    @property
    def cache_bytes(self) -> dict[StageName, int]:
        """Bytes of key-value cache by stage; only the global one grows with the text."""
        caches = self.state.caches
        return {name: caches[name].nbytes if name in caches else 0 for name in STAGES}

    def _run_span(self, ids: NDArray[np.int64]) -> list[Chunk]:
        """Results of ids, which are kept for all of them."""
        chunks: list[Chunk] = []
        self._feed_all(ids, chunks.append)
        return chunks

    def _feed_all(self, ids: NDArray[np.int64], take: Take) -> None:
        """Feed ids, or none of them where something fails."""
        self._settle()
        self._unsettled = self.state.position
        self._advance(ids, take)
        self._unsettled = None

    def _advance(self, ids: NDArray[np.int64], take: Take) -> None:
        """Run ids through the stages, which work side by side on more than a chunk where they can.

        In a chunk the local stages go piece by piece, as attention computes what lies outside its window too; the
        global stage takes all patches at once, to read its weights once for many.
        """
        if len(ids) > CHUNK_BYTES and self._graphs.are_side_by_side and can_begin():
            return self._advance_side_by_side(ids, take)
        for span in slices(slice(0, len(ids)), CHUNK_BYTES):
            first_patch, cuts = self.state.patch_count, pieces(self.state.position, span.stop - span.start)
            encoded = [self._encode(ids[span][cut], len(cuts) == 1) for cut in cuts]
            latents = self._run_global(first_patch, encoded)
            for piece in encoded:
                take(self._chunk(piece, latents, first_patch))
        return None

    def _advance_side_by_side(self, ids: NDArray[np.int64], take: Take) -> None:
        start, cuts = self.state.position, pieces(self.state.position, len(ids))
        self.state.ids.store(start, ids)
        self._at_work = stages_side_by_side(
            list(self._stages.values()),
            len(cuts),
            lambda step: self._patch_reader.read(start + cuts[step].start, ids[cuts[step]]).own(),
            lambda step, patching: self._encode(ids[cuts[step]], False, patching),
            lambda pieces: self._run_global(pieces[0].first_patch, pieces),
            lambda piece, latents, first_patch: take(self._chunk(piece, latents, first_patch)),
        )
        self._at_work.run()

    def _encode(self, ids: NDArray[np.int64], alone: bool, patching: Patching | None = None) -> EncodedPiece:
        """Patch starts, byte vectors and patch vectors of the next ids; `alone`: the chunk has no other piece."""
        count, state = len(ids), self.state
        buffers = self._buffers[count] if alone else Buffers(self._blt, state.homes, count)
        state.ids.store(state.position, ids)
        buffers.windows[:] = state.ids.windows(state.position, count)
        if patching is None:
            patching = self._patch_reader.read(state.position, ids)
            if not alone:  # the next piece may be as long
                patching = patching.own()
        starts = patching.patch_starts
        patches = buffers.patches(int(starts[0]) if count == 1 else int(np.count_nonzero(starts)))
        piece = EncodedPiece(state.position, state.patch_count, buffers, patching, patches)
        self._run_encoder(piece)
        state.append(buffers.byte_vectors, patching.patch_starts, patches.count)
        return piece

    def _run_encoder(self, piece: EncodedPiece) -> None:
        buffers, patches = piece.buffers, piece.patches
        if buffers.count == 1:
            buffers.latent_index[0] = patches.count  # patch_index stays 0
        else:
            starts = piece.patching.patch_starts
            np.cumsum(starts, out=buffers.latent_index)
            np.subtract(buffers.latent_index, starts, out=buffers.patch_index)
        stage = self._stages["encoder"]
        buffers.total_length["encoder"][0] = self.state.caches["encoder"].advance(buffers.count)
        if patches.count:
            vectors = self.state.open_vectors()
            patches.encoder_inputs |= {"open_vectors": vectors, "open_index": open_index(len(vectors))}
        stage.run(patches.encoder_inputs, patches.encoder_outputs, buffers.count, patches.count)

    def _run_global(self, first_patch: int, pieces: list[EncodedPiece]) -> Array:
        """Latents [P, width] of the patches that the pieces complete."""
        patches = pieces[0].patches
        if len(pieces) > 1:
            patches = patches.joined([piece.patches.vectors for piece in pieces])
        if patches.count:
            self.state.caches["global"].advance(patches.count)
            patches.total_length[0] = first_patch + patches.count
            stage = self._stages["global"]
            stage.run(patches.global_inputs, patches.global_outputs, patches.count, patches.count)
        return patches.latents

    def _chunk(self, piece: EncodedPiece, latents: Array, first_patch: int) -> Chunk:
        """Results of a piece, given the latents of all patches from `first_patch` on that are computed with its own."""
        start, count = piece.first_patch - first_patch, piece.patches.count
        if len(latents) != count:
            latents = latents[start : start + count]
        logits, (_, entropies, patch_starts, _) = self._decode(piece, latents), piece.patching
        return Chunk(piece.position, logits, entropies, patch_starts)

    def _decode(self, piece: EncodedPiece, latents: Array) -> NDArray[np.float32]:
        """Logits of a piece, given the latents of the patches it completes."""
        buffers, patches = piece.buffers, piece.patches
        stage = self._stages["decoder"]
        buffers.total_length["decoder"][0] = self.state.caches["decoder"].advance(buffers.count)
        patches.decoder_inputs["latents"] = latents
        patches.decoder_inputs["carried_row"] = self.state.carried_row(piece.first_patch)
        stage.run(patches.decoder_inputs, patches.decoder_outputs, buffers.count, patches.count)
        self.state.append_cross_rows(piece.first_patch, patches.cross_rows)
        return buffers.logits
