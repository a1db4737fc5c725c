"""Every option of every command with values nobody means: a result, or one sentence; never a traceback, never endless.

The options come from the commands' own signatures, so that a new one is tried as well.
"""

import itertools
import os
import shutil
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.models import ArgumentInfo, OptionInfo

from conftest import Exported
from edgeblt import cli
from edgeblt.export.sweep.measuring import Measured
from edgeblt.runtime import opening
from sampled import mostly_slow
from test_commands import run_command

NUMBERS = ("0", "-1", str(2**63), "1" + "0" * 23, "9" * 5000, "1e308", "1e400", "5e-324", "nan", "-inf", "٣", "")
WORDS = (*NUMBERS, " ", ",", "a=b,c", "\x1b[31m", "\udcff", "../..", "x" * 5000)
PATHS = ("", ".", "/", "/dev/zero", "/dev/null", "PIPE", "\udcff", "no/such", "x" * 5000, "\x1b[31m")


@dataclass(frozen=True)
class Command:
    """What a command takes at least, and what keeps it short."""

    arguments: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


COMMANDS = {
    "demo": Command(),
    "quantize": Command({"checkpoint": "CHECKPOINT", "out": "OUT"}, {"--recipe": "int8"}),
    "export": Command({"checkpoint": "CHECKPOINT", "bundle": "OUT"}),
    "validate": Command({"bundles": "BUNDLE"}, {"--reference-logits": "LOGITS"}),
    "prepare": Command({"bundle": "BUNDLE"}),
    "bench": Command({"bundle": "BUNDLE"}, {"--new-bytes": "1", "--repeats": "1", "--prompt-bytes": "1"},
                     ("--no-bandwidth",)),
    "tune": Command({"bundle": "BUNDLE"}, {"--max-bpb-increase": "1", "--text": "TEXT"}),
    "compare": Command({"bundles": "BUNDLE"}, {"--new-bytes": "1", "--repeats": "1", "--prompt-bytes": "1"},
                       ("--no-noise",)),
    "sweep": Command({"checkpoint": "CHECKPOINT", "directory": "OUT"}, {"--recipe": "fp32", "--text": "TEXT"}),
    "report": Command({"results": "RESULT"}, {"--out": "PAGE"}),
    "score": Command({"bundle": "BUNDLE", "files": "TEXT"}, {"--out": "OUT", "--processes": "1"}),
    "generate": Command({"bundle": "BUNDLE", "prompt": "x"}, {"--max-new-bytes": "1"}),
    "serve": Command({"bundles": "BUNDLE"}, {"--port": "0"}),
    "inspect": Command({"path": "BUNDLE"}),
    "doctor": Command(),
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    command: str
    name: str  # as on the command line: --draft, or that of an argument
    values: tuple[str, ...]


def parameters() -> Iterator[Parameter]:
    for info in cli.app.registered_commands:
        assert info.callback
        name = info.name or info.callback.__name__
        for parameter, hint in typing.get_type_hints(info.callback, include_extras=True).items():
            kinds, described = kinds_of(hint), next(iter(getattr(hint, "__metadata__", ())), None)
            if parameter == "return" or bool in kinds:
                continue
            values = PATHS if Path in kinds else WORDS if str in kinds else NUMBERS
            if isinstance(described, ArgumentInfo):
                yield Parameter(name, parameter, values)
            else:
                assert isinstance(described, OptionInfo)
                given = [option for option in described.param_decls or () if option.startswith("--")]
                yield Parameter(name, given[0] if given else f"--{parameter.replace('_', '-')}", values)


def kinds_of(hint: Any) -> set[Any]:
    """The types in a hint: of `Annotated[list[Path] | None, ..]` Path and None's."""
    if typing.get_origin(hint) in (typing.Annotated, list, tuple, types.UnionType, typing.Union):
        return set().union(*map(kinds_of, typing.get_args(hint)))
    return {hint}


PARAMETERS = list(parameters())
PARTS = 3  # of a parameter's values, of which the suite tries one, by turns


def test_all_commands_are_tried() -> None:
    tried = {parameter.command for parameter in PARAMETERS}
    assert sorted(tried) == sorted(COMMANDS) and len(PARAMETERS) > 50
    assert {"--threads", "--draft", "bundle"} <= {parameter.name for parameter in PARAMETERS if parameter.values}


@pytest.fixture(scope="module")
def places(exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, tiny = tmp_path_factory.mktemp("places"), exported(10)
    (folder / "text").write_bytes(b"a text, and a text " * 27)
    (folder / "nothing.json").write_text("[]")
    return {"CHECKPOINT": str(tiny.checkpoint), "BUNDLE": str(tiny.bundle), "TEXT": str(folder / "text"),
            "RESULT": str(folder / "nothing.json"), "LOGITS": str(folder / "text")}  # fmt: skip


@pytest.fixture(scope="module")
def open_once() -> Callable[..., object]:
    """Opens each stage of the one bundle once, whatever it is opened with."""
    opened: dict[str, object] = {}
    open_stage = opening.open_stage

    def open_once(bundle: Any, prepared: Any, name: Any, *others: Any) -> object:
        if name not in opened:
            opened[name] = open_stage(bundle, prepared, name, *others)
        return opened[name]

    return open_once


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, open_once: Callable[..., object]) -> None:
    """What is allowed and would take long ends soon."""
    monkeypatch.setattr("edgeblt.runtime.opening.open_stage", open_once)
    monkeypatch.setattr("edgeblt.decoding.text_stream.generate_ids", lambda *_, **__: itertools.repeat(70, 3))
    monkeypatch.setattr("edgeblt.export.demo.run_demo", lambda *_: exit(0))
    monkeypatch.setattr("edgeblt.corpus.workers.has_ray", lambda: False)
    monkeypatch.setattr("edgeblt.measure.tuning.LENGTHS", (2.0,))
    monkeypatch.setattr("edgeblt.measure.tuning.BISECTIONS", 0)
    monkeypatch.setattr("edgeblt.export.sweep.measuring.Measuring.measure", lambda *_: Measured(9, 9.0, 9.0, 9.0, ""))
    monkeypatch.setattr("edgeblt.measure.tuning.with_speeds", lambda model, points, data: points)
    monkeypatch.setattr("edgeblt.prepare.prepare", lambda bundle: exit(0))
    monkeypatch.setattr("edgeblt.serving.server._served", served_to_nobody)


async def served_to_nobody(*_: object) -> None:
    """A server that ends as soon as it listens."""


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("parameter", "part"),
    mostly_slow(
        itertools.product(PARAMETERS, range(PARTS)),
        keep=[(parameter, number % PARTS) for number, parameter in enumerate(PARAMETERS)],
    ),
    ids=lambda value: f"{value.command} {value.name}" if isinstance(value, Parameter) else str(value),
)
def test_values_nobody_means(
    parameter: Parameter,
    part: int,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command, folder = COMMANDS[parameter.command], tmp_path / "here"
    for value in parameter.values[part::PARTS]:
        folder.mkdir()
        monkeypatch.chdir(folder)
        os.mkfifo("PIPE")
        arguments = command.arguments | ({parameter.name: value} if parameter.name in command.arguments else {})
        options = command.options | ({parameter.name: value} if parameter.name.startswith("--") else {})
        words = [*options.items(), *((flag,) for flag in command.flags), ("--",), *((a,) for a in arguments.values())]
        result = run_command(capfd, parameter.command, *(places.get(w, w) for word in words for w in word))
        assert result.code in (0, 1, 2), (value[:80], result)
        assert "Traceback" not in result.stderr
        if result.code == 2 and "Usage: " not in result.stderr:  # typer's own words, where a number is none
            said = [line for line in result.stderr.splitlines() if line.startswith("edgeblt: ")]
            assert len(said) == 1 and said[0].isprintable(), (value[:80], result.stderr)
        shutil.rmtree(folder)
