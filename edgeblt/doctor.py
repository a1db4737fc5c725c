"""What is at work on this machine: the runtime, and which of the native libraries' kernels."""

import platform
from dataclasses import dataclass

import onnxruntime

from edgeblt import native, providers


@dataclass(frozen=True)
class Diagnosis:
    """Field by field the JSON of `edgeblt doctor`."""

    edgeblt: str | None  # version; None where the sources are not installed
    python: str
    machine: str
    cores: int
    onnxruntime: str
    execution_providers: tuple[str, ...]
    native_library: str | None  # its path
    native_version: str | None
    native_level: str | None  # the instructions its kernels use, None where they are not used
    native_levels: tuple[str, ...]  # those that could be chosen
    native_operators: tuple[str, ...]  # that have a kernel here; all others run in portable form
    native_reason: str | None  # why it is not used
    native_cuda_library: str | None  # path of the library for CUDA, which only a stage on CUDA opens
    native_cuda_version: str | None
    native_cuda_operators: tuple[str, ...]  # that have a kernel for CUDA
    native_cuda_reason: str | None  # why it would not be used


def diagnose() -> Diagnosis:
    """Looks, and tries to register the kernels with the runtime; never raises. Whether there is a device for those of
    CUDA it leaves open."""
    status = native.status()
    reason = status.reason or native.register(onnxruntime.SessionOptions())
    cuda = native.cuda_status()
    cuda_reason = cuda.reason or native.register_cuda(onnxruntime.SessionOptions())
    return Diagnosis(
        edgeblt=native.package_version(),
        python=platform.python_version(),
        machine=platform.machine(),
        cores=providers.usable_cores(),
        onnxruntime=onnxruntime.__version__,
        execution_providers=tuple(onnxruntime.get_available_providers()),
        native_library=str(status.path) if status.path else None,
        native_version=status.version,
        native_level=None if reason else status.level,
        native_levels=status.levels,
        native_operators=() if reason else native.OPERATORS,
        native_reason=reason,
        native_cuda_library=str(cuda.path) if cuda.path else None,
        native_cuda_version=cuda.version,
        native_cuda_operators=() if cuda_reason else native.CUDA_OPERATORS,
        native_cuda_reason=cuda_reason,
    )
