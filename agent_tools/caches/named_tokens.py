"""Tokens with a name and rights of their own, for callers of REST, MCP and LangGraph's server."""

import hmac
import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr, field_validator, model_validator

from agent_tools.errors import SettingsError
from agent_tools.models.config import Frozen
from agent_tools.models.rights import Right

SHORTEST = 16
"""Characters of a token."""
UNNAMED = frozenset({"token", "local", "a person"})
"""What callers without a name of their own are called."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class NamedToken(Frozen):
    """One token and its rights. A text alone is a token that may only read."""

    token: SecretStr
    """The token, at least 16 characters, or ``env:NAME`` to read it from that environment variable."""
    rights: frozenset[Right] = frozenset({Right.READ})
    """Any of ``read``, ``change``, ``clear``, ``approve``. Every token may read."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:  # noqa: ANN401  whatever the file holds
        return {"token": given} if isinstance(given, str | SecretStr) else given

    @field_validator("rights")
    @classmethod
    def _sound(cls, rights: frozenset[Right]) -> frozenset[Right]:
        if Right.APPROVE in rights and rights & {Right.CHANGE, Right.CLEAR}:
            raise ValueError("one token may not both ask for changes and approve them; use two tokens")
        return rights | {Right.READ}

    def secret(self, name: str) -> bytes:
        """Return the token itself.

        Raises:
            SettingsError: The environment variable is not set, or the token is short enough to guess.
        """
        given = self.token.get_secret_value()
        if given.startswith("env:"):
            variable = given.removeprefix("env:")
            given = os.environ.get(variable, "")
            if not given:
                raise SettingsError(f"tokens.{name} names the environment variable {variable}, which is not set")
        if len(given) < SHORTEST:
            raise SettingsError(f"tokens.{name} is shorter than {SHORTEST} characters; use for example: openssl rand -hex 32")
        return given.encode()


def check_names(named: Mapping[str, Any]) -> None:
    """Check that names can stand in the change log and do not pass for a caller without a name.

    Raises:
        ValueError: A name is reserved, or is no plain name.
    """
    if taken := UNNAMED & named.keys():
        raise ValueError(f"{', '.join(sorted(taken))} is what callers without a name are called; choose other names")
    if wrong := [name for name in named if not _NAME.fullmatch(name)]:
        raise ValueError(f"{len(wrong)} names are not made of letters, digits and . _ @ - (64 at most)")


class Tokens:
    """All tokens that open a door, by the name of their holder. The operator's own token has no name (``None``)."""

    def __init__(self, own: SecretStr | None, named: Mapping[str, NamedToken]) -> None:
        self._secrets: list[tuple[bytes, str | None]] = [(one.secret(name), name) for name, one in named.items()]
        if own is not None:
            self._secrets.append((own.get_secret_value().encode(), None))
        if len({secret for secret, _ in self._secrets}) < len(self._secrets):
            raise SettingsError("two callers have the same token; give each a token of their own")

    def __bool__(self) -> bool:
        """Return whether a caller needs a token at all."""
        return bool(self._secrets)

    def recognise(self, given: bytes) -> tuple[bool, str | None]:
        """Return whether a token is known, and the name of its holder. It is compared with every token, in constant time."""
        known: tuple[bool, str | None] = (False, None)
        for secret, name in self._secrets:
            if hmac.compare_digest(given, secret):
                known = (True, name)
        return known
