"""Text from outside (names, labels, answers of servers) made safe to show: one line, bounded length, no control characters.

Whoever sends requests to a cache chooses the names of models and tenants, and any server chooses what it answers. A person or a
model reads such text inside our own sentences. It must not look like our words, and it must not break our lines.
"""

from collections.abc import Mapping

from .redaction import text_without_secrets

NAME = 128
"""The most characters shown of a name; cache salts in LMCache have at most this length."""
MESSAGE = 3500
"""The most characters of a message. A message may hold a command line, and it must fit into a tool's content."""
_ODD = "\ufffd"
"""Replaces a character that cannot be printed: a control, an invisible or direction mark, or half a character."""


def printable(text: str) -> str:
    """Return the text with its line breaks and without unprintable characters."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else " " if char.isspace() else _ODD for char in text)


def plain(text: object, most: int = NAME) -> str:
    """Return the text as one line, cut after `most` characters."""
    line = printable(str(text)[: most + 1].replace("\n", " "))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def names_cut(value: object) -> object:
    """Return the value of a setting as a sentence shows it: every name in it (a string, a key) is cut to `NAME` characters."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {names_cut(name): names_cut(one) for name, one in value.items()}
    return [names_cut(one) for one in value] if isinstance(value, list | tuple) else value


def is_text(text: str) -> bool:
    """Return whether the text can be encoded as UTF-8. JSON can hold lone surrogates (half a character); UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_halves(given: object) -> None:
    """Raise `ValueError` if a string anywhere in a JSON value holds half a character (a lone surrogate)."""
    if isinstance(given, str) and not is_text(given):
        msg = f"{given[:NAME]!r} holds half a character (a lone surrogate): send valid Unicode text"
        raise ValueError(msg)
    if isinstance(given, Mapping):
        for name, value in given.items():
            refuse_halves(name)
            refuse_halves(value)
    elif isinstance(given, list | tuple):
        for value in given:
            if not isinstance(value, int | float):  # a prompt has a million token ids
                refuse_halves(value)


def sentence(text: object) -> str:
    """Return a message as one line, with its secrets replaced."""
    return plain(text_without_secrets(str(text)[: 8 * MESSAGE]), MESSAGE)


def points(share: float) -> str:
    """Return a difference of two rates, each in [0, 1], in points, e.g. ``+15.0 points``."""
    return f"{100 * share:+.1f} points"
