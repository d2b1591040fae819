"""Who may call the module: requests with the operator's token, and none that a page of another site sent."""

import hmac
import ipaddress
import os
from urllib.parse import urlsplit

from fastapi import Request

from .options import Options
from .refusal import Refusal

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Checks each request before its route runs."""

    def __init__(self, options: Options) -> None:
        """Take the token out of the environment, where LMCache's ``/env`` would show it.

        Raises:
            ValueError: The environment variable that the operator named is not set.
        """
        self._hosts = _LOOPBACK | {host.lower() for host in options.hosts}
        self._read_only = options.read_only
        self._token = None if options.token_env is None else taken(options.token_env).encode()

    def check(self, request: Request) -> None:
        """Raise `Refusal` unless the request may be answered."""
        if self._token is not None:
            # Behind a proxy that takes Authorization for itself, the token comes under a name of our own.
            given = request.headers.get("x-lmcache-agent-token") or request.headers.get("authorization", "")
            scheme, _, token = given.partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
                raise Refusal(401, "these routes need the token that token_env names, as 'Authorization: Bearer TOKEN'")
        changes = request.method not in {"GET", "HEAD"}
        if changes or request.url.path.endswith("/window"):
            self._check_site(request)
        if changes and self._read_only:
            raise Refusal(403, "the operator has set read_only in the config of --server-module")

    def _check_site(self, request: Request) -> None:
        host = _host_of(f"//{request.headers.get('host', '')}")
        # No other site's name can resolve to this server if the caller used an address.
        if host is None or not (host in self._hosts or _is_address(host)):
            raise Refusal(403, "the Host of the request is not this server: list its name in hosts of the --server-module config")
        origin = request.headers.get("origin")
        if origin is not None and _host_of(origin) not in self._hosts and urlsplit(origin).netloc != request.headers["host"]:
            raise Refusal(403, "the request was sent by a page of another site (Origin)")


def taken(name: str) -> str:
    """Return an environment variable and remove it.

    Raises:
        ValueError: It is not set or empty.
    """
    value = os.environ.pop(name, "")
    if not value:
        raise ValueError(f"the environment variable {name}, which the config of --server-module names, is not set")
    return value


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
