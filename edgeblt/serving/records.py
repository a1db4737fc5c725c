"""Facts of an answered request, for the log and the metrics."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgeblt.errors import shown
from edgeblt.printable import printable

LOG = logging.getLogger("edgeblt.serving")
_LONGEST_PATH = 80


@dataclass
class RequestRecord:
    """One request.

    endpoint: the route; "other" where there is none.
    prompts: prompts to be logged; None where they are not.
    first_s: seconds until the first bytes of an answer.
    """

    client: str
    method: str
    path: str
    endpoint: str = "other"
    status: int = 0
    model: str | None = None
    prompt_bytes: int | None = None
    generated_bytes: int | None = None
    first_s: float | None = None
    reasons: list[str] = field(default_factory=list)
    prompts: tuple[bytes, ...] | None = None
    started: float = field(default_factory=time.monotonic)

    def note_texts(self, model: str, texts: Sequence[bytes], are_logged: bool) -> None:
        """Note what a request brings to a model."""
        self.model, self.prompt_bytes = model, sum(map(len, texts))
        self.prompts = tuple(texts) if are_logged else None

    @property
    def seconds(self) -> float:
        """Time since the request came."""
        return time.monotonic() - self.started

    def log(self) -> None:
        """Write one line, without prompts unless they are to be logged; none where good health was asked for."""
        if self.endpoint == "/health" and self.status == 200:
            return
        parts = [self.client, self.method, printable(self.path[:_LONGEST_PATH]), str(self.status)]
        parts.append(f"{self.seconds:.3f}s")
        if self.model is not None:
            parts.append(f"model={self.model}")
        if self.prompt_bytes is not None:
            parts.append(f"read={self.prompt_bytes}")
        if self.generated_bytes is not None:
            parts.append(f"generated={self.generated_bytes}")
        if self.first_s is not None:
            parts.append(f"first={self.first_s:.3f}s")
        if self.reasons:
            parts.append(f"end={','.join(self.reasons)}")
        if self.prompts is not None:
            parts.append(f"prompts={shown(list(self.prompts))}")
        LOG.info(" ".join(parts))
