"""What installing edgeblt gives: real files, nothing generic, and a device half that needs no workbench package."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeblt import load
from edgeblt.runtime import native

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
LINKS = {"edgeblt/export": "export", "edgeblt/quant": "quant", "edgeblt/cli.py": "cli.py"}
WORKBENCH_PACKAGES = ("torch", "transformers", "onnx", "onnx_ir", "safetensors", "bitsandbytes", "optimum")
RUNTIME_PACKAGES = ("numpy", "onnxruntime", "rich", "typer")
# Found by optimum-cli where it is; without optimum, `import optimum` gives an empty namespace because of it.
OPTIMUM_COMMANDS = "optimum/commands/register/register_edgeblt.py"
OPTIMUM_COMMANDS_SOURCE = ROOT / "quant" / "optimum_cli" / "register_edgeblt.py"

IMPORT_WITHOUT_WORKBENCH = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

blocked, modules = (argument.split(",") for argument in sys.argv[1:])
sys.meta_path.insert(0, Blocker())
for module in modules:
    importlib.import_module(module)
loaded = set(blocked) & sys.modules.keys()
assert not loaded, loaded
"""


def device_modules() -> list[str]:
    """Dotted names of the device half, found in the source tree."""
    names = []
    for path in sorted((ROOT / "edgeblt").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] not in ("export", "quant") and parts[-1] != "__main__":
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize(("link", "target"), LINKS.items())
def test_a_link_leads_to_its_source(link: str, target: str) -> None:
    assert (ROOT / link).samefile(ROOT / target)


def test_the_device_half_imports_without_the_workbench() -> None:
    modules = device_modules()
    assert {"edgeblt", "edgeblt.cli", "edgeblt.runtime.native"} <= set(modules)
    absent = ",".join((*WORKBENCH_PACKAGES, "plotly"))
    run(sys.executable, "-c", IMPORT_WITHOUT_WORKBENCH, absent, ",".join(modules), cwd=ROOT)


def test_the_import_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="json is blocked"):
        run(sys.executable, "-c", IMPORT_WITHOUT_WORKBENCH, "json", "json.decoder", cwd=ROOT)


def test_native_status_is_consistent() -> None:
    status = native.status()
    if status.reason is None:
        assert status.path is not None
        assert status.path.name == native.LIBRARY_NAME
        assert status.version == native.package_version()
        assert (native.library_path(), native.version()) == (status.path, status.version)
    else:
        assert (native.library_path(), native.version()) == (None, None)


def test_an_unreadable_library_is_reported(tmp_path: Path) -> None:
    path = tmp_path / native.LIBRARY_NAME
    path.write_bytes(b"not a library")
    status = native.inspect_library(path, VERSION)
    assert (status.path, status.version) == (path, None)
    assert status.reason is not None
    assert str(path) in status.reason


def test_a_library_that_is_not_ours_is_reported() -> None:
    path = Path(str(importlib.import_module("numpy._core._multiarray_umath").__file__))
    status = native.inspect_library(path, VERSION)
    assert status.reason == f"{path} does not export edgeblt_version; install edgeblt again"


def test_a_library_of_another_version_is_reported() -> None:
    path = native.library_path()
    if path is None:
        pytest.skip(f"no native library: {native.status().reason}")
    status = native.inspect_library(path, "0.0.0")
    assert status.version == native.version()
    assert status.reason == f"{path} is version {status.version}, the package is 0.0.0; install edgeblt again"


@dataclass(frozen=True)
class Distribution:
    wheel: Path
    sdist: Path


