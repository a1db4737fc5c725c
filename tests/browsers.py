"""A chromium for the tests that look at pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def started_chromium() -> Iterator[Any]:
    """Debian's chromium, or the one that playwright installed; skips the test where there is none that starts."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_api.sync_playwright() as playwright:
        try:
            # A container has no user namespaces for its sandbox; only pages of this project are opened in it.
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        except sync_api.Error as error:
            pytest.skip(f"no chromium that starts (Debian: apt install chromium): {str(error).splitlines()[0]}")
        yield browser
        browser.close()


def until(page: Any, expression: str) -> None:
    """Returns when the expression holds; playwright's own function asks for `eval`, which the policies forbid."""
    for _ in range(1200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within a minute: {expression}; the page says {page.inner_text('#said')!r}")
