"""Settings of a text in a batch, made into its sampler: the one place that knows them."""

from edgeblt.arguments import whole_number
from edgeblt.bundle.config import ModelConfig
from edgeblt.decoding.sampling import Sampler, Sampling


def text_samplers(
    config: ModelConfig,
    count: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
) -> list[Sampler]:
    """Samplers of `count` answers to one prompt; the seed of answer i is `seed` + i.

    The other arguments are those of `Model.generate`; None is the checkpoint's own setting. Raises EdgebltError for
    values out of range.
    """
    stated = config.generation
    first = None if seed is None else whole_number("seed", seed)
    samplers = []
    for index in range(count):
        sampling = Sampling(
            stated.temperature if temperature is None else temperature,
            stated.top_k if top_k is None else top_k,
            stated.top_p if top_p is None else top_p,
            None if first is None else first + index,
        )
        samplers.append(Sampler(sampling, ends=stated.ends))
    return samplers
