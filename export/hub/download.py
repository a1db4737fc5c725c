"""The large files of a model on the hub, so that a later run continues where one broke off.

huggingface_hub continues a file within a run only; the next run begins it again (`_download_to_tmp_and_move` in its
file_download.py: a temporary file under a random name). So a large file is fetched here, to `blobs/SHA256.incomplete`,
and moved to `blobs/SHA256` when it is complete and right, where huggingface_hub finds it.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgeblt.errors import EdgebltError
from edgeblt.progress import Advance, progress

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_MEGABYTE = 1_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LargeFile:
    url: str
    size: int  # bytes
    sha256: str
    blob: Path  # its place in huggingface_hub's cache
    lock: Path  # the lock that huggingface_hub holds while it writes the blob

    @property
    def partial(self) -> Path:
        return self.blob.with_name(f"{self.blob.name}.incomplete")

    def arrived(self) -> int:
        """Bytes that an earlier run downloaded; 0 if more than the file has."""
        size = self.partial.stat().st_size if self.partial.exists() else 0
        return size if size <= self.size else 0


def fetch_large_files(repository: str, commit: str | None, files: "Iterable[RepoSibling]") -> None:
    """Fetch those of `files` that are large (kept outside of git) and not in huggingface_hub's cache.

    Raises EdgebltError where the disk has no room for them or one arrives damaged, and what huggingface_hub raises.
    """
    missing = [file for file in _large_files(repository, commit, files) if not file.blob.exists()]
    if not missing:
        return
    missing[0].blob.parent.mkdir(parents=True, exist_ok=True)
    missing[0].lock.parent.mkdir(parents=True, exist_ok=True)
    _check_space(repository, missing)
    total = -(-sum(file.size for file in missing) // _MEGABYTE)
    with progress(f"downloading {repository}", total, "MB") as advance:
        meter = _Meter(advance)
        for file in missing:
            _fetch(file, meter)


def _large_files(repository: str, commit: str | None, files: "Iterable[RepoSibling]") -> list[LargeFile]:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    folder = repo_folder_name(repo_id=repository, repo_type="model")
    found = {}
    for file in files:
        if file.lfs is not None and _SHA256.fullmatch(file.lfs.sha256):  # it becomes the name of a file
            blob = cache / folder / "blobs" / file.lfs.sha256
            lock = cache / ".locks" / folder / f"{file.lfs.sha256}.lock"
            url = hf_hub_url(repository, file.rfilename, revision=commit)
            found[file.lfs.sha256] = LargeFile(url, file.lfs.size, file.lfs.sha256, blob, lock)
    return list(found.values())


def _check_space(repository: str, files: list[LargeFile]) -> None:
    folder = files[0].blob.parent
    needed, free = sum(file.size - file.arrived() for file in files), shutil.disk_usage(folder).free
    if needed > free:
        raise EdgebltError(
            f"{repository} takes {needed / 1e9:.2f} GB more, but {folder} has {free / 1e9:.2f} GB free; free some "
            "space, or set HF_HOME to a directory elsewhere"
        )


def _fetch(file: LargeFile, meter: "_Meter") -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # public, but not to mypy

    def bar(initial: int = 0, **_: object) -> "_Meter":
        meter.update(initial)
        return meter

    with WeakFileLock(file.lock):
        if file.blob.exists():  # another process was faster
            meter.update(file.size)
            return
        arrived = file.arrived()
        if arrived == file.size:  # complete, nothing is requested
            meter.update(file.size)
        with file.partial.open("ab" if arrived else "wb") as stream:
            http_get(
                file.url,
                stream,
                resume_size=arrived,
                headers=build_hf_headers(),
                expected_size=file.size,
                tqdm_class=cast(Any, bar),
            )
        digest = _sha256(file.partial)
        if digest != file.sha256:
            file.partial.unlink()
            raise EdgebltError(f"{file.url} arrived damaged (sha256 {digest[:12]}...); run the same command again")
        file.partial.rename(file.blob)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Meter:
    """A progress bar for huggingface_hub that reports each megabyte begun."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._bytes = self._told = 0

    def update(self, count: int) -> None:
        self._bytes += count
        megabytes = -(-self._bytes // _MEGABYTE)
        self._advance(megabytes - self._told)
        self._told = megabytes

    def __enter__(self) -> "_Meter":
        return self

    def __exit__(self, *_: object) -> None:
        pass
