"""Exclusive use of a session by one thread at a time."""

from threading import get_ident
from types import TracebackType

from edgeblt.errors import EdgebltError
from edgeblt.runtime.run_errors import no_memory


class Turn:
    """Context that one thread at a time may enter; a MemoryError in it becomes an EdgebltError.

    `dict.setdefault` is atomic, so no lock is needed. A thread whose exit was interrupted can still enter again.
    """

    __slots__ = ("_owner", "count")

    def __init__(self) -> None:
        self.count = 0  # turns begun
        self._owner: dict[str, int] = {}

    def __enter__(self) -> None:
        thread = get_ident()
        if self._owner.setdefault("thread", thread) != thread:
            raise EdgebltError(
                "this session is in use by another thread; give each thread its own with model.session() or fork()"
            )
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner.clear()
        if (
            kind is not None
            and isinstance(error, MemoryError)
            and (sentence := no_memory(error, "to go on with this text"))
        ):
            raise sentence from None

    def check(self, count: int) -> None:
        """Raises EdgebltError unless `count` turns have begun."""
        if self.count != count:
            raise EdgebltError(
                "this session was used while a run of it, or its within_patch, was not at its end; finish one first, or"
                " use fork()"
            )
