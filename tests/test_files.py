"""A directory or file appears whole or not at all, whatever goes wrong while it is written."""

import errno
import os
import stat
from pathlib import Path

import pytest

from edgeblt.bundle.whole_files import whole_directory, whole_file
from edgeblt.errors import EdgebltError


def write(path: Path, content: str, replace: bool = False) -> None:
    with whole_directory(path, replace) as partial:
        (partial / "file").write_text(content)


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "whole"  # the parents are made
    with whole_directory(path) as partial:
        assert list(partial.iterdir()) == [] and partial.parent == path.parent and partial.name.startswith(".whole.")
        assert stat.S_IMODE(partial.stat().st_mode) == 0o700
        (partial / "file").write_text("x")
        assert not path.exists()
    assert (path / "file").read_text() == "x"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_its_mode_is_that_of_any_new_directory(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "whole", "x")
        assert os.umask(umask) == umask  # left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "whole").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1), EdgebltError("y")])
def test_an_exception_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, whole_directory(tmp_path / "whole") as partial:
        (partial / "file").write_text("x")
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"), (OSError("no\nerrno"), "no errno")],
)
def test_a_full_disk_is_one_sentence(error: OSError, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "whole"
    with pytest.raises(EdgebltError) as caught, whole_directory(path) as partial:
        (partial / "file").write_text("x")
        raise error
    assert str(caught.value) == f"{path} cannot be written ({reason}); free some space or choose another place"
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_kept(tmp_path: Path) -> None:
    whole, file, link = tmp_path / "whole", tmp_path / "file", tmp_path / "link"
    write(whole, "old")
    file.write_text("old")
    link.symlink_to("nowhere")
    for path in (whole, file, link):
        with pytest.raises(EdgebltError) as caught:
            write(path, "new")
        assert str(caught.value) == f"{path} exists already; remove it or choose another name"
    for path in (file, link):  # neither is a directory that could be replaced
        with pytest.raises(EdgebltError, match="exists already"):
            write(path, "new", replace=True)
    assert (whole / "file").read_text() == file.read_text() == "old" and os.readlink(link) == "nowhere"


def test_replacing(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    write(path, "first", replace=True)
    (path / "more").write_text("x")
    with whole_directory(path, replace=True) as partial:
        (partial / "file").write_text("second")
        assert (path / "file").read_text() == "first"
    assert [file.name for file in path.iterdir()] == ["file"] and (path / "file").read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    write(tmp_path / "whole", "old")
    (tmp_path / "link").symlink_to("whole")
    with pytest.raises(EdgebltError, match="exists already"):
        write(tmp_path / "link", "new", replace=True)
    assert (tmp_path / "whole" / "file").read_text() == "old"


@pytest.mark.parametrize("failing", [1, 2])
def test_a_replacement_that_fails_keeps_the_old(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "whole"
    write(path, "old")
    rename, calls = Path.rename, []

    def fail(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(EdgebltError, match=r"\(Input/output error\)"):
        write(path, "new", replace=True)
    assert (path / "file").read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_second_to_write_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    with whole_directory(path) as partial:
        (partial / "file").write_text("first")
        for resume in (False, True):
            with pytest.raises(EdgebltError) as caught, whole_directory(path, resume=resume):
                pass
            assert str(caught.value) == (
                f"{path} is being written by another process; wait for it, or choose another name"
            )
    assert (path / "file").read_text() == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 256, "x" * 250, "x" * 5000])
def test_a_name_too_long(name: str, tmp_path: Path) -> None:
    with pytest.raises(EdgebltError) as caught:
        write(tmp_path / name, "x")
    assert str(caught.value).startswith(f"{tmp_path / name} cannot be written (File name too long); ")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgebltError, match=r"whole cannot be written \((Not a directory|File exists)\); "):
        write(tmp_path / "file" / "whole", "x")
    with pytest.raises(EdgebltError, match=r"/proc/self/whole cannot be written \("):
        write(Path("/proc/self/whole"), "x")


# Files.


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "whole"  # the parents are made
    with whole_file(path) as file:
        file.write(b"x")
        assert not path.exists() and len(list(path.parent.iterdir())) == 1
    assert path.read_bytes() == b"x" and list(path.parent.iterdir()) == [path]


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), whole_file(path, replace=True) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old"
    with whole_file(path, replace=True) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), EdgebltError("y")])
def test_an_exception_leaves_no_file(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, whole_file(tmp_path / "whole") as file:
        file.write(b"x")
        raise error
    assert caught.value is error and list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    file, link, late = tmp_path / "file", tmp_path / "link", tmp_path / "late"
    file.write_text("old")
    link.symlink_to("nowhere")
    for path in (file, link, tmp_path):
        with pytest.raises(EdgebltError) as caught, whole_file(path):
            pass
        assert str(caught.value) == f"{path} exists already; remove it or choose another name"
    with pytest.raises(EdgebltError, match="late exists already"), whole_file(late):
        late.write_text("old")
    assert file.read_text() == late.read_text() == "old" and os.readlink(link) == "nowhere"
    assert sorted(tmp_path.iterdir()) == [file, late, link]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "whole", tmp_path / ("x" * 250), Path("/proc/self/whole")):
        with pytest.raises(EdgebltError) as caught, whole_file(path):
            pass
        assert str(caught.value).startswith(f"{path} cannot be written ("), caught.value
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
