"""JSON schemas of requests, and checks of requests against them.

One table serves both the OpenAPI document and the checks, so that the document is true. Only the keywords that the
tables use are known.
"""

import math
from collections.abc import Mapping
from typing import Any

from edgeblt.errors import shown
from edgeblt.serving.api.refusals import RefusedError

Schema = Mapping[str, Any]

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_A = {"string": "a string", "integer": "a whole number", "number": "a number", "boolean": "true or false"}
_A |= {"array": "a list", "object": "an object", "null": "null"}


def optional(schema: Schema) -> dict[str, Any]:
    """The same schema, which null also meets."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {**schema, "type": [*_kinds(schema), "null"]}


def check(value: object, schema: Schema, name: str) -> None:
    """Raises RefusedError, with the status 400 and the name of the field, where a value does not meet a schema."""
    if "anyOf" in schema:
        return _check_any(value, schema, name)
    kinds = _kinds(schema)
    if kinds and not any(_is(value, kind) for kind in kinds):
        _refuse(name, value, f"it must be {' or '.join(_A[kind] for kind in kinds)}")
    if "enum" in schema and not (value is None and "null" in kinds) and value not in schema["enum"]:
        _refuse(name, value, f"use one of {', '.join(map(str, schema['enum']))}")
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        _check_number(value, schema, name)
    elif isinstance(value, str | list):
        _check_length(value, schema, name)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            check(item, schema["items"], f"{name}[{index}]")
    elif isinstance(value, dict):
        _check_object(value, schema, name)


def _kinds(schema: Schema) -> list[str]:
    kinds = schema.get("type", [])
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS[kind])


def _check_any(value: object, schema: Schema, name: str) -> None:
    fitting = [each for each in schema["anyOf"] if any(_is(value, kind) for kind in _kinds(each))]
    for each in fitting:
        try:
            return check(value, each, name)
        except RefusedError:
            if len(fitting) == 1:
                raise
    if fitting:
        _refuse(name, value, f"give {schema.get('description', 'another value')}")
    kinds = dict.fromkeys(_A[kind] for each in schema["anyOf"] for kind in _kinds(each))
    _refuse(name, value, f"it must be {' or '.join(kinds)}")


def _check_number(value: float, schema: Schema, name: str) -> None:
    least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above = schema.get("exclusiveMinimum", -math.inf)
    if not (least <= value <= most and value > above):
        low = f"above {above}" if "exclusiveMinimum" in schema else f"at least {least}" if "minimum" in schema else ""
        high = f"at most {most}" if "maximum" in schema else ""
        _refuse(name, value, f"it must be {' and '.join(filter(None, (low, high)))}")


def _check_length(value: str | list[Any], schema: Schema, name: str) -> None:
    least = schema.get("minLength", schema.get("minItems", 0))
    most = schema.get("maxLength", schema.get("maxItems", math.inf))
    if not least <= len(value) <= most:
        of = "characters" if isinstance(value, str) else "entries"
        bound = f"at least {least}" if len(value) < least else f"at most {most}"
        raise RefusedError(400, f"{name} has {len(value):,} {of}; it must have {bound}", param=name)


def _check_object(value: dict[str, Any], schema: Schema, name: str) -> None:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for field in schema.get("required", ()):
        if field not in value:
            raise RefusedError(400, f"{_inside(name, field)} is missing", param=_inside(name, field))
    for field, inner in value.items():
        if field in properties:
            check(inner, properties[field], _inside(name, field))
        elif others is False:
            raise RefusedError(
                400, f"{_inside(name, field)} is not offered here; leave it out", param=_inside(name, field)
            )
        elif isinstance(others, Mapping):
            check(inner, others, _inside(name, field))


def _inside(name: str, field: str) -> str:
    cut = field if len(field) <= 60 and field.isprintable() else shown(field)
    return f"{name}.{cut}" if name else cut


def _refuse(name: str, value: object, rest: str) -> None:
    raise RefusedError(400, f"{name or 'the body'} is {shown(value)}; {rest}", param=name or None)
