"""The JSON document of a portable file: in the graph's metadata under `METADATA_KEY`, and in `bundle.json`."""

import json
from dataclasses import dataclass

from edgeblt.bundle.config import Generation, ModelConfig, PatchingRule
from edgeblt.bundle.dataclass_json import dataclass_document
from edgeblt.bundle.portable.contract import NEXT, PORTABLE_VERSION, portable_states
from edgeblt.ids import BOS, OFFSET

METADATA_KEY = "edgeblt"


@dataclass(frozen=True)
class StateTensor:
    """A state at the beginning of a text, when all its elements are 0."""

    dtype: str
    shape: tuple[int, ...]
    grows: bool  # one of its dimensions


@dataclass(frozen=True)
class PortableDocument:
    """All that a client may want to know of a portable file; docs/portable.md describes it."""

    format: str
    format_version: int
    bos: int
    ends: tuple[int, ...]
    byte_offset: int
    vocab_size: int
    next: str
    state: dict[str, StateTensor]
    patching: PatchingRule
    generation: Generation
    recipe: str
    made_by: dict[str, str]
    source: str

    def text(self) -> str:
        """The document as it stands in the graph's metadata."""
        return json.dumps(dataclass_document(self))


def portable_document(config: ModelConfig, recipe: str, made_by: dict[str, str], source: str) -> PortableDocument:
    """The document of a model; `source` names its checkpoint."""
    states = {
        spec.name: StateTensor(
            spec.dtype,
            tuple(size if isinstance(size, int) else 1 for size in spec.shape),
            any(isinstance(size, str) for size in spec.shape),
        )
        for spec in portable_states(config)
    }
    return PortableDocument(
        format="portable",
        format_version=PORTABLE_VERSION,
        bos=BOS,
        ends=config.generation.ends,
        byte_offset=OFFSET,
        vocab_size=config.vocab_size,
        next=NEXT,
        state=states,
        patching=config.patching,
        generation=config.generation,
        recipe=recipe,
        made_by=made_by,
        source=source,
    )
