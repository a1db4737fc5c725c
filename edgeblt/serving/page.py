"""The page at `/`: one file, and a policy that allows its own script and style and nothing else."""

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_FILE = Path(__file__).with_name("page.html")
_INLINE = {name: re.compile(rb"<%s\b[^>]*>(.*?)</%s>" % (name, name), re.DOTALL) for name in (b"script", b"style")}


@dataclass(frozen=True)
class Page:
    """The page as it is sent."""

    content: bytes

    @cached_property
    def headers(self) -> dict[str, str]:
        """Headers beside the content's type and length."""
        policy = (
            "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
            f" frame-ancestors 'none'; script-src {self._hashes(b'script')}; style-src {self._hashes(b'style')}"
        )
        return {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}

    def _hashes(self, element: bytes) -> str:
        found = [hashlib.sha256(inner).digest() for inner in _INLINE[element].findall(self.content)]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in found) or "'none'"


def read_page() -> Page | None:
    """The page that comes with the package; None where it is not there."""
    return Page(_FILE.read_bytes()) if _FILE.is_file() else None
