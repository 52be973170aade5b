"""Text of strangers, as a terminal and a page may show it."""


def shortened(text: str, most: int = 60) -> str:
    """Printable, and no longer than ``most`` characters.

    Example:
        >>> shortened("abcdef", 4)
        'abc…'
    """
    text = printable(text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    r"""Without control characters, which a terminal might obey, and without those that turn the reading direction.

    Example:
        >>> printable("a\x1b[31m")
        'a�[31m'
    """
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
