"""Generation settings of a checkpoint in transformers' form: ids that end a text, and how bytes are sampled.

Source: transformers `GenerationMixin.adjust_generation_fn` and `GenerationConfig.from_model_config`. Settings come from
`generation_config.json`, or from `config.json` where there is no such file; `temperature`, `top_k` and `top_p` count
with `do_sample` only. A setting that is left out is not replaced by transformers' own default (its top_k is 50).
"""

from pathlib import Path

from edgeblt.bundle.config import Generation
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.config_section import Section
from edgeblt.export.checkpoints.files.checkpoint_files import CONFIG, checkpoint_file, exists, read_json
from edgeblt.ids import EOS

GENERATION = "generation_config.json"
_ENDS = "eos_token_id"


def read_generation(directory: Path, config: object, vocab_size: int) -> Generation:
    """Generation settings; `config` is the parsed `config.json`. Raises EdgebltError for values that no model can have.

    If `generation_config.json` has no end ids, those of `config.json` count; if neither has any, id 2 ends a text.
    """
    own = Section(config, str(directory / CONFIG))
    stated = own
    if exists(directory, GENERATION):
        stated = Section(read_json(checkpoint_file(directory, GENERATION)), str(directory / GENERATION))
    found = (end_ids(section, vocab_size) for section in (stated, own))
    ends = next((ends for ends in found if ends is not None), (EOS,))
    if not stated.boolean("do_sample", False):
        return Generation(ends)
    temperature = _optional_number(stated, "temperature")
    top_p = _optional_number(stated, "top_p")
    try:
        return Generation(
            ends,
            temperature=1.0 if temperature is None else temperature,
            top_k=stated.optional_integer("top_k", None, minimum=0) or None,
            top_p=None if top_p == 1 else top_p,
        )
    except EdgebltError as error:
        raise EdgebltError(f"{stated.where}: {error}, or null") from None


def end_ids(section: Section, vocab_size: int) -> tuple[int, ...] | None:
    """Ids that end a text; None if the section names none."""
    value = section.document.get(_ENDS)
    if value is None:
        return None
    ids = value if isinstance(value, list) else [value]
    if any(type(id) is not int or not 0 <= id < vocab_size for id in ids):  # `type`: true is no integer
        raise section.error(_ENDS, f"it must be an id between 0 and {vocab_size - 1}, a list of such ids, or null")
    return tuple(sorted(set(ids)))


def _optional_number(section: Section, name: str) -> float | None:
    return None if section.document.get(name) is None else section.number(name, 0.0)
