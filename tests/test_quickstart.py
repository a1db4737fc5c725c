"""docs/quickstart.md, followed to the letter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_HERE = ("setup", "device")  # the test has an environment; a device is another machine


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What of a clone the page names, the commands first in the path."""
    (tmp_path / "LICENSE").symlink_to(ROOT / "LICENSE")
    command = tmp_path / "bin" / "edgeblt"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgeblt "$@"\n')
    command.chmod(0o755)
    return tmp_path


@pytest.mark.slow
def test_the_page_is_true(home: Path) -> None:
    blocks = BLOCK.findall(PAGE)
    assert [kind for _, kind, _ in blocks if kind] == list(NOT_HERE)
    said = b""
    environment = os.environ | {"PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    for language, kind, text in blocks:
        if kind in NOT_HERE:
            continue
        command = ["sh", "-ec", text] if language == "sh" else [sys.executable, "-c", text]
        ended = subprocess.run(command, cwd=home, env=environment, capture_output=True, timeout=300)
        assert ended.returncode == 0, (text, ended.stdout, ended.stderr)
        said += ended.stdout
    assert b"recipe: int4" in said and b"bits per byte" in said
    assert (home / "more.bin").stat().st_size == 100
    left = {path.name for path in home.iterdir()}
    assert left == {"LICENSE", "bin", "my-checkpoint", "my-bundle", "my-text.txt", "more.bin"}


def test_setup_is_what_the_makefile_has() -> None:
    """The part that is not run here names targets that exist, and the wheel by its version."""
    targets = re.findall(r"(?:^|`)make (\w+)", PAGE, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and f"edgeblt-{version[1]}-py3" in PAGE
