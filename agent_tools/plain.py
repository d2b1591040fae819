"""Text from outside (names, labels, answers of servers) as data: one line, of bounded length, with nothing that a terminal obeys.

Whoever sends requests to a cache chooses the names of models and tenants; whatever listens at an address chooses what it answers.
A person or a model reads them among words of ours, so they must neither look like these nor end a line of these.
"""

from collections.abc import Mapping

from .redaction import text_without_secrets

NAME = 128
"""Characters of a name; LMCache's cache salts have no more."""
MESSAGE = 3500
"""Characters of a message, which may hold a command line; less than a tool's content."""
_ODD = "\ufffd"
"""What stands for a character that cannot be printed: controls, invisible and direction marks, halves of characters."""


def printable(text: str) -> str:
    """The text, in its lines, without what cannot be printed."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else " " if char.isspace() else _ODD for char in text)


def plain(text: object, most: int = NAME) -> str:
    """The text in one line, cut after `most` characters."""
    line = printable(str(text)[: most + 1].replace("\n", " "))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def is_text(text: str) -> bool:
    """Whether it can be sent and stored: JSON can hold halves of characters (lone surrogates), UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_halves(given: object) -> None:
    """Raise `ValueError` when a string in a JSON value is no text."""
    if isinstance(given, str) and not is_text(given):
        msg = f"{given[:NAME]!r} holds half a character"
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
    """A message in one line, without the secrets in it."""
    return plain(text_without_secrets(str(text)[: 8 * MESSAGE]), MESSAGE)
