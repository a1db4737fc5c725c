"""Many prompts from a file of JSON lines, answered line by line into another, which a later run goes on with."""

import base64
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeblt.arguments import as_bytes
from edgeblt.batching.text import BatchEnd
from edgeblt.bundle import system_calls
from edgeblt.bundle.text_files import read_text
from edgeblt.decoding.output import TextEnd
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.decoding.settings_json import settings_from_json
from edgeblt.errors import EdgebltError, shown
from edgeblt.model import Model
from edgeblt.progress import progress

LEAST_TOGETHER = 3  # prompts answered in common steps; two on a small model are as fast one by one, with all drafters
_FLAGS = os.O_RDWR | os.O_CREAT | system_calls.NOT_BLOCKING | system_calls.NOT_INHERITED
_FIELDS = ("prompt", "id", "settings")


@dataclass(frozen=True)
class PromptLine:
    """One prompt of a file."""

    prompt: bytes
    id: Any  # anything that JSON holds; comes back with the answer
    settings: GenerationSettings

    def key(self, model: Model) -> str:
        """Hash of all that decides the answer."""
        said = repr((model.bundle.id, model.threshold, replace(self.settings, draft="none"), self.prompt))
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def read_prompt_lines(path: Path, base: GenerationSettings) -> list[PromptLine]:
    """Prompts of a file of JSON lines: `prompt`, and optionally `id` and `settings`, which replace those of `base`.

    Raises EdgebltError that names the file and the line.
    """
    lines = [line for line in read_text(path).split(b"\n") if line.strip()]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_prompt_line(line, base))
        except EdgebltError as error:
            raise EdgebltError(f"{path}, prompt {number}: {error}") from None
    return found


def _prompt_line(line: bytes, base: GenerationSettings) -> PromptLine:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        raise EdgebltError(f"{shown(line)} is no JSON; write one JSON object to a line") from None
    if not isinstance(document, dict) or "prompt" not in document or not document.keys() <= set(_FIELDS):
        raise EdgebltError(f"the line is {shown(document)}; give an object with prompt, and maybe id and settings")
    given = document.get("settings")
    settings = base if given is None else settings_from_json(given, base)
    return PromptLine(as_bytes("prompt", document["prompt"]), document.get("id"), settings)


def answer_prompts(model: Model, prompts: list[PromptLine], out: Path) -> None:
    """Writes a line for each prompt to `out`, in their order; lines already there, of a run that was cut short, stay.

    Raises EdgebltError where `out` cannot be written or holds answers to other prompts.
    """
    keys = [prompt.key(model) for prompt in prompts]
    with _opened(out) as file, progress("answering", len(prompts), "prompts") as advance:
        done = _completed_lines(file, out, keys)
        advance(done)
        left = prompts[done:]
        answers = _together(model, left) if len(left) >= LEAST_TOGETHER else _one_by_one(model, left)
        for number, (prompt, key) in enumerate(zip(left, keys[done:], strict=True), done + 1):
            try:
                text, end = next(answers)
            except EdgebltError as error:
                raise EdgebltError(f"prompt {number}: {error}") from None
            file.write(_answer(prompt, text, end, key))
            file.flush()
            os.fsync(file.fileno())
            advance(1)


def _one_by_one(model: Model, prompts: list[PromptLine]) -> Iterator[tuple[bytes, TextEnd | BatchEnd]]:
    """The text that follows each prompt, and how it ended."""
    for prompt in prompts:
        stream = model.stream(prompt.prompt, settings=prompt.settings)
        text = b"".join(stream)
        assert stream.end
        yield text, stream.end


def _together(model: Model, prompts: list[PromptLine]) -> Iterator[tuple[bytes, TextEnd | BatchEnd]]:
    """The same, several at once, in the same order."""
    with model.engine() as engine:
        if not engine.is_batched:
            yield from _one_by_one(model, prompts)
            return
        for answer in [engine.submit(prompt.prompt, prompt.settings)[0] for prompt in prompts]:
            text = answer.read()
            assert answer.end
            yield text, answer.end


def _answer(prompt: PromptLine, text: bytes, end: TextEnd | BatchEnd, key: str) -> bytes:
    answer: dict[str, Any] = {} if prompt.id is None else {"id": prompt.id}
    answer["text"] = text.decode(errors="replace")
    if answer["text"].encode() != text:
        answer["base64"] = base64.b64encode(text).decode()
    answer["end"] = end.reason
    if end.stop is not None:
        answer["stop"] = end.stop.decode(errors="replace")
    return json.dumps(answer | {"key": key}).encode() + b"\n"


def _opened(out: Path) -> Any:
    try:
        descriptor = os.open(out, _FLAGS, 0o666)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise EdgebltError(
            f"{shown(str(out))} cannot be written ({reason}); give another file for the answers"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise EdgebltError(f"{shown(str(out))} is no regular file; give one, which a later run can go on with")
    return open(descriptor, "r+b")


def _completed_lines(file: Any, out: Path, keys: list[str]) -> int:
    """Number of complete lines, after which the file is cut. Raises EdgebltError where one answers another prompt."""
    whole, _, _ = file.read().rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    if len(lines) > len(keys):
        raise EdgebltError(f"{out} has {len(lines)} answers to {len(keys)} prompts; give another file")
    for number, (key, found) in enumerate(zip(keys, _keys(lines), strict=False), 1):
        if key != found:
            raise EdgebltError(
                f"{out}, line {number}, answers another prompt, or with other settings or another bundle; give another"
                " file, or remove it"
            )
    file.seek(len(whole) + bool(lines))
    file.truncate()
    return len(lines)


def _keys(lines: list[bytes]) -> Iterator[object]:
    for line in lines:
        try:
            document = json.loads(line)
        except ValueError:
            document = None
        yield document.get("key") if isinstance(document, dict) else None
