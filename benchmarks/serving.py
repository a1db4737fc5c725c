"""The server under load: bytes a second for one client and for several, time between bytes, memory in the long run.

    python benchmarks/serving.py BUNDLE [--clients 1 8] [--prompt-bytes 128] [--new-bytes 128] [--rounds 3]
    python benchmarks/serving.py BUNDLE --requests 10000

The first lets each of so many clients ask for a stream at the same time, in turn within each round, and reports of each
count the round with the most bytes a second; by the clock, and by the time that the server's processors worked, which
other processes disturb less. The second sends short requests, eight at a time, compares every answer with what
`Model.generate` gives for its seed, and reports the server's resident memory after a tenth and at the end. The server
runs on one thread. The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgeblt
from edgeblt.measure.texts import held_out_text

AT_ONCE = 8  # clients that send the many short requests
APART = 997  # bytes of prose from one prompt to the next


@dataclass(frozen=True)
class Server:
    """A server that was started for this."""

    process: "subprocess.Popen[str]"
    port: int

    def processor_seconds(self) -> float:
        """Time that the server's threads have worked."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_megabytes(self) -> float:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024 / 1e6


@contextmanager
def served(bundle: str, slots: int) -> Iterator[Server]:
    command = [sys.executable, "-m", "edgeblt", "serve", bundle, "--port", "0", "--threads", "1"]
    limits = ["--slots", str(slots), "--prefix-cache-mb", "0"]
    with subprocess.Popen([*command, *limits], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            found = next(filter(None, (re.search(r"http://.*:(\d+)$", line.strip()) for line in process.stderr)))
            reader = asyncio.get_running_loop().run_in_executor(None, process.stderr.read)  # or the pipe would fill
            yield Server(process, int(found[1]))
        finally:
            process.terminate()
    del reader


async def answer(server: Server, body: dict[str, Any]) -> list[tuple[float, str]]:
    """Pieces of an answer, each with the time at which it came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 24)
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    pieces, status = [], await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"the server answered {status.decode().strip()}")
    while line := await reader.readline():
        if line.startswith((b"data: {", b"{")):
            text = json.loads(line.removeprefix(b"data: "))["choices"][0]["text"]
            pieces.append((time.perf_counter(), text))
    writer.close()
    return pieces


def prompts(count: int, length: int) -> list[str]:
    """As many pieces of prose, in ASCII."""
    prose = held_out_text("prose").decode(errors="ignore").encode("ascii", "ignore").decode()
    prose *= 2 + (APART * count + length) // len(prose)
    return [prose[place * APART :][:length] for place in range(count)]


async def load(server: Server, clients: int, arguments: argparse.Namespace) -> dict[str, float]:
    """One round of as many streams at once; times are from the first byte of all on."""
    body = {"max_tokens": arguments.new_bytes, "ignore_eos": True, "utf8": True, "stream": True, "temperature": 0.7}
    begun, worked = time.perf_counter(), server.processor_seconds()
    asked = [
        answer(server, body | {"prompt": prompt, "seed": 1}) for prompt in prompts(clients, arguments.prompt_bytes)
    ]
    streams = await asyncio.gather(*asked)
    seconds, worked = time.perf_counter() - begun, server.processor_seconds() - worked
    count = clients * arguments.new_bytes
    between = np.concatenate([np.diff([moment for moment, _ in pieces]) for pieces in streams])
    return {
        "bytes_per_s": count / seconds,
        "bytes_per_processor_s": count / max(worked, 1e-9),
        "first_byte_ms": 1e3 * (max(pieces[0][0] for pieces in streams) - begun),
        "inter_byte_p50_ms": 1e3 * float(np.percentile(between, 50)),
        "inter_byte_p99_ms": 1e3 * float(np.percentile(between, 99)),
    }


async def loads(arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[int, list[dict[str, float]]] = {count: [] for count in arguments.clients}
    with served(arguments.bundle, max(arguments.clients)) as server:
        await load(server, 1, arguments)
        for _ in range(arguments.rounds):
            for count in arguments.clients:
                found[count].append(await load(server, count, arguments))
    best = {count: max(rounds, key=lambda each: each["bytes_per_s"]) for count, rounds in found.items()}
    first = best[arguments.clients[0]]["bytes_per_s"]
    ratios = {
        count: [
            own["bytes_per_s"] / one["bytes_per_s"]
            for own, one in zip(rounds, found[arguments.clients[0]], strict=True)
        ]
        for count, rounds in found.items()
    }
    for count, result in best.items():
        shown = ", ".join(f"{name} {value:.2f}" for name, value in result.items())
        print(f"{count} clients: {shown}; {result['bytes_per_s'] / first:.2f} times {arguments.clients[0]}")
    return {"clients": best, "ratios_by_round": ratios}


async def many(arguments: argparse.Namespace) -> dict[str, Any]:
    """Short requests; their answers are compared after all have come, so that the server alone works meanwhile."""
    asked = prompts(50, 32)
    body = {"max_tokens": 16, "temperature": 0.8}
    waiting, memory = asyncio.Semaphore(AT_ONCE), list[float]()
    answers = [""] * arguments.requests

    with served(arguments.bundle, AT_ONCE) as server:

        async def ask(number: int) -> None:
            async with waiting:
                pieces = await answer(server, body | {"prompt": asked[number % len(asked)], "seed": number})
                answers[number] = "".join(text for _, text in pieces)
                if number in (arguments.requests // 10, arguments.requests - 1):
                    memory.append(server.resident_megabytes())

        begun = time.perf_counter()
        await asyncio.gather(*map(ask, range(arguments.requests)))
        seconds = time.perf_counter() - begun
    with edgeblt.load(arguments.bundle, threads=1, prefix_cache_bytes=0) as model:
        settings = edgeblt.GenerationSettings(max_new_bytes=16, temperature=0.8, draft="none")
        differing = sum(
            found != model.generate(asked[number % len(asked)], settings=settings, seed=number).decode(errors="replace")
            for number, found in enumerate(answers)
        )
    print(f"{arguments.requests} requests in {seconds:.0f} s; resident {memory} MB; {differing} answers differ")
    return {"requests": arguments.requests, "seconds": seconds, "resident_mb": memory, "differing": differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-bytes", type=int, default=128)
    parser.add_argument("--new-bytes", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(asyncio.run(many(arguments) if arguments.requests else loads(arguments))))


if __name__ == "__main__":
    main()
