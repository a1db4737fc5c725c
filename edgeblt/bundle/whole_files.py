"""Directories and files that appear whole or not at all.

What is being written lies beside its final place under the hidden name `.NAME.partial`, locked. An exception removes
it; a process that is killed leaves it behind, unlocked, for the next one that writes NAME to take over.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeblt.bundle import system_calls
from edgeblt.bundle.held_files import is_too_many_open, too_many_open
from edgeblt.errors import EdgebltError

_SPARE = 4  # two for each level of nested directories


class BeingWrittenError(EdgebltError):
    """Another process is writing the same file or directory."""


@contextmanager
def whole_directory(path: Path, replace: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yields a temporary directory beside `path` that becomes `path` when the block ends without an exception.

    With `replace` a directory already there is replaced then, and not before. With `resume` the temporary directory
    may hold what a killed process left; else it is empty. Raises EdgebltError if `path` exists and `replace` is false,
    if another process is writing it, or if it cannot be written.
    """
    partial, replaced = _hidden(path, "partial"), _hidden(path, "replaced")
    replace = replace and not os.path.islink(path) and (os.path.isdir(path) or os.path.isdir(replaced))
    if not replace:
        _refuse_existing(path)
    try:
        with _Spare() as spare, _own_directory(path, partial):
            try:
                if not resume:
                    empty(partial)
                yield partial
                partial.chmod(0o777 & ~_umask())
                if replace and os.path.lexists(path):
                    _remove(replaced)
                    path.rename(replaced)
                partial.rename(path)
            except BaseException:
                spare.release()
                if os.path.isdir(replaced) and not os.path.lexists(path):  # interrupted between the two renames
                    replaced.rename(path)
                shutil.rmtree(partial, ignore_errors=True)
                raise
            finally:
                _remove(replaced)
    except OSError as error:
        with suppress(OSError):
            partial.rmdir()  # empty: it was made, but could not be opened
        raise cannot_write(path, error) from None


@contextmanager
def scratch_directory(path: Path, purpose: str) -> Iterator[Path]:
    """Yields a directory beside `path` for what is made on the way to it; it is removed when the block ends.

    It may hold what a killed process left, and is left by one for the next. Raises EdgebltError if another process is
    using it, or if it cannot be written.
    """
    scratch = _hidden(path, purpose)
    try:
        with _Spare() as spare, _own_directory(path, scratch):
            try:
                yield scratch
            finally:
                spare.release()
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from None


@contextmanager
def kept_directory(path: Path, kept: Path) -> Iterator[None]:
    """Locks `kept`, a directory beside `path` for what is made on the way to it; it is made, and stays when the block
    ends, for the next process that makes `path`.

    Raises EdgebltError if another process is using it, or if it cannot be written.
    """
    try:
        with _own_directory(path, kept):
            yield
    except OSError as error:
        raise cannot_write(path, error) from None


@contextmanager
def whole_file(path: Path, replace: bool = False) -> Iterator[BinaryIO]:
    """Yields a temporary file beside `path`, open for writing, that becomes `path` when the block ends.

    It is removed where the block ends with an exception. With `replace` a file that is there is replaced then, by one
    of the same mode. Raises EdgebltError if `path` exists, then or at the end, and `replace` is false, if another
    process is writing it, or if it cannot be written.
    """
    if not replace:
        _refuse_existing(path)
    partial = _hidden(path, "partial")
    try:
        mode = _mode(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, partial, os.O_RDWR | os.O_CREAT) as held:
            try:
                os.ftruncate(held.descriptor, 0)
                if mode is not None:
                    os.chmod(held.descriptor if os.chmod in os.supports_fd else partial, mode)
                with open(held.descriptor, "r+b", closefd=False) as file:
                    yield file
                os.fsync(held.descriptor)  # its name must not be on the disk before its content
                held.allow_renaming()
                if not replace:
                    _refuse_existing(path)
                partial.replace(path)
            except BaseException:
                held.allow_renaming()
                with suppress(OSError):
                    partial.unlink()
                raise
    except OSError as error:
        raise cannot_write(path, error) from None


