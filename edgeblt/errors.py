"""The one exception a user is meant to read."""


class EdgebltError(ValueError):
    """Bad input: one sentence that names the file or value seen and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
