"""A text that a person and a model write in turn, line by line, in the terminal."""

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace

from edgeblt.commands.reading import shown_reading
from edgeblt.commands.stopping import forget_signals
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.decoding.utf8 import utf8_pieces
from edgeblt.errors import EdgebltError
from edgeblt.ids import decode
from edgeblt.model import Model
from edgeblt.printable import printable
from edgeblt.runtime.session import Session
from edgeblt.scores import cut_into_patches

HELP = """What you type is appended to the text, and the model goes on with it.
  a line that ends with \\   goes on in the next line, after a newline
  an empty line            lets the model go on
  /undo                    takes back the last line and what followed it
  /patches                 shows the text cut into patches
  /text                    shows the whole text
  /save FILE, /load FILE   saves the session, goes on with a saved one
  /help, /quit             this help; the end (Ctrl-D, too)
  Ctrl-C                   stops the model; what it has written stays
A line that begins with // is text that begins with /."""


class Conversation:
    """One text and its session."""

    def __init__(self, model: Model, settings: GenerationSettings, session: Session | None = None) -> None:
        self._model, self._settings = model, settings
        self._session = session or model.session()
        self._turns: list[int] = []  # the session's position before each

    def text(self) -> bytes:
        return decode(self._session.ids)

    def go_on(self, typed: bytes) -> Iterator[str]:
        """Whole characters that the model writes after `typed`; the text has them when the iterator ends."""
        settings, self._turns = self._settings, [*self._turns, self._session.position]
        if settings.seed is not None:  # or every turn would have the same random numbers
            settings = replace(settings, seed=settings.seed + len(self._turns) - 1)
        with shown_reading(len(typed), self._session) as reading:
            stream = self._model.stream(typed, settings=settings, session=self._session, reading=reading)
            first = list(itertools.islice(stream, 1))  # all that was typed is read before the first byte
        try:
            yield from utf8_pieces(itertools.chain(first, stream))
        finally:
            stream.close()

    def undo(self) -> bool:
        """Take back the last turn; False if there is none."""
        if self._turns:
            self._session.rollback(self._turns.pop())
            return True
        return False

    def save(self, path: str) -> None:
        """Save the session to a file."""
        self._session.save(path)

    def load(self, path: str) -> None:
        """Go on with a saved session instead of this one."""
        self._session, self._turns = self._model.restore(path), []

    def patches(self) -> str:
        """The text with a bar between patches."""
        text = self.text()
        pieces = cut_into_patches(text, self._model.score(text).patch_starts)
        return "|".join(printable(piece.decode(errors="replace")) for piece in pieces)


def converse(model: Model, start: bytes, settings: GenerationSettings, session: Session | None = None) -> Conversation:
    """Reads lines until the end of stdin or /quit, and prints what the model makes of each.

    start: goes before the first line typed; if there is any, the model goes on with it at once.
    session: the text to go on with; None starts one.
    """
    conversation, is_terminal = Conversation(model, settings, session), sys.stdin.isatty()
    if is_terminal and importlib.util.find_spec("readline"):
        importlib.import_module("readline")  # gives input() line editing and a history
    if is_terminal:
        print("Type text for the model to go on with; /help says what else.", file=sys.stderr)
    prompt, first, goes_on = "> " if is_terminal else "", start, True
    while goes_on:
        try:
            if first:
                typed, first = first, b""
                _answer(conversation, typed)
            else:
                goes_on = _take_turn(conversation, prompt)
        except KeyboardInterrupt:  # in an answer, in a command or while a line was typed
            forget_signals()
            print()
    return conversation


def _take_turn(conversation: Conversation, prompt: str) -> bool:
    """Read a line and do what it says; False at the end of stdin and for /quit."""
    line = _line(prompt)
    if line is None or line.strip() == "/quit":
        return False
    if line.startswith("/") and not line.startswith("//"):
        try:
            _obey(conversation, line.strip())
        except EdgebltError as error:
            print(f"edgeblt: {printable(str(error))}", file=sys.stderr)
    else:
        text = line[1:] if line.startswith("//") else line
        _answer(conversation, text.encode(errors="surrogateescape"))
    return True


def _line(prompt: str) -> str | None:
    """A line, with those that its last backslash joins to it; None at the end."""
    whole = ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            if prompt:
                print()
            return whole or None
        if not line.endswith("\\"):
            return whole + line
        whole += line[:-1] + "\n"


def _answer(conversation: Conversation, typed: bytes) -> None:
    try:
        for piece in conversation.go_on(typed):
            print(piece, end="", flush=True)
    except EdgebltError as error:
        print(f"edgeblt: {printable(str(error))}", file=sys.stderr, end="")
    print(flush=True)


def _keep(conversation: Conversation, command: str, path: str) -> None:
    """Save or load a session."""
    if command == "/save":
        conversation.save(path)
        print("saved")
    else:
        conversation.load(path)
        print(conversation.text().decode(errors="replace"))


def _obey(conversation: Conversation, command: str) -> None:
    if command == "/undo":
        print("taken back" if conversation.undo() else "there is nothing to take back")
    elif command == "/patches":
        print(conversation.patches())
    elif command == "/text":
        print(conversation.text().decode(errors="replace"))
    elif command.startswith(("/save ", "/load ")):
        _keep(conversation, *command.split(maxsplit=1))
    elif command in ("/save", "/load"):
        print(f"{command} needs the name of a file")
    elif command == "/help":
        print(HELP)
    else:
        print(f"there is no {printable(command)}; /help says what there is")
