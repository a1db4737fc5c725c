"""Text form of a placement of stages: one name for all stages, or `global=cuda,decoder=cuda` for some of them."""

from collections.abc import Iterable, Mapping
from typing import TypeVar, cast, get_args

from edgeblt.bundle.contract import CACHE_FORMATS, STAGES, CacheFormat, StageName
from edgeblt.errors import EdgebltError

Name = TypeVar("Name", bound=str)
ALL_STAGES: tuple[StageName, ...] = get_args(StageName)  # the stages of all architectures: a recipe serves any


def parse_placement(
    text: str, what: str, names: tuple[Name, ...], others: Mapping[StageName, Name]
) -> dict[StageName, Name]:
    """The name in `text` for each stage of `others`; stages that it leaves out have their name there.

    Raises EdgebltError for an unknown name or stage and for a stage given twice; messages call a name `what`.
    """
    known = {str(name): name for name in names}
    if "=" not in text:
        return dict.fromkeys(others, _known(text, what, known))
    placed: dict[StageName, Name] = {}
    for part in text.split(","):
        stage, _, name = (word.strip() for word in part.partition("="))
        if stage not in others:
            raise EdgebltError(f"{what} {text!a:.60} names the stage {stage!a:.40}; use {', '.join(others)}")
        if stage in placed:
            raise EdgebltError(f"{what} {text!a:.60} names the stage {stage} twice; name it once")
        placed[cast(StageName, stage)] = _known(name, what, known)
    return {stage: placed.get(stage, other) for stage, other in others.items()}


def parse_cache_formats(text: str, stages: Iterable[StageName] = ALL_STAGES) -> dict[StageName, CacheFormat]:
    """Format of keys and values for each stage; fp32 where `text` leaves a stage out. Raises EdgebltError likewise."""
    return parse_placement(text, "kv_cache", CACHE_FORMATS, dict.fromkeys(stages, CACHE_FORMATS[0]))


def describe_placement(placement: Mapping[StageName, str]) -> str:
    """Inverse of `parse_placement`: one name where all stages have the same."""
    stages = [stage for stage in (*STAGES, *placement) if stage in placement]
    (first, *rest) = (placement[stage] for stage in dict.fromkeys(stages))
    return first if {first} >= {*rest} else ",".join(f"{stage}={placement[stage]}" for stage in dict.fromkeys(stages))


def _known(name: str, what: str, known: dict[str, Name]) -> Name:
    if name not in known:
        raise EdgebltError(f"{what} {name!r:.60} is unknown; this version has {', '.join(known)}")
    return known[name]
