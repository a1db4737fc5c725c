"""The command line: assembles the commands, and prints the errors they raise as one sentence on stderr."""

import importlib.util
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn, TextIO

import typer

from edgeblt import missing_runtime
from edgeblt.bundle.lost_files import explaining_lost_files
from edgeblt.commands import generating, looking, making, measuring, running, serving, sweeping, validating
from edgeblt.commands.stopping import stopped_by_signals, was_stopped
from edgeblt.errors import CheckpointNote, EdgebltError
from edgeblt.printable import printable
from edgeblt.runtime import native

COMMANDS = (  # the order in --help
    making.demo,
    making.quantize,
    making.export,
    validating.validate,
    running.prepare,
    measuring.bench,
    measuring.tune,
    measuring.compare,
    sweeping.sweep,
    measuring.report,
    running.score,
    generating.generate,
    serving.serve,
    looking.inspect,
    looking.doctor,
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Byte Latent Transformers on devices: export a checkpoint to a bundle, validate it, time it, run it.",
    epilog="To see every step on the model that comes with the package: edgeblt demo",
)
for _command in COMMANDS:
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeblt {native.package_version() or '(not installed)'}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The `edgeblt` command: answers bad input with one sentence on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # characters that a terminal cannot show stop nothing
    try:
        with stopped_by_signals(), _notes_as_lines(), explaining_lost_files():
            _run()
    except EdgebltError as error:
        _fail(str(error))
    except MemoryError as error:
        _fail(f"there is not enough memory ({error}); free some, or use a smaller model")
    except OSError as error:
        if error.filename is not None:
            raise
        _fail_to_print(error)
    except Exception as error:
        if number := was_stopped():  # native code turned the signal into an error of its own
            raise SystemExit(128 + number) from None
        if isinstance(error, ImportError) and not importlib.util.find_spec("onnxruntime"):
            _fail(missing_runtime())
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        _fail(f"onnxruntime cannot run this bundle ({' '.join(str(error).split())[:300]}); export the bundle again")


def _run() -> None:
    """Runs the command, and flushes stdout."""
    try:
        app(prog_name="edgeblt")  # the name in help texts, however the command was started
    except SystemExit:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _forget(sys.stdout)
            raise SystemExit(1) from None
        raise


def _fail(message: str) -> NoReturn:
    with suppress(OSError):  # a closed stderr
        typer.echo(f"edgeblt: {printable(message)}", err=True)
    raise SystemExit(2)


@contextmanager
def _notes_as_lines() -> Iterator[None]:
    """Prints every note on a checkpoint as a line on stderr; leaves other warnings as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointNote)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if issubclass(category, CheckpointNote):
                typer.echo(f"edgeblt: {printable(str(message))}", err=True)
            else:
                others(message, category, *place, **rest)

        warnings.showwarning = show
        yield


def _fail_to_print(error: OSError) -> NoReturn:
    _forget(sys.stdout)
    _fail(f"the output cannot be written ({error.strerror}); free some space, or write it to another place")


def _forget(stream: TextIO) -> None:
    """Discards a stream's unwritten output, which the interpreter would else try to write again as it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
