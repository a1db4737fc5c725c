"""The command that installs an extra of this package, for the installation at hand.

No index has the package yet, so its bare name would find nothing there. The source that pip recorded (direct_url.json,
PEP 610) is where the same package can be installed from again: a clone, a wheel or a repository.
"""

import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from edgeblt.errors import EdgebltError

_WORKBENCH = ("torch", "transformers", "onnx", "onnx_ir", "safetensors")


def install_hint(extra: str) -> str:
    """The command that installs edgeblt with `extra` (several are separated by commas) into this Python."""
    return f"{_pip()} install {_requirement(extra)}"


def require_workbench() -> None:
    """Raises EdgebltError, with the command that installs them, if packages of the extra `workbench` are missing."""
    missing = [name for name in _WORKBENCH if not importlib.util.find_spec(name)]
    if missing:
        hint = install_hint("workbench")
        raise EdgebltError(f"this command needs {', '.join(missing)}; install what is missing with: {hint}")


def _pip() -> str:
    """The pip of this Python; the first pip in the path may belong to another."""
    found = shutil.which("pip")
    if found and os.path.dirname(found) == os.path.dirname(sys.executable):
        return "pip"
    return f"{shlex.quote(sys.executable or 'python')} -m pip"


def _requirement(extra: str) -> str:
    clone = Path(__file__).parents[1]
    if (clone / "pyproject.toml").is_file():  # true also for sources that are used uninstalled
        return f"-e {_quoted(f'{clone}[{extra}]')}"
    source = _recorded_source()
    if source is None:  # installed from an index, which has the extra too
        return _quoted(f"edgeblt[{extra}]")
    parts, repository = urlsplit(source["url"]), source.get("vcs_info")
    if repository:
        return _quoted(f"edgeblt[{extra}] @ {repository['vcs']}+{source['url']}@{repository['commit_id']}")
    if parts.scheme != "file":
        return _quoted(f"edgeblt[{extra}] @ {source['url']}")
    path = unquote(parts.path)
    if os.path.exists(path):
        return _quoted(f"{path}[{extra}]")
    return f"{_quoted(f'WHEEL[{extra}]')}, WHEEL being what `make wheel` in a clone prints"


def _recorded_source() -> Any:
    """The source that pip recorded, None where the package came from an index."""
    try:
        text = importlib.metadata.distribution("edgeblt").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    return json.loads(text) if text else None


def _quoted(argument: str) -> str:
    return f"'{argument}'" if "'" not in argument else shlex.quote(argument)
