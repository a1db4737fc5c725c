"""CUDA's memory and what is said where CUDA is not complete, over a stand-in for its libraries (see there)."""

import ctypes
import ctypes.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cuda_stand_in
from cuda_stand_in import StandIn
from edgeblt.errors import EdgebltError
from edgeblt.installing import install_hint
from edgeblt.runtime import cuda

REMEDY = f"run `{install_hint('cuda')}`"
IN_A_CONTAINER = "in a container pass its NVIDIA option (docker run --gpus all)"
SEE = f"see what nvidia-smi and CUDA_VISIBLE_DEVICES say, and {IN_A_CONTAINER}"


def said(check: Callable[[], object]) -> str:
    with pytest.raises(EdgebltError) as caught:
        check()
    return str(caught.value)


def run(check: Callable[..., None], environment: dict[str, str], *arguments: str) -> str:
    """What a function of this module prints in a process of its own; it must end well and log nothing."""
    code = f"import sys, test_cuda; test_cuda.{check.__name__}(*sys.argv[1:])"
    output = cuda_stand_in.python(code, *arguments, environment=environment)
    assert (output.returncode, output.stderr) == (0, "")
    return output.stdout.strip()


def open_session(nodes: str) -> onnxruntime.InferenceSession:
    """On CUDA, for float inputs and outputs x and y of shape [2, 4]."""
    header = '<ir_version: 10, opset_import: ["": 23]> graph (float[2,4] x) => (float[n,m] y)'
    model = onnx.parser.parse_model(f"{header} {{ {nodes} }}").SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with cuda.quiet():
        return onnxruntime.InferenceSession(model, options, providers=[cuda.PROVIDER, "CPUExecutionProvider"])


def print_refusal() -> None:
    print(said(cuda.require_cuda))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("no-device", f"the NVIDIA driver gives access to no GPU (cuInit: CUDA_ERROR_NO_DEVICE); {SEE}"),
        ("driver-fails", f"the NVIDIA driver gives access to no GPU (cuInit: CUDA_ERROR_UNKNOWN); {SEE}"),
        ("none-counted", f"the NVIDIA driver gives access to no GPU (it counts none); {SEE}"),
        (
            "old-driver",
            f"the NVIDIA driver supports CUDA 12.4, but onnxruntime {onnxruntime.__version__} was built for CUDA"
            f" {onnxruntime.cuda_version}; install a newer driver",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_reported(fault: str, sentence: str, stand_in: StandIn) -> None:
    assert run(print_refusal, stand_in.environment(fault=fault)) == sentence


def test_a_gpu_that_is_too_old_is_reported(stand_in: StandIn) -> None:
    assert run(print_refusal, stand_in.environment(capability=75)) == (
        "stand-in has compute capability 7.5, but attention within a window needs 8.0; use --provider cpu"
    )


def installed(library: str) -> bool:
    return ctypes.util.find_library(library) is not None


@pytest.mark.parametrize("library", ["cublasLt", "cublas", "curand", "cudart"])
def test_the_first_missing_library_is_named(library: str, stand_in: StandIn) -> None:
    if installed(library) or cuda.wheel_libraries(f"lib{library}.so.*"):
        pytest.skip(f"lib{library}.so is installed")
    (name,) = (path.name for path in stand_in.cuda.glob(f"lib{library}.so.*"))
    expected = f"{name}, a library of CUDA 13, is missing; {REMEDY}"
    assert run(print_refusal, stand_in.environment(without=name)) == expected


@pytest.mark.skipif(cuda.has_driver(), reason="there is an NVIDIA driver")
def test_without_a_driver() -> None:
    if cuda.PROVIDER not in onnxruntime.get_available_providers():
        pytest.skip("the installed onnxruntime has no CUDA provider")
    assert said(cuda.require_cuda) == said(cuda.CudaMemory) == said(cuda.gpu_memory)
    assert (
        said(cuda.require_cuda)
        == said(cuda.gpu_name)
        == (
            "there is no NVIDIA driver (libcuda.so.1); install it, or start the container with its NVIDIA option"
            " (docker run --gpus all)"
        )
    )


def test_without_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    cuda.require_cuda.cache_clear()
    assert said(cuda.require_cuda) == (
        "the installed onnxruntime has no CUDAExecutionProvider; run `pip uninstall onnxruntime onnxruntime-gpu`, then"
        f" `{install_hint('cuda')}`"
    )


def describe_gpu() -> None:
    cuda.require_cuda()
    cuda.require_gpu(open_session("y = Exp(x)"))
    print(cuda.gpu_name(), cuda.compute_capability(), cuda.gpu_memory().total, cuda.has_cudnn())


@pytest.mark.parametrize(("number", "capability"), [(80, (8, 0)), (87, (8, 7)), (90, (9, 0))])
def test_the_gpu_is_described(number: int, capability: tuple[int, int], stand_in: StandIn) -> None:
    environment = stand_in.environment(capability=number, memory=4 << 30)
    assert run(describe_gpu, environment) == f"stand-in {capability} {4 << 30} {cuda.has_cudnn()}"


def test_libraries_of_wheels_are_found_by_onnxruntime_too(stand_in: StandIn, tmp_path: Path) -> None:
    """They lie in no directory that the dynamic linker searches."""
    if installed("cublas"):
        pytest.skip("libcublas.so is installed")
    system, wheels = tmp_path / "system", tmp_path / "site-packages" / "nvidia" / "cu13" / "lib"
    for directory in (system, wheels):
        directory.mkdir(parents=True)
    for file in stand_in.cuda.iterdir():
        (system if file.name.startswith(("libcuda.", "libcudart.")) else wheels).joinpath(file.name).symlink_to(file)
    environment = stand_in.environment() | {"LD_LIBRARY_PATH": str(system)}
    assert run(print_refusal, environment).startswith("libcublasLt.so.13")
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path / "site-packages")
    assert run(describe_gpu, environment).startswith("stand-in")


