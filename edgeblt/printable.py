"""Text that is safe to show on one line."""


def printable(text: str) -> str:
    """`text` on one line, with control characters and lone surrogates escaped: safe to show and to encode."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
