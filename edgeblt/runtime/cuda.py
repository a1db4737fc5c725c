"""CUDA beside ONNX Runtime: whether it works on this machine, the GPU's name and capability, and memory on it.

Calls go through ctypes, to the first GPU visible to the process. Libraries are taken from where the dynamic linker
finds them (LD_LIBRARY_PATH, the system, those torch has loaded), else from NVIDIA's wheels, which lie outside its path.
Once opened here by name, ONNX Runtime finds them too.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from edgeblt.errors import EdgebltError
from edgeblt.installing import install_hint

PROVIDER = "CUDAExecutionProvider"
DRIVER = "libcuda.so.1"
CUDNN = "libcudnn.so.9"
LEAST_CAPABILITY = (8, 0)  # older GPUs lack flash attention; ONNX Runtime's other kernels do not guarantee windows

_COPY_DEFAULT = 4  # cudaMemcpyDefault: the addresses say which side they are on
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor, ...Minor
_NAME_BYTES = 256
_WARNING, _FATAL = 2, 4  # ONNX Runtime's log levels; the first is its default

_INT, _SIZE, _ADDRESS = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_INT_RESULT, _SIZE_RESULT = ctypes.POINTER(_INT), ctypes.POINTER(_SIZE)
# Argument types of the functions called: an address given as a plain number would be cut to 32 bits.
_DRIVER_FUNCTIONS: dict[str, Sequence[Any]] = {
    "cuDriverGetVersion": (_INT_RESULT,),
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGetCount": (_INT_RESULT,),
    "cuDeviceGet": (_INT_RESULT, _INT),
    "cuDeviceGetName": (ctypes.c_char_p, _INT, _INT),
    "cuGetErrorName": (_INT, ctypes.POINTER(ctypes.c_char_p)),
}
_RUNTIME_FUNCTIONS: dict[str, Sequence[Any]] = {
    "cudaMalloc": (ctypes.POINTER(_ADDRESS), _SIZE),
    "cudaFree": (_ADDRESS,),
    "cudaMemcpy": (_ADDRESS, _ADDRESS, _SIZE, _INT),
    "cudaMemcpy2D": (_ADDRESS, _SIZE, _ADDRESS, _SIZE, _SIZE, _SIZE, _INT),
    "cudaMemset": (_ADDRESS, _INT, _SIZE),
    "cudaStreamSynchronize": (_ADDRESS,),
    "cudaMemGetInfo": (_SIZE_RESULT, _SIZE_RESULT),
    "cudaDeviceGetAttribute": (_INT_RESULT, _INT, _INT),
    "cudaGetLastError": (),
}


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of GPU memory, all processes together."""

    used: int
    total: int


class CudaMemory:
    """The first GPU's memory, a `device_array.DeviceMemory`. Every method raises EdgebltError with CUDA's own words."""

    name = "cuda"

    def __init__(self) -> None:
        """Raises EdgebltError as `require_cuda`."""
        require_cuda()

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes. Raises EdgebltError where the GPU has no room."""
        address = _ADDRESS()
        code = int(_runtime().cudaMalloc(ctypes.byref(address), max(size, 1)))
        if code == _OUT_OF_MEMORY:
            _runtime().cudaGetLastError()
            raise _no_room(f"{size} bytes more")
        _check("cudaMalloc", code)
        assert address.value
        return address.value

    def free(self, address: int) -> None:
        _call("cudaFree", address)

    def copy(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        if height == 1 or target_pitch == source_pitch == width:  # CUDA limits pitches, and not the length of one row
            _call("cudaMemcpy", target, source, width * height, _COPY_DEFAULT)
        else:
            _call("cudaMemcpy2D", target, target_pitch, source, source_pitch, width, height, _COPY_DEFAULT)
        self._complete()

    def clear(self, address: int, size: int) -> None:
        _call("cudaMemset", address, 0, size)
        self._complete()

    def _complete(self) -> None:
        """Wait for the default stream: ONNX Runtime's own do not, and only copies to the host wait by themselves."""
        _call("cudaStreamSynchronize", None)


