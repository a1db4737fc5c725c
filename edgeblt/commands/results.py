"""Results of commands: shown in the terminal, or written as JSON and CSV to files and to stdout."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeblt.errors import EdgebltError

_STDOUT = "-"


def check_results(json_file: Path | None, csv_file: Path | None = None, new_file: Path | None = None) -> None:
    """Raises EdgebltError if a result could not be written, before the work that leads to it; None is no file.

    `new_file` must not exist yet; the others may, and `-` stands for stdout.
    """
    from edgeblt.bundle.result_files import check_result_file, same_file

    if same_file(json_file, csv_file):
        place = "stdout; give one of them a file" if str(json_file) == _STDOUT else f"{json_file}; give them two files"
        raise EdgebltError(f"--json and --csv would both write to {place}")
    check_result_file(json_file)
    check_result_file(csv_file)
    check_result_file(new_file, new=True)


def deliver(
    result: Any,
    show: Callable[[], None],
    json_file: Path | None,
    csv_file: Path | None = None,
    csv: str = "",
) -> None:
    """Writes a result in every form that was asked for.

    result: a dataclass, or a tuple of them, of which JSON has an array unless it is only one.
    show: prints the result for people; not called if one of the files is `-`, as stdout then holds nothing else.
    json_file, csv_file: where to write the result as JSON, and `csv`; None: nowhere.

    Raises EdgebltError if a file cannot be written.
    """
    texts = [(path, text) for path, text in ((json_file, json_text(result)), (csv_file, csv)) if path is not None]
    printed = [text for path, text in texts if str(path) == _STDOUT]
    if printed:
        print(printed[0], end="", flush=True)
    else:
        show()
    for path, text in texts:
        if str(path) != _STDOUT:
            from edgeblt.bundle.result_files import write_result

            write_result(path, text.encode())


def json_text(result: Any) -> str:
    """The JSON of a dataclass, or of a tuple of them; a tuple of one is written like that one."""
    several = isinstance(result, tuple) and len(result) > 1
    single = result[0] if isinstance(result, tuple) and not several else result
    return json.dumps([*map(dataclasses.asdict, result)] if several else dataclasses.asdict(single), indent=2) + "\n"
