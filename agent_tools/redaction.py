"""Replaces secrets and passwords, at any depth, in everything that is shown. The module inside the server uses this file too."""

import re
from collections.abc import Mapping
from typing import Any

SECRET = "***"  # noqa: S105  not a password
"""The text that replaces a secret wherever values are shown."""
_NAMED = (
    "password|passwd|passphrase|secret|credential|access_?key|api_?key|private_?key|account_?key|authorization|connection_?string"
)
_FIELD = re.compile(f"{_NAMED}|token|cookie|signature", re.IGNORECASE)
"""Matches the name of a field that holds a secret. A `-` in the name counts as `_`."""
_ADDRESS = re.compile(r"(?<=://)(?:[^\s\"'<>/@:]{0,256}:[^\s\"'<>]{0,2048}|[^\s\"'<>/@]{0,256})@")
"""Matches the user and password in an address, up to the last ``@``: real passwords hold any character, whatever the RFC says.

The repetitions here and below are bounded, so that no text takes long to match.
"""
_CREDENTIAL = re.compile(rf"^(?!.*connection_?string).*(?:{_NAMED}|token|cookie|signature)$", re.IGNORECASE)
"""The name of a field that holds a credential and nothing else. A connection string also says where, as a ``token_url`` does."""
_LOGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}://)(?:[^\s/?#@\\]{0,2048}@)?([^\s@\\]{1,2048})")
"""An address, read so that no other reader can find another host in it: who logs in ends at the only ``@``."""
_GIVEN = re.compile(
    rf"((?:{_NAMED}|[_-]token|(?<=[?&])token|(?<=[?&])sig)[\w-]{{0,40}}[\"']?\s{{0,3}}[=:]\s{{0,3}}(?:(?:Bearer|Basic)\s)?)"
    r"(?:(\")[^\"]*\"?|(')[^']*'?|[^\s\"',;&)}\]]+)",
    re.IGNORECASE,
)
"""Matches ``name=value`` and ``"name": value`` in running text: queries, Python's repr, JSON, connection strings."""


def without_secrets(value: Any, name: str = "") -> Any:  # noqa: ANN401  JSON
    """Return a JSON value with its secrets (recognized by field names) and the passwords in its addresses replaced."""
    names_variable = name.endswith("_env")  # the name of an environment variable, not its value
    if value not in (None, "") and not names_variable and _FIELD.search(name.replace("-", "_")):
        return SECRET
    if isinstance(value, Mapping):
        return {inner: without_secrets(one, str(inner)) for inner, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(one, name) for one in value]
    return text_without_secrets(value) if isinstance(value, str) else value


def is_the_same(shown: Any, given: Any, name: str = "") -> bool:  # noqa: ANN401  JSON
    """Whether a given JSON value is the shown one, apart from the credentials in it.

    A given value may repeat the shown one as it is, or carry a credential where the shown one has or hides one. Everything
    else, above all hosts and paths, must be equal character by character. If in doubt, the values differ.

    Args:
        shown: The value that is in place; its secrets may have been replaced.
        given: The value that claims to be the same; its secrets may be in it.
        name: The name of the field.
    """
    if given in (shown, without_secrets(shown, name)):
        return True
    if isinstance(shown, Mapping) and isinstance(given, Mapping):
        return shown.keys() == given.keys() and all(is_the_same(shown[inner], given[inner], str(inner)) for inner in shown)
    if isinstance(shown, list | tuple) and isinstance(given, list | tuple):
        return len(shown) == len(given) and all(is_the_same(*pair, name) for pair in zip(shown, given, strict=True))
    if not (isinstance(shown, str) and isinstance(given, str)):
        return False
    if _CREDENTIAL.search(name.replace("-", "_")):
        return True
    here, there = _LOGIN.fullmatch(shown), _LOGIN.fullmatch(given)
    return here is not None and there is not None and here.group(1, 2) == there.group(1, 2)


def text_without_secrets(text: str) -> str:
    """Return a text with the passwords in its addresses, and the values of passwords, secrets and keys, replaced."""
    return _GIVEN.sub(_kept, _ADDRESS.sub(f"{SECRET}@", text))


def _kept(found: "re.Match[str]") -> str:
    quote = found[2] or found[3] or ""
    return f"{found[1]}{quote}{SECRET}{quote}"
