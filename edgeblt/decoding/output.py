"""Bytes of a text as they become certain: held back where they may belong to a stop sequence or to half a character."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeblt.decoding.utf8 import BOUNDARY, NEXT

EndReason = Literal["stop", "eos", "length", "constraint"]


@dataclass(frozen=True)
class TextEnd:
    """Reason for which a text ended.

    reason: "stop", a stop sequence was generated; "eos", the model ended the text; "length", `max_new_bytes` were
        generated; "constraint", the constraint is complete and allows no more.
    stop: the stop sequence; None for other reasons.
    """

    reason: EndReason
    stop: bytes | None = None


class StopMatcher:
    """Finds the stop sequence that is complete first (the longest, if several end together), byte by byte.

    An Aho-Corasick automaton; its state's depth is the number of newest bytes that may still become a stop sequence.
    """

    def __init__(self, stops: Sequence[bytes]) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._depth, self._failure, self._ended = [0], [0], [b""]
        for stop in stops:
            state = 0
            for byte in stop:
                state = self._next[state].get(byte) or self._add(state, byte)
            self._ended[state] = stop
        self._link()
        self._state = 0

    def _add(self, parent: int, byte: int) -> int:
        state = len(self._next)
        self._next[parent][byte] = state
        self._next.append({})
        self._depth.append(self._depth[parent] + 1)
        self._failure.append(0)
        self._ended.append(b"")
        return state

    def _link(self) -> None:
        """Failure links, breadth first: from each state to that of its longest proper suffix."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            failure = self._failure[state]
            self._ended[state] = self._ended[state] or self._ended[failure]
            for byte, child in self._next[state].items():
                waiting.append(child)
                self._failure[child] = self._follow(failure, byte)

    def _follow(self, state: int, byte: int) -> int:
        while state and byte not in self._next[state]:
            state = self._failure[state]
        return self._next[state].get(byte, 0)

    def take(self, byte: int) -> bytes | None:
        """The stop sequence that `byte` completes, or None."""
        self._state = self._follow(self._state, byte)
        return self._ended[self._state] or None

    @property
    def held(self) -> int:
        """Number of newest bytes that may still become a stop sequence."""
        return self._depth[self._state]


class Output:
    """The text of one generation: takes bytes as they are generated, and gives them as they become certain."""

    def __init__(self, stops: Sequence[bytes] = (), utf8_state: int | None = None) -> None:
        """`utf8_state`, the state after the prompt, gives whole characters only; None gives bytes one by one."""
        self._matcher = StopMatcher(stops) if stops else None
        self._utf8_state = utf8_state
        self._held, self._character = bytearray(), bytearray()
        self.stop: bytes | None = None
        self.is_plain = self._matcher is None and utf8_state is None  # every byte is certain at once

    def take(self, byte: int) -> list[bytes]:
        """The pieces that are certain after `byte`; `stop` is set where it completes a stop sequence."""
        if self._matcher is None:
            return self._pieces(bytes([byte]))
        self._held.append(byte)
        self.stop = self._matcher.take(byte)
        if self.stop:
            del self._held[len(self._held) - len(self.stop) :]
        certain = len(self._held) if self.stop else len(self._held) - self._matcher.held
        released = bytes(self._held[:certain])
        del self._held[:certain]
        return self._pieces(released)

    def finish(self) -> list[bytes]:
        """The pieces held back, at the end of the text; half a character is none."""
        released = bytes(self._held)
        self._held.clear()
        return self._pieces(released)

    def _pieces(self, released: bytes) -> list[bytes]:
        if self._utf8_state is None:
            return [released[place : place + 1] for place in range(len(released))]
        found = []
        for byte in released:
            self._character.append(byte)
            self._utf8_state = max(NEXT[self._utf8_state][byte], BOUNDARY)
            if self._utf8_state == BOUNDARY:
                found.append(bytes(self._character))
                self._character.clear()
        return found
