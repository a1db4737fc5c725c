"""Calls to the operating system that Linux has and others lack: each is made where it exists."""

import importlib
import os
from typing import Any

# Flags for `os.open`, 0 where the system has none of that name. A descriptor holds bytes, and no child inherits it.
NOT_INHERITED = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
NOT_BLOCKING = getattr(os, "O_NONBLOCK", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
NO_TERMINAL = getattr(os, "O_NOCTTY", 0)
A_DIRECTORY = getattr(os, "O_DIRECTORY", 0)

OPENS_DIRECTORIES = bool(A_DIRECTORY)  # and so renames what is open, and flushes it without writing to it


def set_blocking(descriptor: int, blocking: bool) -> None:
    """Sets whether a descriptor blocks, on systems where one may not."""
    if hasattr(os, "set_blocking"):
        os.set_blocking(descriptor, blocking)


def read_at(descriptor: int, size: int, place: int) -> bytes:
    """At most `size` bytes from offset `place` of a file; b"" at its end. Raises OSError."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, place)
    os.lseek(descriptor, place, os.SEEK_SET)
    return os.read(descriptor, size)


def lock(descriptor: int) -> None:
    """Locks a file or directory until it is closed. Raises BlockingIOError where another process has it locked.

    Nothing happens on a system without `fcntl`.
    """
    calls = module("fcntl")
    if calls is not None:
        calls.flock(descriptor, calls.LOCK_EX | calls.LOCK_NB)


def module(name: str) -> Any:
    """A module of the standard library; None on a system where it does not exist."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
