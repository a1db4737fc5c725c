"""Directories and files that appear whole or not at all.

What is being written lies beside its final place under the hidden name `.NAME.partial`, locked. An exception removes
it; a process that is killed leaves it behind, unlocked, for the next one that writes NAME to take over.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgeblt.errors import EdgebltError


@contextmanager
def whole_directory(path: Path, replace: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yields a temporary directory beside `path` that becomes `path` when the block ends without an exception.

    With `replace` a directory already there is replaced then, and not before. With `resume` the temporary directory
    may hold what a killed process left; else it is empty. Raises EdgebltError if `path` exists and `replace` is false,
    if another process is writing it, or if it cannot be written.
    """
    partial, replaced = _partial(path), path.parent / f".{path.name}.replaced"
    replace = replace and not os.path.islink(path) and (os.path.isdir(path) or os.path.isdir(replaced))
    if not replace:
        _refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700, exist_ok=True)
        with _locked(path, partial, os.O_RDONLY | os.O_DIRECTORY):
            try:
                if not resume:
                    empty(partial)
                yield partial
                partial.chmod(0o777 & ~_umask())
                if replace and os.path.lexists(path):
                    shutil.rmtree(replaced, ignore_errors=True)
                    path.rename(replaced)
                partial.rename(path)
            finally:
                if os.path.lexists(replaced) and not os.path.lexists(path):  # interrupted between the two renames
                    replaced.rename(path)
                shutil.rmtree(partial, ignore_errors=True)
                shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from None


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a temporary file beside `path`, open for writing, that becomes `path` when the block ends.

    It is removed where the block ends with an exception. Raises EdgebltError if `path` exists, then or at the end, if
    another process is writing it, or if it cannot be written.
    """
    _refuse_existing(path)
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, partial, os.O_RDWR | os.O_CREAT) as descriptor:
            try:
                os.ftruncate(descriptor, 0)
                with open(descriptor, "r+b", closefd=False) as file:
                    yield file
                _refuse_existing(path)
                partial.rename(path)
            finally:
                with suppress(OSError):
                    partial.unlink()
    except OSError as error:
        raise cannot_write(path, error) from None


def empty(directory: Path) -> None:
    """Remove everything in a directory. Raises OSError."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def cannot_write(path: Path, error: OSError) -> EdgebltError:
    """The one sentence for an OSError while `path` was being written."""
    reason = error.strerror or " ".join(str(error).split())
    return EdgebltError(f"{path} cannot be written ({reason}); free some space or choose another place")


@contextmanager
def _locked(path: Path, partial: Path, flags: int) -> Iterator[int]:
    """Holds the only lock on `partial`, and yields its descriptor; a lock ends with its process, however that ends."""
    descriptor = os.open(partial, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(descriptor), os.lstat(partial))  # not renamed before it was locked
        except (BlockingIOError, FileNotFoundError):
            same = False
        if not same:
            raise EdgebltError(f"{path} is being written by another process; wait for it, or choose another name")
        yield descriptor
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.parent / f".{path.name}.partial"


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise EdgebltError(f"{path} exists already; remove it or choose another name")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