def open_without_cuda() -> None:
    session = open_session("y = Exp(x)")
    print(said(lambda: cuda.require_gpu(session)))


def test_a_session_that_fell_back_to_the_cpu_is_noticed_in_silence(stand_in: StandIn) -> None:
    if installed("cublas"):
        pytest.skip("libcublas.so is installed")
    assert run(open_without_cuda, stand_in.environment(without="libcublas.so.13")) == (
        f"onnxruntime {onnxruntime.__version__} cannot load its CUDAExecutionProvider, though CUDA's libraries are"
        f" there; run `pip uninstall onnxruntime onnxruntime-gpu`, then `{install_hint('cuda')}`"
    )


def explain_run(nodes: str) -> None:
    cuda.require_cuda()
    try:
        open_session(nodes).run(None, {"x": np.ones((2, 4), np.float32)})
    except Exception as error:
        print(cuda.explained(error) or error)


@pytest.mark.skipif(cuda.has_cudnn(), reason="cuDNN is installed")
def test_an_operator_that_needs_cudnn(stand_in: StandIn) -> None:
    assert run(explain_run, stand_in.environment(), "y = ReduceMax(x)") == (
        "the model has an operator that needs libcudnn.so.9, which is missing; run `pip install nvidia-cudnn-cu13`"
    )


def test_a_model_that_does_not_fit(stand_in: StandIn) -> None:
    assert run(explain_run, stand_in.environment(memory=1000), "y = Exp(x)") == (
        "stand-in has no room for the model, with 0 of its 1000 bytes in use; end other processes on it, or use a"
        " bundle with smaller weights or a shorter text"
    )


def test_other_errors_are_left_alone() -> None:
    assert cuda.explained(RuntimeError("Non-zero status code returned")) is None


