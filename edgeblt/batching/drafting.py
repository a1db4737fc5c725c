"""Drafts of texts in a batch: ids that a step verifies beside those that the texts have chosen.

A drafted row costs a step less than the row of another text, whose keys and values must be read too; where the text
repeats itself its drafts are nearly free. As for a text alone (`decoding/speculation.py`) drafts change only the time
that the texts take, and measured times say whether they are worth it: those of steps with as many texts. Only n-grams
draft in a batch, as they take no run of the model.
"""

import time
from collections.abc import Callable, Sequence

from edgeblt.batching.text import BatchText
from edgeblt.decoding.draft_costs import PassCosts
from edgeblt.decoding.drafters import NgramDrafter
from edgeblt.decoding.speculation import NGRAM, DraftStatistics

MOST_DRAFTED_ROWS = 128  # most drafted ids in a step


class Drafting:
    """Drafts for the texts of one batch.

    clock: gives the seconds that steps are measured in.
    """

    def __init__(
        self,
        statistics: Callable[[str], DraftStatistics],
        costs: dict[int, PassCosts],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start with what the model's earlier batches have measured.

        statistics: those of a choice of DRAFTS on the model.
        costs: of a text's share in a step, by the binary digits of the number of texts in it; later steps are added.
        """
        self.clock = clock
        self._statistics, self._costs = statistics, costs

    def check(self, draft: str) -> None:
        """Raises EdgebltError for drafts that the model cannot make."""
        self._statistics(draft)

    def draft(self, texts: Sequence[BatchText]) -> int:
        """Give texts that have chosen an id their drafts for the next step, where these save time.

        texts: all that generate in the step. Returns the number of ids drafted.
        """
        able = [text for text in texts if text.most_drafted > 0 and self._has_drafter(text)]
        break_even = self._costs_of(len(texts)).break_even(NGRAM) if able else None
        if break_even is None:
            return 0
        gain, most = 0.0, max(MOST_DRAFTED_ROWS // len(able), 1)
        for text in able:
            assert text.drafter
            draft = text.drafter.following(break_even.per_id)
            text.drafted = text.permitted(draft.ids[: min(most, text.most_drafted)])
            if text.drafted:
                gain += draft.expected * len(text.drafted) / len(draft.ids) - break_even.per_id * len(text.drafted)
        if gain < break_even.per_draft * len(texts):
            self.withdraw(texts)
        return sum(len(text.drafted) for text in texts)

    def withdraw(self, texts: Sequence[BatchText]) -> None:
        """Let the next step be one without drafts."""
        for text in texts:
            text.drafted = []

    def add(self, texts: int, drafted: int, accepted: int, seconds: float) -> None:
        """Learn from a step in which `texts` generated, and which did nothing else."""
        name, each = NGRAM if drafted else None, 1 / texts
        self._costs_of(texts).add(name, drafted * each, 1 + accepted * each, seconds * each)

    def _costs_of(self, texts: int) -> PassCosts:
        return self._costs.setdefault(texts.bit_length(), PassCosts())

    def _has_drafter(self, text: BatchText) -> bool:
        """Whether something drafts for a text; made when it is first asked for."""
        if text.drafter is None:
            rates = self._statistics(text.draft).rates.get(NGRAM)
            if rates is None:
                return False
            assert text.sequence
            text.drafter = NgramDrafter(rates)
            text.drafter.extend([*text.sequence.ids.tolist(), *text.unread])
        return True
