"""Execution providers and session options of ONNX Runtime, by the names edgeblt uses."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal, NamedTuple, cast

import onnxruntime

from edgeblt.runtime import cuda, native
from edgeblt.runtime.machine.cores import usable_cores
from edgeblt.runtime.machine.memory import has_room
from edgeblt.runtime.state.device_array import DeviceMemory

Provider = Literal["cpu", "cuda"]
PROVIDERS: tuple[Provider, ...] = ("cpu", "cuda")
# Norms sum in float32; memory grows only as needed, as several graphs share the GPU.
CUDA_OPTIONS = {"enable_skip_layer_norm_strict_mode": "1", "arena_extend_strategy": "kSameAsRequested"}
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
SPIN_MICROSECONDS = 10  # longer, and a thread that waits takes the core from those it waits for on a busy machine
ROOM = 16 << 20  # bytes; opening the graphs of the smallest models takes 5 MB
LARGE_STAGE_BYTES = 16 << 20  # below this, waking threads takes longer than they save when decoding
_profiles: ContextVar[Path | None] = ContextVar("folder of ONNX Runtime's profiles", default=None)
_profile_numbers = itertools.count()


@contextmanager
def profiled(folder: Path) -> Iterator[None]:
    """Graphs opened within are profiled by ONNX Runtime: `end_profiling` of each gives the name of a file in `folder`.

    The profiler takes time for every node.
    """
    token = _profiles.set(folder)
    try:
        yield
    finally:
        _profiles.reset(token)


def memory_of(provider: Provider) -> DeviceMemory | None:
    """Memory in which stages on a provider keep their state, None being the host's. Raises as `require_cuda`."""
    return cuda.CudaMemory() if provider == "cuda" else None


def open_graph(
    content: bytes, directory: Path, options: onnxruntime.SessionOptions, provider: Provider
) -> onnxruntime.InferenceSession:
    """Open a graph on its provider, without ONNX Runtime's silent fallback to another one.

    content: an ONNX model.
    directory: holds its external data, which are mapped.

    Raises MemoryError where it could not grow, EdgebltError as `require_cuda`, and onnxruntime's own errors for an
    invalid graph.
    """
    if not has_room(ROOM + 8 * len(content)):  # ONNX Runtime writes to a null pointer where a small allocation fails
        raise MemoryError
    options.add_session_config_entry("session.load_model_format", "ONNX")  # its own format is never examined
    # As bytes, so that no directory name is refused.
    options.add_session_config_entry(_DATA_FOLDER, cast(str, os.fsencode(directory)))
    if provider == "cpu":
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    cuda.require_cuda()
    providers = [(cuda.PROVIDER, CUDA_OPTIONS), "CPUExecutionProvider"]  # the latter for shapes of tensors
    with cuda.quiet():
        graph = onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
    cuda.require_gpu(graph)
    return graph


class ThreadCounts(NamedTuple):
    """Numbers of threads for a stage's runs on few positions, on many, and beside other stages."""

    few: int
    many: int
    share: int | None  # None where there are no two threads, for two stages

    @classmethod
    def of(cls, threads: int | None, weight_bytes: int, are_mapped: bool) -> "ThreadCounts":
        """Counts for a stage; `threads`, if given, is that of all runs at a time.

        are_mapped: its weights are used where they lie in the file. Other large ones are not opened for a share of the
            threads, as ONNX Runtime would pack them a second time.

        By default all usable cores, but one for few positions of a stage with small weights.
        """
        many, is_small = threads or usable_cores(), weight_bytes < LARGE_STAGE_BYTES
        few = threads or 1 if is_small else many
        return cls(few, many, many // 2 or None if is_small or are_mapped else None)


def session_options(threads: int, provider: Provider = "cpu") -> onnxruntime.SessionOptions:
    """Options for one graph, with the native kernels for its provider where the library is installed.

    Every graph has its own thread pool. Threads spin for a moment between the nodes of a run, but not after it, when
    they would take the cores from the next stage. (One pool for all graphs would forbid other users of ONNX Runtime in
    the process pools of their own.)
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised too, and reported by us
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if folder := _profiles.get():
        options.enable_profiling, options.profile_file_prefix = True, str(folder / f"{next(_profile_numbers)}-")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider == "cuda":
        native.register_cuda(options)
    else:
        native.register(options)
    return options
