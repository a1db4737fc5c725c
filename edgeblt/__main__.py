"""The `edgeblt` command, also as `python -m edgeblt`: ready to be stopped before the slow imports begin."""

from edgeblt.commands.stopping import stopped_by_signals, was_stopped


def main() -> None:
    """Imports the command line and runs it."""
    try:
        with stopped_by_signals():
            from edgeblt.cli import main as run

            run()
    except BaseException:
        number = was_stopped()
        if number is None:
            raise
    else:
        return
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
