"""Who may use the REST and MCP doors: callers with a token; if no token is set, only programs on this machine.

Web pages can reach a service on loopback: a browser sends the requests that any page asks it to send. A page whose name resolves
to 127.0.0.1 (DNS rebinding) can read the answers too. LangGraph's server, which mounts this door, even allows every origin by
default. So a request from a page of another origin is always refused. Without a token, a request that was sent to another name
than this machine's own is refused as well.
"""

import base64
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_tools.caches.named_tokens import Tokens
from agent_tools.caches.settings import Settings
from agent_tools.errors import SettingsError

from .problems import problem

MOST_BYTES = 2**18
"""Largest body of a request. The longest useful body, quotas for a thousand tenants, has 150 KB."""
ELSEWHERE = "pages of another origin may not use this service; to follow a link, open its address in a new tab"
CALLER = "lmcache_caller"
"""Key of a request's scope: the name of the token's holder, or ``None`` for the operator's own token or no token."""
CHALLENGES = ('Bearer realm="lmcache"', 'Basic realm="lmcache: any name, and the token as password", charset="UTF-8"')
"""Programs send the token as a bearer token; a browser asks its user for a name and a password."""


class Doorkeeper:
    """ASGI middleware that refuses callers before it reads anything of the request's body.

    FastAPI's dependencies would run after the body was read. Middleware of the application that is mounted into LangGraph's
    server would apply to all of that server.
    """

    def __init__(self, app: ASGIApp, tokens: Callable[[], Awaitable[Tokens]]) -> None:
        self.app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # lifespan
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        tokens = await self._tokens()
        known, caller = tokens.recognise(_presented(request.headers))
        if not _same_origin(request.headers):
            await problem(request, 403, ELSEWHERE)(scope, receive, send)
        elif tokens and not known:
            refused = problem(request, 401, "send a token (LMCACHE_AGENT_TOKEN): Authorization: Bearer <token>")
            for challenge in CHALLENGES:
                refused.headers.append("WWW-Authenticate", challenge)
            await refused(scope, receive, send)
        elif not tokens and not is_loopback(_name(request.headers.get("host", ""))):
            detail = "without a token (LMCACHE_AGENT_TOKEN) this service answers only to names of its own machine, as localhost"
            await problem(request, 421, detail)(scope, receive, send)
        else:
            await self.app({**scope, CALLER: caller}, _bounded(receive), send)


def tokens_of(settings: Settings) -> Tokens:
    """Return the tokens that open REST and MCP.

    Raises:
        SettingsError: A token cannot be read, is too short, or belongs to two callers.
    """
    return Tokens(settings.token, settings.tokens)


def _bounded(receive: Receive) -> Receive:
    """Return a `receive` that refuses a body longer than `MOST_BYTES`, whatever length the request declares."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MOST_BYTES:
            raise HTTPException(413, f"the body is longer than {MOST_BYTES >> 10} KiB; nothing was changed")
        return message

    return bounded


def check_host(host: str, tokens: Tokens) -> None:
    """Refuse to listen where other machines can reach the service without a token.

    Raises:
        SettingsError: The host is not loopback and there is no token.
    """
    if not tokens and not is_loopback(host):
        raise SettingsError(
            f"listening on {host} lets other machines change caches: set LMCACHE_AGENT_TOKEN first, or use 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is loopback. 0.0.0.0 means all addresses, so it is not."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _presented(headers: Headers) -> bytes:
    """Return the token of the request: a bearer token, or the password of HTTP Basic."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode("latin-1")
    try:
        return base64.b64decode(given).partition(b":")[2] if scheme.lower() == "basic" else b""
    except ValueError:
        return b""


def _same_origin(headers: Headers) -> bool:
    """Return whether no page of another origin made a browser send the request.

    Browsers leave the origin out of navigation and embedding. A page cannot read those answers, but they would still make this
    service search for seconds; browsers mark such requests by ``Sec-Fetch-Site``.
    """
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        return False
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _name(host: str) -> str:
    """Return the name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
