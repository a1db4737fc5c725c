"""Settings of texts in a batch."""

from dataclasses import replace
from typing import Any

from edgeblt.arguments import whole_number
from edgeblt.batching.text import Recorded
from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.decoding.settings import GenerationSettings, OtherSettings, merged_settings
from edgeblt.errors import EdgebltError
from edgeblt.names import DraftName, Name


class BatchSettings(OtherSettings, total=False):
    """Settings that calls for batches take by keyword; `GenerationSettings` explains them."""

    max_new_bytes: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    draft: DraftName | Name


def completed_settings(
    config: ByteModelConfig, settings: GenerationSettings | None, **changes: Any
) -> GenerationSettings:
    """`settings`, changed and completed by the checkpoint's own. Raises EdgebltError for values out of range."""
    return merged_settings(settings, **changes).completed(config.generation)


def settings_of_answers(settings: GenerationSettings, count: int) -> list[GenerationSettings]:
    """Settings of `count` answers to one prompt: the seed of answer i is `seed` + i."""
    if settings.seed is None:
        return [settings] * count
    return [replace(settings, seed=settings.seed + index) for index in range(count)]


def recorded_details(details: int | None, echo: bool) -> Recorded | None:
    """Details to record of a text, and with `echo` of its prompt. Raises EdgebltError for values out of range."""
    if details is None:
        if echo:
            raise EdgebltError("echo is True, but details is None; say with details how many alternatives to record")
        return None
    return Recorded(whole_number("details", details), echo)
