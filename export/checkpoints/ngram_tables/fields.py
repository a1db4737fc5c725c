"""Fields of `config.json` that describe n-gram tables of the over-encoding family."""

from edgeblt.bundle.over_encoding import MOST_TABLES, OverEncoding
from edgeblt.export.checkpoints.config_section import Section

_SPELLINGS = {
    "ratio": ("oe_vocab_size_ratio", "ngram_vocab_size_ratio"),
    "neighbors": ("oe_neighbor_num", "emb_neighbor_num"),
    "splits": ("oe_split_num", "emb_split_num"),
}
_ROWS = "oe_vocab_sizes"
FIELDS = (
    "ngram_fix_normalize_factor", "ngram_exclude_sp_token", "special_token_scope", _ROWS,
    *(name for names in _SPELLINGS.values() for name in names),
)  # fmt: skip


def over_encoding_fields(section: Section, vocab_size: int, ends: tuple[int, ...]) -> OverEncoding | None:
    """The tables that an object describes, None where it has none; `ends` are ids that end a text.

    Raises EdgebltError, which names the field at fault or only the tables.
    """
    given = {key: _spelled(section, names) for key, names in _SPELLINGS.items()}
    if given["neighbors"] is None and given["ratio"] is None and section.document.get(_ROWS) is None:
        return None
    neighbors, splits = (section.integer(given[key] or _SPELLINGS[key][0], 0) for key in ("neighbors", "splits"))
    count = splits * (neighbors - 1)
    if section.document.get(_ROWS) is not None:
        rows = section.document[_ROWS]
        if not isinstance(rows, list) or any(type(number) is not int for number in rows):
            raise section.error(_ROWS, "it must be a list of integers, one for each table")
    else:
        ratio = section.number(given["ratio"] or _SPELLINGS["ratio"][0], 0.0)
        if not 0 <= ratio <= 1 << 40 or count > MOST_TABLES:
            raise section.error(given["ratio"] or _SPELLINGS["ratio"][0], "it must be a positive number")
        rows = [int(ratio * vocab_size) + 2 * table + 1 for table in range(count)]
    excluded = _scope(section, vocab_size) if section.boolean("ngram_exclude_sp_token", False) else ()
    by_root = section.boolean("ngram_fix_normalize_factor", False)
    return OverEncoding(vocab_size, neighbors, splits, tuple(rows), by_root, ends, excluded)


def _spelled(section: Section, names: tuple[str, ...]) -> str | None:
    """The name under which a field is given."""
    given = [name for name in names if section.document.get(name) is not None]
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
