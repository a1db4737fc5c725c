"""A server in a process of its own, for the tests of its page."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEMO = Path(__file__).parents[1] / "edgeblt" / "data" / "demo"


@dataclass(frozen=True)
class PageServer:
    """A running server; `address` ends with a slash."""

    address: str

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.address}health", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def wait_until_idle(self) -> None:
        """Returns when no text is being generated. Raises TimeoutError where that takes longer than 20 seconds."""
        end = time.monotonic() + 20
        while self.health()["active"]:
            if time.monotonic() > end:
                raise TimeoutError("the server still generates a text that nobody waits for")


def bundled_model(path: Path) -> Path:
    """Exports the bundled model in int8."""
    command = [sys.executable, "-m", "edgeblt", "--quiet", "export", str(_DEMO), str(path), "--recipe", "int8"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return path


@contextmanager
def started_server(bundle: Path, *options: str) -> Iterator[PageServer]:
    """A server of a bundle on a free port, which is ended at the end."""
    command = [sys.executable, "-m", "edgeblt", "serve", str(bundle), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield PageServer(_address(process))
    finally:
        process.terminate()
        process.communicate(timeout=60)
