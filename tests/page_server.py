"""A server in a process of its own, for the tests of its page."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
        """Returns when no text is being generated. Raises TimeoutError where that takes longer than a minute."""
        end = time.monotonic() + 60
        while self.health()["active"]:
            if time.monotonic() > end:
                raise TimeoutError("the server still generates a text that nobody waits for")


def bundled_model(path: Path) -> Path:
    """Exports the bundled model in int8."""
    command = [sys.executable, "-m", "edgeblt", "export", str(_DEMO), str(path), "--recipe", "int8", "--quiet"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # others may be testing beside this
    subprocess.run(command, check=True, capture_output=True, timeout=600, env=one_thread)
    return path


@contextmanager
def started_server(bundle: Path, *options: str) -> Iterator[PageServer]:
    """A server of a bundle on a free port, ended afterwards."""
    command = [sys.executable, "-m", "edgeblt", "serve", str(bundle), "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            yield PageServer(_address(process, log))
        finally:
            process.terminate()
            process.wait(timeout=60)


def _address(process: subprocess.Popen[bytes], log: IO[str]) -> str:
    """The address in the line with which a server says that it is ready."""
    end = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        log.seek(0)
        if found := re.search(r"serving .* at (http://\S+)", log.read()):
            return f"{found[1]}/"
        time.sleep(0.05)
    log.seek(0)
    raise RuntimeError(f"the server did not start: {log.read()}")
