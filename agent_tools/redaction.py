"""Secrets and passwords in what is shown are replaced, at any depth. The module inside the server uses this too."""

import re
from collections.abc import Mapping
from typing import Any

SECRET = "***"  # noqa: S105  it is none
"""What stands for a secret in all that we show."""
_NAMED = (
    "password|passwd|passphrase|secret|credential|access_?key|api_?key|private_?key|account_?key|authorization|connection_?string"
)
_FIELD = re.compile(f"{_NAMED}|token|cookie|signature", re.IGNORECASE)
"""In the name of a field, whose `-` count as `_`."""
_ADDRESS = re.compile(r"(?<=://)(?:[^\s\"'<>/@:]{0,256}:[^\s\"'<>]{0,2048}|[^\s\"'<>/@]{0,256})@")
"""Who logs in, up to the last ``@``: passwords may hold any character, whatever the standard says.

Here and below repetitions are bounded, so that no text takes long.
"""
_GIVEN = re.compile(
    rf"((?:{_NAMED}|[_-]token|(?<=[?&])token|(?<=[?&])sig)[\w-]{{0,40}}[\"']?\s{{0,3}}[=:]\s{{0,3}}(?:(?:Bearer|Basic)\s)?)"
    r"(?:(\")[^\"]*\"?|(')[^']*'?|[^\s\"',;&)}\]]+)",
    re.IGNORECASE,
)
"""``name=value`` and ``"name": value`` in running text: queries, Python's repr, JSON, connection strings."""


def without_secrets(value: Any, name: str = "") -> Any:  # noqa: ANN401  JSON
    """A JSON value with secrets, told by the names of their fields, and the passwords in addresses replaced."""
    if value not in (None, "") and _FIELD.search(name.replace("-", "_")):
        return SECRET
    if isinstance(value, Mapping):
        return {inner: without_secrets(one, str(inner)) for inner, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(one, name) for one in value]
    return text_without_secrets(value) if isinstance(value, str) else value


def text_without_secrets(text: str) -> str:
    """Any text with the passwords in its addresses, and what it gives as a password, secret or key, replaced."""
    return _GIVEN.sub(_kept, _ADDRESS.sub(f"{SECRET}@", text))


def _kept(found: "re.Match[str]") -> str:
    quote = found[2] or found[3] or ""
    return f"{found[1]}{quote}{SECRET}{quote}"
