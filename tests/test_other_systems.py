"""Systems other than POSIX: nothing that Windows lacks is needed to import the package or to run a bundle.

`without_posix.py` takes these parts of Python away. How Windows itself behaves is not tried by it.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeblt.bundle import system_calls
from edgeblt.model import load
from test_packaging import device_modules

FOLDER = Path(__file__).parent
IMPORT_ALL = (
    "import importlib, sys; import without_posix as w; w.take_away(); [*map(importlib.import_module, sys.argv[1:])]"
)


def python(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *arguments], cwd=FOLDER, capture_output=True, timeout=300)


def without_posix(*arguments: str | Path) -> bytes:
    """Standard output of `edgeblt` with these arguments, which must succeed."""
    result = python("without_posix.py", *map(str, arguments))
    assert result.returncode == 0, (result.stdout + result.stderr).decode()
    return result.stdout


def test_what_is_taken_away_is_missed() -> None:
    for code in (
        "import fcntl",
        "import os; os.pread",
        "import ctypes; ctypes.CDLL(None)",
        "import os; os.open('.', 0)",
    ):
        result = python("-c", f"import without_posix; without_posix.take_away(); {code}")
        assert result.returncode == 1 and b"Error" in result.stderr, code


def test_every_module_of_the_device_half_imports() -> None:
    with_ray = ("edgeblt.corpus.ray_cluster", "edgeblt.corpus.shipping")  # Ray asks for POSIX itself
    modules = [name for name in device_modules() if name not in with_ray]
    result = python("-c", IMPORT_ALL, *modules)
    assert result.returncode == 0, result.stderr.decode()


def test_a_bundle_is_opened_and_runs(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    _, bundle = tiny_bundle
    with load(bundle, threads=1) as model:
        expected = model.generate("To be", max_new_bytes=40)
    state, figures = tmp_path / "state", tmp_path / "figures.json"
    command = ("generate", bundle, "--threads", "1")
    written = without_posix(*command, "To be", "--max-new-bytes", "40", "--save-state", state)
    assert written == expected.decode(errors="replace").encode() + b"\n"
    assert without_posix(*command, "--load-state", state, "--max-new-bytes", "8")
    assert b"CPUExecutionProvider" in without_posix("doctor") and b"recipe" in without_posix("inspect", bundle)
    short = ("--new-bytes", "4", "--prompt-bytes", "16", "--repeats", "1", "--no-bandwidth")
    figures.write_text("what is replaced")
    without_posix("bench", bundle, *short, "--json", figures)
    assert json.loads(figures.read_text())["peak_rss_bytes"] == 0  # there is no getrusage


def test_a_bundle_is_made(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = tiny_bundle
    shutil.copytree(bundle, tmp_path / "bundle")
    without_posix("export", checkpoint, tmp_path / "bundle", "--quiet", "--force")
    made, expected = (sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "bundle", bundle))
    assert made == expected and [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_calls_where_they_do_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("os.pread")
    monkeypatch.delattr("os.set_blocking")
    monkeypatch.setattr(system_calls, "module", lambda name: None)
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        assert system_calls.read_at(file.fileno(), 4, 3) == b"3456"
        assert system_calls.read_at(file.fileno(), 4, 10) == b""
        system_calls.set_blocking(file.fileno(), False)
        system_calls.lock(file.fileno())
