"""Fields of `config.json` that describe n-gram tables of the over-encoding family."""

from edgeblt.bundle.over_encoding import MOST_TABLES, OverEncoding
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.config_section import Section

_SPELLINGS = {
    "ratio": ("oe_vocab_size_ratio", "ngram_vocab_size_ratio"),
    "neighbors": ("oe_neighbor_num", "emb_neighbor_num"),
    "splits": ("oe_split_num", "emb_split_num"),
}
_ROWS = "oe_vocab_sizes"
_SAYING_TABLES = (
    *(name for names in _SPELLINGS.values() for name in names), _ROWS,
    "ngram_fix_normalize_factor", "ngram_exclude_sp_token",
)  # fmt: skip
FIELDS = (*_SAYING_TABLES, "special_token_scope")


def over_encoding_fields(section: Section, vocab_size: int, ends: tuple[int, ...]) -> OverEncoding | None:
    """The tables that an object describes, None where it has none; `ends` are ids that end a text.

    Raises EdgebltError, which names the fields at fault or only the tables.
    """
    there = [name for name in section.document if name in _SAYING_TABLES and _is_given(section, name)]
    if not there:
        return None
    given = {key: name for key, names in _SPELLINGS.items() if (name := _spelled(section, names))}
    _require_complete(there, given)
    neighbors, splits = (section.integer(given[key], 0) for key in ("neighbors", "splits"))
    count = splits * (neighbors - 1)
    if _ROWS in there:
        rows = section.document[_ROWS]
        if not isinstance(rows, list) or any(type(number) is not int for number in rows):
            raise section.error(_ROWS, "it must be a list of integers, one for each table")
    else:
        ratio = section.number(given["ratio"], 0.0)
        if not 0 <= ratio <= 1 << 40 or count > MOST_TABLES:
            raise section.error(given["ratio"], "it must be a positive number")
        rows = [int(ratio * vocab_size) + 2 * table + 1 for table in range(count)]
    excluded = _scope(section, vocab_size) if section.boolean("ngram_exclude_sp_token", False) else ()
    by_root = section.boolean("ngram_fix_normalize_factor", False)
    return OverEncoding(vocab_size, neighbors, splits, tuple(rows), by_root, ends, excluded)


def _is_given(section: Section, name: str) -> bool:
    """Whether a field says something; null and false do not."""
    value = section.document.get(name)
    return value is not None and value is not False


def _require_complete(there: list[str], given: dict[str, str]) -> None:
    missing = [_SPELLINGS[key][0] for key in ("neighbors", "splits") if key not in given]
    if "ratio" not in given and _ROWS not in there:
        missing.append(f"{_SPELLINGS['ratio'][0]} (or {_ROWS})")
    if missing:
        raise EdgebltError(
            f"n-gram tables are described by {', '.join(there)} without {', '.join(missing)}; add what is missing, or "
            "remove what a model without such tables does not have"
        )


def _spelled(section: Section, names: tuple[str, ...]) -> str | None:
    """The name under which a field is given."""
    given = [name for name in names if _is_given(section, name)]
    if len(given) > 1 and section.document[given[0]] != section.document[given[1]]:
        raise section.error(given[0], f"it differs from {given[1]}; leave one of both out")
    return given[0] if given else None


def _scope(section: Section, vocab_size: int) -> tuple[int, ...]:
    """Ids in ranges such as `0:4,36:55`, whose ends are left out."""
    text, found = section.text("special_token_scope", "0:4"), set[int]()
    for part in text.split(","):
        begin, colon, end = part.strip().partition(":")
        if not (colon and begin.isdecimal() and end.isdecimal() and len(begin + end) < 9 and int(end) <= vocab_size):
            raise section.error("special_token_scope", f"give ranges of ids below {vocab_size}, such as 0:4")
        found |= set(range(int(begin), int(end)))
    return tuple(sorted(found))
