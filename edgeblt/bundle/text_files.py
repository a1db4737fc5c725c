"""Reads texts from files and from pipes such as `<(command)`, bounded in size and without blocking forever."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from edgeblt.bundle import system_calls
from edgeblt.errors import EdgebltError

LARGEST_TEXT = 1 << 28  # bytes
_PIECE = 1 << 20
_FLAGS = os.O_RDONLY | system_calls.NOT_BLOCKING | system_calls.NOT_INHERITED  # a pipe without a writer would block


def read_text(path: str | Path, what: str = "") -> bytes:
    """The bytes of a regular file, or of a pipe that has a writer; error messages call it `what`.

    Raises EdgebltError for a path that cannot be read, is a device, or holds more than LARGEST_TEXT bytes.
    """
    name = f"{what} {path}".lstrip()
    try:
        descriptor = os.open(path, _FLAGS)
        try:
            return _read_open(descriptor, name)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise EdgebltError(f"{name} cannot be read ({error.strerror}); give a text file") from None
    except EdgebltError:
        raise
    except ValueError as error:  # no path at all
        raise EdgebltError(f"{ascii(name)[:200]} cannot be read ({error}); give a text file") from None


def read_utf8(path: str | Path) -> str:
    """The text of a file. Raises EdgebltError as `read_text` does, and where the bytes are not UTF-8."""
    try:
        return read_text(path).decode()
    except UnicodeDecodeError:
        raise EdgebltError(f"{path} is not UTF-8; give a text file") from None


def read_stream(stream: BinaryIO, name: str, beginning: bytes = b"") -> bytes:
    """`beginning` followed by the rest of the stream. Raises EdgebltError beyond LARGEST_TEXT bytes in all."""
    data = bytearray(beginning)
    while piece := stream.read(min(_PIECE, LARGEST_TEXT + 1 - len(data))):
        data += piece
        if len(data) > LARGEST_TEXT:
            raise EdgebltError(f"{name} has more than {LARGEST_TEXT >> 20} MB; give a shorter text")
    return bytes(data)


def _read_open(descriptor: int, name: str) -> bytes:
    mode, beginning = os.fstat(descriptor).st_mode, b""
    if stat.S_ISFIFO(mode):
        try:
            beginning = os.read(descriptor, _PIECE)
            if not beginning:
                raise EdgebltError(f"{name} is a pipe that nothing comes from; give a text file")
        except BlockingIOError:  # its writer has yet to write
            pass
        system_calls.set_blocking(descriptor, True)
    elif not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a pipe"
        raise EdgebltError(f"{name} is {kind}; give a text file")
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        return read_stream(file, name, beginning)
