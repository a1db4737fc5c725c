"""Combinations of settings for one benchmark."""

import dataclasses
import itertools
from collections.abc import Sequence

from edgeblt.measure.benchmark import TEXT, Setting


def combined_settings(
    providers: Sequence[str | None],
    threads: Sequence[int | None],
    drafts: Sequence[str],
    thresholds: Sequence[float | None],
    prompt_bytes: Sequence[int],
    decoded: Sequence[str],
    temperatures: Sequence[float],
) -> tuple[Setting, ...]:
    """Every distinct combination of the values, the last varying fastest; see `Setting` for what each means.

    Temperatures are for what is generated: where bytes of a text are decoded as well, those settings have none.
    """
    combined = itertools.product(providers, threads, drafts, thresholds, prompt_bytes, decoded, temperatures)
    settings = tuple(itertools.starmap(Setting, combined))
    if all(name == TEXT for name in decoded):
        return tuple(dict.fromkeys(settings))
    return tuple(
        dict.fromkeys(dataclasses.replace(each, temperature=0.0) if each.decode == TEXT else each for each in settings)
    )
