"""A bundle on disk: a directory whose `bundle.json` names, sizes and hashes every file in it.

`export/` writes bundles; this module describes and checks them. Format version 1:

    bundle.json      a `Manifest`, and `checksum`: the sha256 of its canonical JSON without that field
    patcher.onnx, encoder.onnx, global.onnx, decoder.onnx
    *.weights        the graphs' external data
    README.md        the model card
"""

import hashlib
import json
import mmap
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeblt.config import ModelConfig
from edgeblt.contract import STAGES
from edgeblt.errors import EdgebltError
from edgeblt.parsing import dataclass_document, parse_dataclass

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
_MANIFEST_LIMIT = 1 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LONGEST_TEXT = 2000
# What names an external tensor's file in a graph: ONNX's StringStringEntryProto, as protobuf libraries write it.
_LOCATION_KEY = b"location"
_LOCATION = re.compile(rb"\x0a\x08location\x12(.)", re.DOTALL)


@dataclass(frozen=True)
class FileRecord:
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class StageRecord:
    graph: str
    weights: tuple[str, ...]
    weight_format: str


@dataclass(frozen=True)
class Manifest:
    format_version: int
    name: str
    target: str  # the execution provider the graphs were built for: cpu
    recipe: str
    config: ModelConfig
    stages: dict[str, StageRecord]
    files: dict[str, FileRecord]
    made_by: dict[str, str]  # package to version


@dataclass(frozen=True)
class Bundle:
    path: Path
    manifest: Manifest

    @property
    def size(self) -> int:
        """Bytes of all files the manifest names."""
        return sum(record.size for record in self.manifest.files.values())


def open_bundle(path: str | Path, verify: bool = False) -> Bundle:
    """Read and check a bundle: names, file sizes, the graphs' hashes and whose weights they use.

    With `verify` the hash of every file. Raises EdgebltError naming the file at fault.
    """
    path = Path(path)
    if not os.path.isdir(path):  # os.path: never raises, however odd the name
        raise EdgebltError(f"{path} is not a bundle directory; make one with `edgeblt export CHECKPOINT {path}`")
    try:
        manifest = _read_manifest(path / MANIFEST)
    except RecursionError:
        raise EdgebltError(f"{path / MANIFEST} is nested too deeply; export the bundle again") from None
    graphs = {entry.graph for entry in manifest.stages.values()}
    try:
        for name, record in manifest.files.items():
            _check_file(path / name, record, hashed=verify or name in graphs)
        for entry in manifest.stages.values():
            _check_external_data(path / entry.graph, entry.weights)
    except OSError as error:
        raise EdgebltError(
            f"{error.filename or path} cannot be read ({error.strerror}); copy the bundle again"
        ) from None
    return Bundle(path, manifest)


def write_manifest(path: Path, manifest: Manifest) -> None:
    document = dataclass_document(manifest)
    document["checksum"] = _checksum(document)
    (path / MANIFEST).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def file_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)


def _read_manifest(path: Path) -> Manifest:
    try:
        status = path.lstat()  # a pipe could block, or never end
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MANIFEST_LIMIT:
            raise EdgebltError(
                f"{path} is not a regular file of at most {_MANIFEST_LIMIT} bytes; copy the bundle again, without links"
            )
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgebltError(f"{path} cannot be read ({error.strerror}); is {path.parent} a bundle?") from None
    except ValueError as error:
        if isinstance(error, EdgebltError):
            raise
        raise EdgebltError(f"{path} is not JSON ({_one_line(error)}); export the bundle again") from None
    if not isinstance(document, dict):
        raise EdgebltError(f"{path} is not a JSON object; export the bundle again")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise EdgebltError(
            f"{path} has format version {version!r:.40}; this edgeblt reads {FORMAT_VERSION}: export again with it"
        )
    if document.pop("checksum", None) != _checksum(document):
        raise EdgebltError(f"{path} does not match its checksum: it was changed or damaged; export the bundle again")
    manifest = parse_dataclass(Manifest, document, str(path))
    _check_names(manifest, path)
    return manifest


def _check_names(manifest: Manifest, path: Path) -> None:
    for name, record in manifest.files.items():
        if not _PLAIN_NAME.fullmatch(name) or name == MANIFEST:
            raise EdgebltError(f"{path} names the file {name!r:.60}; only plain file names are allowed: export again")
        if record.size < 0 or not _HASH.fullmatch(record.sha256):
            raise EdgebltError(f"{path} gives {name} an impossible size or hash; export the bundle again")
    if set(manifest.stages) != set(STAGES):
        raise EdgebltError(f"{path} has the stages {list(manifest.stages)!r:.100}; it must have {', '.join(STAGES)}")
    for text in _texts(manifest):  # they are printed
        if not (text.isprintable() and len(text) <= _LONGEST_TEXT):
            raise EdgebltError(f"{path} holds the text {text!a:.60}, which cannot be shown; export the bundle again")
    for stage, entry in manifest.stages.items():
        for name in (entry.graph, *entry.weights):
            if name not in manifest.files:
                raise EdgebltError(
                    f"{path}: stage {stage} uses {name!r:.60}, which is not among its files; export again"
                )


def _texts(manifest: Manifest) -> list[str]:
    formats = (entry.weight_format for entry in manifest.stages.values())
    return [manifest.name, manifest.target, manifest.recipe, *formats, *manifest.made_by, *manifest.made_by.values()]


def _check_file(file: Path, record: FileRecord, hashed: bool) -> None:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise EdgebltError(f"{file} is not a regular file; copy the bundle again, without links")
    if status.st_size != record.size:
        raise EdgebltError(f"{file} has {status.st_size} bytes instead of {record.size}; copy the bundle again")
    if hashed and file_record(file) != record:
        raise EdgebltError(f"{file} does not match its sha256: it was changed or damaged; copy the bundle again")


def _check_external_data(graph: Path, weights: tuple[str, ...]) -> None:
    """The graph reads no file but its own weights: each `location` in it must be one of theirs.

    ONNX Runtime keeps external data inside the directory; that alone would let in files no hash covers.
    """
    if graph.stat().st_size == 0:
        return  # nothing to map; ONNX Runtime will say that it is no graph
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(_LOCATION_KEY)
        while place >= 0:
            found = _LOCATION.match(content, max(place - 2, 0))
            length = found[1][0] if found else 0
            name = content[found.end() : found.end() + length] if found and length < 128 else b""
            if name.decode("ascii", "replace") not in weights:
                raise EdgebltError(
                    f"{graph} refers to the data file {name!r:.60}, which is not among its weights; export again"
                )
            place = content.find(_LOCATION_KEY, place + len(_LOCATION_KEY))


def _checksum(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
