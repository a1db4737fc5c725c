"""Memory and time of child processes, as Linux counts them."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

POLL_S = 0.02
_SHOW = "from pathlib import Path; print(Path('/proc/self/status').read_text())"


@dataclass(frozen=True)
class Memory:
    """Resident bytes."""

    peak: int  # the most there ever was, both kinds together
    anonymous: int  # the process's own
    mapped: int  # pages of files, which the system may drop and read again

    @classmethod
    def of(cls, status: str) -> Self:
        """Parses the text of /proc/PID/status."""
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        sizes = (int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon", "RssFile"))
        return cls(*sizes)

    @classmethod
    def now(cls) -> Self:
        """Memory of this process."""
        return cls.of(Path("/proc/self/status").read_text(encoding="ascii"))


@dataclass(frozen=True)
class Usage:
    seconds: float
    memory: Memory  # `anonymous` and `mapped` are the largest of samples, not of one moment


def watch(command: list[str]) -> Usage:
    """Run `command` to its end, sampling its memory. Raises CalledProcessError if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    status = Path(f"/proc/{process.pid}/status")
    samples = [Memory(0, 0, 0)]
    while process.poll() is None:
        text = status.read_text(encoding="ascii")
        if "VmHWM" in text:  # absent once the process has ended
            samples.append(Memory.of(text))
        time.sleep(POLL_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    seconds = time.perf_counter() - started
    peaks = (max(getattr(sample, name) for sample in samples) for name in ("peak", "anonymous", "mapped"))
    return Usage(seconds, Memory(*peaks))


def memory_of_imports(modules: list[str]) -> Memory:
    """Memory of the interpreter with these modules imported, before they do anything."""
    code = f"import {', '.join(modules)}\n{_SHOW}"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return Memory.of(shown)
