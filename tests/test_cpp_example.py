"""The client in C++: built where there are a compiler and ONNX Runtime's headers, and gives Python's text."""

import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from edgeblt.export.export_bundle import export_bundle
from edgeblt.model import load

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "examples" / "cpp"
CHECKPOINT = ROOT / "edgeblt" / "data" / "demo"
PROMPT = "Die Bücher 書"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built as `examples/cpp/run` builds it."""
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    build = tmp_path_factory.mktemp("client")
    downloaded = (
        ROOT / "build" / "examples-cpp" / "headers"
    )  # kept there: the folder of builds is no part of the source
    found = subprocess.run([CLIENT / "headers", downloaded], capture_output=True, text=True, timeout=300)
    if found.returncode != 0:
        pytest.skip(f"no headers of ONNX Runtime: {found.stderr.strip().splitlines()[-1]}")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*")
    (build / "libonnxruntime.so.1").symlink_to(library)
    strict = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-isystem", found.stdout.strip())
    source = (CLIENT / "generate.cpp", build / "libonnxruntime.so.1", "-Wl,-rpath,$ORIGIN", "-o", build / "generate")
    subprocess.run(["g++", *strict, *source], check=True, timeout=300)
    return build / "generate"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as one graph, in fp32."""
    folder = tmp_path_factory.mktemp("portable") / "bundle"
    return export_bundle(CHECKPOINT, folder, target="portable").path


def run(client: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([client, *arguments], capture_output=True, timeout=300)


def test_it_writes_what_python_writes(client: Path, bundle: Path) -> None:
    with load(bundle, threads=1) as model:
        expected = model.generate(PROMPT, max_new_bytes=100)
    result = run(client, bundle, PROMPT, "--bytes", "100")
    assert (result.returncode, result.stdout) == (0, expected + b"\n"), result.stderr
    assert b"bytes/s" in result.stderr
    longer = (CHECKPOINT.parent / "texts" / "prose.txt").read_text()[:600]  # more than one call
    with load(bundle, threads=1) as model:
        expected = model.generate(longer, max_new_bytes=20)
    assert run(client, bundle, longer, "--bytes", "20").stdout == expected + b"\n"


def test_sampling_follows_its_seed(client: Path, bundle: Path) -> None:
    def text(*options: str) -> bytes:
        return run(client, bundle, PROMPT, "--bytes", "40", *options).stdout

    greedy, warm = text(), ("--temperature", "1.5")
    assert text(*warm, "--seed", "3") == text(*warm, "--seed", "3") != greedy
    assert text(*warm, "--seed", "3") != text(*warm, "--seed", "4")
    assert text(*warm, "--top-k", "1") == text(*warm, "--top-p", "0") == greedy


def test_bad_arguments_are_answered(client: Path, bundle: Path, tmp_path: Path) -> None:
    for options in ((), ("--bytes",), ("--bytes", "many"), ("--colour", "1")):
        result = run(client, bundle, *((PROMPT, *options) if options else ()))
        assert result.returncode == 2 and b"run BUNDLE PROMPT" in result.stderr
    missing = run(client, tmp_path, PROMPT)
    assert missing.returncode == 1 and b"model.onnx" in missing.stderr


def test_it_is_short() -> None:
    assert len((CLIENT / "generate.cpp").read_text().splitlines()) < 150
