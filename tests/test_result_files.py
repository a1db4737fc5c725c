"""Results on disk: whole or not at all, through links, to pipes and descriptors, and refused before what takes long."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Exported
from edgeblt.bundle.result_files import check_result_file, same_file, write_result
from edgeblt.errors import EdgebltError
from test_commands import run_command, sentence


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    check_result_file(path)
    assert list(tmp_path.iterdir()) == []  # a check makes nothing
    for content in (b"first", b"second, longer", b"3"):
        check_result_file(path)
        write_result(path, content)
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_its_mode_stays(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.touch()
    path.chmod(0o640)
    write_result(path, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_result(path, b"good")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(EdgebltError) as caught:
        write_result(path, b"half of i")
    assert str(caught.value) == (
        f"{path} cannot be written (No space left on device); free some space or choose another place"
    )
    assert path.read_bytes() == b"good" and list(tmp_path.iterdir()) == [path]


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    target, link, chain = tmp_path / "folder" / "target", tmp_path / "link", tmp_path / "chain"
    target.parent.mkdir()
    link.symlink_to("folder/target")
    chain.symlink_to(link)
    for content in (b"made", b"replaced"):  # at first the links lead nowhere
        check_result_file(chain)
        write_result(chain, content)
        assert target.read_bytes() == content and link.is_symlink() and chain.is_symlink()


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    check_result_file(Path("/dev/null"))
    write_result(Path("/dev/null"), b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    check_result_file(pipe)
    write_result(pipe, b"through a pipe")
    reader.join()
    assert received == [b"through a pipe"] and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no such device")
def test_a_device_that_is_full() -> None:
    with pytest.raises(EdgebltError, match=r"^/dev/full cannot be written \(No space left on device\)"):
        write_result(Path("/dev/full"), b"x")


@pytest.mark.parametrize("place", ["/dev/fd/1", "link"])
def test_descriptors_that_are_open(place: str, tmp_path: Path) -> None:
    """Where stdout goes to a file, what it holds already stays, and what is printed later follows."""
    if not os.path.exists("/dev/stdout"):
        pytest.skip("this system has no such name")
    (tmp_path / "link").symlink_to("/dev/stdout")
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from edgeblt.bundle.result_files import *\n"
        "print('before'); check_result_file(Path(sys.argv[1])); write_result(Path(sys.argv[1]), b'result\\n')\n"
        "print('after')"
    )
    with out.open("a") as file:  # as >> opens it
        subprocess.run([sys.executable, "-c", code, place], stdout=file, check=True, cwd=tmp_path)
    assert out.read_text() == "before\nresult\nafter\n"
    piped = subprocess.run([sys.executable, "-c", code, place], capture_output=True, check=True, cwd=tmp_path)
    assert piped.stdout == b"before\nresult\nafter\n"


def test_places_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refused = {
        tmp_path: "Is a directory",
        Path(): "Is a directory",
        file / "below": "Not a directory",
        file / "below" / "it": "Not a directory",
        tmp_path / ("x" * 5000): "File name too long",
        tmp_path / "nul\0": "embedded null",
    }
    for path, reason in refused.items():
        for attempt in (check_result_file, lambda path: write_result(path, b"x")):
            with pytest.raises(EdgebltError) as caught:
                attempt(path)
            assert reason in str(caught.value), caught.value
            assert str(caught.value).endswith("free some space or choose another place")
    for attempt in (check_result_file, lambda path: write_result(path, b"x")):
        with pytest.raises(EdgebltError, match="Too many levels of symbolic links"):
            attempt(loop)
    with pytest.raises(EdgebltError, match="exists already"):
        check_result_file(file, new=True)
    assert file.read_bytes() == b"old" and sorted(tmp_path.iterdir()) == [file, loop]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_places_without_permission(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"old")
    file.chmod(0o444)
    folder.mkdir(mode=0o555)
    for path in (file, folder / "new", folder / "a" / "new"):
        with pytest.raises(EdgebltError, match="Permission denied"):
            check_result_file(path)


def test_one_place_for_two_results(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    assert same_file(tmp_path / "file", tmp_path / "link") and same_file(Path("-"), Path("-"))
    assert not same_file(tmp_path / "file", tmp_path / "other")
    assert not same_file(Path("/dev/null"), Path("/dev/null")) and not same_file(None, Path("-"))


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "BUNDLE", "--json", "PLACE"],
        ["bench", "BUNDLE", "--csv", "PLACE"],
        ["bench", "BUNDLE", "--json", "same", "--csv", "same"],
        ["tune", "BUNDLE", "--max-bpb-increase", "1", "--json", "PLACE"],
        ["validate", "BUNDLE", "--reference", "CHECKPOINT", "--json", "PLACE"],
        ["validate", "BUNDLE", "--reference", "CHECKPOINT", "--save-reference-logits", "PLACE"],
        ["prepare", "BUNDLE", "--json", "PLACE"],
        ["inspect", "BUNDLE", "--json", "PLACE"],
        ["inspect", "CHECKPOINT", "--json", "PLACE"],
        ["doctor", "--json", "PLACE"],
        ["report", "nothing.json", "-o", "PLACE"],
    ],
)
def test_commands_refuse_before_they_run(
    command: list[str],
    exported: Callable[[int], Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for opened in ("edgeblt.runtime.opening.open_stage", "edgeblt.bundle.manifest.open_bundle",
                   "edgeblt.doctor.diagnose", "edgeblt.export.checkpoints.checkpoint.open_checkpoint",
                   "edgeblt.report.page.read_results"):  # fmt: skip
        monkeypatch.setattr(opened, lambda *_, **__: pytest.fail("it began"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    places = {"PLACE": "folder", "BUNDLE": str(exported(10).bundle), "CHECKPOINT": str(exported(10).checkpoint)}
    said = sentence(run_command(capfd, *(places.get(part, part) for part in command)))
    reasons = ["folder cannot be written (Is a directory); free some space or choose another place",
               "--json and --csv would both write to same; give them two files",
               "folder exists already; remove it or choose another name"]  # fmt: skip
    assert said == reasons[1 if "same" in command else 2 if "--save-reference-logits" in command else 0]


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_a_benchmark_that_fails_leaves_the_old_result(
    option: str,
    exported: Callable[[int], Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path, arguments = tmp_path / "result", ["--new-bytes", 2, "--repeats", 1, "--prompt-bytes", 2, "--no-bandwidth"]
    bundle = exported(10).bundle
    assert run_command(capfd, "bench", bundle, *arguments, option, path).code == 0
    good = path.read_bytes()
    assert option == "--csv" or json.loads(good)["new_bytes"] == 2
    monkeypatch.setattr(os, "fsync", no_space)
    result = run_command(capfd, "bench", bundle, *arguments, option, path)
    assert result.code == 2 and "decoding" in result.stdout  # what was measured is not lost
    assert f"edgeblt: {path} cannot be written (No space left on device); " in result.stderr
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]
