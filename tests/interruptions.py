"""KeyboardInterrupt at any line of a session."""

import sys
from types import FrameType
from typing import Any


class InterruptAt:
    """Raises KeyboardInterrupt at the n-th line that the session, its stages and its memory execute."""

    FILES = tuple(f"{name}.py" for name in ("session", "stage", "sequence", "state", "cache", "histories"))

    def __init__(self, line: int) -> None:
        self.left = line

    def __enter__(self) -> "InterruptAt":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *details: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        inside = "edgeblt" in frame.f_code.co_filename and frame.f_code.co_filename.endswith(self.FILES)
        return self._count if inside else None

    def _count(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self._count
