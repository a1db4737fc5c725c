"""Resident memory of this process, now and at most, and what the machine has left."""

import ctypes
import mmap
import sys
from dataclasses import dataclass
from pathlib import Path

from edgeblt.bundle.system_calls import module


@dataclass(frozen=True)
class Memory:
    """Resident bytes: `anonymous` belong to this process alone; `mapped` are pages of files, which processes share."""

    anonymous: int
    mapped: int


def resident_memory() -> Memory | None:
    """RssAnon and RssFile of /proc/self/status; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    kilobytes = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.strip()}
    if "RssAnon" not in kilobytes or "RssFile" not in kilobytes:
        return None
    return Memory(int(kilobytes["RssAnon"]) << 10, int(kilobytes["RssFile"]) << 10)


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far; 0 on a system that does not say."""
    resource = module("resource")
    if resource is None:
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def available_memory() -> int | None:
    """Bytes that processes can still get without swapping: MemAvailable of /proc/meminfo; None without that file."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def has_room(size: int) -> bool:
    """Whether the process may map `size` more bytes within its limits; none of them is touched."""
    try:
        mmap.mmap(-1, size).close()
    except OSError:
        return False
    return True


def return_freed_memory() -> None:
    """Give the system back what this process has freed, where its C library (glibc) has a call for it.

    Opening a graph packs one matrix after another in memory that is freed again; glibc would keep most of it.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or none under that name
        return
    trim(ctypes.c_size_t(0))
