"""The bundled model, held-out texts that come with the package, and texts from files."""

from collections.abc import Sequence
from pathlib import Path

from edgeblt.bundle.text_files import read_text
from edgeblt.errors import EdgebltError
from edgeblt.measure.reference import Text
from edgeblt.printable import printable

_DATA = Path(__file__).parents[1] / "data"
DEMO_CHECKPOINT = _DATA / "demo"
CALIBRATION_TEXT = _DATA / "texts" / "calibration.txt"  # English and Python, from the bundled model's training texts
HELD_OUT_TEXTS = ("prose", "code", "typos", "german", "russian", "japanese")


def held_out_text(name: str) -> bytes:
    """A UTF-8 text that the bundled model was not trained on. Raises EdgebltError for an unknown name."""
    if name not in HELD_OUT_TEXTS:
        raise EdgebltError(f"there is no text {name!r}; use one of {', '.join(HELD_OUT_TEXTS)}")
    return (_DATA / "texts" / f"{name}.txt").read_bytes()


def held_out_texts() -> list[Text]:
    """All held-out texts, with their names."""
    return [Text(name, held_out_text(name)) for name in HELD_OUT_TEXTS]


def texts_of_files(paths: Sequence[Path]) -> list[Text]:
    """The files' contents, named by file name, or by whole path where several paths end in the same name.

    Raises EdgebltError for a file that cannot be read.
    """
    names = [path.name for path in paths]
    unique = [path.name if names.count(path.name) == 1 else str(path) for path in paths]
    return [Text(printable(name), read_text(path)) for name, path in zip(unique, paths, strict=True)]