@functools.cache
def require_cuda() -> None:
    """Raises EdgebltError naming the first missing requirement of ONNX Runtime's CUDA provider, and the remedy."""
    if PROVIDER not in onnxruntime.get_available_providers():
        raise EdgebltError(
            f"the installed onnxruntime has no {PROVIDER}; run `pip uninstall onnxruntime onnxruntime-gpu`, then"
            f" `{install_hint('cuda')}`"
        )
    driver = _driver()
    major = _cuda_major()
    # Each library before those that need it; ONNX Runtime logs a wall of text for a missing one.
    for name in (f"libcudart.so.{major}", f"libcublasLt.so.{major}", f"libcublas.so.{major}", "libcurand.so.10"):
        if _open(name) is None:
            raise EdgebltError(f"{name}, a library of CUDA {major}, is missing; run `{install_hint('cuda')}`")
    for name in (f"libnvrtc.so.{major}", CUDNN):  # ONNX Runtime opens them when an operator asks for them
        _open(name)
    version = _INT()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value < 1000 * major:  # a driver runs every later minor version of its major one
        raise EdgebltError(
            f"the NVIDIA driver supports CUDA {_shown_version(version.value)}, but onnxruntime"
            f" {onnxruntime.__version__} was built for CUDA {onnxruntime.cuda_version}; install a newer driver"
        )
    found = _capability()
    if found < LEAST_CAPABILITY:
        raise EdgebltError(
            f"{gpu_name()} has compute capability {found[0]}.{found[1]}, but attention within a window needs"
            f" {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}; use --provider cpu"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence ONNX Runtime's default logger: only there does it say why a provider cannot be loaded."""
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def require_gpu(session: onnxruntime.InferenceSession) -> None:
    """Raises EdgebltError where ONNX Runtime, unable to load the provider, has opened `session` for the CPU alone."""
    if PROVIDER not in session.get_providers():
        raise EdgebltError(
            f"onnxruntime {onnxruntime.__version__} cannot load its {PROVIDER}, though CUDA's libraries are there; run"
            f" `pip uninstall onnxruntime onnxruntime-gpu`, then `{install_hint('cuda')}`"
        )


def explained(error: Exception) -> EdgebltError | None:
    """Sentence for an error that ONNX Runtime raised opening or running a session on CUDA; None for an unknown one."""
    text = str(error)
    if "cuDNN is unavailable" in text:
        return EdgebltError(
            f"the model has an operator that needs {CUDNN}, which is missing; run"
            f" `pip install nvidia-cudnn-cu{_cuda_major()}`"
        )
    if "Failed to allocate memory" in text or "out of memory" in text:
        return _no_room("the model")
    return None


def has_driver() -> bool:
    """Whether the NVIDIA driver's library can be opened; a GPU may still be missing."""
    return _open(DRIVER) is not None


def has_cudnn() -> bool:
    """Whether `libcudnn.so.9` can be opened; ONNX Runtime opens it when an operator that needs it runs."""
    return _open(CUDNN) is not None


def gpu_name() -> str:
    """The GPU's name, as the driver gives it. Raises EdgebltError where there is none."""
    driver, device, name = _driver(), _INT(), ctypes.create_string_buffer(_NAME_BYTES)
    _driver_call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    _driver_call(driver, "cuDeviceGetName", name, _NAME_BYTES, device)
    return name.value.decode("utf-8", "replace")


def gpu_memory() -> GpuMemory:
    """Used and total memory of the GPU in bytes. Raises EdgebltError as `require_cuda`."""
    require_cuda()
    free, total = _SIZE(), _SIZE()
    _call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return GpuMemory(total.value - free.value, total.value)


def compute_capability() -> tuple[int, int]:
    """Major and minor compute capability, such as (8, 7). Raises EdgebltError as `require_cuda`."""
    require_cuda()
    return _capability()


def _capability() -> tuple[int, int]:
    major, minor = _INT(), _INT()
    _call("cudaDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, 0)
    _call("cudaDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, 0)
    return major.value, minor.value


def _no_room(what: str) -> EdgebltError:
    memory = gpu_memory()
    return EdgebltError(
        f"{gpu_name()} has no room for {what}, with {memory.used} of its {memory.total} bytes in use; end other"
        " processes on it, or use a bundle with smaller weights or a shorter text"
    )


def _cuda_major() -> int:
    """Major version of the CUDA that onnxruntime was built for; 13, as on the package index, if it does not say."""
    return int(onnxruntime.cuda_version.partition(".")[0] or 13)


def _shown_version(version: int) -> str:
    """CUDA's version number as text: 13.1 for 13010."""
    return f"{version // 1000}.{version % 1000 // 10}"


@functools.cache
def _driver() -> ctypes.CDLL:
    """The driver's library, initialized. Raises EdgebltError where there is none, or no GPU."""
    library = _open(DRIVER)
    if library is None:
        raise EdgebltError(
            f"there is no NVIDIA driver ({DRIVER}); install it, or start the container with its NVIDIA option"
            " (docker run --gpus all)"
        )
    _declare(library, _DRIVER_FUNCTIONS)
    _driver_call(library, "cuInit", 0)
    count = _INT()
    _driver_call(library, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise _no_gpu("it counts none")
    return library


def _driver_call(driver: ctypes.CDLL, name: str, *arguments: object) -> None:
    code = getattr(driver, name)(*arguments)
    if code:
        error = ctypes.c_char_p()
        driver.cuGetErrorName(code, ctypes.byref(error))
        raise _no_gpu(f"{name}: {(error.value or str(code).encode()).decode('ascii', 'replace')}")


def _no_gpu(reason: str) -> EdgebltError:
    return EdgebltError(
        f"the NVIDIA driver gives access to no GPU ({reason}); see what nvidia-smi and CUDA_VISIBLE_DEVICES say, and in"
        " a container pass its NVIDIA option (docker run --gpus all)"
    )


@functools.cache
def _runtime() -> ctypes.CDLL:
    library = _open(f"libcudart.so.{_cuda_major()}")
    assert library  # require_cuda has seen it
    _declare(library, _RUNTIME_FUNCTIONS)
    library.cudaGetErrorString.argtypes, library.cudaGetErrorString.restype = (_INT,), ctypes.c_char_p
    return library


def _call(name: str, *arguments: object) -> None:
    _check(name, getattr(_runtime(), name)(*arguments))


def _check(name: str, code: int) -> None:
    if code == 0:
        return
    _runtime().cudaGetLastError()  # resets it: ONNX Runtime would take it for its own
    text = (_runtime().cudaGetErrorString(code) or b"").decode("utf-8", "replace")
    raise EdgebltError(f"{name} failed on the GPU: {text} (CUDA error {code}); see what nvidia-smi says")


def _declare(library: ctypes.CDLL, functions: dict[str, Sequence[Any]]) -> None:
    """Declare the argument types of functions that all return an int, an error code."""
    for name, arguments in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _INT


@functools.cache
def _open(name: str) -> ctypes.CDLL | None:
    """The library of that file name from the linker's path or NVIDIA's wheels; None where neither has it."""
    for path in [name, *wheel_libraries(name)]:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def wheel_libraries(name: str) -> list[str]:
    """Paths of a library, or of all that a pattern matches, in NVIDIA's wheels."""
    # nvidia/cu13/lib since CUDA 13; before, and for cuDNN, each library has a directory of its own.
    package = importlib.util.find_spec("nvidia")
    roots = package.submodule_search_locations if package else None
    return [str(path) for root in roots or () for path in sorted(Path(root).glob(f"*/lib/{name}"))]
