"""Files opened once, so that the file checked is the file used, whatever takes its name or is written into it.

A held file keeps its descriptor. Its state when it was opened can be compared with its state now (`refuse_changes`)
and with the file its name leads to now (`refuse_replacement`); each takes a few system calls.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from edgeblt.bundle import system_calls
from edgeblt.errors import EdgebltError

# A pipe must not block, a terminal must not become ours. Links are refused, the last part of the path alone.
_FLAGS = (
    os.O_RDONLY
    | system_calls.NO_LINK
    | system_calls.NOT_BLOCKING
    | system_calls.NO_TERMINAL
    | system_calls.NOT_INHERITED
)
_BLOCK = 1 << 20  # bytes
_NO_HANDLES = (errno.EMFILE, errno.ENFILE)


class HeldFile:
    """A regular file that stays open until `close`, or until nobody refers to it."""

    def __init__(self, path: Path, remedy: str) -> None:
        """Raises EdgebltError, with `remedy` at its end, for what is no regular file; OSError where it cannot be read.

        What is neither file nor directory is not even opened: that alone would make some devices act.
        """
        self.path, self._descriptor = path, -1
        if not stat.S_ISREG(path.lstat().st_mode):
            raise _irregular(path, remedy)
        try:
            self._descriptor = os.open(path, _FLAGS)
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link since
                raise _irregular(path, remedy) from None
            raise
        self._status = os.fstat(self._descriptor)
        if not stat.S_ISREG(self._status.st_mode):
            raise _irregular(path, remedy)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def size(self) -> int:
        """Size in bytes when the file was opened."""
        return self._status.st_size

    def content(self) -> bytes:
        """The whole content, up to the size when the file was opened. Raises OSError."""
        return b"".join(self._blocks())

    def sha256(self) -> str:
        """Raises OSError."""
        digest = hashlib.sha256()
        for block in self._blocks():
            digest.update(block)
        return digest.hexdigest()

    def _blocks(self) -> Iterable[bytes]:
        place = 0
        read = system_calls.read_at
        while place < self.size and (block := read(self._descriptor, min(_BLOCK, self.size - place), place)):
            yield block
            place += len(block)

    def refuse_changes(self) -> None:
        """Raises EdgebltError if the file was written to or cut since it was opened; its name may lead elsewhere."""
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise EdgebltError(
                f"{self.path} has changed since it was opened; open the bundle again, and replace files instead of "
                "writing into them"
            )

    def refuse_replacement(self) -> None:
        """Raises EdgebltError if the file changed in any way, or its name leads to another one."""
        _refuse_another(self.path, lambda: os.fstat(self._descriptor), self._status, os.lstat)


class HeldDirectory:
    """A directory that stays open: it must not be moved or replaced while files in it are opened by name."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path, self._descriptor = path, -1
        if system_calls.OPENS_DIRECTORIES:
            self._descriptor = os.open(path, os.O_RDONLY | system_calls.A_DIRECTORY | system_calls.NOT_INHERITED)
        self._status = self._now()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def refuse_replacement(self) -> None:
        """Raises EdgebltError if the directory's name leads to another one, or did since it was opened."""
        _refuse_another(self.path, self._now, self._status, os.stat)

    def _now(self) -> os.stat_result:
        return os.fstat(self._descriptor) if self._descriptor >= 0 else os.stat(self.path)


def _refuse_another(
    path: Path,
    held: Callable[[], os.stat_result],
    opened: os.stat_result,
    status_of: Callable[[Path], os.stat_result],
) -> None:
    """Raises EdgebltError unless what is open is as it was when opened, and is what its name leads to now."""
    try:
        now, named = held(), status_of(path)
    except OSError:
        raise _replaced(path) from None
    if not (_identity(now) == _identity(opened) == _identity(named)):
        raise _replaced(path)


def unreadable(path: Path, error: OSError, remedy: str) -> EdgebltError:
    """The error to raise for an OSError while `path` was being read."""
    if error.errno in _NO_HANDLES:
        return too_many_open(path)
    reason = error.strerror or " ".join(str(error).split())
    return EdgebltError(f"{path} cannot be read ({reason}); {remedy}")


def too_many_open(path: Path) -> EdgebltError:
    """The error to raise for EMFILE and ENFILE while `path` was being read or written."""
    return EdgebltError(
        f"{path} cannot be opened, as too many files are open; allow more with `ulimit -n`, or close others"
    )


def is_too_many_open(error: BaseException) -> bool:
    """Whether an error, possibly raised by a library, says that no more files can be opened."""
    if isinstance(error, OSError):
        return error.errno in _NO_HANDLES
    text = str(error)
    return any(os.strerror(number) in text or f"SystemError : {number}" in text for number in _NO_HANDLES)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Facts that tell whether a file changed; moving it away and back changes the last."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _irregular(path: Path, remedy: str) -> EdgebltError:
    return EdgebltError(f"{path} is not a regular file, nor may it be a link; {remedy}")


def _replaced(path: Path) -> EdgebltError:
    return EdgebltError(f"{path} changed while it was being opened; open it again")
