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
from edgeblt.contract import STAGES, TARGETS, StageName, Target
from edgeblt.errors import EdgebltError
from edgeblt.parsing import dataclass_document, parse_dataclass
from edgeblt.placement import parse_placement

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
_DOCUMENT_LIMIT = 1 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LONGEST_TEXT = 2000
# What names an external tensor's file in a graph: ONNX's StringStringEntryProto, as protobuf libraries write it.
_LOCATION_KEY = b"location"
_PACKED_KEY = b"prepacked_"
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
    target: str  # what the graphs were made for: cpu, cuda, or either by stage, as `parse_placement` reads it
    recipe: str
    config: ModelConfig
    stages: dict[str, StageRecord]
    files: dict[str, FileRecord]
    made_by: dict[str, str]  # package to version

    @property
    def targets(self) -> dict[StageName, Target]:
        """By stage. Raises EdgebltError for a target there is not."""
        return parse_placement(self.target, "target", TARGETS, dict.fromkeys(STAGES, TARGETS[0]))


@dataclass(frozen=True)
class Bundle:
    path: Path
    manifest: Manifest

    @property
    def size(self) -> int:
        """Bytes of all files the manifest names."""
        return sum(record.size for record in self.manifest.files.values())

    @property
    def directory_name(self) -> str:
        return self.path.resolve().name

    @property
    def id(self) -> str:
        """12 hexadecimal digits: the same for every copy of a bundle, and for no other."""
        return checksum(dataclass_document(self.manifest))[:12]


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
            check_file(path / name, record, verify or name in graphs, "copy the bundle again")
        for entry in manifest.stages.values():
            check_external_data(path / entry.graph, entry.weights, "export again")
    except OSError as error:
        raise EdgebltError(
            f"{error.filename or path} cannot be read ({error.strerror}); copy the bundle again"
        ) from None
    return Bundle(path, manifest)


def write_manifest(path: Path, manifest: Manifest) -> None:
    write_document(path / MANIFEST, manifest)


def write_document(path: Path, value: object) -> None:
    """A dataclass as JSON, with a checksum."""
    document = dataclass_document(value)
    document["checksum"] = checksum(document)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def file_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)


def read_document(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of no great size. Raises EdgebltError, and OSError where it cannot be read."""
    status = path.lstat()  # a pipe could block, or never end
    if not stat.S_ISREG(status.st_mode) or status.st_size > _DOCUMENT_LIMIT:
        raise EdgebltError(
            f"{path} is not a regular file of at most {_DOCUMENT_LIMIT} bytes, nor may it be a link; {remedy}"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EdgebltError(f"{path} is not JSON ({_one_line(error)}); {remedy}") from None
    if not isinstance(document, dict):
        raise EdgebltError(f"{path} is not a JSON object; {remedy}")
    return document


def check_checksum(document: dict[str, Any], path: Path, remedy: str) -> None:
    """Take the checksum out of a document that `write_document` wrote to `path`; it must be right."""
    if document.pop("checksum", None) != checksum(document):
        raise EdgebltError(f"{path} does not match its checksum: it was changed or damaged; {remedy}")


def _read_manifest(path: Path) -> Manifest:
    try:
        document = read_document(path, "export the bundle again")
    except OSError as error:
        if _looks_like_a_checkpoint(path.parent):
            raise EdgebltError(
                f"{path.parent} is a checkpoint, not a bundle; export it first: edgeblt export {path.parent} BUNDLE"
            ) from None
        raise EdgebltError(f"{path} cannot be read ({error.strerror}); is {path.parent} a bundle?") from None
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise EdgebltError(
            f"{path} has format version {version!r:.40}; this edgeblt reads {FORMAT_VERSION}: export again with it"
        )
    check_checksum(document, path, "export the bundle again")
    manifest = parse_dataclass(Manifest, document, str(path))
    _check_names(manifest, path)
    return manifest


def _looks_like_a_checkpoint(path: Path) -> bool:
    """In transformers' form, Meta's, or of `edgeblt quantize`: a configuration and weights."""
    has_config = any(os.path.isfile(path / name) for name in ("config.json", "params.json"))
    return has_config and any(any(path.glob(pattern)) for pattern in ("*.safetensors", "*.bin", "*.pth"))


def _check_names(manifest: Manifest, path: Path) -> None:
    for name, record in manifest.files.items():
        if not _PLAIN_NAME.fullmatch(name) or name == MANIFEST:
            raise EdgebltError(f"{path} names the file {name!r:.60}; only plain file names are allowed: export again")
        if record.size < 0 or not _HASH.fullmatch(record.sha256):
            raise EdgebltError(f"{path} gives {name} an impossible size or hash; export the bundle again")
    if set(manifest.stages) != set(STAGES):
        raise EdgebltError(f"{path} has the stages {list(manifest.stages)!r:.100}; it must have {', '.join(STAGES)}")
    try:
        manifest.targets  # noqa: B018
    except EdgebltError as error:
        raise EdgebltError(f"{path}: {error}; export the bundle again with it") from None
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


def check_file(file: Path, record: FileRecord, hashed: bool, remedy: str) -> None:
    """A file must be there itself, of its size and, if `hashed`, its hash. Raises EdgebltError, and OSError."""
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise EdgebltError(f"{file} is not a regular file, nor may it be a link; {remedy}")
    if status.st_size != record.size:
        raise EdgebltError(f"{file} has {status.st_size} bytes instead of {record.size}; {remedy}")
    if hashed and file_record(file) != record:
        raise EdgebltError(f"{file} does not match its sha256: it was changed or damaged; {remedy}")


def check_external_data(graph: Path, weights: tuple[str, ...], remedy: str, packed: bool = False) -> None:
    """The graph reads no file but its own weights: each `location` in it must be one of theirs.

    ONNX Runtime keeps external data inside the directory; that alone would let in files no hash covers. Nor may it
    bring packed weights unless they are `packed` here: it would read past the end of what is too short.
    """
    if graph.stat().st_size == 0:
        return  # nothing to map; ONNX Runtime will say that it is no graph
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if not packed and content.find(_PACKED_KEY) >= 0:
            raise EdgebltError(
                f"{graph} refers to packed weights, which belong to the machine that made them; {remedy}"
            )
        place = content.find(_LOCATION_KEY)
        while place >= 0:
            found = _LOCATION.match(content, max(place - 2, 0))
            length = found[1][0] if found else 0
            name = content[found.end() : found.end() + length] if found and length < 128 else b""
            if name.decode("ascii", "replace") not in weights:
                raise EdgebltError(
                    f"{graph} refers to the data file {name!r:.60}, which is not among its weights; {remedy}"
                )
            place = content.find(_LOCATION_KEY, place + len(_LOCATION_KEY))


def checksum(document: dict[str, Any]) -> str:
    """The sha256 of its canonical JSON."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
