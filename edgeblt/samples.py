"""The bundled model and held-out texts that come with the package."""

from pathlib import Path

from edgeblt.errors import EdgebltError

_DATA = Path(__file__).parent / "data"
DEMO_CHECKPOINT = _DATA / "demo"
HELD_OUT_TEXTS = ("prose", "code", "typos", "german", "russian", "japanese")


def held_out_text(name: str) -> bytes:
    """A text, UTF-8, that the bundled model was not trained on. Raises EdgebltError for an unknown name."""
    if name not in HELD_OUT_TEXTS:
        raise EdgebltError(f"there is no text {name!r}; use one of {', '.join(HELD_OUT_TEXTS)}")
    return (_DATA / "texts" / f"{name}.txt").read_bytes()
