"""A server in a process of its own, and raw connections to it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from conftest import default_signals

JSON = {"Content-Type": "application/json"}
_PATIENCE_S = 60


class ServerProcess:
    """`edgeblt serve`, used in a `with` block.

    url, port: where it listens.
    lines: what it has written to stderr so far.
    """

    def __init__(self, bundle: Path, *options: object, variables: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "edgeblt", "serve", bundle, "--port", 0, *options]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*map(str, command)], stderr=subprocess.PIPE, text=True, preexec_fn=default_signals,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (variables or {}),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            wait_for(lambda: self._place() or self.process.poll() is not None)
            self.port = int(self._place() or 0)
            assert self.port, self.lines
        except BaseException:
            self.kill()
            raise
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def _place(self) -> str | None:
        found = next((re.search(r"serving .* at http://.*:(\d+)$", line) for line in list(self.lines)), None)
        return found[1] if found else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr
        self.process.stderr.close()

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Exit code, when it has ended."""
        code = self.process.wait(_PATIENCE_S)
        self._reader.join()
        return code

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by lower-case name, and body of the answer to one request; `body` goes as JSON or bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_S)
        try:
            connection.request(method, path, data, JSON | (headers or {}))
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, status: int = 200, **headers: str) -> Any:
        """The JSON answer to a request."""
        found, _, data = self.ask("POST", path, body, headers)
        assert found == status, data
        return json.loads(data)

    def get(self, path: str, status: int = 200) -> Any:
        """The JSON answer to a request."""
        found, _, data = self.ask("GET", path)
        assert found == status, data
        return json.loads(data)

    def complete(self, prompt: str, status: int = 200, **fields: Any) -> Any:
        """The answer to a request for completions."""
        return self.post("/v1/completions", {"prompt": prompt, **fields}, status)

    @contextmanager
    def streaming(self, **fields: Any) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request for a long stream, which goes on until the block ends."""
        body = {"prompt": "x", "max_tokens": 16_000, "ignore_eos": True, "stream": True, **fields}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_S)
        connection.request("POST", "/v1/completions", json.dumps(body).encode(), JSON)
        response = connection.getresponse()
        try:
            yield response
        finally:
            response.close()
            connection.close()

    def connected(self) -> socket.socket:
        """A connection that nothing was sent on."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE_S)

    def memory(self) -> int:
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024


def wait_for(met: Callable[[], object]) -> None:
    """Wait until a condition is met; an hour of a busy machine is no failure of what is tested, a minute is."""
    end = time.monotonic() + _PATIENCE_S
    while not met():
        assert time.monotonic() < end, "it was not met in time"
        time.sleep(0.01)


def events(response: http.client.HTTPResponse) -> Iterator[Any]:
    """Documents of a stream of server-sent events, without the last, `[DONE]`."""
    for line in response:
        if line.startswith(b"data: ") and line != b"data: [DONE]\n":
            yield json.loads(line[6:])
