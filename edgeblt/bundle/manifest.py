"""A bundle on disk: a directory whose `bundle.json` names, sizes and hashes every file in it.

`export/` writes bundles; this module describes and checks them. Format version 2, whose dense weights are interleaved:

    bundle.json      a `Manifest`, and `checksum`: the sha256 of its canonical JSON without that field
    patcher.onnx, encoder.onnx, global.onnx, decoder.onnx, or those of another architecture's stages
    *.weights        the graphs' external data
    README.md        the model card
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeblt.bundle.architectures import FIRST, architecture
from edgeblt.bundle.contract import PORTABLE, TARGETS, StageContract, StageName, Target
from edgeblt.bundle.dataclass_json import LATER, dataclass_document, parse_dataclass
from edgeblt.bundle.examination.graph_check import check_graph
from edgeblt.bundle.held_files import HeldDirectory, HeldFile, unreadable
from edgeblt.bundle.placement import parse_cache_formats, parse_placement
from edgeblt.bundle.portable.contract import portable_contract
from edgeblt.bundle.portable.document import METADATA_KEY, PortableDocument, portable_document
from edgeblt.errors import EdgebltError

FORMAT_VERSION = 2
MANIFEST = "bundle.json"
_DOCUMENT_LIMIT = 1 << 20
_GRAPH_LIMIT = 1 << 28  # bytes; graphs of a 7B model take well below 1 MB
_EMBEDDED_LIMIT = 1 << 31  # bytes; an ONNX file can have no more
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LONGEST_TEXT = 2000


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
    target: str  # target of the graphs: cpu, cuda, or one for each stage, as `parse_placement` reads it
    recipe: str
    kv_cache: str  # format of keys and values: fp32, fp16, int8, or one for each stage
    config: Any  # a ByteModelConfig; Any, as what is of one architecture reads its own class from here
    stages: dict[str, StageRecord]
    files: dict[str, FileRecord]
    made_by: dict[str, str]  # package to version
    architecture: str = field(default=FIRST, metadata=LATER)
    portable: PortableDocument | None = field(default=None, metadata=LATER)  # for the target portable

    @property
    def is_portable(self) -> bool:
        """Whether all stages are in one graph, for any ONNX Runtime."""
        return self.target == PORTABLE

    @property
    def stage_names(self) -> tuple[StageName, ...]:
        """Names of the architecture's stages, in the order of the computation."""
        return architecture(self.architecture).stages

    @property
    def targets(self) -> dict[StageName, Target]:
        """Target of each stage. Raises EdgebltError for an unknown target."""
        if self.is_portable:
            return dict.fromkeys(self.stage_names, PORTABLE)
        return parse_placement(self.target, "target", TARGETS, dict.fromkeys(self.stage_names, TARGETS[0]))

    @property
    def contracts(self) -> dict[StageName, StageContract]:
        """Contract of each stage, those of a portable graph within it (its own is `portable_contract`).

        Raises EdgebltError for an unknown target or format of keys and values.
        """
        caches = parse_cache_formats(self.kv_cache, self.stage_names)
        return architecture(self.architecture).contracts(self.config, self.targets, caches)


@dataclass(frozen=True)
class Bundle:
    path: Path
    manifest: Manifest

    @property
    def size(self) -> int:
        """Total size in bytes of the files that the manifest names."""
        return sum(record.size for record in self.manifest.files.values())

    @property
    def directory_name(self) -> str:
        return self.path.resolve().name

    @property
    def id(self) -> str:
        """Identifier of 12 hexadecimal digits, the same for every copy of a bundle and for no other bundle."""
        return checksum(dataclass_document(self.manifest))[:12]


@dataclass(frozen=True)
class HeldStage:
    """Checked files of one stage: the bytes of its graph, and its weights files, open."""

    graph: Path
    content: bytes = field(repr=False)
    weights: tuple[HeldFile, ...]
    directory: HeldDirectory


def refuse_replacement(stages: Iterable[HeldStage]) -> None:
    """Raises EdgebltError unless opening the stages' weights by name has led to the files that were checked."""
    stages = tuple(stages)
    for file in (file for stage in stages for file in stage.weights):
        file.refuse_replacement()
    for stage in stages:
        stage.directory.refuse_replacement()


@dataclass(frozen=True)
class HeldBundle:
    """A bundle with its stages' files, which stay open during the lifetime of this object."""

    bundle: Bundle
    stages: dict[StageName, HeldStage]


