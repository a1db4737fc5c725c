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

MANY = 33  # from so many positions on, a run uses all cores and its buffers are not kept


class GraphUser(Protocol):
    """Runs a graph, and keeps something that refers to it."""

    def release(self) -> None:
        """Let go of the graph."""
        ...


class OpenedGraph:
    """A stage's graph, opened once for runs on few positions and once for those on many, or once for both.

    ONNX Runtime fixes the number of threads when it opens a graph, and the two need different numbers. `memory` is that
    of the device it runs on, None being the host's; `read_there` names the inputs that it reads from it.
    """

    def __init__(
        self,
        few: onnxruntime.InferenceSession,
        many: onnxruntime.InferenceSession,
        memory: DeviceMemory | None = None,
        read_there: frozenset[str] = frozenset(),
    ) -> None:
        self.memory, self.read_there = memory, read_there
        self.input_names = frozenset(value.name for value in few.get_inputs())
        self.is_closed = False
        self._graphs = [few, many]
        self._users: WeakSet[GraphUser] = WeakSet()
        self._lock = Lock()

    @classmethod
    def on_device(cls, graph: onnxruntime.InferenceSession, memory: DeviceMemory) -> "OpenedGraph":
        places = zip(graph.get_inputs(), graph.get_input_memory_infos(), strict=True)
        return cls(graph, graph, memory, frozenset(value.name for value, place in places if place.name != "Cpu"))

    def for_positions(self, count: int) -> onnxruntime.InferenceSession:
        """ONNX Runtime's session for runs on `count` positions. Raises EdgebltError once the graph is closed."""
        try:
            return self._graphs[count >= MANY]
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
    """

    def __init__(
        self,
        graphs: Mapping[StageName, OpenedGraph],
        contracts: Mapping[StageName, StageContract],
        weights: Sequence[HeldFile] = (),
        bundle_id: str = "",
        provider_name: str = "",
    ) -> None:
        self.contracts, self.bundle_id, self.provider_name = contracts, bundle_id, provider_name
        self.is_closed = False
        self.is_batchable: bool | None = None  # a run may take rows of several sequences; None before a trial
        self._graphs, self._weights = graphs, weights

    def __getitem__(self, stage: StageName) -> OpenedGraph:
        return self._graphs[stage]

    @property
    def memories(self) -> dict[StageName, DeviceMemory | None]:
        """Memory in which each stage runs, None being the host's."""
        return {name: graph.memory for name, graph in self._graphs.items()}

    def check(self) -> None:
        """Raises EdgebltError if the graphs were closed."""
        if self.is_closed:
            raise closed()

    def refuse_changes(self) -> None:
        """Raises EdgebltError where a weight file was written to since it was opened, or the graphs were closed."""
        self.check()
        for file in self._weights:
            file.refuse_changes()

    def close(self) -> None:
        """Free graphs and weights; a run under way in another thread ends first. Nothing happens a second time."""
        self.is_closed = True
        for graph in self._graphs.values():
            graph.close()
        for file in self._weights:
            file.close()


def closed() -> EdgebltError:
    return EdgebltError("this model was closed; open its bundle again with edgeblt.load")
