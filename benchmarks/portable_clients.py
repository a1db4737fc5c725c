"""Speed of portable bundles in Python and in the clients of examples/: decoding, first byte, opening.

    python benchmarks/portable_clients.py BUNDLE ... [--new-bytes N] [--rounds N] [--clients NAME ...]

Each client continues the same sentence, greedily, in rounds that take turns; the fastest round of each counts, as other
work on a machine only slows it. Python is `edgeblt` with the bundle on one thread; cpp is examples/cpp, node
examples/node; the browsers are chromium, headless, with the page of examples/browser on one thread and on two. Decoding
is timed from the first new byte to the last; the first byte, from the prompt to that byte, with the model open. Opening
a page is from its address to the model being ready: at the first visit, and again with everything in its caches. A
client whose tools are absent is left out by name. The last line is JSON.
"""

import argparse
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeblt.model import load
from edgeblt.runtime.machine.device import device_name

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMPT = "It was a bright morning, and the captain of the ship"
CLIENTS = ("python", "cpp", "node", "browser-1", "browser-2")


@dataclass(frozen=True)
class Round:
    bytes_per_s: float
    first_byte_ms: float


@dataclass(frozen=True)
class Client:
    """A client with an open bundle; `opened_ms`: how long that took, each time it was done."""

    run: Callable[[int], Round]
    opened_ms: tuple[float, ...] = ()


class AbsentError(Exception):
    """A client cannot run here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--new-bytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    options = parser.parse_args()
    with ExitStack() as stack:
        chromium = functools.cache(lambda: started_chromium(stack))
        rows = [row for bundle in options.bundles for row in measure(bundle, options, chromium)]
    print(json.dumps({"device": device_name(), "new_bytes": options.new_bytes, "rows": rows}))


def measure(bundle: Path, options: argparse.Namespace, chromium: Callable[[], Any]) -> list[dict[str, Any]]:
    """A row for each client that runs here."""
    with ExitStack() as stack:
        clients: dict[str, Client] = {}
        for name in options.clients:
            try:
                clients[name] = stack.enter_context(opened_client(name, bundle, chromium))
            except AbsentError as error:
                print(f"{name} left out: {error}", file=sys.stderr)
        rounds: dict[str, list[Round]] = {name: [] for name in clients}
        for _ in range(options.rounds):
            for name, client in clients.items():
                rounds[name].append(client.run(options.new_bytes))
    rows = []
    for name, found in rounds.items():
        best = Round(max(one.bytes_per_s for one in found), min(one.first_byte_ms for one in found))
        opened = [round(milliseconds) for milliseconds in clients[name].opened_ms]
        rows.append({"bundle": bundle.name, "client": name, **asdict(best), "opened_ms": opened})
        print(
            f"{bundle.name:12} {name:10} {best.bytes_per_s:7,.0f} bytes/s, first byte {best.first_byte_ms:4.0f} ms"
            + (f", opened in {' and '.join(map(str, opened))} ms" if opened else ""),
            flush=True,
        )
    return rows


@contextmanager
def opened_client(name: str, bundle: Path, chromium: Callable[[], Any]) -> Iterator[Client]:
    """Raises AbsentError where the client cannot run here."""
    kind, _, threads = name.partition("-")
    if kind == "python":
        with load(bundle, threads=1) as model:
            yield Client(lambda count: timed(model.stream(PROMPT, max_new_bytes=count, draft="none")))
    elif kind == "cpp":
        yield Client(built_cpp(bundle))
    elif kind == "node":
        require_node(kind)
        yield Client(lambda count: node_round(bundle, count))
    else:
        require_node(kind)
        with opened_page(bundle, int(threads), chromium()) as client:
            yield client


def built_cpp(bundle: Path) -> Callable[[int], Round]:
    """Runs of examples/cpp, by the line in which it says its times; the first run has built it."""

    def run(count: int) -> Round:
        command = [str(EXAMPLES / "cpp" / "run"), str(bundle), PROMPT, "--bytes", str(count)]
        done = subprocess.run(command, capture_output=True, text=True)
        found = re.search(r"first byte: (\S+) s, then (\S+) bytes/s", done.stderr)
        if done.returncode or found is None:
            raise AbsentError(" ".join(done.stderr.split())[-200:] or "it did not run")
        return Round(float(found[2]), float(found[1]) * 1000)

    run(1)
    return run


def require_node(example: str) -> None:
    if shutil.which("node") is None:
        raise AbsentError("there is no node")
    if not (EXAMPLES / example / "node_modules").is_dir():
        raise AbsentError("its packages are not installed; run `make examples`")


def timed(stream: Iterator[bytes]) -> Round:
    """Times of a stream that begins with its first `next`."""
    started = time.perf_counter()
    count = len(next(stream))
    first = time.perf_counter()
    more = sum(len(piece) for piece in stream)
    assert count == 1
    return Round(more / (time.perf_counter() - first), (first - started) * 1000)


def node_round(bundle: Path, count: int) -> Round:
    """One run of examples/node, by the line in which it says its times."""
    command = ["node", str(EXAMPLES / "node" / "generate.mjs"), str(bundle), PROMPT, "--max-bytes", str(count)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = re.search(r"first byte after (\d+) ms, (\d+) bytes/s", said)
    assert found is not None, said
    return Round(float(found[2]), float(found[1]))


def started_chromium(stack: ExitStack) -> Any:
    """A headless chromium, closed with the stack. Raises AbsentError where there is none."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise AbsentError("playwright is not installed (pip install playwright)") from None
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    playwright = stack.enter_context(sync_playwright())
    try:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
    except Error as error:
        raise AbsentError(f"no chromium starts: {str(error).splitlines()[0]}") from None
    stack.callback(browser.close)
    return browser


@contextmanager
def opened_page(bundle: Path, threads: int, browser: Any) -> Iterator[Client]:
    """The page with the bundle, in a browser."""
    with ExitStack() as stack:
        site = stack.enter_context(tempfile.TemporaryDirectory())
        folder = EXAMPLES / "browser"
        subprocess.run(["node", str(folder / "build.mjs"), str(bundle), site], check=True)
        serve = ["node", str(folder / "serve.mjs"), site, "0"]
        server = stack.enter_context(subprocess.Popen(serve, stdout=subprocess.PIPE, text=True))
        stack.callback(server.terminate)
        assert server.stdout is not None
        address = f"{server.stdout.readline().strip()}?threads={threads}"
        context = browser.new_context()  # with caches of its own
        stack.callback(context.close)
        page = context.new_page()
        opened = []
        for _ in range(2):
            started = time.perf_counter()
            page.goto(address)
            page.wait_for_selector("body.ready", timeout=60_000)
            opened.append((time.perf_counter() - started) * 1000)
            page.wait_for_timeout(2000)  # the service worker keeps what has come
        yield Client(lambda count: page_round(page, count), tuple(opened))


def page_round(page: Any, count: int) -> Round:
    """One text of the page, by the numbers that it shows."""
    page.fill("#prompt", PROMPT)
    page.fill("#maxBytes", str(count))
    page.fill("#temperature", "0")
    page.click("#write")
    page.wait_for_selector("body.ready", timeout=120_000)
    speed, first = page.inner_text("#speed"), page.inner_text("#first")
    return Round(float(speed.split()[0]), float(first.split()[0]))


if __name__ == "__main__":
    main()
