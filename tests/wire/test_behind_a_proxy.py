"""Claims about servers behind a proxy: a path prefix, a header, TLS of a private authority, and errors that are the proxy's.

The proxy is a small one of our own, over real TLS, in front of a real `lmcache server` with our module and its token.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from proxied import TOKEN, Proxy, in_front
from pydantic import SecretStr
from real_cache import Launch
from starlette.responses import HTMLResponse, RedirectResponse

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.changes.read_back import may_still_happen
from agent_tools.deployments.fleet.allowed_servers import AllowedServers
from agent_tools.deployments.fleet.coordinator import Instance
from agent_tools.errors import (
    LMCacheToolError,
    MissingRouteError,
    NotLMCacheError,
    RefusedError,
    SettingsError,
    UnreachableError,
)
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate
from agent_tools.operations import Operations
from agent_tools.wire.access import Access
from agent_tools.wire.http_client import AdminClient

MODULE = "the-modules-own-token"
INSIDE = {"Authorization": SecretStr(f"Bearer {TOKEN}")}


@pytest.fixture(scope="module")
def upstream(launch: Launch) -> str:
    """A real server with our module, which asks for a token."""
    module = {"module_path": "agent_tools.server_module", "config": {"token_env": "PROXY_TEST_MODULE_TOKEN"}}
    return launch({"--server-module": json.dumps(module)}, {"PROXY_TEST_MODULE_TOKEN": MODULE}).http_url


@pytest.fixture
def proxy(upstream: str) -> Iterator[tuple[str, Proxy]]:
    with in_front(upstream) as started:
        yield started


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Any]:
    """Makes operations on the cache ``prod`` with these settings."""
    made: list[Operations] = []

    def make(**settings: Any) -> Operations:
        caches = {"prod": CacheSettings(bounds=Bounds(), cooldown_seconds=0, **settings)}
        made.append(Operations(Registry(Settings(caches=caches, state_folder=tmp_path))))
        return made[-1]

    yield make
    for one in made:
        io_loop.run(one.close)


def failure(url: str, path: str = "/status", access: Access | None = None) -> LMCacheToolError:
    async def read() -> None:
        admin = AdminClient(url, 5, access=access or Access(INSIDE))
        try:
            await admin.read(path)
        finally:
            await admin.close()

    with pytest.raises(LMCacheToolError) as raised:
        io_loop.run(read)
    return raised.value


def test_a_server_is_read_and_changed_through_the_proxy(
    proxy: tuple[str, Proxy], operations: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the prefix, with the header from the environment, and with the module's token beside it."""
    monkeypatch.setenv("LMCACHE_PROXY", f"Bearer {TOKEN}")
    there = operations(target=proxy[0], headers={"Authorization": "env:LMCACHE_PROXY"}, module_token=MODULE)
    assert io_loop.run(there.status, "prod").lmcache_version == "0.5.6"
    plan = io_loop.run(there.plan, "prod", ConfigUpdate(eviction_watermark=0.7), "test")
    io_loop.run(there.apply, plan, "test")
    assert io_loop.run(there.settings, "prod").eviction_watermark == 0.7


@pytest.mark.parametrize(
    ("route", "status"),
    [
        ("/lmc_version", 404), ("/config", 404), ("/config/adapters", 404), ("/quota", 403), ("/quota", 404), ("/metrics", 404),
        ("/metrics", 501), ("/agent-tools/window", 403), ("/agent-tools/window", 404), ("/agent-tools/window", 501),
    ],
)  # fmt: skip
def test_a_route_that_the_proxy_does_not_pass_on_costs_what_it_tells_and_no_more(
    route: str, status: int, proxy: tuple[str, Proxy], operations: Any
) -> None:
    proxy[1].refused[route] = status
    there = operations(target=proxy[0], headers={"Authorization": f"Bearer {TOKEN}"}, module_token=MODULE)
    told = io_loop.run(there.status, "prod")
    assert told.metrics.total_size_mb
    assert ("access_log" in told.notes) == (route == "/agent-tools/window")
    assert io_loop.run(there.recommend, "prod").recommendations == ()
    assert io_loop.run(there.diagnosis, "prod")[0]
    tenants = io_loop.run(there.tenants, "prod")
    assert (tenants.no_usage is not None) == (route == "/quota")


