"""Texts of a batch start from states that the model's prefix cache keeps of earlier ones."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeblt.batching.text import BatchText
from edgeblt.errors import EdgebltError
from edgeblt.runtime.batch.stepper import BatchSequence, Stepper
from edgeblt.runtime.saved.prefix_cache import LEAST_IDS, PrefixCache, kept_positions
from edgeblt.runtime.state.snapshot import StateSnapshot


@dataclass(frozen=True)
class Prefixes:
    """A model's prefix cache for one patching threshold.

    key, exact: as `PrefixCache.begin` takes them.
    """

    cache: PrefixCache
    key: object
    exact: Callable[[], bool]

    def open(self, stepper: Stepper, text: BatchText) -> bool | None:
        """Give a text a sequence, which has read what a kept state spares it; None where there is no room.

        Returns whether a kept state was found; the text knows where the next are to be kept.
        """
        ids = np.array(text.unread, np.int64)
        text.sequence = stepper.open(len(ids))
        if text.sequence is None:  # a text that waits is not looked up in every step
            return None
        if not self.cache.limit:
            return False
        start = common = 0
        is_exact = len(ids) >= LEAST_IDS and self.exact()
        if not text.is_recording:
            found, start, common = self.cache.find(ids, self.key, is_exact)
            if found and not self._start_from(stepper, text, found, start):
                start = 0
            self.cache.count(len(ids), start)
        del text.unread[:start]
        text.marks = kept_positions(len(ids), start, common, is_exact)
        text.keep = self._keep_end
        return start > 0

    def _start_from(self, stepper: Stepper, text: BatchText, found: StateSnapshot, start: int) -> bool:
        """Give a text a sequence in a kept state, rolled back to `start`; False where there is no room for it."""
        assert text.sequence
        text.sequence.close()
        try:
            text.sequence = stepper.open(len(text.unread), found)
            if text.sequence:
                text.sequence.rollback(start)
                return True
        except (EdgebltError, MemoryError):  # all is read instead
            self.cache.clear()
            if text.sequence:
                text.sequence.close()
        text.sequence = stepper.open(len(text.unread))
        assert text.sequence, "there was room for it before"
        return False

    def keep(self, text: BatchText) -> None:
        """Keep the state of a text that has come to the next position that was marked for it."""
        while text.marks and text.sequence and text.marks[0] <= text.sequence.position:
            if text.marks.pop(0) == text.sequence.position:
                self.cache.keep(text.sequence, self.key, self.exact())

    def _keep_end(self, sequence: BatchSequence) -> None:
        if sequence.position >= LEAST_IDS:
            self.cache.keep(sequence, self.key, self.exact(), LEAST_IDS)
