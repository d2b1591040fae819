"""Claims about every REST route, as the OpenAPI document lists them: who may come in, and how much they may send.

`tests/doors/test_rest.py` has the forms of the token, of origins and of hosts; LangGraph's own door is tested in
`tests/tuning/test_dev_server.py`.
"""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import Settings
from agent_tools.doors.access import MOST_BYTES
from agent_tools.doors.rest import rest_app
from agent_tools.operations import Operations

TOKEN = "correct horse battery staple"  # noqa: S105
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PATHS: dict[str, dict[str, dict[str, Any]]] = rest_app(lambda: pytest.fail("no route was let in")).openapi()["paths"]
ROUTES = [(method.upper(), path.replace("{change_id}", "change-0")) for path, item in PATHS.items() for method in item]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.AsyncClient]:
    """A client of a service that demands `TOKEN`; its caches are never started."""
    operations = Operations(Registry(Settings(state_folder=tmp_path, token=SecretStr(TOKEN))))
    transport = httpx.ASGITransport(rest_app(lambda: operations), raise_app_exceptions=False)
    yield httpx.AsyncClient(transport=transport, base_url="http://localhost:8100")
    assert not operations.registry._caches, "nobody came as far as a cache"


def test_the_document_lists_the_routes() -> None:
    assert len(ROUTES) >= 11
    assert {("POST", "/lmcache/config"), ("DELETE", "/lmcache/clear"), ("GET", "/lmcache/report")} < set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_refuses_without_the_token(
    client: httpx.AsyncClient, method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Cookie": f"token={TOKEN}"}]
    for headers in wrong:
        for query in ("", f"?token={TOKEN}&access_token={TOKEN}"):
            answer = await client.request(method, path + query, headers=headers, content=b"{")
            assert answer.status_code == 401
            assert TOKEN not in answer.text
    assert TOKEN not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("agent_tools"))


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_refuses_pages_of_elsewhere_even_with_it(client: httpx.AsyncClient, method: str, path: str) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:8100.evil.example", "http://localhost:8101"):
        answer = await client.request(method, path, headers=BEARER | {"Origin": origin})
        assert answer.status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "//lmcache/clear",
        "/lmcache//clear",
        "/lmcache/./clear",
        "/lmcache/../lmcache/clear",
        "/LMCACHE/clear",
        "/lmcache/%0A/clear",
    ],
)
async def test_no_way_of_writing_a_path_goes_round_the_door(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.delete(httpx.URL("http://localhost:8100", raw_path=path.encode()))
    assert answer.status_code in {401, 404}


@pytest.mark.parametrize(
    "token", [TOKEN[:-1], TOKEN[1:], f"{TOKEN}x", f"{TOKEN[:-1]}x", f"x{TOKEN[1:]}", TOKEN.upper(), f"{TOKEN}\xe9", "\xe9", ""]
)
async def test_a_token_that_is_nearly_right_is_answered_like_one_that_is_all_wrong(client: httpx.AsyncClient, token: str) -> None:
    async def asked(offered: str) -> httpx.Response:
        return await client.get("/lmcache/caches", headers={"Authorization": f"Bearer {offered}".encode("latin-1")})

    refused, all_wrong, right = await asked(token), await asked("wrong"), await asked(TOKEN)
    assert (refused.status_code, refused.content) == (401, all_wrong.content)
    assert right.status_code == 200


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_no_page_makes_a_browser_start_anything_by_a_link_or_an_image(
    client: httpx.AsyncClient, method: str, path: str, site: str
) -> None:
    """Browsers send no origin then, but say how near the page is; its own pages and an address typed by hand are answered."""
    answer = await client.request(method, path, headers={**BEARER, "Sec-Fetch-Site": site})
    assert answer.status_code == 403
    for near in ("none", "same-origin"):
        assert (await client.request(method, path, headers={"Sec-Fetch-Site": near})).status_code == 401  # as without it


# ---- how much ----


async def many(size: int) -> AsyncIterator[bytes]:
    """A body that does not say how long it is."""
    for _ in range(size // 1024):
        yield b" " * 1024


@pytest.mark.parametrize("path", ["config", "optimize"])
async def test_a_body_without_end_is_not_read(client: httpx.AsyncClient, path: str) -> None:
    for content in (b" " * (MOST_BYTES + 1), many(4 * MOST_BYTES), b"[" * (MOST_BYTES + 1)):
        answer = await client.post(f"/lmcache/{path}", headers=BEARER, content=content)
        assert answer.status_code == 413
        assert f"{MOST_BYTES >> 10} KiB" in answer.json()["detail"]


async def test_a_body_that_is_long_and_makes_no_sense_is_said_to(client: httpx.AsyncClient) -> None:
    for content in (b"[" * (MOST_BYTES - 1), b'{"a":' * (MOST_BYTES // 8), b'{"update": {"\\ud800": 1}, "reason": "\\ud800abc"}'):
        answer = await client.post("/lmcache/config", headers=BEARER | {"Content-Type": "application/json"}, content=content)
        assert answer.status_code in {400, 422}, answer.text[:300]
        assert answer.json()["code"] == "bad_request"
