"""Where the arrays that ONNX Runtime reads and writes lie: on which device, seen as they are bound."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnxruntime

STATE = ("past_", "present_", "byte_vectors", "open_vectors", "carried_row", "cross_rows")  # how their names begin


@contextmanager
def places_of_state() -> Iterator[set[str]]:
    """Context with the devices of a session's state, as its stages bind it meanwhile: cpu, cuda, or both."""
    places: set[str] = set()
    kinds = ("bind_input", "bind_output", "bind_ortvalue_input", "bind_ortvalue_output")
    methods = {kind: getattr(onnxruntime.IOBinding, kind) for kind in kinds}

    def watched(bind: Callable[..., None]) -> Callable[..., None]:
        def watch(binding: onnxruntime.IOBinding, name: str, value: Any, *rest: Any) -> None:
            if name.startswith(STATE):
                places.add(value if isinstance(value, str) else value.device_name())
            bind(binding, name, value, *rest)

        return watch

    for kind, method in methods.items():
        setattr(onnxruntime.IOBinding, kind, watched(method))
    try:
        yield places
    finally:
        for kind, method in methods.items():
            setattr(onnxruntime.IOBinding, kind, method)
