"""Libraries that stand in for CUDA's, so that ONNX Runtime's real CUDA provider loads and runs without a GPU.

What this can prove: that the provider loads and sessions open; which of its kernels there are and which nodes they are
given; what the host code of a kernel checks of types, shapes and attributes; our own calls of CUDA, copies and errors.
What it cannot: anything that a GPU computes. No kernel does anything, its output is what the memory held before.

Compiled with gcc from the sources beside this file. They define what matters; all else that the installed onnxruntime
wants of a library is generated as functions that return 0. Settings, by environment variable:

    CUDA_STAND_IN_CAPABILITY   compute capability, 80 for 8.0 (the default)
    CUDA_STAND_IN_MEMORY       bytes of device memory, 8 GiB by default
    CUDA_STAND_IN_FAULT        no-device, none-counted, driver-fails or old-driver
"""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

SOURCES = Path(__file__).parent
PROVIDERS = Path(onnxruntime.__file__).parent / "capi"
CUDA_PROVIDER = PROVIDERS / "libonnxruntime_providers_cuda.so"
TENSORRT_PROVIDER = PROVIDERS / "libonnxruntime_providers_tensorrt.so"  # loaded where all kernels are listed
SOURCE_OF = {"libcudart": "runtime.c", "libcuda": "driver.c", "libcublas": "blas.c", "libcublasLt": "blas.c"}
_NEEDED = re.compile(r"NEEDED +(lib(?:cu|nv)\S+)")
_UNDEFINED = re.compile(r"DF \*UND\*\s+\w+ +(?:\((\S+)\)|Base) +(\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class StandIn:
    """Two directories of libraries: those the CUDA provider wants, and those only the TensorRT provider wants."""

    cuda: Path
    tensorrt: Path

    def environment(
        self,
        *,
        capability: int = 80,
        memory: int | None = None,
        fault: str | None = None,
        without: str | None = None,
        tensorrt: bool = False,
    ) -> dict[str, str]:
        """This process's environment, its module path and the stand-in's settings; `without`: a library left out."""
        directories = [self._without(without) if without else self.cuda, *([self.tensorrt] if tensorrt else [])]
        settings = {"CAPABILITY": capability, "MEMORY": memory, "FAULT": fault}
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, directories)),
            **{f"CUDA_STAND_IN_{name}": str(value) for name, value in settings.items() if value is not None},
        }

    def _without(self, library: str) -> Path:
        directory = self.cuda.with_name(f"without {library}")
        if not directory.exists():
            directory.mkdir()
            for file in self.cuda.iterdir():
                if file.name != library:
                    (directory / file.name).symlink_to(file)
        return directory


def python(code: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python source in a process of its own: libraries once loaded stay."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def unusable() -> str | None:
    """Why the stand-in cannot be built here, None where it can."""
    if not CUDA_PROVIDER.exists():
        return "the installed onnxruntime has no CUDA provider"
    for tool in ("gcc", "objdump"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    return None


def build(directory: Path) -> StandIn:
    """Compile all libraries, in about a second."""
    made = StandIn(directory / "cuda", directory / "tensorrt")
    cuda, tensorrt = wanted(CUDA_PROVIDER, "libcuda.so.1"), wanted(TENSORRT_PROVIDER, "libnvinfer.so.10")
    for library, symbols in cuda.items():
        _compile(made.cuda / library, symbols | tensorrt.get(library, set()))
    for library in tensorrt.keys() - cuda.keys():
        _compile(made.tensorrt / library, tensorrt[library])
    return made


def wanted(provider: Path, unversioned: str) -> dict[str, set[str]]:
    """The functions that a provider takes from each of NVIDIA's libraries; `unversioned`: whose carry no version."""
    output = subprocess.run(["objdump", "-p", "-T", provider], capture_output=True, text=True, check=True).stdout
    functions: defaultdict[str, set[str]] = defaultdict(set, {name: set() for name in _NEEDED.findall(output)})
    for library, symbol in _UNDEFINED.findall(output):
        if not library or library in functions:
            functions[library or unversioned].add(symbol)
    return functions


def _compile(library: Path, symbols: set[str]) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    source = SOURCE_OF.get(library.name.partition(".")[0])
    rest = library.with_name("rest.c")  # weak: what the source defines wins
    rest.write_text("".join(f"__attribute__((weak)) int {name}(void) {{ return 0; }}\n" for name in sorted(symbols)))
    version = library.with_name("version.map")  # onnxruntime asks for symbols of the version NVIDIA gave them
    version.write_text(f"{library.name} {{ global: *; }};\n")
    options = [
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        f"-Wl,-soname,{library.name}",
        f"-Wl,--version-script={version}",
    ]
    sources = [rest, *([SOURCES / source] if source else [])]
    subprocess.run(["gcc", *options, "-o", library, *sources, "-lpthread"], check=True)
    rest.unlink()
    version.unlink()
