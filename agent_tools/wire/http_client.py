"""HTTP to the admin API of an `lmcache server`: timeouts on every call, retries for reads only, one sentence per error."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import anyio
import httpx
from pydantic import SecretStr

from agent_tools.errors import (
    MissingRouteError,
    NotLMCacheError,
    OutcomeUnknownError,
    RefusedError,
    SettingsError,
    UnreachableError,
)
from agent_tools.plain import plain, refuse_halves
from agent_tools.redaction import text_without_secrets

from .access import NO_PROXY, Access

READ_TRIES = 3
IN_ALL = 6
"""A whole answer takes at most so many times what may pass until some of it comes: one that trickles in is not waited for."""
MOST_SAID = 800
"""Characters repeated of what a server says of itself."""
MOST_BYTES = 2**27
"""Of an answer. The longest, a piece of the module's window, has some 40 MB."""
MODULE_TOKEN = "X-LMCache-Agent-Token"  # noqa: S105  a header's name
"""Header of the module's token where a proxy takes ``Authorization`` for itself."""
_PREFIX = re.compile(r"/?|(/(?!\.{1,2}(?:/|$))[\w.~!$&'()*+,;=:@-]+)+/?", re.ASCII)
"""A path under which a proxy serves the API: plain segments, none of which leads up."""
_NOT_PASSED_ON = {502, 503, 504}
"""Statuses of a proxy that got no answer. LMCache gives 503 too, always with its reason in JSON."""
_CLOSED = (anyio.EndOfStream, anyio.BrokenResourceError)
LIMITS = httpx.Limits(max_connections=3)
"""A server answers its admin calls nearly one by one: to look after more connections takes longer than it saves."""
GREETING = 0.1
"""Seconds in which a server that speaks first has spoken; three times the time to connect, if that is longer."""


