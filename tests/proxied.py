"""A small reverse proxy of our own: a path prefix, a token, and answers of its own where it does not pass a request on."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from serving import serving
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

TOKEN = "let-me-in-4711"  # noqa: S105
PREFIX = "/admin/lmcache"


@dataclass
class Proxy:
    """Passes what comes under the prefix with the right header on to one server."""

    upstream: str
    answers: Response | None = None
    """What every request is answered with in place of passing it on."""
    refused: dict[str, int] = field(default_factory=dict)
    """Routes that are not passed on, with the status they are answered with."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Headers of every request that came."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        self.headers.append(dict(request.headers))
        await (await self._answer(request))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if self.answers is not None:
            return self.answers
        given = request.headers.get("authorization", "nothing")
        if given != f"Bearer {TOKEN}":
            return JSONResponse({"error": f"{given} is not valid here"}, 401)
        path = request.scope["raw_path"].decode()
        if not path.startswith(f"{PREFIX}/"):
            return HTMLResponse("<h1>404</h1>", 404)
        if (status := self.refused.get(path.removeprefix(PREFIX))) is not None:
            return JSONResponse({"error": "not for you"}, status) if status == 403 else HTMLResponse(f"<h1>{status}</h1>", status)
        passed = {name: value for name, value in request.headers.items() if name not in {"host", "authorization"}}
        async with httpx.AsyncClient(trust_env=False) as client:
            url = f"{self.upstream}{path.removeprefix(PREFIX)}?{request.url.query}"
            try:
                answer = await client.request(request.method, url, content=await request.body(), headers=passed, timeout=30)
            except httpx.ConnectError:
                return HTMLResponse("<h1>502</h1>", 502)
        return Response(answer.content, answer.status_code, {"content-type": answer.headers["content-type"]})


@contextlib.contextmanager
def in_front(upstream: str, **options: Any) -> Iterator[tuple[str, Proxy]]:
    proxy = Proxy(upstream)
    with serving(proxy, **options) as url:
        yield url + PREFIX, proxy