def check_copies() -> None:
    """Any two of host and device, any pitches: what should change has changed on return, and nothing beside it."""
    memory = cuda.CudaMemory()
    places = st.sampled_from(["host", "device"])
    sizes = st.integers(1, 40)

    @settings(max_examples=200, deadline=None, database=None)
    @given(sizes, sizes, st.integers(0, 9), st.integers(0, 9), places, places)
    def check(width: int, height: int, source_gap: int, target_gap: int, source_place: str, target_place: str) -> None:
        random = np.random.default_rng(width * 41 + height)
        source = random.integers(0, 256, (height, width + source_gap), np.uint8)
        target = random.integers(0, 256, (height, width + target_gap), np.uint8)
        expected = target.copy()
        expected[:, :width] = source[:, :width]
        addresses = [placed(memory, array, place) for array, place in ((source, source_place), (target, target_place))]
        memory.copy(addresses[1], width + target_gap, addresses[0], width + source_gap, width, height)
        assert ctypes.string_at(addresses[1], target.nbytes) == expected.tobytes()  # the stand-in's memory is ours
        for address, place in zip(addresses, (source_place, target_place), strict=True):
            if place == "device":
                memory.free(address)

    check()
    assert cuda.gpu_memory().used == 0


def placed(memory: cuda.CudaMemory, array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], place: str) -> int:
    """The address of the array, or of a copy on the device."""
    if place == "host":
        return array.ctypes.data
    address = memory.allocate(array.nbytes)
    ctypes.memmove(address, array.ctypes.data, array.nbytes)
    return address


def check_clearing() -> None:
    memory = cuda.CudaMemory()
    assert memory.name == "cuda"
    address = memory.allocate(8)
    ctypes.memset(address, 255, 8)
    memory.clear(address + 2, 3)
    assert ctypes.string_at(address, 8) == b"\xff\xff\0\0\0\xff\xff\xff"
    memory.free(address)


def last_error() -> int:
    """The error that CUDA's runtime remembers, as whoever asks next is told."""
    return int(ctypes.CDLL("libcudart.so.13").cudaGetLastError())


def check_allocations() -> None:
    memory = cuda.CudaMemory()
    empty = [memory.allocate(0) for _ in range(2)]
    assert 0 not in empty and empty[0] != empty[1]
    address = memory.allocate(900)
    assert cuda.gpu_memory() == cuda.GpuMemory(902, 1000)
    assert said(lambda: memory.allocate(99)) == (
        "stand-in has no room for 99 bytes more, with 902 of its 1000 bytes in use; end other processes on it, or use"
        " a bundle with smaller weights or a shorter text"
    )
    assert last_error() == 0  # ONNX Runtime would take it for its own
    for one in (address, *empty):
        memory.free(one)
    assert cuda.gpu_memory().used == 0


def check_failures() -> None:
    memory = cuda.CudaMemory()
    address = memory.allocate(8)
    see = "see what nvidia-smi says"
    beyond = f"failed on the GPU: invalid argument (CUDA error 1); {see}"
    host = np.zeros(16, np.uint8).ctypes.data
    assert said(lambda: memory.copy(address, 16, host, 16, 16, 1)) == f"cudaMemcpy {beyond}"
    assert said(lambda: memory.copy(address, 8, host, 9, 8, 2)) == f"cudaMemcpy2D {beyond}"
    assert said(lambda: memory.clear(address, 9)) == f"cudaMemset {beyond}"
    assert said(lambda: memory.free(address + 1)) == f"cudaFree {beyond}"
    assert said(lambda: memory.copy(address, 3, host, 9, 4, 2)) == (
        f"cudaMemcpy2D failed on the GPU: invalid pitch argument (CUDA error 12); {see}"
    )
    assert last_error() == 0
    memory.free(address)


@pytest.mark.parametrize("check", [check_copies, check_clearing, check_allocations, check_failures])
def test_memory(check: Callable[[], None], stand_in: StandIn) -> None:
    memory = 1000 if check is check_allocations else None
    assert run(check, stand_in.environment(memory=memory)) == ""
