"""What is wrong with a line of a log, in words: msgspec's errors name types and paths."""

import re
from typing import Any

import msgspec

_TYPE = re.compile(r"Expected `([^`]+)`, got `([^`]+)`(?: - at `([^`]*)`)?$")
_BOUND = re.compile(r"Expected `[^`]+` (>=|<=) (\S+?)(?: - at `([^`]*)`)?$")
_PATTERN = re.compile(r"Expected `str` matching regex .*?(?: - at `([^`]*)`)?$")
_MISSING = re.compile(r"Object missing required field `([^`]+)`(?: - at `([^`]*)`)?$")
_NAMES = {
    "int": "a whole number", "float": "a number", "str": "text", "array": "a list", "object": "an object",
    "bool": "true or false", "null": "null",
}  # fmt: skip
_TIMES = ("timestamp", "created_time", "delay", "delay_ms", "t")


def in_words(error: Exception, line: bytes | bytearray = b"", whole: str = "the line") -> str:
    """Return what a decoder's error means.

    Args:
        error: The error.
        line: The line it is of, if it is at hand.
        whole: What the decoded text is called.
    """
    said = str(error)
    if b"\0" in line:
        return "it holds NUL bytes: it was not written whole (the machine stopped, or the disk was full), or the file is no text"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError) or "Invalid UTF-8" in said:
        return "it is not UTF-8 text"
    if "truncated" in said:
        return "it ends in the middle (truncated JSON)"
    if "malformed" in said:
        return f"it is no JSON ({said[0].lower()}{said[1:]})" if said.startswith("JSON") else said
    return _of_a_value(said, whole)


def decoded_part(raw: msgspec.Raw, kind: Any, name: str) -> Any:  # noqa: ANN401  a value of that kind
    """Decode a part of a line, which messages call `name`.

    Raises:
        ValueError: It is not of that kind; says so in words.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise ValueError(in_words(error, whole=name)) from error


def _of_a_value(said: str, whole: str) -> str:
    if found := _TYPE.match(said):
        what = _place(found[3], whole)
        got = "a number with a fraction" if found[2] == "float" and "float" not in found[1] else _name(found[2])
        hint = ": write a date as a number" if found[2] == "str" and what.rpartition(".")[2] in _TIMES else ""
        return f"{what} is {got}, not {_name(found[1])}{hint}"
    if found := _BOUND.match(said):
        return f"{_place(found[3], whole)} is {'below' if found[1] == '>=' else 'above'} {found[2].removesuffix('.0')}"
    if found := _PATTERN.match(said):
        return f"{_place(found[1], whole)} is not 0x and pairs of hexadecimal digits in lower case"
    if found := _MISSING.match(said):
        return f"{_place(found[2], whole)} has no {found[1]}"
    return said


def _name(kinds: str) -> str:
    return " or ".join(_NAMES.get(kind, kind) for kind in kinds.split(" | ") if kind != "null" or kinds == "null")


def _place(path: str | None, whole: str) -> str:
    """Return a path of msgspec (``$.turns[2].timestamp``) as a name."""
    name = (path or "$").removeprefix("$")
    return f"{whole}{name}" if not name.startswith(".") else name[1:]
