"""One-sentence errors for the dozen unrelated types that onnxruntime raises while a graph is opened or runs."""

from traceback import clear_frames
from types import TracebackType

from edgeblt.errors import EdgebltError

_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Cannot allocate memory")
_LONGEST = 300


def no_memory(error: BaseException, what: str) -> EdgebltError | None:
    """EdgebltError for an error that means full memory, raised while doing `what`; None for other errors."""
    if isinstance(error, MemoryError):
        clear_frames(error.__traceback__)  # frees what they hold: the sentence takes some memory too
    elif not any(sign in str(error) for sign in _OUT_OF_MEMORY):
        return None
    return EdgebltError(
        f"there is not enough memory {what}; end other processes or raise this one's limit, or use a shorter text or a"
        " bundle with smaller weights"
    )


def run_error(error: Exception, stage: str) -> EdgebltError:
    """EdgebltError for an error that onnxruntime raised running a stage's graph."""
    reason = " ".join(str(error).split())[:_LONGEST]
    return no_memory(error, f"to run the stage {stage}") or EdgebltError(
        f"onnxruntime cannot run the stage {stage} ({reason}); see with --verify whether the bundle is damaged, or"
        " export it again"
    )


class EnoughMemory:
    """Context that turns a MemoryError, or an EdgebltError that quotes one, into an EdgebltError about `what`."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, MemoryError | EdgebltError) and (sentence := no_memory(error, self._what)):
            raise sentence from None
