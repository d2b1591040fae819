"""What a proxy in front of an API asks for: headers that let us in, and the authority that signed its certificate."""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx
from pydantic import SecretStr

from agent_tools.errors import SettingsError
from agent_tools.redaction import SECRET

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_OURS = {"accept-encoding", "connection", "content-length", "content-type", "transfer-encoding", "upgrade"}
"""Headers of the connection and of the body, which the client sets itself."""


@dataclass(frozen=True)
class Access:
    """How to get through the proxy in front of one API. By default there is none."""

    headers: Mapping[str, SecretStr] = field(default_factory=dict)
    """Headers of every request, e.g. ``Authorization``. Their values are secrets."""
    ca_file: Path | None = None
    """Certificates (PEM) of the authorities that sign the proxy's certificate; those of the system by default."""

    def __post_init__(self) -> None:
        for name, value in self.headers.items():
            said = value.get_secret_value()
            if not _NAME.fullmatch(name) or name.lower() in _OURS:
                raise SettingsError(f"headers: {name[:100]!r} is not a header that a proxy asks for; correct it in caches.toml")
            if not said or not said.isascii() or not said.isprintable():
                raise SettingsError(f"headers: the value of {name} is empty or has characters that no header may have")

    @property
    def plain_headers(self) -> dict[str, str]:
        """Return the headers with their secrets, for the request alone."""
        return {name: value.get_secret_value() for name, value in self.headers.items()}

    def certificates(self) -> ssl.SSLContext:
        """Return what a server's certificate is checked with.

        Raises:
            SettingsError: `ca_file` cannot be read or holds no certificate.
        """
        return _certificates(self.ca_file)

    def without_secrets(self, text: str) -> str:
        """Return a text with the headers' values replaced: a proxy may repeat in its answer what it was sent."""
        for value in self.plain_headers.values():
            for secret in sorted({value, value.rpartition(" ")[2]}, key=len, reverse=True):
                text = text.replace(secret, SECRET) if len(secret) > 3 else text
        return text


NO_PROXY = Access()


@cache
def _certificates(ca_file: Path | None) -> ssl.SSLContext:
    """Read once: that takes longer than many a call, and a fleet has many clients."""
    if ca_file is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        why = error.strerror or "it holds no certificate"
    raise SettingsError(f"ca_file {ca_file} cannot be used: {why}; name a file of certificates in PEM format")