def open_bundle(path: str | Path, verify: bool = False) -> Bundle:
    """Reads and checks a bundle: names, file sizes, the graphs' hashes, and the graphs (`examination.graph_check`).

    `verify` checks the hash of every file as well. Raises EdgebltError naming the file at fault.
    """
    return hold_bundle(path, verify).bundle


def hold_bundle(path: str | Path, verify: bool = False) -> HeldBundle:
    """Opens a bundle like `open_bundle`, and holds the checked graphs' content and weights files open."""
    path = Path(path)
    if not os.path.isdir(path):  # os.path: never raises, however odd the name
        raise EdgebltError(f"{path} is not a bundle directory; make one with `edgeblt export CHECKPOINT {path}`")
    try:
        manifest = read_manifest(path / MANIFEST)
    except RecursionError:
        raise EdgebltError(f"{path / MANIFEST} is nested too deeply; export the bundle again") from None
    try:
        stages = _hold_stages(path, manifest, verify)
    except OSError as error:
        raise unreadable(Path(error.filename or path), error, "copy the bundle again") from None
    return HeldBundle(Bundle(path, manifest), stages)


def _hold_stages(path: Path, manifest: Manifest, verify: bool) -> dict[StageName, HeldStage]:
    graphs = {entry.graph for entry in manifest.stages.values()}
    weights = {name for entry in manifest.stages.values() for name in entry.weights}
    directory, contents, files = HeldDirectory(path), dict[str, bytes](), dict[str, HeldFile]()
    most = _EMBEDDED_LIMIT if manifest.is_portable else _GRAPH_LIMIT  # a portable graph may hold its weights
    for name, record in manifest.files.items():
        file = hold_file(path / name, record, verify and name not in graphs, "copy the bundle again")
        if name in graphs:
            contents[name] = read_graph(file, record, "copy the bundle again", most)
        if name in weights:
            files[name] = file
    if manifest.is_portable:
        return _hold_portable(path, manifest, contents, files, directory)
    contracts = manifest.contracts
    stages: dict[StageName, HeldStage] = {}
    for stage in manifest.stage_names:
        entry = manifest.stages[stage]
        content, graph = contents[entry.graph], path / entry.graph
        sizes = {name: manifest.files[name].size for name in entry.weights}
        check_graph(content, graph, sizes, "export again", contract=contracts[stage])
        stages[stage] = HeldStage(graph, content, tuple(files[name] for name in entry.weights), directory)
    return stages


def _hold_portable(
    path: Path, manifest: Manifest, contents: dict[str, bytes], files: dict[str, HeldFile], directory: HeldDirectory
) -> dict[StageName, HeldStage]:
    """The one graph, as that of each stage."""
    assert manifest.portable is not None
    entry = manifest.stages[manifest.stage_names[0]]
    content, graph = contents[entry.graph], path / entry.graph
    sizes = {name: manifest.files[name].size for name in entry.weights}
    contract, metadata = portable_contract(manifest.config), {METADATA_KEY: manifest.portable.text()}
    check_graph(content, graph, sizes, "export again", contract=contract, metadata=metadata)
    weights = tuple(files[name] for name in entry.weights)
    return dict.fromkeys(manifest.stage_names, HeldStage(graph, content, weights, directory))


def write_manifest(path: Path, manifest: Manifest) -> None:
    write_document(path / MANIFEST, manifest)


def write_document(path: Path, value: object) -> None:
    """Writes a dataclass as JSON, with a checksum."""
    document = dataclass_document(value)
    document["checksum"] = checksum(document)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def file_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)


