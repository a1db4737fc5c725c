"""A session on a portable graph: what a client in another language does, with the calls of any other session."""

from pathlib import Path
from typing import NoReturn, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STAGES, StageName
from edgeblt.bundle.portable.contract import NEXT
from edgeblt.errors import EdgebltError
from edgeblt.runtime.buffers import Chunk, Take
from edgeblt.runtime.opened_graphs import CHUNK_BYTES, OpenedGraphs, slices
from edgeblt.runtime.patch_reader import PatchReader
from edgeblt.runtime.portable.state import PortableState
from edgeblt.runtime.run_errors import run_error
from edgeblt.runtime.session import Session
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.sequence import SequenceState
from edgeblt.runtime.state.snapshot import StateSnapshot
from edgeblt.runtime.turn import Turn

_RESULTS = ("logits", "entropies", "patch_starts")


class _NothingAhead:
    """The reader of ids ahead that a portable graph does not have."""

    def clear(self) -> None:
        pass

    def forget_ahead(self) -> None:
        pass


class PortableSession(Session):
    """One sequence on a portable graph. It cannot draft or be saved."""

    def __init__(self, config: ModelConfig, graphs: OpenedGraphs, threshold: float | None = None) -> None:
        """Start empty; `threshold`, in nats, replaces the model's own."""
        self.config, self._blt, self._graphs, self._threshold = config, config, graphs, threshold
        change = 0.0 if threshold is None else threshold - float(np.float32(config.patching.threshold))
        self._portable = PortableState(config, change)
        # The base class uses of both only what these have too.
        self.state = cast(SequenceState, self._portable)
        self._patch_reader = cast(PatchReader, _NothingAhead())
        self._stages = {}
        self._unsettled: int | None = None
        self._at_work = None
        self._turn = Turn()
        self._work = {stage: StageWork() for stage in STAGES}

    @property
    def work(self) -> dict[StageName, StageWork]:
        """Runs and positions of each stage in this session so far; the seconds are not known by stage."""
        return {name: work.since(StageWork()) for name, work in self._work.items()}

    @property
    def cache_bytes(self) -> dict[StageName, int]:
        """Bytes of key-value cache by stage; only the global one grows with the text."""
        arrays = self._portable.arrays.items()
        return {stage: sum(array.nbytes for name, array in arrays if name.startswith(f"{stage}.")) for stage in STAGES}

    def fork(self) -> "PortableSession":
        """An independent session in the same state."""
        with self._turn:
            self._settle()
            other = PortableSession(self._blt, self._graphs, self._threshold)
            other._portable.copy_from(self._portable)
            return other

    def read_ahead(self, ids: ArrayLike) -> NoReturn:
        """Refuse, as a portable graph computes all stages at once."""
        raise _refused("draft")

    def within_patch(self) -> NoReturn:
        """Refuse, as a portable graph computes all stages at once."""
        raise _refused("draft")

    def save(self, path: str | Path) -> None:
        """Refuse, as the state of a portable graph has no file format."""
        raise _refused("save a session")

    def restore(self, path: Path) -> None:
        """Refuse likewise."""
        raise _refused("restore a session")

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot:
        """Refuse likewise."""
        raise _refused("copy a session but by fork")

    def start_from(self, snapshot: StateSnapshot) -> None:
        """Refuse likewise."""
        raise _refused("start from a copy")

    def _advance(self, ids: NDArray[np.int64], take: Take) -> None:
        for piece in slices(slice(0, len(ids)), CHUNK_BYTES):
            take(self._run(ids[piece]))

    def _run(self, ids: NDArray[np.int64]) -> Chunk:
        state = self._portable
        graph = self._graphs["decoder"].for_positions(len(ids))
        names = [f"{NEXT}{name}" for name in state.arrays]
        try:
            logits, entropies, patch_starts, *after = graph.run([*_RESULTS, *names], {"ids": ids[None], **state.arrays})
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise run_error(error, "model") from None
        chunk = Chunk(state.position, logits[0], entropies[0], patch_starts[0])
        state.append(ids, dict(zip(state.arrays, after, strict=True)))
        self._count(len(ids), int(np.count_nonzero(chunk.patch_starts)))
        return chunk

    def _count(self, positions: int, patches: int) -> None:
        for stage, work in self._work.items():
            if stage != "global":
                work.add(positions, patches, 0.0, 0)
            elif patches:
                work.add(patches, patches, 0.0, 0)


def _refused(what: str) -> EdgebltError:
    return EdgebltError(f"a portable bundle cannot {what}; export the checkpoint for the cpu for that")
