"""Who may come in at the REST door: holders of the token; without one, only programs on this machine.

A service on loopback is not out of reach of web pages: a browser sends what any page asks it to, and a page whose own name is
made to resolve to 127.0.0.1 (DNS rebinding) may read the answers too. LangGraph's server, which mounts this door, even allows
every origin by default. So a request from a page of another origin is always refused, and without a token so is one that was
sent to a name which is not this machine's own.
"""

import base64
import hmac
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_tools.errors import SettingsError

from .problems import problem

MOST_BYTES = 2**18
"""Of the body of a request; the longest that makes sense, quotas of a thousand tenants, has 150 KB."""
CHALLENGES = ('Bearer realm="lmcache"', 'Basic realm="lmcache: any name, and the token as password", charset="UTF-8"')
"""Programs send the token as a bearer; a person's browser asks for a name and a password."""


class Doorkeeper:
    """ASGI middleware that turns away who may not come in, before anything of the request is read.

    Not FastAPI's dependencies, which are asked after the body was read; and not middleware of the application that is mounted
    into LangGraph's server, which would apply it to all of the server.
    """

    def __init__(self, app: ASGIApp, token: Callable[[], Awaitable[SecretStr | None]]) -> None:
        self.app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        token = await self._token()
        if not _same_origin(request.headers):
            await problem(request, 403, "pages of another origin may not use this service")(scope, receive, send)
        elif token is not None and not hmac.compare_digest(_presented(request.headers), token.get_secret_value().encode()):
            refused = problem(request, 401, "send the token (LMCACHE_AGENT_TOKEN): Authorization: Bearer <token>")
            for challenge in CHALLENGES:
                refused.headers.append("WWW-Authenticate", challenge)
            await refused(scope, receive, send)
        elif token is None and not is_loopback(_name(request.headers.get("host", ""))):
            detail = "without a token (LMCACHE_AGENT_TOKEN) this service answers only to names of its own machine, as localhost"
            await problem(request, 421, detail)(scope, receive, send)
        else:
            await self.app(scope, _bounded(receive), send)


def _bounded(receive: Receive) -> Receive:
    """The body of a request, as far as it is bearable, however long it says it is."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MOST_BYTES:
            raise HTTPException(413, f"a request may have {MOST_BYTES >> 10} KiB; nothing was changed")
        return message

    return bounded


def check_host(host: str, token: SecretStr | None) -> None:
    """Refuse to listen where other machines can reach us, unless they need a token.

    Raises:
        SettingsError: The host is not loopback and there is no token.
    """
    if token is None and not is_loopback(host):
        raise SettingsError(
            f"listening on {host} lets other machines change caches: set LMCACHE_AGENT_TOKEN first, or use 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own; 0.0.0.0, which is all of its addresses, is not."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _presented(headers: Headers) -> bytes:
    """The token in the request: as a bearer token, or as the password of HTTP Basic."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode("latin-1")
    try:
        return base64.b64decode(given).partition(b":")[2] if scheme.lower() == "basic" else b""
    except ValueError:
        return b""


def _same_origin(headers: Headers) -> bool:
    """Browsers name the origin with all but plain navigation and embedding, which change nothing and cannot be read."""
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
