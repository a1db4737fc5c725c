"""Texts of any kind that users give: read whole and bounded, or refused; nothing waits for ever."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Exported
from edgeblt.bundle import text_files
from edgeblt.bundle.text_files import read_text
from edgeblt.errors import EdgebltError
from test_commands import run_command, run_process, sentence


def refused(path: str | Path, what: str = "") -> str:
    with pytest.raises(EdgebltError) as caught:
        read_text(path, what)
    return str(caught.value)


@pytest.fixture
def at_most_a_kilobyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LARGEST_TEXT", 1024)


def test_files_and_links(tmp_path: Path) -> None:
    path, link = tmp_path / "text", tmp_path / "link"
    link.symlink_to(path)
    for content in (b"", b"a text\0\xff", os.urandom(3 << 20)):
        path.write_bytes(content)
        assert read_text(path) == read_text(link) == read_text(str(path)) == content


def test_pipes_with_a_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As <(command) is: a pipe by a name, whose writer begins when the reader has found nothing and waits."""
    read, write = os.pipe()
    writing, set_blocking = threading.Event(), os.set_blocking

    def waits(descriptor: int, blocking: bool) -> None:
        set_blocking(descriptor, blocking)
        writing.set()

    monkeypatch.setattr(os, "set_blocking", waits)

    def writer() -> None:
        writing.wait()
        with open(write, "wb") as file:
            file.write(b"slow" * 100_000)

    thread = threading.Thread(target=writer)
    thread.start()
    try:
        assert read_text(f"/dev/fd/{read}") == b"slow" * 100_000
    finally:
        writing.set()
        thread.join()
        os.close(read)


def test_a_pipe_that_nobody_writes_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == f"{tmp_path / 'pipe'} is a pipe that nothing comes from; give a text file"


@pytest.mark.usefixtures("at_most_a_kilobyte")
def test_texts_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"x" * 1024)
    assert len(read_text(path)) == 1024
    path.write_bytes(b"x" * 1025)
    assert refused(path) == f"{path} has more than 0 MB; give a shorter text"
    endless = subprocess.Popen([sys.executable, "-c", "while True: print('x' * 999)"], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    assert endless.stdout
    with endless, endless.stdout as pipe:
        assert refused(f"/dev/fd/{pipe.fileno()}").endswith("has more than 0 MB; give a shorter text")


def test_what_is_no_text(tmp_path: Path) -> None:
    for device in ("/dev/zero", "/dev/null", "/dev/random"):
        if stat.S_ISCHR(os.stat(device).st_mode):
            assert refused(device, "the text") == f"the text {device} is neither a file nor a pipe; give a text file"
    assert refused(tmp_path) == f"{tmp_path} is a directory; give a text file"
    assert refused(tmp_path / "no") == f"{tmp_path / 'no'} cannot be read (No such file or directory); give a text file"
    assert "File name too long" in refused("x" * 5000)
    assert refused("nul\0") == "'nul\\x00' cannot be read (embedded null byte); give a text file"


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "BUNDLE", "--text", "FILE"],
        ["tune", "BUNDLE", "--max-bpb-increase", "1", "--text", "FILE"],
        ["validate", "BUNDLE", "--reference", "CHECKPOINT", "--text", "FILE"],
        ["quantize", "CHECKPOINT", "OUT", "--calibration", "FILE"],
    ],
)
def test_commands_read_no_devices(
    command: list[str], exported: Callable[[int], Exported], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file, reason in (("/dev/zero", "neither a file nor a pipe"), (tmp_path / "pipe", "a pipe that nothing comes")):
        places = {"FILE": str(file), "BUNDLE": str(exported(10).bundle), "CHECKPOINT": str(exported(10).checkpoint),
                  "OUT": str(tmp_path / "out")}  # fmt: skip
        said = sentence(run_command(capfd, *(places.get(part, part) for part in command)))
        assert f"{file} is {reason}" in said and said.endswith("; give a text file")
    assert not (tmp_path / "out").exists()


def test_an_endless_prompt(exported: Callable[[int], Exported]) -> None:
    before = "import edgeblt.bundle.text_files; edgeblt.bundle.text_files.LARGEST_TEXT = 5 << 20"
    with open("/dev/zero", "rb") as zeros:
        result = run_process("generate", exported(10).bundle, "-", before=before, stdin=zeros)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr == b"edgeblt: the prompt has more than 5 MB; give a shorter text\n"
