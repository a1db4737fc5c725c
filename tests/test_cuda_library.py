"""The library of kernels for CUDA, without a device: that nvcc builds it, what it holds, who opens it, and what ONNX
Runtime makes of it."""

import logging
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import patching_oracle
import test_entropy_patch as patching
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.doctor import diagnose
from edgeblt.runtime import native

ROOT = Path(__file__).parents[1]
NVCC, COMPILER, CMAKE = shutil.which("nvcc"), shutil.which("c++"), shutil.which("cmake")
needs_nvcc = pytest.mark.skipif(not (NVCC and COMPILER and CMAKE), reason="no nvcc, C++ compiler or cmake")
SILENT = 4


def architectures(library: Path) -> set[tuple[str, int]]:
    """What devices' code the library holds, read from its fat binary: a header, then entries with headers of their own
    (kind, header size, payload size; the architecture at byte 28), as cuobjdump lists them."""
    data, found = library.read_bytes(), set()
    at = data.index(struct.pack("<I", 0xBA55ED50))
    header, size = struct.unpack_from("<6xHQ", data, at)
    at, end = at + header, at + header + size
    while at < end:
        kind, header, size, architecture = struct.unpack_from("<H2xIQ12xI", data, at)
        found.add(({1: "ptx", 2: "sass"}[kind], architecture))
        at += header + size
    assert at == end
    return found


def build(directory: Path, **variables: str) -> tuple[Path, str]:
    """Where native/CMakeLists.txt has the library made, and what it says."""
    values = {
        "SOURCE": ROOT / "native" / "cuda", "BUILD": directory, "GENERATOR": "Unix Makefiles", "BUILD_TYPE": "Release",
        "MAKE_PROGRAM": shutil.which("make"), "CXX_COMPILER": COMPILER,
    }  # fmt: skip
    defined = [f"-D{name}={value}" for name, value in values.items()]
    command = [str(CMAKE), *defined, "-P", str(ROOT / "native" / "cuda" / "build.cmake")]
    result = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return directory / native.CUDA_LIBRARY_NAME, result.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed library, where nvcc has made one."""
    found = native.find_library(native.CUDA_LIBRARY_NAME)
    if found is None or os.environ.get(native.VARIABLE) in native.OFF:
        pytest.skip(str(native.cuda_status().reason))
    return found


def test_the_library_is_for_three_architectures_and_later_ones(library: Path) -> None:
    assert architectures(library) == {("sass", 80), ("sass", 87), ("sass", 90), ("ptx", 90)}


def test_the_library_needs_no_cuda_to_be_opened(library: Path) -> None:
    """Its CUDA runtime is within; nothing of it shows but our own functions."""
    program = f"import ctypes; print(hasattr(ctypes.CDLL({str(library)!r}), 'cudaLaunchKernelExC'))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"False\n"
    assert native.inspect_library(library, native.package_version()) == native.cuda_status()
    assert native.cuda_status().reason is None
    assert native.inspect_library(library, "0.0.0").reason == (
        f"{library} is version {native.cuda_status().version}, the package is 0.0.0; install edgeblt again"
    )


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_87", "sm_90"])
def test_nvcc_compiles_the_kernel(architecture: str, tmp_path: Path) -> None:
    source = ROOT / "native" / "cuda" / "entropy_patch.cu"
    command = [str(NVCC), "-std=c++17", f"-arch={architecture}", "--fmad=false"]
    subprocess.run([*command, "-c", str(source), "-o", str(tmp_path / "kernel.o")], check=True)
    assert ("sass", int(architecture[3:])) in architectures(tmp_path / "kernel.o")


@needs_nvcc
@pytest.mark.slow
def test_the_library_is_built_from_its_source(tmp_path: Path) -> None:
    path, said = build(tmp_path)
    assert said == "libedgeblt_cuda is built\n"
    assert architectures(path) == {("sass", 80), ("sass", 87), ("sass", 90), ("ptx", 90)}


@pytest.mark.skipif(not (COMPILER and CMAKE and shutil.which("make")), reason="no C++ compiler, cmake or make")
def test_a_compiler_that_fails_costs_the_cuda_library_alone(tmp_path: Path) -> None:
    (tmp_path / native.CUDA_LIBRARY_NAME).write_bytes(b"of an earlier build")
    path, said = build(tmp_path, CUDACXX="/bin/false")
    assert said.startswith("libedgeblt_cuda is not built: /bin/false failed; all else goes on.\n")
    assert not path.exists()


def session_of(rule: PatchingRule, *, registered: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    assert not registered or native.register_cuda(options) is None
    model = patching.model(rule).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("rule", Rule)
def test_a_session_without_cuda_runs_all_the_same(library: Path, rule: Rule) -> None:
    """ONNX Runtime leaves out a provider that finds no device, after the library was registered."""
    knobs = PatchingRule(rule, 1.1, 0.1, max_patch_length=3, patch_size=2)
    logits = np.stack([patching.row_of_level(round(entropy / patching.STEP)) for entropy in patching.ENTROPIES])
    ids = np.array([1, 101, 36, 36, 101, 2, 101, 36])
    inputs = patching.feed(logits, ids, 0, np.zeros(3, np.float32))
    before = native.cuda_runs("EntropyPatch")
    actual = patching.Results(*session_of(knobs).run(list(patching.Results._fields), inputs))
    expected = patching.Results(*session_of(knobs, registered=False).run(list(patching.Results._fields), inputs))
    np.testing.assert_array_equal(actual.patch_starts, expected.patch_starts)
    np.testing.assert_array_equal(actual.patch_starts, patching_oracle.patch_starts(knobs, patching.ENTROPIES, ids))
    np.testing.assert_allclose(actual.states, expected.states, atol=1e-5)
    assert native.cuda_runs("EntropyPatch") == before  # which counts the device's


def test_a_session_takes_one_of_the_two_libraries(library: Path) -> None:
    """What `register_cuda` says of it; if a later runtime takes both, the sentence may go."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    if native.register(options) is not None:
        pytest.skip(str(native.status().reason))
    assert native.register_cuda(options) is None
    model = patching.model(PatchingRule(Rule.BYTE)).SerializeToString()
    with pytest.raises(Exception, match="Domain already set"):
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.fixture
def fresh_status() -> Iterator[None]:
    native.cuda_status.cache_clear()
    native.warn_once.cache_clear()
    yield
    native.cuda_status.cache_clear()


