"""Work in processes that die, or run out of disk, at a chosen step.

A step is what another process could see: a call that changes a directory, as the interpreter's audit events tell, or a
write to a file, of which half is done. The script behind `Runner` imports everything once and forks for each run.
"""

import errno
import gc
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from edgeblt import cli
from edgeblt.bundle.whole_files import whole_directory, whole_file
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.graphs.weight_file import WeightFile
from edgeblt.quant.methods.gptq import gptq

KILL, FULL, INTERRUPT = "kill", "full", "interrupt"  # events at the step; a full disk stays full
PATCH = pytest.MonkeyPatch()  # patches in the script's process
_CHANGES = ("os.mkdir", "os.rename", "os.chmod", "os.truncate")
_REMOVALS = ("os.remove", "os.rmdir")


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    code: int  # the exit code, or minus the signal
    said: str  # text on stderr
    steps: int  # steps that were begun
    written: list[str]  # pieces of files of weights
    computed: int  # matrices that GPTQ computed


class Runner:
    """The script at work: a context. Changes of what lies in `root` are steps."""

    def __init__(self, root: Path) -> None:
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment = os.environ | paths | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
        command = [sys.executable, "-m", "dying", str(root)]
        self._process = subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True)

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0

    def prepare(self, *arguments: object) -> None:
        """`edgeblt ARGUMENTS` in the process that forks: what it imports, later runs find."""
        assert self._ask([*map(str, arguments)]) == 0

    def run(
        self, *arguments: object, step: int | None = None, how: str = KILL, limit: int | None = None, version: str = ""
    ) -> Outcome:
        """`edgeblt ARGUMENTS`, or one of OTHERS, until it ends.

        `limit` is the largest size of a file, in bytes; `version` what edgeblt takes for its own.
        """
        return Outcome(**self._ask([*map(str, arguments)], step, how, limit, version))

    def _ask(self, *request: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Steps:
    """Reports each step of this process, and does at one of them what is asked."""

    def __init__(self, root: str, step: int | None, how: str, report: Callable[[str], None]) -> None:
        self._root, self._step, self._how, self._report = root, step, how, report
        self._count = 0

    def due(self, needs_space: bool = True) -> bool:
        """Whether this step is the one, or one that fails as long as the disk is full."""
        self._count += 1
        self._report("step")
        if self._step is None or self._count < self._step:
            return False
        return self._count == self._step or (self._how == FULL and needs_space)

    def end(self) -> None:
        if self._how == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise KeyboardInterrupt

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """For `sys.addaudithook`: called before what it is told."""
        if not (event == "open" or event in _CHANGES or event in _REMOVALS):
            return
        path, beside = arguments[0], event in _REMOVALS and arguments[1] != -1  # a name in an open directory
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        ours = beside or (not isinstance(path, int) and os.fsdecode(path).startswith(self._root))
        if ours and self.due(needs_space=event in ("open", "os.mkdir")):
            self.end()

    def watch(self) -> None:
        """From now on."""
        opened, allocate = Path.open, os.posix_fallocate

        def watched(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            file = opened(path, mode, *arguments, **options)
            return _Watched(file, self) if mode.strip("bt") != "r" and str(path).startswith(self._root) else file

        def allocated(descriptor: int, offset: int, size: int) -> None:
            if self.due():
                allocate(descriptor, offset, size // 2)
                self.end()
            allocate(descriptor, offset, size)

        PATCH.setattr(Path, "open", watched)
        PATCH.setattr(os, "posix_fallocate", allocated)
        sys.addaudithook(self.audit)


class _Watched:
    """A file whose every write is a step."""

    def __init__(self, file: IO[Any], steps: Steps) -> None:
        self._file, self._steps = file, steps

    def write(self, data: Any) -> int:
        if self._steps.due():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._steps.end()
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def replace(path: str, content: str) -> None:
    """A directory of two files, in place of one that may be there."""
    with whole_directory(Path(path), replace=True) as partial:
        for name in ("first", "second"):
            (partial / name).write_text(content)


def replace_bundle(checkpoint: str, path: str) -> None:
    export_bundle(checkpoint, path, replace=True)


def write_file(path: str, content: str) -> None:
    with whole_file(Path(path)) as file:
        file.write(content.encode())


OTHERS = {"replace": replace, "replace_bundle": replace_bundle, "write_file": write_file}
QUICKER: dict[str, Any] = {
    "edgeblt.quant.calibration.layerwise.TEXT_BYTES": 64,
    "edgeblt.quant.methods.channels.MULTIPLE": 4,  # a tiny model loses some
    "edgeblt.quant.methods.data_free.SHARES": (1.0, 0.9),
    "edgeblt.export.graphs.weight_source.AT_A_TIME": 1 << 10,  # a tiny model's tables are several pieces
    "edgeblt.export.inspection.inspect_checkpoint": lambda checkpoint: checkpoint,
    "edgeblt.inspection.inspect_bundle": lambda bundle: bundle,
    "edgeblt.report.terminal.show_inspection": lambda inspection: None,  # takes as long as a tiny conversion
}


def _serve(root: str) -> None:
    """Requests on stdin, outcomes on stdout, a line each."""
    torch.set_num_threads(1)
    for name, value in QUICKER.items():
        PATCH.setattr(name, value)
    for line in sys.stdin:
        arguments, *settings = json.loads(line)
        answer: Any = asdict(_forked(root, arguments, *settings)) if settings else _run(arguments)
        print(json.dumps(answer), flush=True)


def _forked(root: str, arguments: list[str], step: int | None, how: str, limit: int | None, version: str) -> Outcome:
    reading, writing = os.pipe()

    def report(text: str) -> None:
        os.write(writing, f"{text}\n".encode())

    gc.freeze()  # prevents a copy of all memory by each child's first collection
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 2)
            _spy(report, version)
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            Steps(root, step, how, report).watch()
            os._exit(_run(arguments))
        os.close(writing)
        with open(reading) as reports:
            lines = reports.read().splitlines()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        pieces = [line.removeprefix("piece ") for line in lines if line.startswith("piece ")]
        return Outcome(code, said.read().decode(), lines.count("step"), pieces, lines.count("gptq"))


def _spy(report: Callable[[str], None], version: str) -> None:
    """Report pieces that are complete, and matrices that are computed."""
    write = WeightFile.write

    def written(self: WeightFile, piece: str, *arguments: Any, **options: Any) -> None:
        write(self, piece, *arguments, **options)
        report(f"piece {piece}")

    def computed(*arguments: Any) -> Any:
        report("gptq")
        return gptq(*arguments)

    PATCH.setattr(WeightFile, "write", written)
    PATCH.setattr("edgeblt.quant.calibration.layerwise.gptq", computed)
    if version:
        PATCH.setattr("edgeblt.quant.made_by.version", lambda package: version)


def _run(arguments: list[str]) -> int:
    """The exit code."""
    code = 70
    try:
        with redirect_stdout(io.StringIO()):
            if arguments[0] in OTHERS:
                OTHERS[arguments[0]](*arguments[1:])
            else:
                sys.argv[1:] = arguments
                cli.main()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except EdgebltError as error:
        print(f"edgeblt: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except Exception:
        traceback.print_exc()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve(sys.argv[1])
