"""Execution providers and session options of ONNX Runtime, by the names edgeblt uses."""

import os

import onnxruntime

from edgeblt import native
from edgeblt.errors import EdgebltError

PROVIDERS = {"cpu": "CPUExecutionProvider"}
LARGE_STAGE_BYTES = 16 << 20  # below this, waking threads takes longer than they save when decoding


def resolve_provider(name: str) -> str:
    """ONNX Runtime's name of the provider `name`. Raises EdgebltError if it is unknown or not installed."""
    if name not in PROVIDERS:
        raise EdgebltError(f"provider {name!r} is not supported by this version; use one of {', '.join(PROVIDERS)}")
    if PROVIDERS[name] not in onnxruntime.get_available_providers():
        raise EdgebltError(f"the installed onnxruntime has no {PROVIDERS[name]}; install edgeblt[onnxruntime]")
    return PROVIDERS[name]


def thread_counts(threads: int | None, weight_bytes: int) -> tuple[int, int]:
    """Threads for a stage's runs on one position, and for those on many; `threads` is the caller's wish for both.

    By default all cores, but one for a single position of a stage with small weights. Raises EdgebltError for fewer
    than 1.
    """
    if threads is not None and threads < 1:
        raise EdgebltError(f"threads is {threads}; it must be at least 1")
    many = threads or usable_cores()
    return (threads or 1 if weight_bytes < LARGE_STAGE_BYTES else many), many


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options for one graph, with the native library's kernels where there is one.

    Every graph has a pool of its own. Its threads spin between the nodes of a run, but not after it: idle ones of one
    stage would take the cores from the next. (A pool for all would forbid other users of ONNX Runtime in the process
    theirs.)
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions, which we report ourselves
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    native.register(options)
    return options


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
