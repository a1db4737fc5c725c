"""Hugging Face Optimum: its quantizer interface, and our commands in optimum-cli."""

import inspect
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from optimum.commands import optimum_cli
from optimum.quantization_base import OptimumQuantizer

import tiny_models
from edgeblt import cli
from edgeblt.bundle.manifest import open_bundle
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.installing import install_hint
from edgeblt.names import Name
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.optimum_cli import register_edgeblt
from edgeblt.quant.optimum_quantizer import BltQuantizer

EXPORT = ["export", "edgeblt"]
QUANTIZE = ["edgeblt", "quantize"]


@dataclass(frozen=True)
class Result:
    code: int | str | None
    stdout: str
    stderr: str


def run_main(main: Any, capture: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """A command line in this process, through its entry point; both end with SystemExit, or return."""
    capture.readouterr()
    code: int | str | None = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        patch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
    captured = capture.readouterr()
    return Result(code or 0, captured.out, captured.err)


def run_optimum_cli(capture: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """`optimum-cli ARGUMENTS` with the commands of this source tree, whatever is installed."""
    commands = register_edgeblt.REGISTER_COMMANDS
    found = [command if isinstance(command, tuple) else (command, None) for command in commands]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimum_cli, "load_optimum_namespace_cli_commands", lambda: found)
        return run_main(optimum_cli.main, capture, *arguments)


def sentence(result: Result) -> str:
    """What a refused command says: exit code 2, nothing on stdout, one line on stderr."""
    assert (result.code, result.stdout) == (2, ""), result
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("edgeblt: "), result.stderr
    return lines[0].removeprefix("edgeblt: ")


def files(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*")}


@pytest.fixture
def checkpoint(tiny_bundle: tuple[Path, Path]) -> Path:
    return tiny_bundle[0]


@pytest.fixture
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quick to follow: no calibration."""
    path = tmp_path_factory.mktemp("recipe") / "own.toml"
    path.write_text('[global]\nformat = "int8"\n')
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, inspect.BoundArguments]]:
    """What the two functions of the workbench are called with; they refuse, which ends a command."""
    made: list[tuple[str, inspect.BoundArguments]] = []

    def recorder(function: Any) -> Any:
        def record(*arguments: object, **named: object) -> None:
            bound = inspect.signature(function).bind(*arguments, **named)
            bound.apply_defaults()
            made.append((function.__name__, bound))
            raise EdgebltError("recorded; call the function itself")

        return record

    monkeypatch.setattr("edgeblt.export.export_bundle.export_bundle", recorder(export_bundle))
    monkeypatch.setattr("edgeblt.quant.compress.quantize_checkpoint", recorder(quantize_checkpoint))
    return made


# The quantizer.


def test_the_quantizer_has_the_interface_of_optimum() -> None:
    assert issubclass(BltQuantizer, OptimumQuantizer)
    assert not inspect.isabstract(BltQuantizer)
    ours, theirs = (inspect.signature(cls.from_pretrained).parameters for cls in (BltQuantizer, OptimumQuantizer))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]
    ours, theirs = (inspect.signature(cls.quantize).parameters for cls in (BltQuantizer, OptimumQuantizer))
    positional = [(p.name, p.default) for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    added = {p.name: p.default for p in ours.values() if p.kind is p.KEYWORD_ONLY}
    defaults = inspect.signature(quantize_checkpoint).parameters
    assert added == {name: defaults[name].default for name in ("recipe", "calibration")}


@pytest.mark.parametrize("as_text", [False, True])
def test_the_quantizer_writes_what_quantize_checkpoint_does(
    checkpoint: Path, recipe: Path, as_text: bool, tmp_path: Path
) -> None:
    quantizer = BltQuantizer.from_pretrained(str(checkpoint) if as_text else checkpoint)
    recipes: tuple[Name | Path, ...] = (recipe, Name("fp32"))
    results = []
    for number, chosen in enumerate(recipes):  # one after the other, from the same weights
        saved = quantizer.quantize(
            save_dir=tmp_path / f"saved{number}", recipe=Name(str(chosen)) if as_text else chosen
        )
        assert saved == tmp_path / f"saved{number}"
        results.append(files(saved))
        assert results[-1] == files(quantize_checkpoint(checkpoint, tmp_path / f"expected{number}", chosen))
    assert results[0] != results[1]


def test_the_quantizer_passes_every_argument_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr("edgeblt.quant.optimum_quantizer.quantize_checkpoint", lambda *given: made.append(given))
    quantizer = BltQuantizer.from_pretrained(checkpoint)
    quantizer.quantize(tmp_path)
    quantizer.quantize(tmp_path, recipe=tmp_path / "own.toml", calibration="some.txt")
    assert made == [
        (checkpoint, tmp_path, "int4", None),
        (checkpoint, tmp_path, tmp_path / "own.toml", "some.txt"),
    ]


def test_the_quantizer_refuses_what_is_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgebltError, match="absent"):
        BltQuantizer.from_pretrained(tmp_path / "absent")
    with pytest.raises(EdgebltError, match=r"is a BltForCausalLM; save the model with save_pretrained"):
        BltQuantizer.from_pretrained(tiny_models.random_model(tiny_models.random_config(0), 0))
    with pytest.raises(EdgebltError, match=r"file_name is 'model.safetensors', but .*; leave it out"):
        BltQuantizer.from_pretrained(checkpoint, file_name="model.safetensors")


def test_the_quantizer_refuses_what_it_cannot_write(checkpoint: Path, tmp_path: Path) -> None:
    quantizer = BltQuantizer.from_pretrained(checkpoint)
    with pytest.raises(EdgebltError, match=r"file_prefix is 'small', but .*; leave it out"):
        quantizer.quantize(tmp_path / "out", "small")
    with pytest.raises(EdgebltError, match="exists already"):
        quantizer.quantize(tmp_path, recipe="fp32")
    with pytest.raises(EdgebltError, match="no recipe 'int3'"):
        quantizer.quantize(tmp_path / "out", recipe=Name("int3"))
    assert not list(tmp_path.iterdir())


def test_without_optimum_the_quantizer_says_what_to_install() -> None:
    code = "import sys; sys.modules['optimum'] = None; import edgeblt.quant.optimum_quantizer"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = result.stderr.splitlines()[-1]
    assert last == f"ImportError: BltQuantizer needs optimum; install it with: {install_hint('workbench')}"


# The commands.


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], ["edgeblt", "export", "env"]),
        (["export"], ["edgeblt"]),
        (EXPORT, ["--model CHECKPOINT", "--recipe", "--target", "OUTPUT"]),
        (["edgeblt"], ["quantize"]),
        (QUANTIZE, ["--model CHECKPOINT", "--output OUTPUT", "--recipe", "--calibration"]),
    ],
)
def test_help(arguments: list[str], shown: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    result = run_optimum_cli(capfd, *arguments, "--help")
    assert (result.code, result.stderr) == (0, "")
    assert not [text for text in shown if text not in result.stdout], result.stdout


@pytest.mark.parametrize(
    ("optimum", "edgeblt"),
    [
        ([*EXPORT, "--model", "a", "b"], ["export", "a", "b"]),
        ([*EXPORT, "-m", "a", "b", "--recipe", "int8"], ["export", "a", "b", "--recipe", "int8"]),
        ([*EXPORT, "--target", "cuda", "-m", "a", "b"], ["export", "a", "b", "--target", "cuda"]),
        ([*QUANTIZE, "--model", "a", "--output", "b"], ["quantize", "a", "b"]),
        (
            [*QUANTIZE, "-m", "a", "-o", "b", "--recipe", "r.toml", "--calibration", "c.txt"],
            ["quantize", "a", "b", "--recipe", "r.toml", "--calibration", "c.txt"],
        ),
        ([*QUANTIZE, "--model=-a", "--output=--b"], ["quantize", "--", "-a", "--b"]),
    ],
)
def test_a_command_calls_what_that_of_edgeblt_calls(
    optimum: list[str],
    edgeblt: list[str],
    calls: list[tuple[str, inspect.BoundArguments]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    results = run_optimum_cli(capfd, *optimum), run_main(cli.main, capfd, *edgeblt)
    assert [sentence(result) for result in results] == ["recorded; call the function itself"] * 2
    assert len(calls) == 2 and calls[0] == calls[1]
    given = {str(value) for value in calls[0][1].arguments.values()}
    assert {argument for argument in edgeblt[1:] if argument != "--"} - {
        "--recipe",
        "--target",
        "--calibration",
    } <= given


def test_quantize_and_export(checkpoint: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    smaller, bundle = tmp_path / "smaller", tmp_path / "bundle"
    result = run_optimum_cli(capfd, *QUANTIZE, "--model", checkpoint, "--output", smaller, "--recipe", recipe)
    assert result.code == 0, result.stderr
    assert files(smaller) == files(quantize_checkpoint(checkpoint, tmp_path / "expected", recipe))
    result = run_optimum_cli(capfd, *EXPORT, "--model", smaller, bundle)
    assert result.code == 0, result.stderr
    assert str(bundle) in result.stdout
    assert open_bundle(bundle, verify=True).manifest.recipe == "own"


def test_a_refusal_is_one_sentence(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    absent, out = tmp_path / "absent", tmp_path / "out"
    assert str(absent) in sentence(run_optimum_cli(capfd, *EXPORT, "--model", absent, out))
    assert str(absent) in sentence(run_optimum_cli(capfd, *QUANTIZE, "--model", absent, "--output", out))
    assert "'int3'" in sentence(run_optimum_cli(capfd, *EXPORT, "--model", checkpoint, "--recipe", "int3", out))
    assert "'tpu'" in sentence(run_optimum_cli(capfd, *EXPORT, "--model", checkpoint, "--target", "tpu", out))
    assert "exists already" in sentence(run_optimum_cli(capfd, *EXPORT, "--model", checkpoint, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[*EXPORT, "out"], [*QUANTIZE, "--model", "a"], [*QUANTIZE, "a", "b"]])
def test_what_is_missing_is_named(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    result = run_optimum_cli(capfd, *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert "the following arguments are required: " in result.stderr


def test_optimum_cli_starts_without_importing_edgeblt() -> None:
    """What optimum-cli does at every start; a second slower, or refusing, would harm every command of it."""
    code = "import sys, register_edgeblt; print(*{name.partition('.')[0] for name in sys.modules})"
    folder = Path(register_edgeblt.__file__).parent
    environment = os.environ | {"PYTHONPATH": str(folder)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "optimum" in loaded
    assert not loaded & {"edgeblt", "onnxruntime", "torch", "transformers", "numpy", "typer"}


def test_the_folder_of_the_commands_holds_nothing_else() -> None:
    """In an editable install optimum-cli imports every Python file there, and warns of an __init__.py."""
    assert [path.name for path in Path(register_edgeblt.__file__).parent.glob("*.py")] == ["register_edgeblt.py"]
