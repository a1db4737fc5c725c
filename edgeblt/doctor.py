"""Diagnosis of this machine: the runtime, the native libraries, their kernels, and the GPU."""

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnxruntime

from edgeblt.errors import EdgebltError
from edgeblt.runtime import cuda, native
from edgeblt.runtime.machine.cores import usable_cores

if TYPE_CHECKING:  # a room above
    from edgeblt.measure.products.product_speed import ProductSpeed


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
    native_levels: tuple[str, ...]  # the instruction sets that can be chosen
    native_operators: tuple[str, ...]  # operators with a native kernel here; others run in portable form
    native_reason: str | None  # reason why it is not used
    native_cuda_library: str | None  # path of the library for CUDA, which only a stage on CUDA opens
    native_cuda_version: str | None
    native_cuda_operators: tuple[str, ...]  # operators with a kernel for CUDA
    native_cuda_reason: str | None  # reason why it would not be used
    gpu: str | None  # the GPU that bundles for cuda run on, and its compute capability
    gpu_reason: str | None  # reason why none can be used
    speed: "ProductSpeed | None" = None  # speed of matrix products, where it was measured


def diagnose() -> Diagnosis:
    """Examines the machine and tries to register the kernels with the runtime; never raises."""
    status = native.status()
    reason = status.reason or native.register(onnxruntime.SessionOptions())
    for_cuda = native.cuda_status()
    cuda_reason = for_cuda.reason or native.register_cuda(onnxruntime.SessionOptions())
    gpu, gpu_reason = _gpu()
    return Diagnosis(
        edgeblt=native.package_version(),
        python=platform.python_version(),
        machine=platform.machine(),
        cores=usable_cores(),
        onnxruntime=onnxruntime.__version__,
        execution_providers=tuple(onnxruntime.get_available_providers()),
        native_library=str(status.path) if status.path else None,
        native_version=status.version,
        native_level=None if reason else status.level,
        native_levels=status.levels,
        native_operators=() if reason else native.OPERATORS,
        native_reason=reason,
        native_cuda_library=str(for_cuda.path) if for_cuda.path else None,
        native_cuda_version=for_cuda.version,
        native_cuda_operators=() if cuda_reason else native.CUDA_OPERATORS,
        native_cuda_reason=cuda_reason,
        gpu=gpu,
        gpu_reason=gpu_reason,
    )


def _gpu() -> tuple[str | None, str | None]:
    """The GPU and None, or None and the reason why no GPU can be used."""
    try:
        major, minor = cuda.compute_capability()
        return f"{cuda.gpu_name()}, compute capability {major}.{minor}", None
    except EdgebltError as error:
        return None, str(error)
