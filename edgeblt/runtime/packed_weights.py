"""Weights packed for one machine, in a directory beside their bundle: its contents, and when it is used.

ONNX Runtime repacks matrices when it opens a graph, into memory of the process. A graph saved with its packed weights
has them mapped instead: shared by all processes, and dropped and read again as memory is needed. `edgeblt prepare`
(prepare.py) writes, format version 1:

    BUNDLE.prepared/
        prepared.json           a `PreparedRecord` and its checksum, as in bundle/manifest.py
        STAGE.onnx              the optimized graph of each stage that gains from it
        STAGE.weights           its weights, as they are and packed
"""

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

import onnxruntime

from edgeblt.bundle.contract import StageName
from edgeblt.bundle.dataclass_json import dataclass_document, parse_dataclass
from edgeblt.bundle.examination.graph_check import check_graph
from edgeblt.bundle.held_files import HeldDirectory, unreadable
from edgeblt.bundle.manifest import (
    Bundle,
    FileRecord,
    HeldStage,
    check_checksum,
    checksum,
    hold_file,
    read_document,
    read_graph,
)
from edgeblt.errors import EdgebltError
from edgeblt.runtime import native

FORMAT_VERSION = 1
RECORD = "prepared.json"
# Lines of /proc/cpuinfo that tell one kind of core from another, on x86 and ARM.
_PROCESSOR_LINES = (
    "vendor_id", "cpu family", "model", "model name", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features",
)  # fmt: skip


@dataclass(frozen=True)
class PreparedStage:
    graph: FileRecord
    weights: FileRecord


@dataclass(frozen=True)
class PreparedRecord:
    """Record of the prepared stages, and of all that packed weights depend on."""

    format_version: int
    bundle: str  # sha256 of its manifest
    machine: str  # `machine_key`
    onnxruntime: str  # version
    native: str | None  # version of the native library
    provider: str
    stages: dict[str, PreparedStage]

    @property
    def size(self) -> int:
        """Bytes of all graphs and weights."""
        return sum(stage.graph.size + stage.weights.size for stage in self.stages.values())


@dataclass(frozen=True)
class Prepared:
    """A bundle's prepared directory; `unused_because` says why its stages are opened from the bundle instead."""

    path: Path
    stages: tuple[str, ...]
    unused_because: str | None
    held: Mapping[str, HeldStage] = field(default_factory=dict, repr=False, compare=False)  # by stage

    def graph(self, stage: StageName) -> Path | None:
        """Path of the stage's prepared graph; None where the bundle's own is to be opened."""
        return self.path / graph_name(stage) if stage in self.stages and not self.unused_because else None

    def stage(self, stage: StageName) -> HeldStage | None:
        """Files of the prepared stage; None where the bundle's own are to be opened."""
        return self.held.get(stage) if self.graph(stage) else None

    def describe(self) -> str:
        """`yes` and the stages, or `no` and the reason."""
        if self.unused_because:
            return f"no: {self.unused_because}"
        return f"yes: {', '.join(self.stages) or 'no stage gains from it'}, in {self.path}"


def graph_name(stage: str) -> str:
    return f"{stage}.onnx"


def weights_name(stage: str) -> str:
    return f"{stage}.weights"


def prepared_path(bundle: Bundle) -> Path:
    """Directory beside the bundle itself, whatever link or relative path leads there."""
    place = Path(os.path.realpath(bundle.path))
    return place.with_name(f"{place.name}.prepared")


def find_prepared(bundle: Bundle, provider: str, verify: bool = False) -> Prepared:
    """The bundle's prepared directory, used if it fits the bundle, the machine, the runtime and the provider.

    `verify` checks the hash of every file, not only those of the graphs. Raises EdgebltError naming the file at fault
    where the directory fits but is damaged.
    """
    if provider != "cpu":
        return Prepared(prepared_path(bundle), (), f"weights are prepared for the cpu alone, this is {provider}")
    return open_prepared(prepared_path(bundle), bundle, provider, verify)


