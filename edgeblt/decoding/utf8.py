"""Text of a stream of bytes, in whole characters."""

import codecs
from collections.abc import Iterable, Iterator


def utf8_pieces(stream: Iterable[bytes]) -> Iterator[str]:
    """Yields whole characters as soon as their last byte arrives; bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for data in stream:
        if piece := decoder.decode(data):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece
