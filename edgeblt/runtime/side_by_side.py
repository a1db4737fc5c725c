"""Stages of a session side by side: each goes from piece to piece of a text, the next one some pieces behind it."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Condition, Thread, get_ident

from edgeblt.runtime.buffers import EncodedPiece
from edgeblt.runtime.machine.memory import has_room
from edgeblt.runtime.patch_reader import Patching
from edgeblt.runtime.stage import StageRunner
from edgeblt.runtime.state.device_array import Array

AT_ONCE = 2  # stages at work at the same time, each on as many threads
THREAD_ROOM = 128 << 20  # bytes that glibc may reserve for a thread; without them it would end the process
AHEAD = 32  # pieces that the patcher may be ahead of the decoder: what lies between them takes memory
GROUP = 2  # pieces whose patches the global stage computes in one run
GAIN_OF_ALL = 1.6  # how much faster a stage is on all threads than on a share
OUTWEIGHING = 1.2  # times the others' seconds that make the global stage take all threads


def can_begin() -> bool:
    """Whether there is room for the threads within the limits of the process."""
    return has_room(AT_ONCE * THREAD_ROOM)


@dataclass
class Line:
    """`count` steps, each of which `run` does, given its number, once `is_ready` says that it may begin.

    While `takes_all` is true, no step of another line runs beside one of these.
    """

    count: int
    run: Callable[[int], None]
    is_ready: Callable[[int], bool]
    done: int = 0
    is_running: bool = False
    takes_all: bool = False


class SideBySide:
    """Threads that do the steps of some lines; the first line that has a step to do comes first.

    Whether a step is ready may depend on the steps that other lines have done, on nothing else. The thread that waits
    takes no part, so Ctrl-C reaches it at once and never in the midst of a step.
    """

    def __init__(self, stages: Sequence[StageRunner], lines: Sequence[Line]) -> None:
        self._stages, self._lines, self._changed = stages, lines, Condition()
        self._is_stopped = False
        self._error: BaseException | None = None
        self._threads = [Thread(target=self._work, name="edgeblt stages") for _ in range(AT_ONCE)]
        self._begun, self._ended = list[int](), list[int]()  # threads
        self._end_signs = SimpleQueue[None]()

    def run(self) -> None:
        """Do all steps. Raises what the first step that failed raised, once no other is running."""
        try:
            for stage in self._stages:
                stage.shares_threads = True
            for thread in self._threads:
                thread.start()
            self._join()
        finally:
            self.stop()
        if self._error:
            raise self._error

    def stop(self) -> None:
        """Begin no further step, and wait for those that are running."""
        self._is_stopped = True
        self._join()
        self._lines = ()  # they hold the results between stages
        for stage in self._stages:
            stage.shares_threads = None

    def _join(self) -> None:
        """Wait for the threads that have begun; one that begins later finds that it is stopped.

        `Thread.join` alone would not do: interrupted, it takes the thread for ended from then on (Python 3.11).
        """
        while len(self._ended) < len(self._begun):
            with suppress(Empty):  # an interrupted wait may have lost a sign
                self._end_signs.get(timeout=1)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _work(self) -> None:
        self._begun.append(get_ident())
        while line := self._begin():
            try:
                line.run(line.done)
            except BaseException as error:  # raised by `run`
                self._error, self._is_stopped = self._error or error, True
            with self._changed:
                line.done, line.is_running = line.done + 1, False
                self._changed.notify_all()
        self._ended.append(get_ident())
        self._end_signs.put(None)

    def _begin(self) -> Line | None:
        """The line whose next step this thread is to do, as soon as there is one; None where none is left."""
        with self._changed:
            while not self._is_stopped and any(line.done < line.count for line in self._lines):
                if line := self._next():
                    line.is_running = True
                    return line
                self._changed.wait()
            return None

    def _next(self) -> Line | None:
        running = [line for line in self._lines if line.is_running]
        if any(line.takes_all for line in running):
            return None
        for line in self._lines:
            if not line.is_running and line.done < line.count and line.is_ready(line.done):
                return None if line.takes_all and running else line
        return None


def stages_side_by_side(
    stages: Sequence[StageRunner],
    count: int,
    patch: Callable[[int], Patching],
    encode: Callable[[int, Patching], EncodedPiece],
    run_global: Callable[[list[EncodedPiece]], Array],
    decode: Callable[[EncodedPiece, Array, int], object],
) -> SideBySide:
    """Work that takes `count` pieces through these stages, given what each does with a piece, by its number.

    The latents of a group of pieces are computed together; the decoder also gets the number of the group's first patch.
    Each stage has its share of the threads, but the global one has all, and none runs beside it, once it takes longer
    than the others together: its attention reads back to the beginning of the text.
    """
    patcher, encoder, middle, decoder = stages
    patched, encoded, latents = dict[int, Patching](), dict[int, EncodedPiece](), dict[int, Array]()

    def group(step: int) -> range:
        return range(GROUP * step, min(GROUP * step + GROUP, count))

    def outweighs() -> bool:
        others = patcher.last_seconds + encoder.last_seconds + decoder.last_seconds
        return middle.last_seconds > OUTWEIGHING * GROUP * others

    def run_group(step: int) -> None:
        middle.shares_threads = not groups.takes_all
        latents[step] = run_global([encoded[piece] for piece in group(step)])
        if groups.takes_all:
            middle.last_seconds *= GAIN_OF_ALL  # about what it would take on a share
        groups.takes_all = outweighs()

    def patch_piece(step: int) -> None:
        patched[step] = patch(step)

    def encode_piece(step: int) -> None:
        encoded[step] = encode(step, patched.pop(step))

    def decode_piece(step: int) -> None:
        own = group(step // GROUP)
        decode(encoded[step], latents[step // GROUP], encoded[own.start].first_patch)
        if step + 1 == own.stop:  # nobody needs them any more
            del latents[step // GROUP]
            for piece in own:
                del encoded[piece]

    patches = Line(count, patch_piece, lambda step: step < decoded.done + AHEAD)
    encodings = Line(count, encode_piece, lambda step: step < patches.done)
    groups = Line(-(-count // GROUP), run_group, lambda step: group(step).stop <= encodings.done, takes_all=outweighs())
    decoded = Line(count, decode_piece, lambda step: step // GROUP < groups.done)
    # The last stage first: what has begun is brought to its end, and few pieces are between stages.
    return SideBySide(stages, (decoded, groups, encodings, patches))
