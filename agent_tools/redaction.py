"""Secrets and passwords in what is shown are replaced, at any depth. The module inside the server uses this too."""

import re
from collections.abc import Mapping
from typing import Any

SECRET = "***"  # noqa: S105  it is none
"""What stands for a secret in all that we show."""
_WORDS = ("password", "secret", "token", "credential", "access_key", "api_key")


def without_secrets(value: Any, name: str = "") -> Any:  # noqa: ANN401  JSON
    """A JSON value with secrets, told by the names of their fields, and the passwords in addresses replaced."""
    if value not in (None, "") and any(word in name.lower() for word in _WORDS):
        return SECRET
    if isinstance(value, Mapping):
        return {inner: without_secrets(one, inner) for inner, one in value.items()}
    if isinstance(value, list):
        return [without_secrets(one, name) for one in value]
    return re.sub(r"(?<=://)[^/@]*@", f"{SECRET}@", value) if isinstance(value, str) else value
