"""Test that the logits of a position have the same bits whichever positions are computed in the same run.

On the CPU this holds by design: native kernels and portable function bodies both guarantee it. But ONNX Runtime's own
kernels differ between processors and versions, older bundles have other function bodies, and on a GPU rounding depends
on how many positions are computed at once. So the opened graphs are tested.
"""

from collections.abc import Callable, Sequence

from edgeblt.ids import BOS, OFFSET
from edgeblt.runtime.session import Session

_IDS = (BOS, ord("e") + OFFSET, ord(" ") + OFFSET)  # BOS and the byte after it are patches of their own
_WAYS = ((1, 1, 1), (1, 2))  # sizes of chunks, compared with one chunk of all ids


def is_exact(new_session: Callable[[], Session]) -> bool:
    """Whether three ids give the same logits and entropies fed at once, one by one, and as one and two: six chunks."""
    whole = _results(new_session(), (len(_IDS),))
    return all(_results(new_session(), sizes) == whole for sizes in _WAYS)


def _results(session: Session, sizes: Sequence[int]) -> bytes:
    found = []
    for size in sizes:
        for chunk in session.run(_IDS[session.position : session.position + size]):
            found += [
                row.tobytes() + entropy.tobytes() for row, entropy in zip(chunk.logits, chunk.entropies, strict=True)
            ]
    return b"".join(found)
