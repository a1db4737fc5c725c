"""Runs `edgeblt ARGUMENTS...` in a Python that lacks what Windows lacks: `python without_posix.py ARGUMENTS...`.

Modules and functions that exist on POSIX systems alone raise here as they do there, for the package and for what it
calls, once other packages and the standard library are imported; so do opening a directory, and renaming or removing
an open file.
"""

import asyncio
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy
import onnxruntime
import rich.progress
import typer.core

LOADED = (asyncio, subprocess, tempfile, numpy, onnxruntime, rich.progress, typer.core)  # before names disappear
MODULES = ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
FLAGS = ("O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK")
FUNCTIONS = (
    "chown", "fchmod", "fchown", "fork", "geteuid", "getloadavg", "getpgid", "getpriority", "getuid", "killpg",
    "mkfifo", "openpty", "posix_fadvise", "posix_fallocate", "pread", "preadv", "pwrite", "sched_getaffinity",
    "sched_yield", "sendfile", "set_blocking", "setpriority", "setsid", "statvfs", "sync", "sysconf", "times",
    "uname", "wait4",
)  # fmt: skip
SIGNALS = ("SIGALRM", "SIGBUS", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH")


def main(arguments: list[str]) -> None:
    """Runs the command line on `arguments`."""
    take_away()
    import edgeblt.cli

    sys.argv[1:] = arguments
    edgeblt.cli.main()


def take_away() -> None:
    """Removes from this process what Windows lacks."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ImportError
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    opened = opening(os.open)
    signal.set_wakeup_fd = accepting_blocking(signal.set_wakeup_fd, os.set_blocking)
    for name in FLAGS + FUNCTIONS:
        delattr(os, name)
    for name in SIGNALS:
        delattr(signal, name)
    os.supports_fd.discard(os.chmod)
    os.open = opened
    for name in ("rename", "replace", "unlink", "remove"):
        setattr(os, name, refusing_open_files(getattr(os, name)))
    ctypes.CDLL = NamedLibrary  # type: ignore[misc]
    asyncio.AbstractEventLoop.add_signal_handler = not_there  # type: ignore[method-assign,assignment]
    pathlib.Path.exists = no_system_files(pathlib.Path.exists)  # type: ignore[method-assign]
    pathlib.Path.open = no_system_files(pathlib.Path.open)  # type: ignore[method-assign]


def opening(before: Callable[..., int]) -> Callable[..., int]:
    def opened(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return before(path, flags, *rest, **named)

    return opened


def refusing_open_files(before: Callable[..., None]) -> Callable[..., None]:
    def refused(path: Any, *rest: Any, **named: Any) -> None:
        if os.path.isfile(path) and is_open(os.stat(path)):
            raise PermissionError(13, "The process cannot access the file because it is being used", str(path))
        before(path, *rest, **named)

    return refused


def is_open(status: os.stat_result) -> bool:
    """Whether this process has a descriptor of the file."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), status):
                return True
        except OSError:  # the descriptor of the list itself
            continue
    return False


def accepting_blocking(before: Callable[..., int], set_blocking: Callable[[int, bool], None]) -> Callable[..., int]:
    def accepted(descriptor: int, **named: Any) -> int:
        if descriptor >= 0:
            set_blocking(descriptor, False)
        return before(descriptor, **named)

    return accepted


class NamedLibrary(ctypes.CDLL):
    def __init__(self, name: str | None, *rest: Any, **named: Any) -> None:
        if name is None:
            raise TypeError("argument of type 'NoneType' is not iterable")
        super().__init__(name, *rest, **named)


def no_system_files(before: Callable[..., Any]) -> Callable[..., Any]:
    def looked(path: pathlib.Path, *rest: Any, **named: Any) -> Any:
        if path.parts[:2] in (("/", "proc"), ("/", "sys")):
            if before.__name__ == "exists":
                return False
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return before(path, *rest, **named)

    return looked


def not_there(*_: Any) -> None:
    raise NotImplementedError


if __name__ == "__main__":
    main(sys.argv[1:])
