"""Calls of a model for sessions that start from a saved or a kept state."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeblt.arguments import as_path
from edgeblt.runtime.saved.prefix_cache import PrefixCache, PromptReader
from edgeblt.runtime.session import Session


class RestoreCalls:
    """Calls of a model for sessions that do not start empty."""

    prefix_cache: PrefixCache
    threshold: float | None

    if TYPE_CHECKING:

        def session(self) -> Session: ...

        @property
        def is_exact(self) -> bool: ...

    def restore(self, path: str | Path) -> Session:
        """Make the session that `Session.save` wrote to a file, as if it had never stopped.

        path: the file. It may come from anybody: all of it is checked.

        Raises EdgebltError for a damaged file, for one saved with another bundle, patching threshold or provider, and
        as `session` does.
        """
        session = self.session()
        session.restore(as_path("path", path))
        return session

    def _begin_text(self, ids: NDArray[np.int64]) -> PromptReader:
        """A reader of a new text's ids, on a session that has read what a kept state spares it."""
        return self.prefix_cache.begin(ids, self.session, self.threshold, lambda: self.is_exact)
