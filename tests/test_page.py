"""The server's page as a file: it names no other host, and holds what its policy and people without a mouse need."""

import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "edgeblt" / "serving" / "page.html"
SOURCE = PAGE.read_text(encoding="utf-8")
# Attributes whose values a browser may fetch.
FETCHED = {"src", "srcset", "data", "action", "formaction", "poster", "background", "cite", "ping", "manifest", "href"}
PATHS = {"health", "v1/models", "v1/score", "v1/completions", "openapi.json"}


class Markup(HTMLParser):
    """Tags with their attributes, and the texts of scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.inline:
            self.inline[self._open[-1]].append(data)

    def values(self, name: str) -> Iterator[str]:
        return (attributes[name] for _, attributes in self.tags if name in attributes)


MARKUP = Markup(SOURCE)
(SCRIPT,), (STYLE,) = MARKUP.inline["script"], MARKUP.inline["style"]


def foreign_references(source: str) -> list[str]:
    """Whatever could make a browser ask another host, in markup, script or style."""
    markup = Markup(source)
    found = [value for name in FETCHED for value in markup.values(name) if not value.startswith("#")]
    found = [value for value in found if value not in PATHS and not value.startswith("data:image/png;")]
    found += re.findall(r"[a-z][a-z0-9+.-]*://\S*", source, re.IGNORECASE)
    found += re.findall(r"[\"'`(]\s*//[^\s\"'`)]+", source)
    found += re.findall(r"(?i)@import\b|\burl\s*\(|\bimport\s*\(|\bWebSocket\b|\bEventSource\b|sendBeacon", source)
    return found


def test_the_page_refers_to_no_other_host() -> None:
    assert foreign_references(SOURCE) == []
    asked = re.findall(r"\b(?:fetch|post)\(\"([^\"]*)\"", SCRIPT)
    assert set(asked) == PATHS - {"openapi.json"}  # relative: the page works below a prefix of a proxy


@pytest.mark.parametrize(
    "added",
    [
        '<img src="https://example.org/a.png">',
        "<link rel=stylesheet href=//example.org/a.css>",
        "<script>fetch('//example.org/')</script>",
        "<style>@import 'a.css';</style>",
        "<style>b { background: url(a.png) }</style>",
        '<form action="elsewhere"></form>',
        "<script>new WebSocket(place)</script>",
    ],
)
def test_a_reference_would_be_found(added: str) -> None:
    assert foreign_references(SOURCE + added)


def test_the_policy_of_the_server_can_hold() -> None:
    for tag, attributes in MARKUP.tags:
        assert tag not in ("iframe", "object", "embed", "base")
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes), (tag, attributes)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "cssText"):
        assert word not in SCRIPT
    assert not re.search(r"setAttribute\(\"style\"", SCRIPT)
    for word in ("localStorage", "sessionStorage", "indexedDB", "document.cookie"):  # the key is kept in memory only
        assert word not in SCRIPT


def test_every_field_has_a_label_and_every_name_an_element() -> None:
    ids = Counter(MARKUP.values("id"))
    assert max(ids.values()) == 1
    labelled = set(MARKUP.values("for"))
    fields = [attributes["id"] for tag, attributes in MARKUP.tags if tag in ("input", "textarea", "select")]
    assert set(fields) <= labelled <= set(ids)
    for name in ("aria-describedby", "aria-labelledby"):
        assert {each for value in MARKUP.values(name) for each in value.split()} <= set(ids)
    assert set(re.findall(r"\bfind\(\"([^\"]+)\"\)", SCRIPT)) <= set(ids)
    assert set(re.findall(r"\bcleared\(\"([^\"]+)\"", SCRIPT)) <= set(ids)
    for tag, attributes in MARKUP.tags:
        if tag == "svg":
            assert "aria-hidden" in attributes or attributes.get("role") == "img"


def test_colours_are_defined_for_light_and_dark() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    assert "prefers-color-scheme: dark" in STYLE
    colours = {name for name, value in re.findall(r"(--[a-z-]+): ([^;]+);", light) if value.startswith("#")}
    assert colours == {name for name, _ in re.findall(r"(--[a-z-]+): ([^;]+);", dark)}
    assert set(re.findall(r"var\((--[a-z-]+)\)", STYLE)) <= set(re.findall(r"(--[a-z-]+):", STYLE))


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, as WCAG 2.2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_has_enough_contrast(scheme: int) -> None:
    colours = dict(
        re.findall(r"(--[a-z-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[scheme])
    )
    pairs = [(text, ground) for text in ("--ink", "--soft", "--error") for ground in ("--page", "--band", "--field")]
    pairs += [("--on-accent", "--accent"), ("--accent", "--page"), ("--page", "--step")]
    for text, ground in pairs:
        low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
