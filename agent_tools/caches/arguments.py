"""The words of a server's command line, as flags with their values."""

import shlex
from collections.abc import Sequence

Value = str | tuple[str, ...] | None
"""The value of a flag: ``None`` for a bare flag, a tuple for a flag with several values."""


def arguments_of(command: str) -> list[str]:
    """Return what follows ``lmcache server`` in a command line."""
    words = shlex.split(command)
    return words[words.index("server") + 1 :] if "server" in words else words


def pairs_of(arguments: Sequence[str]) -> list[tuple[str, Value]]:
    """Return a command line as (flag, value), each flag as often as it is given."""
    pairs: list[tuple[str, Value]] = []
    for argument in arguments:
        if argument.startswith("--"):
            flag, _, value = argument.partition("=")
            pairs.append((flag, value if "=" in argument else None))
        elif pairs:
            flag, before = pairs[-1]
            one = () if before is None else before if isinstance(before, tuple) else (before,)
            pairs[-1] = (flag, (*one, argument) if one else argument)
    return pairs


def words_of(flag: str, value: Value) -> list[str]:
    """Return the words that give a flag this value. One value stands in the word of its flag, so it may start with a dash."""
    if value is None:
        return [flag]
    return [f"{flag}={value}"] if isinstance(value, str) else [flag, *value]