def test_the_environment_turns_it_off(
    library: Path, fresh_status: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(native.VARIABLE, "0")
    assert native.register_cuda(None) == "turned off by EDGEBLT_NATIVE=0"
    assert not caplog.records
    found = diagnose()
    assert (found.native_cuda_library, found.native_cuda_operators) == (str(library), ())
    assert found.native_cuda_reason == "turned off by EDGEBLT_NATIVE=0"


def test_no_library_is_said_once(
    fresh_status: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(native.VARIABLE, raising=False)
    monkeypatch.setattr(native, "find_library", lambda name: None)
    reason = "libedgeblt_cuda.so was not built; install CUDA's compiler nvcc, then edgeblt again from its source"
    with caplog.at_level(logging.WARNING, "edgeblt"):
        assert native.register_cuda(None) == native.register_cuda(None) == reason
    assert [record.getMessage() for record in caplog.records] == [
        f"the native library is not used, all runs slower: {reason}"
    ]
    assert native.cuda_runs("EntropyPatch") == 0
    found = diagnose()
    assert (found.native_cuda_library, found.native_cuda_version, found.native_cuda_reason) == (None, None, reason)


def test_diagnosis(library: Path) -> None:
    found = diagnose()
    assert (found.native_cuda_library, found.native_cuda_version) == (str(library), native.cuda_status().version)
    assert (found.native_cuda_reason is None) == (found.native_cuda_operators == ("EntropyPatch",))


def test_nothing_opens_the_library_but_who_asks(library: Path) -> None:
    program = (
        "import onnxruntime; from edgeblt.runtime import native, providers\n"
        "providers.session_options(1); native.runs('EntropyPatch')\n"
        "opened = lambda: native.CUDA_LIBRARY_NAME in open('/proc/self/maps').read()\n"
        "print(opened()); native.register_cuda(onnxruntime.SessionOptions()); print(opened())"
    )
    environment = os.environ | {native.VARIABLE: "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert result.stdout == b"False\nTrue\n"
