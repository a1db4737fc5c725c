"""Settings of a generated text: how each byte is chosen, what ends the text, how it is drafted."""

from dataclasses import dataclass, replace
from typing import Any, TypedDict, get_args

from edgeblt.arguments import whole_number
from edgeblt.bundle.config import Generation
from edgeblt.decoding.sampling import LogitBias, Sampling
from edgeblt.errors import EdgebltError, shown
from edgeblt.names import DraftName, Name

MAX_NEW_BYTES = 256
# Penalties that count how often each byte has occurred; every letter has, so they forbid the alphabet.
_HARMFUL = ("repetition_penalty", "frequency_penalty", "presence_penalty")


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(Sampling):
    """Settings of a generated text; every one has a default, and docs/generation.md a table of all.

    temperature: 0 takes the likeliest byte; above 0 bytes are sampled: at 1 from the model's distribution, below 1 from
        a sharper one. None, the default, is the checkpoint's own setting, or 0 if it has none.
    top_k: sample from the k likeliest bytes only, 1 or more; None as for the temperature, 260 for all.
    top_p: sample from the likeliest bytes that reach this share, above 0 and at most 1, of the probability that top_k
        leaves; None as for the temperature, 1 for all.
    min_p: leave out bytes less likely than this share, above 0 and at most 1, of the likeliest byte's probability;
        None, the default, leaves out none.
    logit_bias: nats added to the logits of bytes (`{b"x": 2.0}` or `{"x": 2.0}`) or ids (`{2: -1.0}`; byte b is id
        b + 4); -inf forbids one. Default none. Kept as pairs of id and nats.
    seed: 0 or more; the same seed gives the same samples. None, the default, gives others every time.
    max_new_bytes: most bytes to generate, 0 or more; default 256.
    ignore_eos: True never ends the text before `max_new_bytes`: the ids that end a text are not sampled; default False.
    draft: speculative decoding, which changes only the time it takes: none, patcher, decoder, ngram, or auto, the
        default. Where `Model.is_exact` is false, kinds other than auto may also decide a near tie differently.

    Raises EdgebltError for values out of range.
    """

    max_new_bytes: int = MAX_NEW_BYTES
    ignore_eos: bool = False
    draft: DraftName | Name = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "max_new_bytes", whole_number("max_new_bytes", self.max_new_bytes))
        _check_flag("ignore_eos", self.ignore_eos)
        check_draft(self.draft)

    def completed(self, stated: Generation) -> "GenerationSettings":
        """These settings with the checkpoint's own temperature, top_k and top_p where they are None.

        stated: what the checkpoint states, `model.config.generation`.
        """
        names = ("temperature", "top_k", "top_p")
        return replace(self, **{name: getattr(stated, name) for name in names if getattr(self, name) is None})


class OtherSettings(TypedDict, total=False):
    """Settings that `Model.generate` takes by keyword only; `GenerationSettings` explains them."""

    min_p: float | None
    logit_bias: LogitBias
    ignore_eos: bool


def merged_settings(settings: GenerationSettings | None, **changes: Any) -> GenerationSettings:
    """`settings`, or the defaults, with the changes that are not None. Raises EdgebltError for values out of range."""
    if settings is not None and not isinstance(settings, GenerationSettings):
        raise EdgebltError(f"settings is {shown(settings)}; it must be edgeblt.GenerationSettings")
    given = {name: value for name, value in changes.items() if value is not None}
    for name in _HARMFUL:
        if name in given:
            raise EdgebltError(
                f"{name} is not offered: counted by byte it forbids the letters of the alphabet, not repetitions; use"
                " dry_multiplier, which penalizes going on with a repeated passage"
            )
    return replace(settings, **given) if settings else GenerationSettings(**given)


def check_draft(draft: object) -> None:
    """Raises EdgebltError unless `draft` is a DraftName."""
    names = get_args(DraftName)
    if not isinstance(draft, str) or draft not in names:
        raise EdgebltError(f"draft is {shown(draft)}; use one of {', '.join(names)}")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise EdgebltError(f"{name} is {shown(value)}; it must be True or False")