def read_document(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of bounded size. Raises EdgebltError, and OSError where it cannot be read."""
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
    """Removes and checks the checksum of a document that `write_document` wrote to `path`."""
    if document.pop("checksum", None) != checksum(document):
        raise EdgebltError(f"{path} does not match its checksum: it was changed or damaged; {remedy}")


def read_manifest(path: Path) -> Manifest:
    try:
        document = read_document(path, "export the bundle again")
    except OSError as error:
        if _looks_like_a_checkpoint(path.parent):
            raise EdgebltError(
                f"{path.parent} is a checkpoint, not a bundle; export it first: edgeblt export {path.parent} BUNDLE"
            ) from None
        raise unreadable(path, error, f"is {path.parent} a bundle?") from None
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise EdgebltError(
            f"{path} has format version {version!r:.40}; this edgeblt reads {FORMAT_VERSION}: export again with it"
        )
    check_checksum(document, path, "export the bundle again")
    kind = architecture(document.get("architecture", FIRST))
    manifest = parse_dataclass(Manifest, document, str(path), {"config": kind.config})
    _check_names(manifest, path)
    return manifest


def _looks_like_a_checkpoint(path: Path) -> bool:
    """Whether a directory holds a configuration and weights, as every form of checkpoint does."""
    has_config = any(os.path.isfile(path / name) for name in ("config.json", "params.json"))
    return has_config and any(any(path.glob(pattern)) for pattern in ("*.safetensors", "*.bin", "*.pth"))


def _check_names(manifest: Manifest, path: Path) -> None:
    for name, record in manifest.files.items():
        if not _PLAIN_NAME.fullmatch(name) or name == MANIFEST:
            raise EdgebltError(f"{path} names the file {name!r:.60}; only plain file names are allowed: export again")
        if record.size < 0 or not _HASH.fullmatch(record.sha256):
            raise EdgebltError(f"{path} gives {name} an impossible size or hash; export the bundle again")
    names = manifest.stage_names
    if set(manifest.stages) != set(names):
        raise EdgebltError(f"{path} has the stages {list(manifest.stages)!r:.100}; it must have {', '.join(names)}")
    try:
        manifest.contracts  # noqa: B018
    except EdgebltError as error:
        raise EdgebltError(f"{path}: {error}; export the bundle again with it") from None
    _check_portable(manifest, path)
    for text in _texts(manifest):  # they are printed
        if not (text.isprintable() and len(text) <= _LONGEST_TEXT):
            raise EdgebltError(f"{path} holds the text {text!a:.60}, which cannot be shown; export the bundle again")
    for stage, entry in manifest.stages.items():
        for name in (entry.graph, *entry.weights):
            if name not in manifest.files:
                raise EdgebltError(
                    f"{path}: stage {stage} uses {name!r:.60}, which is not among its files; export again"
                )


def _check_portable(manifest: Manifest, path: Path) -> None:
    """Checks that a portable bundle has one graph, and the document that its configuration gives it."""
    document = manifest.portable
    wanted = document and portable_document(manifest.config, manifest.recipe, manifest.made_by, document.source)
    if document != wanted or (document is None) == manifest.is_portable:
        raise EdgebltError(f"{path} describes another portable file than its configuration gives; export again")
    graphs = {(entry.graph, entry.weights) for entry in manifest.stages.values()}
    if manifest.is_portable and len(graphs) > 1:
        raise EdgebltError(f"{path} has several portable graphs; export the bundle again")


def _texts(manifest: Manifest) -> list[str]:
    formats = (entry.weight_format for entry in manifest.stages.values())
    sources = [manifest.portable.source] if manifest.portable else []
    names = [manifest.name, manifest.target, manifest.recipe]
    return [*names, *sources, *formats, *manifest.made_by, *manifest.made_by.values()]


def hold_file(path: Path, record: FileRecord, hashed: bool, remedy: str) -> HeldFile:
    """Opens a file, which must not be a link and must have its recorded size and, if `hashed`, its recorded hash.

    Raises EdgebltError, and OSError.
    """
    file = HeldFile(path, remedy)
    if file.size != record.size:
        raise EdgebltError(f"{path} has {file.size} bytes instead of {record.size}; {remedy}")
    if hashed and file.sha256() != record.sha256:
        raise _damaged(path, remedy)
    return file


def read_graph(file: HeldFile, record: FileRecord, remedy: str, most: int = _GRAPH_LIMIT) -> bytes:
    """The bytes of a graph that `hold_file` opened. Raises EdgebltError if their hash is wrong, and OSError."""
    if file.size > most:
        raise EdgebltError(f"{file.path} is no graph of edgeblt: it has more than {most} bytes; {remedy}")
    content = file.content()
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise _damaged(file.path, remedy)
    return content


def _damaged(path: Path, remedy: str) -> EdgebltError:
    return EdgebltError(f"{path} does not match its sha256: it was changed or damaged; {remedy}")


def checksum(document: dict[str, Any]) -> str:
    """The sha256 of a document's canonical JSON."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