def open_prepared(path: Path, bundle: Bundle, provider: str, verify: bool = False) -> Prepared:
    """The prepared directory at `path`; checks and raises as `find_prepared`."""
    if not os.path.lexists(path):
        return Prepared(path, (), f"there is no {path}; make it with `edgeblt prepare {bundle.path}`")
    remedy = f"make it again with `edgeblt prepare {bundle.path}`, or remove {path}"
    if os.path.islink(path) or not os.path.isdir(path):
        raise EdgebltError(f"{path} is not a directory of prepared weights; remove it")
    try:
        document = read_document(path / RECORD, remedy)
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            return Prepared(path, (), f"{path} has the format version {version!a:.40}, not {FORMAT_VERSION}; {remedy}")
        record = _parse(document, path, remedy)
        reason = _misfit(record, record_for(bundle, provider, {}))
        if reason:
            return Prepared(path, (), f"{path} was made {reason}; {remedy}")
        contracts = bundle.manifest.contracts
        directory, held = HeldDirectory(path), dict[str, HeldStage]()
        for stage, files in record.stages.items():
            held[stage] = _hold(directory, stage, files, verify, remedy)
            check_graph(
                held[stage].content,
                held[stage].graph,
                {weights_name(stage): files.weights.size},
                remedy,
                packed=True,
                contract=contracts[cast(StageName, stage)],
            )
    except RecursionError:
        raise EdgebltError(f"{path / RECORD} is nested too deeply; {remedy}") from None
    except OSError as error:
        raise unreadable(Path(error.filename or path), error, remedy) from None
    return Prepared(path, tuple(stage for stage in bundle.manifest.stage_names if stage in record.stages), None, held)


def _hold(directory: HeldDirectory, stage: str, files: PreparedStage, verify: bool, remedy: str) -> HeldStage:
    graph, weights = directory.path / graph_name(stage), directory.path / weights_name(stage)
    content = read_graph(hold_file(graph, files.graph, False, remedy), files.graph, remedy)
    held = hold_file(weights, files.weights, verify, remedy)
    return HeldStage(graph, content, (held,), directory)


def record_for(bundle: Bundle, provider: str, stages: dict[str, PreparedStage]) -> PreparedRecord:
    """Record of stages prepared on this machine with the installed versions."""
    return PreparedRecord(
        format_version=FORMAT_VERSION,
        bundle=checksum(dataclass_document(bundle.manifest)),
        machine=machine_key(),
        onnxruntime=onnxruntime.__version__,
        native=native.version(),
        provider=provider,
        stages=stages,
    )


def machine_key(root: Path = Path("/")) -> str:
    """sha256 of the processor's kind, its features, and the machine's id; `root` is where the system's files lie.

    Packed weights depend on the first two. The id keeps out directories made elsewhere for the same processor: ONNX
    Runtime trusts the sizes in them.
    """
    processor = set()
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in _PROCESSOR_LINES:
            processor.add(" ".join([name.strip(), *sorted(value.split())]))
    facts = [platform.machine(), *(sorted(processor) or [platform.processor()]), *_lines(root / "etc/machine-id")]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no such file on this system
        return []


def _parse(document: dict[str, object], path: Path, remedy: str) -> PreparedRecord:
    check_checksum(document, path / RECORD, remedy)
    record = parse_dataclass(PreparedRecord, document, str(path / RECORD))
    for stage in record.stages:
        if stage not in get_args(StageName):
            raise EdgebltError(f"{path / RECORD} names the unknown stage {stage!a:.60}; {remedy}")
    return record


def _misfit(found: PreparedRecord, here: PreparedRecord) -> str | None:
    """First mismatch, phrased to follow the words "was made"; None if the record fits."""
    if found.bundle != here.bundle:
        return "for another bundle of this name"
    if found.onnxruntime != here.onnxruntime:
        return f"by onnxruntime {found.onnxruntime!a:.40}, this is {here.onnxruntime}"
    if found.machine != here.machine:
        return "on another machine, or before this one's processor changed"
    if found.provider != here.provider:
        return f"for the provider {found.provider!a:.40}, this is {here.provider}"
    if found.native != here.native:
        return f"with native library {found.native!a:.40}, this is {here.native}"
    return None
