"""What is said to install an extra: a line that works for this installation."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import edgeblt
from edgeblt import installing
from edgeblt.installing import install_hint

ROOT = Path(__file__).parents[1]


@pytest.fixture
def installed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module as in site-packages, and the `pip` of this Python first in the path."""
    site = tmp_path / "site-packages" / "edgeblt"
    site.mkdir(parents=True)
    monkeypatch.setattr(installing, "__file__", str(site / "installing.py"))
    pip = tmp_path / "bin" / "pip"
    pip.parent.mkdir()
    pip.write_text("#!/bin/sh\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip.with_name("python")))
    monkeypatch.setenv("PATH", str(pip.parent))
    return tmp_path


def recorded(monkeypatch: pytest.MonkeyPatch, source: object) -> None:
    text = None if source is None else json.dumps(source)
    found = SimpleNamespace(read_text=lambda name: text if name == "direct_url.json" else None)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: found)


def test_from_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert install_hint("workbench") == f"{sys.executable} -m pip install -e '{ROOT}[workbench]'"


def test_from_a_wheel(installed_elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = installed_elsewhere / "my wheels" / "edgeblt-0.1.0-py3-none-any.whl"
    recorded(monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    gone = "pip install 'WHEEL[report]', WHEEL being what `make wheel` in a clone prints"
    assert install_hint("report") == gone
    wheel.parent.mkdir()
    wheel.write_bytes(b"")
    assert install_hint("report") == f"pip install '{wheel}[report]'"


@pytest.mark.parametrize(
    ("source", "requirement"),
    [
        ({"url": "https://host/edgeblt.whl", "archive_info": {}}, "edgeblt[cuda] @ https://host/edgeblt.whl"),
        (
            {"url": "https://host/edgeblt", "vcs_info": {"vcs": "git", "commit_id": "ab12"}},
            "edgeblt[cuda] @ git+https://host/edgeblt@ab12",
        ),
        (None, "edgeblt[cuda]"),  # from an index
    ],
)
def test_from_elsewhere(
    source: object, requirement: str, installed_elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(monkeypatch, source)
    assert install_hint("cuda") == f"pip install '{requirement}'"


def test_another_pythons_pip(installed_elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(monkeypatch, None)
    monkeypatch.setattr(sys, "executable", "/other/bin/python3")
    assert install_hint("cuda") == "/other/bin/python3 -m pip install 'edgeblt[cuda]'"


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"edgeblt needs ONNX Runtime; install it with: .*\[onnxruntime\]'"):
        edgeblt.load  # noqa: B018


def test_no_line_promises_an_index() -> None:
    """Wherever edgeblt is to be installed by its bare name, there would have to be an index that has it."""
    files = [ROOT / "README.md", ROOT / "cli.py", *(ROOT / "docs").glob("*.md")]
    files += [file for half in ("edgeblt", "export", "quant", "tools") for file in (ROOT / half).rglob("*.py")]
    bare = [str(file) for file in files if "install 'edgeblt[" in file.read_text()]
    assert bare == []


def test_the_names_of_the_package() -> None:
    assert {"load", "Model", "Session", "__version__"} <= set(dir(edgeblt)) and isinstance(edgeblt.__version__, str)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        edgeblt.lode  # noqa: B018
