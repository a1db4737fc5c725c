"""Nothing about the user or the machine is written or told by running a bundle."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "ORT_DISABLE_TELEMETRY"
FOLDERS = {
    "HOME": "home",
    "TMPDIR": "temporary",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
    "XDG_STATE_HOME": "state",
    "XDG_RUNTIME_DIR": "runtime",
}
RUNNING = """
import sys
import edgeblt
assert len(edgeblt.load(sys.argv[1], threads=1).generate("hello", 3)) <= 3
"""


def written(root: Path, code: str, *arguments: object, setting: str | None = None) -> set[str]:
    """Files below fresh folders of a user's after a process ran `code`; continuous integration hides nothing."""
    for folder in FOLDERS.values():
        (root / folder).mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in (VARIABLE, "CI", "GITHUB_ACTIONS")}
    environment |= {name: str(root / folder) for name, folder in FOLDERS.items()} | {"PYTHONDONTWRITEBYTECODE": "1"}
    if setting is not None:
        environment[VARIABLE] = setting
    command = [sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120, cwd=root)
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_importing_loading_and_generating_write_nothing(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    assert written(tmp_path, RUNNING, tiny_bundle[1], setting="") == set()  # as if it were not set


def test_an_import_alone_writes_nothing(tmp_path: Path) -> None:
    assert written(tmp_path, "import edgeblt.model") == set()


def test_a_command_writes_nothing(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['edgeblt', 'doctor']; from edgeblt.cli import main; main()"
    assert written(tmp_path, code) == set()


def test_the_users_own_setting_stays(tmp_path: Path) -> None:
    """Without the variable this ONNX Runtime does write, or the tests above would prove nothing."""
    if not written(tmp_path / "without", "import onnxruntime"):
        pytest.skip("this version of ONNX Runtime writes nothing anyway")
    assert written(tmp_path / "own", "import edgeblt.model", setting="0")
    assert written(tmp_path / "too late", "import onnxruntime; import edgeblt")  # as docs/device.md says