@dataclass(frozen=True)
class Environment:
    """A virtual environment, used from an empty directory so that the source tree is not on the path."""

    directory: Path

    def python(self, *arguments: str) -> bytes:
        return run(str(self.directory / "bin" / "python"), *arguments, cwd=self.directory)

    def edgeblt(self, *arguments: str) -> bytes:
        """Standard output of the installed command."""
        return self._command("edgeblt", *arguments)

    def optimum_cli(self, *arguments: str) -> bytes:
        """Standard output of optimum's command."""
        return self._command("optimum-cli", *arguments)

    def install(self, *arguments: str) -> None:
        self.python("-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *arguments)

    def _command(self, name: str, *arguments: str) -> bytes:
        return run(str(self.directory / "bin" / name), *arguments, cwd=self.directory)


def run(*command: str, cwd: Path, variables: Mapping[str, str] | None = None) -> bytes:
    """Standard output of a command that must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | dict(variables or {})
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, timeout=900)
    assert result.returncode == 0, result.stdout.decode(errors="replace") + result.stderr.decode(errors="replace")
    return result.stdout


def device_environment_at(directory: Path, wheel: Path) -> Environment:
    """An environment with `wheel` and RUNTIME_PACKAGES, and none of WORKBENCH_PACKAGES."""
    run(sys.executable, "-m", "venv", str(directory), cwd=directory.parent)
    environment = Environment(directory)
    environment.install(*RUNTIME_PACKAGES)
    environment.install("--no-deps", str(wheel))
    return environment


@pytest.fixture(scope="session")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """The sdist of the source tree and the wheel built from that sdist."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", str(directory), str(ROOT), cwd=directory)
    (wheel,), (sdist,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return Distribution(wheel, sdist)


@pytest.fixture(scope="session")
def device_environment(distribution: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What a device has: the wheel and the runtime packages."""
    return device_environment_at(tmp_path_factory.mktemp("device") / "venv", distribution.wheel)


def linked_sources() -> dict[str, bytes]:
    """Files behind the links, by the names they are installed under; without that which goes elsewhere."""
    paths = {ROOT / "cli.py", *(ROOT / "export").rglob("*.py"), *(ROOT / "quant").rglob("*.py")}
    paths.remove(OPTIMUM_COMMANDS_SOURCE)
    return {f"edgeblt/{path.relative_to(ROOT).as_posix()}": path.read_bytes() for path in paths}


@pytest.mark.network
def test_the_wheel_holds_the_package_and_nothing_else(distribution: Distribution) -> None:
    with zipfile.ZipFile(distribution.wheel) as wheel:
        names = set(wheel.namelist())
        assert {name.partition("/")[0] for name in names} == {"edgeblt", "optimum", f"edgeblt-{VERSION}.dist-info"}
        assert {name: wheel.read(name) for name in linked_sources()} == linked_sources()
        assert [name for name in names if "optimum_cli" in name or name.startswith("optimum/")] == [OPTIMUM_COMMANDS]
        assert wheel.read(OPTIMUM_COMMANDS) == OPTIMUM_COMMANDS_SOURCE.read_bytes()
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edgeblt" / "data").rglob("*") if path.is_file()}
    assert data
    assert data <= names


@pytest.mark.network
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_the_wheel_holds_the_native_library(distribution: Distribution) -> None:
    with zipfile.ZipFile(distribution.wheel) as wheel:
        assert f"edgeblt/{native.LIBRARY_NAME}" in wheel.namelist()


@pytest.mark.network
def test_the_sdist_holds_files_and_no_links(distribution: Distribution) -> None:
    with tarfile.open(distribution.sdist) as sdist:
        members = {member.name.partition("/")[2]: member for member in sdist.getmembers()}
    assert all(member.isfile() or member.isdir() for member in members.values())
    assert linked_sources().keys() <= members.keys()
    assert not [name for name in members if name.endswith(".so")]


@pytest.mark.network
def test_the_device_half_runs_where_the_workbench_is_absent(device_environment: Environment) -> None:
    modules = [*WORKBENCH_PACKAGES, "optimum.quantization_base"]
    modules.remove("optimum")  # see OPTIMUM_COMMANDS
    absent = "; ".join(f"assert importlib.util.find_spec({name!r}) is None" for name in modules)
    device_environment.python("-c", f"import importlib.util; {absent}")
    extras = ("edgeblt.serving", "edgeblt.corpus", "edgeblt.evaluation.lm_eval_model")
    importable = [name for name in device_modules() if not name.startswith(extras)]
    device_environment.python("-c", f"import {', '.join(importable)}")
    device_environment.python("-m", "pip", "check")
    assert b"Usage" in device_environment.edgeblt("--help")


@pytest.mark.network
def test_the_device_half_generates_scores_and_times(
    device_environment: Environment, tiny_bundle: tuple[Path, Path]
) -> None:
    bundle = str(tiny_bundle[1])
    expected = load(bundle).generate("Call me", max_new_bytes=20).decode(errors="replace")
    assert (
        device_environment.edgeblt("generate", bundle, "Call me", "--max-new-bytes", "20").decode() == expected + "\n"
    )
    timed = json.loads(device_environment.edgeblt("bench", bundle, "--new-bytes", "4", "--repeats", "1", "--json", "-"))
    assert timed["decode_bytes_per_s"] > 0
    program = f"import edgeblt; print(edgeblt.load({bundle!r}).score(b'Ishmael.').bits_per_byte)"
    assert float(device_environment.python("-c", program)) == pytest.approx(
        load(bundle).score(b"Ishmael.").bits_per_byte
    )


@pytest.mark.network
def test_without_a_compiler_the_package_installs_without_the_library(
    distribution: Distribution, tmp_path: Path
) -> None:
    build = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-cache-dir", str(distribution.sdist))
    run(*build, cwd=tmp_path, variables={"CC": "/bin/false", "CXX": "/bin/false"})
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"edgeblt-{VERSION}-py3-none-any.whl"
    environment = device_environment_at(tmp_path / "venv", wheel)
    shown = environment.python(
        "-c", "from edgeblt.runtime import native; print(native.library_path(), native.status().reason)"
    )
    assert shown.startswith(f"None {native.LIBRARY_NAME} was not built".encode())
    assert b"Usage" in environment.edgeblt("--help")


def optimum_environment_at(directory: Path) -> Environment:
    """An environment with optimum and what optimum-cli needs to start, and without edgeblt."""
    run(sys.executable, "-m", "venv", str(directory), cwd=directory.parent)
    environment = Environment(directory)
    environment.install("packaging")
    environment.install("--no-deps", "optimum")
    return environment


@pytest.mark.network
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_optimum_cli_has_our_commands_while_edgeblt_is_installed(
    distribution: Distribution, editable: bool, tmp_path: Path
) -> None:
    environment = optimum_environment_at(tmp_path / "venv")
    before = environment.optimum_cli("--help")
    assert b"edgeblt" not in before
    if editable:
        shutil.unpack_archive(distribution.sdist, tmp_path, filter="data")
        (source,) = tmp_path.glob(f"edgeblt-{VERSION}")
        environment.install("--no-deps", "--editable", str(source))
    else:
        environment.install("--no-deps", str(distribution.wheel))
    # No package that edgeblt itself needs is there: optimum-cli starts all the same.
    assert b"edgeblt" in environment.optimum_cli("--help")
    assert b"edgeblt" in environment.optimum_cli("export", "--help")
    assert b"--recipe" in environment.optimum_cli("export", "edgeblt", "--help")
    assert b"--calibration" in environment.optimum_cli("edgeblt", "quantize", "--help")
    environment.python("-m", "pip", "uninstall", "-q", "-y", "edgeblt")
    assert environment.optimum_cli("--help") == before
    assert not list(tmp_path.glob(f"venv/lib/*/site-packages/{OPTIMUM_COMMANDS}"))
