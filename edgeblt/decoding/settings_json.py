"""Generation settings as JSON: by their names, with `regex`, `json_schema` or `grammar` for a constraint."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from edgeblt.decoding.constraints import Constraint
from edgeblt.decoding.settings import GenerationSettings, merged_settings
from edgeblt.errors import EdgebltError, shown

_CONSTRAINTS = {"regex": Constraint.regex, "json_schema": Constraint.json_schema, "grammar": Constraint.lark}
NAMES = (*(field.name for field in fields(GenerationSettings) if field.name != "constraint"), *_CONSTRAINTS)


def settings_from_json(document: object, base: GenerationSettings) -> GenerationSettings:
    """`base` with the settings of a JSON object in place of its own; null leaves one as it is.

    Raises EdgebltError for anything but an object, an unknown name, or a value out of range.
    """
    if not isinstance(document, Mapping):
        raise EdgebltError(f"the settings are {shown(document)}; give a JSON object")
    for name in document:
        if name not in NAMES and not str(name).endswith("_penalty"):
            raise EdgebltError(f"there is no setting {shown(name)}; use one of {', '.join(NAMES)}")
    given: dict[str, Any] = {name: value for name, value in document.items() if name not in _CONSTRAINTS}
    constraint = one_constraint(**{name: document.get(name) for name in _CONSTRAINTS})
    return merged_settings(base, **given, constraint=constraint)


def one_constraint(regex: Any = None, json_schema: Any = None, grammar: Any = None) -> Constraint | None:
    """The constraint that is given; None without one. Raises EdgebltError for several, and for a useless one."""
    values = {"regex": regex, "json_schema": json_schema, "grammar": grammar}
    given = [(name, value) for name, value in values.items() if value is not None]
    if len(given) > 1:
        raise EdgebltError(f"{given[0][0]} and {given[1][0]} are both given; a text has one constraint")
    return _CONSTRAINTS[given[0][0]](given[0][1]) if given else None
