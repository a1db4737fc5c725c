"""The open graphs of a model, which its sessions share until it is closed."""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Protocol
from weakref import WeakSet

import onnxruntime

from edgeblt.bundle.contract import StageContract, StageName
from edgeblt.bundle.held_files import HeldFile
from edgeblt.errors import EdgebltError
from edgeblt.runtime.state.device_array import DeviceMemory

CHUNK_BYTES = 256  # most bytes in one chunk, whose patches the global stage computes in one run
SPAN_BYTES = 4096  # longest text that stages work on side by side before the results of any are returned
LARGE_SPAN_BYTES = 1024  # a large model takes seconds for so many
MANY = 33  # from so many positions on, a run uses all cores and its buffers are not kept


class GraphUser(Protocol):
    """Runs a graph, and keeps something that refers to it."""

    def release(self) -> None:
        """Let go of the graph."""
        ...


class OpenedGraph:
    """A stage's graph, opened for runs on few positions, for those on many, and for a share of the threads.

    ONNX Runtime fixes the number of threads when it opens a graph; uses of the same number share one. `sharing`,
    for runs beside other stages, is None where there are none. `memory` is that of the device it runs on, None being
    the host's; `read_there` names the inputs that it reads from it.
    """

    def __init__(
        self,
        few: onnxruntime.InferenceSession,
        many: onnxruntime.InferenceSession,
        sharing: onnxruntime.InferenceSession | None = None,
        memory: DeviceMemory | None = None,
        read_there: frozenset[str] = frozenset(),
    ) -> None:
        self.memory, self.read_there = memory, read_there
        self.input_names = frozenset(value.name for value in few.get_inputs())
        self.is_closed = False
        self.can_share = sharing is not None
        self._graphs = [few, many, sharing or few]
        self._users: WeakSet[GraphUser] = WeakSet()
        self._lock = Lock()

    @classmethod
    def on_device(cls, graph: onnxruntime.InferenceSession, memory: DeviceMemory) -> "OpenedGraph":
        places = zip(graph.get_inputs(), graph.get_input_memory_infos(), strict=True)
        return cls(graph, graph, None, memory, frozenset(value.name for value, place in places if place.name != "Cpu"))

    def for_positions(self, count: int, shares_threads: bool = False) -> onnxruntime.InferenceSession:
        """ONNX Runtime's session for runs on `count` positions. Raises EdgebltError once the graph is closed."""
        try:
            return self._graphs[2 if shares_threads else count >= MANY]
        except IndexError:
            raise closed() from None

    def add_user(self, user: GraphUser) -> None:
        """Have `user.release` called when the graph is closed, if it is still there then."""
        with self._lock:
            self._users.add(user)

    def close(self) -> None:
        """Free the graph as soon as no run uses it."""
        with self._lock:
            self.is_closed = True
            self._graphs.clear()
            for user in list(self._users):
                user.release()


class OpenedGraphs:
    """The graphs of all stages, with their contracts and the mapped files of their weights.

    bundle_id: identifier of the bundle.
    provider_name: execution provider of all stages, as `Model.provider_name` has it.
    is_large: some stage has large weights.
    """

    def __init__(
        self,
        graphs: Mapping[StageName, OpenedGraph],
        contracts: Mapping[StageName, StageContract],
        weights: Sequence[HeldFile] = (),
        bundle_id: str = "",
        provider_name: str = "",
        is_large: bool = False,
    ) -> None:
        self.contracts, self.bundle_id, self.provider_name = contracts, bundle_id, provider_name
        self.is_closed = False
        self.is_batchable: bool | None = None  # a run may take rows of several sequences; None before a trial
        self.are_side_by_side = all(graph.can_share for graph in graphs.values())
        self._span_bytes = LARGE_SPAN_BYTES if is_large else SPAN_BYTES
        self._graphs, self._weights = graphs, weights

    def __getitem__(self, stage: StageName) -> OpenedGraph:
        return self._graphs[stage]

    @property
    def memories(self) -> dict[StageName, DeviceMemory | None]:
        """Memory in which each stage runs, None being the host's."""
        return {name: graph.memory for name, graph in self._graphs.items()}

    def spans(self, count: int) -> list[slice]:
        """Slices of `count` ids that a session takes at once: chunks, several where stages work side by side."""
        size = self._span_bytes if self.are_side_by_side and count > CHUNK_BYTES else CHUNK_BYTES
        return slices(slice(0, count), size)

    def check(self) -> None:
        """Raises EdgebltError if the graphs were closed."""
        if self.is_closed:
            raise closed()

    def refuse_changes(self) -> None:
        """Raises EdgebltError where a weight file was written to since it was opened, or the graphs were closed."""
        self.check()
        try:
            for file in self._weights:
                file.refuse_changes()
        except OSError:  # another thread may have closed them just now
            self.check()
            raise

    def close(self) -> None:
        """Free graphs and weights; a run under way in another thread ends first. Nothing happens a second time."""
        self.is_closed = True
        for graph in self._graphs.values():
            graph.close()
        for file in self._weights:
            file.close()


def slices(span: slice, size: int) -> list[slice]:
    """The span in slices of this size; the last may be shorter."""
    return [slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, size)]


def closed() -> EdgebltError:
    return EdgebltError("this model was closed; open its bundle again with edgeblt.load")