def check_writable(path: Path, replace: bool = False) -> None:
    """Raises EdgebltError where `whole_file` would, as far as can be seen by making an empty one, which is removed."""
    if not replace:
        _refuse_existing(path)
    partial = _hidden(path, "partial")
    missing = [folder for folder in path.parents if not os.path.lexists(folder)]
    try:
        _mode(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, partial, os.O_RDWR | os.O_CREAT) as held:
            held.allow_renaming()
            partial.unlink()
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def flush(directory: Path) -> None:
    """Syncs a directory and its files to the disk, so that none can be found truncated later. Raises OSError."""
    on_directories = system_calls.OPENS_DIRECTORIES
    access = os.O_RDONLY if on_directories else os.O_RDWR
    for path in (*directory.iterdir(), directory) if on_directories else directory.iterdir():
        descriptor = os.open(path, access | system_calls.NO_LINK | system_calls.NOT_INHERITED)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def empty(directory: Path, but: Collection[str] = ()) -> None:
    """Remove everything in a directory, except regular files that have one of these names. Raises OSError."""
    for entry in directory.iterdir():
        if entry.name in but and stat.S_ISREG(entry.lstat().st_mode):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def cannot_write(path: Path, error: OSError) -> EdgebltError:
    """The error to raise for an OSError while `path` was being written."""
    if is_too_many_open(error):
        return too_many_open(path)
    reason = error.strerror or " ".join(str(error).split())
    return EdgebltError(f"{path} cannot be written ({reason}); free some space or choose another place")


@dataclass
class _Held:
    """An open descriptor, -1 when it is closed."""

    descriptor: int

    def allow_renaming(self) -> None:
        """Closes it on systems that neither rename nor remove what is open."""
        if not system_calls.OPENS_DIRECTORIES:
            self.close()

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@contextmanager
def _locked(path: Path, partial: Path, flags: int) -> Iterator[_Held]:
    """Yields `partial`, open and locked for this process; the lock ends with the process, however it ends."""
    try:
        held = _Held(os.open(partial, flags | system_calls.NO_LINK | system_calls.NOT_INHERITED, 0o666))
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):  # a link, or of the other kind
            raise
        raise EdgebltError(f"{partial} is in the way; remove it, or choose another name") from None
    try:
        try:
            system_calls.lock(held.descriptor)
            same = os.path.samestat(
                os.fstat(held.descriptor), os.lstat(partial)
            )  # False if it was renamed before it was locked
        except (BlockingIOError, FileNotFoundError):
            same = False
        if not same:
            raise BeingWrittenError(f"{path} is being written by another process; wait for it, or choose another name")
        yield held
    finally:
        held.close()


def _mode(path: Path) -> int | None:
    """Permissions of the file at `path`, None where there is none. Raises OSError where a file cannot replace it."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        return None
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_IMODE(mode) & 0o777


class _Spare:
    """Reserved file descriptors, so that a directory can be removed when all others are in use."""

    def __enter__(self) -> "_Spare":
        """Reserves the descriptors; raises OSError, and reserves none, where there are too few."""
        self._descriptors: list[int] = []
        try:
            for _ in range(_SPARE):
                self._descriptors.append(os.open(os.devnull, os.O_RDONLY | system_calls.NOT_INHERITED))
        except OSError:
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


@contextmanager
def _own_directory(path: Path, directory: Path) -> Iterator[None]:
    """Locks `directory`, which lies beside `path`, for this process; makes it if absent. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = _made_before(directory)
    if not system_calls.OPENS_DIRECTORIES:
        yield
        return
    with _locked(path, directory, os.O_RDONLY | system_calls.A_DIRECTORY) as held:
        if left and os.fstat(held.descriptor).st_uid != os.geteuid():
            raise EdgebltError(f"{directory} is somebody else's; remove it, or choose another name")
        yield


def _made_before(directory: Path) -> bool:
    """Whether `directory` existed; makes it if it did not."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return True
    return False


def _remove(replaced: Path) -> None:
    """Removes `replaced` under a third name, so that a half-removed directory is never put back."""
    removed = replaced.with_suffix(".removed")
    shutil.rmtree(removed, ignore_errors=True)
    if os.path.lexists(replaced):
        replaced.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _hidden(path: Path, state: str) -> Path:
    return path.parent / f".{path.name}.{state}"


def check_replaceable(path: Path, replace: bool, ours: Callable[[Path], bool], kind: str) -> bool:
    """Whether `path` is a directory to be replaced. Raises EdgebltError if it exists and must not be replaced.

    `ours` says whether a directory holds only what `kind` names; no other directory is replaced.
    """
    if not os.path.lexists(path):
        return replace  # a directory that a killed process moved aside comes back
    try:
        alone = not os.path.islink(path) and os.path.isdir(path) and ours(path)
    except OSError:  # a directory that cannot be listed may hold anything
        alone = False
    if not alone:
        raise EdgebltError(
            f"{path} exists already and is not a {kind} alone, so it is not replaced; remove it or choose another name"
            if replace
            else f"{path} exists already; remove it or choose another name"
        )
    if not replace:
        raise EdgebltError(f"{path} exists already; replace it with --force, or choose another name")
    return True


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise EdgebltError(f"{path} exists already; remove it or choose another name")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
