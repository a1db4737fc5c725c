"""Recipes as TOML, in the form that `load_recipe` reads."""

import dataclasses
import json

from edgeblt.quant.recipes.recipe import Recipe, WeightRecipe


def recipe_text(recipe: Recipe, comment: str = "") -> str:
    """The TOML of a recipe, without its name, which is the file's; fields at their defaults are left out.

    comment: lines to put before it.
    """
    lines = [f"# {line}" for line in comment.splitlines()]
    sections: list[str] = []
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if isinstance(value, WeightRecipe):
            if settings := _settings(value):
                sections += ["", f"[{field.name.rstrip('_')}]", *settings]
        elif field.name != "name" and value != field.default:
            lines.append(f"{field.name} = {_value(value)}")
    return "\n".join([*lines, *sections]).lstrip("\n") + "\n"


def _settings(part: WeightRecipe) -> list[str]:
    """Lines of the fields that are not at their defaults; `format` always, where any is."""
    changed = {
        field.name: getattr(part, field.name)
        for field in dataclasses.fields(WeightRecipe)
        if getattr(part, field.name) != field.default
    }
    if not changed:
        return []
    return [f"{name} = {_value(value)}" for name, value in ({"format": part.format} | changed).items()]


def _value(value: str | float | bool) -> str:
    return json.dumps(value)  # strings, numbers and booleans of recipes are the same in TOML