def test_without_the_header_the_401_is_the_proxys(proxy: tuple[str, Proxy]) -> None:
    error = failure(proxy[0], access=Access())
    assert isinstance(error, RefusedError)
    assert "the proxy in front of" in str(error)
    assert "LMCache was not asked" in str(error)


def test_a_header_that_the_proxy_repeats_is_masked(proxy: tuple[str, Proxy]) -> None:
    error = failure(proxy[0], access=Access({"Authorization": SecretStr("Bearer wrong-secret-99")}))
    assert "the proxy does not take what they hold" in str(error)
    assert "wrong-secret-99" not in str(error)


def test_headers_are_masked_wherever_settings_are_shown(operations: Any) -> None:
    there = operations(target="https://host/admin", headers={"Authorization": f"Bearer {TOKEN}"}, engine_headers={"X-Key": TOKEN})
    shown = io_loop.run(there.caches)["prod"]
    assert TOKEN not in f"{shown!r} {shown.model_dump_json()} {there.registry.settings!r}"


@pytest.mark.parametrize("status", [502, 504])
def test_a_proxy_that_reaches_no_server_says_so(status: int, proxy: tuple[str, Proxy]) -> None:
    proxy[1].answers = HTMLResponse("<h1>Bad Gateway</h1>", status)
    error = failure(proxy[0])
    assert isinstance(error, UnreachableError)
    assert f"with {status}" in str(error)
    assert "reaches no LMCache" in str(error)


@pytest.mark.parametrize("status", [500, 520])
def test_a_page_in_place_of_an_answer_is_the_proxys(status: int, proxy: tuple[str, Proxy]) -> None:
    """LMCache's admin API never answers with a page."""
    proxy[1].answers = HTMLResponse("<h1>Oops</h1>", status)
    error = failure(proxy[0])
    assert isinstance(error, UnreachableError)
    assert f"the proxy in front of {proxy[0]} answered GET /status with {status}" in str(error)
    assert may_still_happen(changing(proxy[0])), "the proxy may have passed it on"


def test_a_page_that_says_not_implemented_is_a_route_that_is_not_there(proxy: tuple[str, Proxy]) -> None:
    proxy[1].answers = HTMLResponse("<h1>Not implemented</h1>", 501)
    assert isinstance(failure(proxy[0]), MissingRouteError)
    assert isinstance(changing(proxy[0]), MissingRouteError)


@pytest.mark.parametrize("status", [400, 413, 429])
def test_a_page_that_refuses_is_the_proxys(status: int, proxy: tuple[str, Proxy]) -> None:
    proxy[1].answers = HTMLResponse("<h1>No</h1>", status)
    for error in (failure(proxy[0]), changing(proxy[0])):
        assert isinstance(error, RefusedError)
        assert error.status == status
        assert "the proxy in front of" in str(error)
        assert "was not asked" in str(error)


@pytest.mark.parametrize("where", ["/admin/lmcache/status/", f"https://login.example/?state={TOKEN}"])
@pytest.mark.parametrize("status", [301, 302, 308])
def test_a_redirect_is_named_and_not_followed(status: int, where: str, proxy: tuple[str, Proxy]) -> None:
    proxy[1].answers = RedirectResponse(where, status)
    for error in (failure(proxy[0]), changing(proxy[0])):
        assert isinstance(error, NotLMCacheError)
        assert f"with a redirect to {where.replace(TOKEN, '***')}" in str(error)
        assert TOKEN not in str(error)
    assert len(proxy[1].headers) == 2


def test_a_login_page_is_called_one(proxy: tuple[str, Proxy]) -> None:
    proxy[1].answers = HTMLResponse(f"<form>{TOKEN}</form>")
    error = failure(proxy[0])
    assert "did not answer with JSON" in str(error)
    assert "a proxy in front of it asks for a login" in str(error)
    assert TOKEN not in str(error)


def changing(url: str) -> LMCacheToolError:
    async def change() -> None:
        admin = AdminClient(url, 5, access=Access(INSIDE))
        try:
            await admin.change("POST", "/cache/clear", {"tier": "l1"})
        finally:
            await admin.close()

    with pytest.raises(LMCacheToolError) as raised:
        io_loop.run(change)
    return raised.value


def test_a_slash_at_the_end_of_an_address_is_no_part_of_it(proxy: tuple[str, Proxy], operations: Any) -> None:
    there = operations(target=f"{proxy[0]}/", headers={"Authorization": f"Bearer {TOKEN}"})
    assert io_loop.run(there.status, "prod").health.healthy