class AdminClient:
    """One keep-alive connection pool to one base URL, which no request leaves. Redirects and proxies are not followed."""

    def __init__(
        self,
        base_url: str,
        timeout: float = 5.0,
        transport: httpx.AsyncBaseTransport | None = None,
        token: SecretStr | None = None,
        guarded: str = "/agent-tools/",
        access: Access = NO_PROXY,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            base_url: ``http(s)://host[:port][/prefix]``. A proxy may serve the API under a prefix.
            timeout: Seconds per call.
            transport: What carries the calls; plain HTTP when not given.
            token: Sent to paths that start with `guarded`, and to no others.
            guarded: Start of the paths that need the token.
            access: What a proxy in front asks for.

        Raises:
            SettingsError: `base_url` has another form.
        """
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, TypeError) as error:
            wrong, url = str(error), None
        if url is None:  # outside of `except`: what httpx says can hold the address with its password
            raise SettingsError(f"{text_without_secrets(base_url)!r} is not an address: {wrong}")
        no_port = url.port is not None and not 0 < url.port < 2**16
        more = no_port or url.userinfo or url.query or url.fragment or _PREFIX.fullmatch(url.raw_path.decode()) is None
        if url.scheme not in {"http", "https"} or not url.host or more:
            raise SettingsError(
                f"{text_without_secrets(base_url)!r} is not an address of the form http://host:port or https://host/prefix, by"
                " which a cache is reached; a proxy's token goes into headers"
            )
        self.base_url = str(url).rstrip("/")
        self._prefix = url.raw_path.decode().rstrip("/")
        self._access = access
        self.timeout = timeout
        self._token, self._guarded = token, guarded
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            timeout=timeout,
            transport=transport,
            limits=LIMITS,
            trust_env=False,
            verify=access.certificates(),
            headers={**access.plain_headers, "Accept-Encoding": "identity"},
            event_hooks={"request": [self._stay], "response": [_bound]},
        )
        self._unmet = url if transport is None else None
        self.ready: Callable[[], Awaitable[object]] | None = None
        """Awaited before each call, and not part of the call's time. A server of our own starts here."""
        self._under_way: dict[tuple[str, tuple[Any, ...]], asyncio.Future[httpx.Response]] = {}
        """Those whose answer who asks now may have too."""
        self._readings: set[asyncio.Future[httpx.Response]] = set()

    @contextlib.contextmanager
    def understood(self, path: str) -> Iterator[None]:
        """Put around the taking apart of an answer: one of another shape than LMCache gives is a `NotLMCacheError`."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise NotLMCacheError(
                f"{self.base_url}{plain(path)} is not that of an `lmcache server` 0.5 ({type(error).__name__}: {_short(error)}):"
                " something else, or another version, answers there"
            ) from error

    async def close(self) -> None:
        """End what is being read; close the connections."""
        readings = [*self._readings]
        for reading in readings:
            reading.cancel()
        await asyncio.gather(*readings, return_exceptions=True)
        await self._http.aclose()

    async def read_bytes(self, path: str, **params: Any) -> bytes:  # noqa: ANN401  values of a query
        """GET; the body as it is."""
        return (await self._read(path, params)).content

    async def read(self, path: str, **params: Any) -> Any:  # noqa: ANN401  JSON
        """GET; the body as JSON.

        Raises:
            UnreachableError: Nothing answered in time, three times.
            NotLMCacheError: The answer is not JSON, or the route does not exist.
            RefusedError: LMCache answered with an error.
        """
        return self._json(await self._read(path, params))

    async def change(self, method: str, path: str, body: Any = None, *, at_least: float = 0.0) -> Any:  # noqa: ANN401  JSON
        """Send one change, once; the body of the answer as JSON, ``None`` for an empty one.

        Args:
            method: Of HTTP.
            path: After the base URL.
            body: JSON.
            at_least: Seconds it is given, if that is more than a call usually has.

        Raises:
            UnreachableError: No connection could be made; nothing was sent.
            OutcomeUnknownError: It was sent and no whole answer came.
            RefusedError: LMCache answered with an error.
        """
        await self._meet()
        try:
            response = await self._sent(method, path, body, max(self.timeout, at_least))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise self._unreachable(path, error) from error
        except httpx.HTTPError as error:
            raise OutcomeUnknownError(
                f"{method} {plain(path)} was sent to {self.base_url} and no answer came ({_cause(error)}); it may or may not be"
                " in force: read the cache's status and configuration before anything else"
            ) from error
        if _gave_up(response):
            # Not unknown yet: whoever made the change takes the rest back and reads what is in force (`may_still_happen`).
            raise RefusedError(
                f"{method} {plain(path)} was sent and the proxy in front of {self.base_url} answered {response.status_code}: it"
                " got no answer from LMCache. The change may or may not be in force: read the cache's status and configuration"
                " before anything else",
                response.status_code,
            )
        return self._json(self._accepted(response, f"{method} {plain(path)}"))

    async def _sent(self, method: str, path: str, body: Any, seconds: float) -> httpx.Response:  # noqa: ANN401  JSON
        try:
            with _in_all(seconds):
                return await self._http.request(method, path, json=body, timeout=seconds)
        finally:
            self._under_way.clear()  # who reads after a change must not get an answer of before it

    async def _read(self, path: str, params: dict[str, Any]) -> httpx.Response:
        """What is asked for twice at the same moment is asked of the server once."""
        asked = (path, tuple(params.items()))
        if asked not in self._under_way:
            reading = self._under_way[asked] = asyncio.ensure_future(self._fetch(path, params))
            self._readings.add(reading)
            reading.add_done_callback(partial(self._done, asked))
        return await asyncio.shield(self._under_way[asked])

    def _done(self, asked: tuple[str, tuple[Any, ...]], reading: "asyncio.Future[httpx.Response]") -> None:
        self._readings.discard(reading)
        if self._under_way.get(asked) is reading:
            del self._under_way[asked]
        if reading.cancelled() or reading.exception() is not None:
            self._under_way.clear()  # who asks after a failure was seen asks anew

    async def _fetch(self, path: str, params: dict[str, Any]) -> httpx.Response:
        await self._meet()
        last: httpx.RequestError | None = None
        for _ in range(READ_TRIES):
            try:
                with _in_all(self.timeout):
                    response = await self._http.get(path, params=params or None)
            except httpx.RequestError as error:
                last = error
                continue
            return self._accepted(response, f"GET {plain(path)}")
        if isinstance(last, httpx.RemoteProtocolError | httpx.DecodingError):
            raise NotLMCacheError(
                f"{self.base_url} does not speak HTTP as LMCache does ({_cause(last)}); give the server's --http-port, not its"
                " --port"
            ) from last
        raise self._unreachable(path, last) from last

    async def _stay(self, request: httpx.Request) -> None:
        """Whatever became part of a path, the request goes where the operator said."""
        here, there = httpx.URL(self.base_url), request.url
        inside = there.raw_path.startswith(f"{self._prefix}/".encode())
        if (there.scheme, there.host, there.port, there.userinfo) != (here.scheme, here.host, here.port, b"") or not inside:
            raise NotLMCacheError(f"a request would have left {self.base_url} for {there}; it was not sent. Nothing was changed")
        if self._token is not None and there.raw_path.startswith(f"{self._prefix}{self._guarded}".encode()):
            # A proxy's own Authorization must arrive as it is, so the module takes its token under another name too.
            name = MODULE_TOKEN if "authorization" in request.headers else "Authorization"
            request.headers[name] = f"Bearer {self._token.get_secret_value()}"

    async def _meet(self) -> None:
        """Before the first request, make sure that the other side does not speak first, as ZeroMQ does and HTTP never.

        LMCache 0.5.6 takes an HTTP request to its ``--port`` for a message of its own, and the thread that serves all engines
        dies of it while ``/status`` stays healthy.
        """
        if self.ready is not None:
            await self.ready()
        url, began = self._unmet, time.monotonic()
        if url is None:
            return
        try:
            with anyio.fail_after(self.timeout):
                stream = await anyio.connect_tcp(url.host, url.port or {"http": 80, "https": 443}[url.scheme])
        except (OSError, TimeoutError):
            return  # the request itself will tell
        async with stream:
            with anyio.move_on_after(max(GREETING, 3 * (time.monotonic() - began))), contextlib.suppress(*_CLOSED):
                await stream.receive()
                raise NotLMCacheError(
                    f"{self.base_url} is not an HTTP server: it speaks first, as LMCache's --port does; give its --http-port."
                    " Nothing was sent there"
                )
        self._unmet = None

    def _accepted(self, response: httpx.Response, asked: str) -> httpx.Response:
        if response.is_success:
            return response
        self._refuse_for_proxy(response, asked)
        if response.status_code in {404, 405, 501} and not _says_why(response):
            behind = " and the proxy's path prefix" if self._prefix else ""
            raise MissingRouteError(
                f"{self.base_url} answered {response.status_code} to {asked}: something else than an LMCache admin API listens"
                f" there, or a version without this route; give the server's --http-port, not its --port{behind}"
            )
        if response.is_redirect:
            where = self._quoted(response.headers.get("location", "nowhere"))
            raise NotLMCacheError(
                f"{self.base_url} answered {asked} with a redirect to {where}, which LMCache never does; it was not followed. If"
                " a proxy in front asks for a login, give it a token in headers; if the API has moved, correct the address"
            )
        raise RefusedError(
            f"LMCache refused {asked} with {response.status_code}: {self._quoted(_says_why(response) or response.reason_phrase)}",
            response.status_code,
        )

    def _refuse_for_proxy(self, response: httpx.Response, asked: str) -> None:
        """Raise if a proxy answered in LMCache's place.

        LMCache's admin API asks for no login, and answers 502 and 504 never. Our module asks for a token, on its own routes.
        """
        status, said = response.status_code, _says_why(response)
        ours = response.request.url.raw_path.startswith(f"{self._prefix}{self._guarded}".encode()) and said is not None
        if status in {401, 403, 407} and not ours:
            raise RefusedError(
                f"the proxy in front of {self.base_url} refused {asked} with {status}"
                f" ({self._quoted(said or response.reason_phrase)}); LMCache was not asked. Correct headers in caches.toml: "
                + ("the proxy does not take what they hold" if self._access.headers else "they name nothing that lets us in"),
                status,
            )
        if _is_html(response) and 400 <= status < 500 and status not in {404, 405}:
            raise RefusedError(
                f"the proxy in front of {self.base_url} refused {asked} with {status} ({self._quoted(response.reason_phrase)});"
                " LMCache, which never answers with a page, was not asked. Look into the proxy's settings",
                status,
            )
        if _gave_up(response):
            raise UnreachableError(
                f"the proxy in front of {self.base_url} answered {asked} with {status} ({_short(response.reason_phrase)}): it"
                " reaches no LMCache. Start `lmcache server` behind it, or correct where the proxy sends this path"
            )

    def _quoted(self, words: object) -> str:
        return _short(self._access.without_secrets(str(words)))

    def _json(self, response: httpx.Response) -> Any:  # noqa: ANN401  JSON
        if response.status_code == httpx.codes.NO_CONTENT:
            return None
        try:
            answer = response.json()
            if b"\\ud" in response.content.lower():  # only so can it hold halves of characters, which nothing of ours could store
                refuse_halves(answer)
        except (ValueError, RecursionError) as error:
            page = " or a proxy in front of it asks for a login" if _is_html(response) else ""
            raise NotLMCacheError(
                f"{response.request.url} did not answer with JSON: something else than an LMCache admin API listens there{page}"
            ) from error
        return answer

    def _unreachable(self, path: str, error: Exception | None) -> UnreachableError:
        if isinstance(error, httpx.ReadTimeout):
            return UnreachableError(
                f"what listens at {self.base_url} took the connection and did not answer {plain(path)} within {self.timeout:g} s:"
                " the server hangs, or this is its --port and not its --http-port; nothing was changed"
            )
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return UnreachableError(
                f"the certificate of {self.base_url} is not one that we trust ({_cause(error)}); nothing was sent. If an"
                " authority of your own signed it, name its certificates as ca_file in caches.toml"
            )
        return UnreachableError(
            f"no cache answered {plain(path)} at {self.base_url} within {self.timeout:g} s ({_cause(error)}); nothing was"
            " changed. Start `lmcache server` there or correct the cache's address"
        )


def segment(name: str) -> str:
    """A name as one segment of a path, whatever is in it; its dots too, since a segment of dots alone would be a way up.

    Raises:
        ValueError: It holds half a character.
    """
    return quote(name, safe="").replace(".", "%2E")


@contextlib.contextmanager
def _in_all(seconds: float) -> Iterator[None]:
    """The timeout of httpx is for each piece of an answer; and it minds what makes no URL in an error of another kind."""
    try:
        with anyio.fail_after(IN_ALL * seconds):
            yield
    except TimeoutError as error:
        raise httpx.ReadTimeout("the answer did not end") from error
    except httpx.InvalidURL as error:
        raise NotLMCacheError(f"a name there makes no URL ({error}); nothing was sent") from error


async def _bound(response: httpx.Response) -> None:
    """Of an answer only so much is taken in; one that is compressed, which was not asked for, could become of any length."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx.DecodingError("its answer is compressed, which was not asked for", request=response.request)
    if isinstance(response.stream, httpx.AsyncByteStream):
        response.stream = _Bounded(response.stream)


class _Bounded(httpx.AsyncByteStream):
    """The body of an answer, as far as it is bearable."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._stream:
            size += len(piece)
            if size > MOST_BYTES:
                raise httpx.RemoteProtocolError(f"its answer has more than {MOST_BYTES >> 20} MB")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def _cause(error: Exception | None) -> str:
    return _short(error) if str(error) else type(error).__name__


def _short(words: object) -> str:
    """Words of the other side, never so many that ours are cut off."""
    return plain(text_without_secrets(str(words)[: 2 * MOST_SAID]), MOST_SAID)


def _is_html(response: httpx.Response) -> bool:
    """Return whether the answer is a page, as proxies give them and LMCache's admin API never does."""
    return bool(response.headers.get("content-type", "").startswith("text/html"))


def _gave_up(response: httpx.Response) -> bool:
    """Return whether a proxy answered because it got no answer from LMCache, or none that it liked."""
    if response.status_code in _NOT_PASSED_ON:
        return _says_why(response) is None
    return response.status_code >= 500 and response.status_code != httpx.codes.NOT_IMPLEMENTED and _is_html(response)


def _says_why(response: httpx.Response) -> str | None:
    """LMCache's own words: ``detail`` on its cache routes, ``error`` elsewhere, with a ``message`` on an engine's."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    detail = body.get("detail", body.get("error"))
    if isinstance(detail, list):
        return "; ".join(map(_violation, detail))
    if detail and isinstance(body.get("message"), str):
        return f"{detail}: {body['message']}"
    # FastAPI's and Starlette's own 404 says just "Not Found": that is no word of LMCache's.
    return str(detail) if detail and detail not in {"Not Found", "Method Not Allowed"} else None


def _violation(detail: Any) -> str:  # noqa: ANN401  JSON
    """One entry of FastAPI's answer to a body it does not take."""
    if not isinstance(detail, dict):
        return str(detail)
    return f"{'.'.join(map(str, detail.get('loc', [])))}: {detail.get('msg', detail)}"
