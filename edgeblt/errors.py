"""The one exception a user is meant to read."""


class EdgebltError(ValueError):
    """Bad input: one sentence that names the file or value seen and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


def shown(value: object) -> str:
    """`value` in a few words for such a sentence: Python's own form of it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