def test_a_change_that_the_proxy_gave_up_on_may_be_in_force(proxy: tuple[str, Proxy]) -> None:
    proxy[1].answers = HTMLResponse("<h1>Gateway Timeout</h1>", 504)

    error = changing(proxy[0])
    assert isinstance(error, RefusedError)
    assert "may or may not be in force" in str(error)
    assert may_still_happen(error), "it is taken back and read back, not taken for a refusal"
    assert len(proxy[1].headers) == 1  # sent once


def test_a_prefix_that_is_wrong_is_mentioned(proxy: tuple[str, Proxy]) -> None:
    error = failure(proxy[0] + "-elsewhere")
    assert isinstance(error, MissingRouteError)
    assert "path prefix" in str(error)


def test_no_request_leaves_the_prefix(proxy: tuple[str, Proxy]) -> None:
    error = failure(proxy[0], "/../../status")
    assert isinstance(error, NotLMCacheError)
    assert "it was not sent" in str(error)
    assert proxy[1].headers == []


@pytest.mark.parametrize(
    "url",
    [
        "http://host/a?b=c",
        "http://me:pw@host/a",
        "http://host//a",
        "http://host/a/%2e%2e/b",
        "http://host/#a",
        "http://host:99999",
    ],
)
def test_an_address_that_leads_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="http://host:port or https://host/prefix"):
        AdminClient(url)


@pytest.mark.parametrize("headers", [{"Content-Length": "1"}, {"a b": "c"}, {"X": "a\r\nY: b"}, {"X": ""}])
def test_a_header_that_breaks_a_request_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="headers"):
        Access({name: SecretStr(value) for name, value in headers.items()})


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(SettingsError, match="headers of a cache names the environment variable NOT_SET_AT_ALL"):
        CacheSettings(target="https://h/p", headers={"Authorization": SecretStr("env:NOT_SET_AT_ALL")}).access()


def test_the_engine_gets_headers_of_its_own(proxy: tuple[str, Proxy], upstream: str, operations: Any) -> None:
    """What lets us in at one place is never sent to another."""
    headers = {"target": upstream, "engine": proxy[0]}
    there = operations(**headers, headers={"X-For-The-Cache": "secret-one"}, engine_headers={"Authorization": f"Bearer {TOKEN}"})
    io_loop.run(there.status, "prod")
    sent = proxy[1].headers[-1]
    assert (sent["authorization"], "x-for-the-cache" in sent) == (f"Bearer {TOKEN}", False)


def test_the_servers_of_a_fleet_get_headers_only_at_urls_of_the_operator() -> None:
    allowed = AllowedServers([], {"10.0.0.1:8080": "https://host/admin/one", "10.0.0.2": "127.0.0.1:9001"})
    proxied, plain = (allowed.url(Instance("a", ip, 8080, 0.0)) for ip in ("10.0.0.1", "10.0.0.2"))
    assert (proxied, plain) == ("https://host/admin/one", "http://127.0.0.1:9001")
    assert (allowed.is_operators_url(proxied), allowed.is_operators_url(plain)) == (True, False)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority of our own (``ca.pem``), and a certificate that it signed for loopback (``proxy.pem``)."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=ours -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout proxy.key -out proxy.csr",
        "x509 -req -in proxy.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile san -out proxy.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def tls(upstream: str, certificates: Path) -> Iterator[str]:
    files = {"ssl_keyfile": certificates / "proxy.key", "ssl_certfile": certificates / "proxy.pem"}
    with in_front(upstream, **files) as (url, _):
        yield url


def test_a_private_authority_is_trusted_when_it_is_named(tls: str, certificates: Path, operations: Any) -> None:
    there = operations(target=tls, headers={"Authorization": f"Bearer {TOKEN}"}, ca_file=certificates / "ca.pem")
    assert io_loop.run(there.status, "prod").health.healthy


def test_an_authority_that_is_not_named_is_not_trusted(tls: str) -> None:
    error = failure(tls)
    assert isinstance(error, UnreachableError)
    assert "name its certificates as ca_file" in str(error)


def test_a_ca_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    for name, why in (("missing.pem", "No such file"), ("empty.pem", "holds no certificate|PEM")):
        with pytest.raises(SettingsError, match=f"ca_file.*{name} cannot be used: .*({why})"):
            AdminClient("https://host/p", access=Access(ca_file=tmp_path / name))
