"""Whether a model gives a position the same bits in any company.

By design it does on the CPU: native kernels and portable bodies both see to it. But ONNX Runtime's own kernels are
other ones on other processors and in other versions, older bundles have other bodies, and on a GPU rounding depends on
how many positions are computed at once. So it is tried, on the very graphs.
"""

from collections.abc import Callable, Sequence

from edgeblt.ids import BOS, OFFSET
from edgeblt.runtime.session import Session

_IDS = (BOS, ord("e") + OFFSET, ord(" ") + OFFSET)  # BOS and the byte after it are patches of their own
_WAYS = ((1, 1, 1), (1, 2))  # beside all at once


def is_exact(new_session: Callable[[], Session]) -> bool:
    """Whether three ids give the same logits and entropies at once, one by one, and one before two: six runs."""
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
