"""Directories that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeblt.errors import EdgebltError


@contextmanager
def whole_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yields an empty temporary directory beside `path` that becomes `path` when the block ends without an exception.

    With `replace` a directory already there is replaced then, and not before. Raises EdgebltError if `path` exists
    and `replace` is false, or cannot be written.
    """
    if os.path.lexists(path) and not (replace and os.path.isdir(path) and not os.path.islink(path)):
        raise EdgebltError(f"{path} exists already; remove it or choose another name")
    # Its name is known before it exists: there is no moment at which an interruption would leave it there.
    partial = path.parent / f".{path.name}.partial-{secrets.token_hex(8)}"
    replaced = partial.with_name(f"{partial.name}.replaced")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700)
        yield partial
        partial.chmod(0o777 & ~_umask())
        if replace and os.path.lexists(path):
            path.rename(replaced)
        partial.rename(path)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise EdgebltError(f"{path} cannot be written ({reason}); free some space or choose another place") from None
    finally:
        if os.path.lexists(replaced) and not os.path.lexists(path):  # interrupted between the two renames
            replaced.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
