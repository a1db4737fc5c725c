"""Being stopped, and output that cannot be written: no traceback, nothing half-written, and at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import default_signals
from test_commands import run_process

# Native code that gives the interpreter back and then waits for ever: no signal interrupts it.
STUCK = """
import ctypes, sys
from edgeblt.runtime.session import Session
def stuck(*_):
    sys.stderr.write("at work\\n")
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
Session._run_span = stuck
"""
# An import that says it has begun and never ends.
SLOW_IMPORT = """
import sys, threading
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.stderr.write("at work\\n")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                {then}
sys.meta_path.insert(0, Slow())
from edgeblt.__main__ import main
main()
"""


def stopped(code: str, number: signal.Signals, *arguments: object) -> tuple[int, bytes, bytes]:
    """How a process ends that gets a signal when it says that it is at work: code, stdout, stderr after that."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=default_signals)
    with process:
        assert process.stderr and process.stderr.readline() == b"at work\n"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_generate_while_native_code_runs(
    number: signal.Signals, code: int, tiny_bundle: tuple[Path, Path]
) -> None:
    program = f"{STUCK}\nfrom edgeblt.cli import main\nmain()"
    assert stopped(program, number, "generate", tiny_bundle[1], "hello") == (code, b"", b"")


@pytest.mark.parametrize("name", ["typer", "edgeblt.cli", "onnxruntime"])
@pytest.mark.parametrize("then", ["raise", "raise ImportError('initialization failed')"])
def test_ctrl_c_during_imports(name: str, then: str, tiny_bundle: tuple[Path, Path]) -> None:
    """Also where what is imported makes another exception of it, as modules in C++ do."""
    code = SLOW_IMPORT.format(name=name, then=then)
    assert stopped(code, signal.SIGINT, "generate", tiny_bundle[1], "hello") == (130, b"", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["inspect"], ["inspect", "--json", "-"], ["generate", "hello", "--max-new-bytes", 3],
     ["generate", "hello", "--max-new-bytes", 3, "--raw"]],
)  # fmt: skip
def test_a_full_disk_behind_stdout(arguments: list[object], tiny_bundle: tuple[Path, Path]) -> None:
    if arguments[0] != "--help":
        arguments = [arguments[0], tiny_bundle[1], *arguments[1:]]
    code = "from edgeblt.__main__ import main; main()"
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120)
        deaf = subprocess.run(command, stdout=full, stderr=full, timeout=120)
    said = b"the output cannot be written (No space left on device); free some space, or write it to another place"
    assert (ended.returncode, ended.stderr) == (2, b"edgeblt: %s\n" % said)
    assert deaf.returncode == 2


def test_the_module_is_the_command() -> None:
    ended = subprocess.run([sys.executable, "-m", "edgeblt", "--version"], capture_output=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, run_process("--version").stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """The script that a shell is given asks the command in this way; nothing slow is imported for it."""
    before = (
        f"import os; os.environ.update(_EDGEBLT_COMPLETE='complete_{shell}', COMP_WORDS='edgeblt ins', COMP_CWORD='1',"
        " _TYPER_COMPLETE_ARGS='edgeblt ins', _TYPER_COMPLETE_FISH_ACTION='get-args')"
    )
    ended = run_process(before=before)
    assert ended.returncode == 0 and b"inspect" in ended.stdout and b"generate" not in ended.stdout


def test_completion_is_offered() -> None:
    help_text = run_process("--help").stdout
    assert b"--install-completion" in help_text and b"--show-completion" in help_text
