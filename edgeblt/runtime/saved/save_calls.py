"""Calls of a session for its state as a whole: save it, copy it, start from a copy."""

from pathlib import Path

from edgeblt.arguments import as_path
from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.errors import EdgebltError
from edgeblt.runtime.opened_graphs import OpenedGraphs
from edgeblt.runtime.patch_reader import PatchReader
from edgeblt.runtime.run_errors import EnoughMemory
from edgeblt.runtime.saved.saved_state import TextState, restore_state, save_state
from edgeblt.runtime.saved.session_file import Owner
from edgeblt.runtime.state.sequence import SequenceState
from edgeblt.runtime.state.snapshot import StateSnapshot
from edgeblt.runtime.turn import Turn


class SaveCalls:
    """Calls of a session for its state as a whole."""

    config: ByteModelConfig
    state: SequenceState
    _graphs: OpenedGraphs
    _threshold: float | None
    _patch_reader: PatchReader
    _turn: Turn
    _saved_text: TextState | None = None
    _turns_of_text = 0  # turns begun when the saved text was the session's

    def _settle(self) -> None:
        raise NotImplementedError

    def _make_copyable(self) -> None:
        """Bring the state to its position: it may have read further, or less."""
        self._patch_reader.forget_ahead()

    def save(self, path: str | Path) -> None:
        """Save this session to a file, from which `Model.restore` makes one that goes on as this one would.

        path: the file. A saved session that is there is replaced once the new one is complete, no other file is.

        Raises EdgebltError where it cannot be written, and where the model has computed values that are not finite.
        """
        path, text = as_path("path", path), self.saved_text
        with EnoughMemory("to save this session"):
            save_state(path, self.snapshot(), text, self._owner)

    def note_text(self, text: TextState) -> None:
        """Remember until the session is used again that its newest ids are a generated text, which may go on.

        text: their number, and what their random numbers were made from.
        """
        self._saved_text, self._turns_of_text = text, self._turn.count

    def restore(self, path: Path) -> None:
        """Become the session that was saved to a file; for a new session only.

        path: the file, as `Model.restore` takes it.

        Raises EdgebltError as `Model.restore`.
        """
        with EnoughMemory("to restore a session"):
            snapshot, self._saved_text = restore_state(path, self.state, self.config.vocab_size, self._owner)
            self.state.load(snapshot)

    @property
    def saved_text(self) -> TextState | None:
        """The generated text that ends the session's, and that `Model.stream` goes on with; None once the session was
        used otherwise."""
        return self._saved_text if self._turn.count == self._turns_of_text else None

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot:
        """A copy of the state, from which any number of new sessions of the model start.

        earlier: a copy after fewer ids of the same text, with which this one shares memory.
        """
        text = self.saved_text
        with self._turn:
            self._settle()
            self._make_copyable()
            copy = self.state.snapshot(earlier)
        if text:  # the session was looked at, not used
            self._turns_of_text = self._turn.count
        return copy

    def start_from(self, snapshot: StateSnapshot) -> None:
        """Become what a snapshot is a copy of; for a new session only.

        snapshot: of any session of the same model; it does not change.

        Raises EdgebltError where this session was used.
        """
        if self._turn.count:
            raise EdgebltError("this session was used already; start from a copy with a new one")
        self.state.load(snapshot)

    @property
    def _owner(self) -> Owner:
        patching, threshold = self.config.patching, self._threshold
        if threshold is None and patching.rule.needs_entropies:
            threshold = patching.threshold
        return Owner(self._graphs.bundle_id, threshold, self._graphs.provider_name)
