"""The exception and the warning whose messages are written for users."""

_LONGEST_SHOWN = 100  # characters


class EdgebltError(ValueError):
    """Bad input: one sentence that names the file or value seen and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


class CheckpointNote(UserWarning):
    """Note for the user on how a checkpoint's configuration was read: one sentence.

    The command line prints it as one line on stderr and goes on.
    """


def shown(value: object) -> str:
    """`value` as Python writes it, on one line of ASCII, for an error message; cut where it is long."""
    try:
        text = " ".join(ascii(value).split())
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "a number of thousands of digits"
    except Exception:  # an object whose own repr fails
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
