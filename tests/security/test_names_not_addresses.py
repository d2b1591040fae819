"""Claims that no request leaves the operator's directory, whatever a caller names and whatever a server or coordinator says.

`outside` is a real listening socket: these tests fail when anything connects to it.
"""

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile_server import Meet, Outside, hostile
from hostile_server import outside as listening
from recorded_answers import ANSWERS
from starlette.responses import JSONResponse, RedirectResponse, Response

from agent_tools import LMCacheToolkit
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.fleet.deployment import FleetDeployment
from agent_tools.errors import LMCacheToolError, NotLMCacheError, SettingsError, UnknownCacheError
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate
from agent_tools.operations import Operations
from agent_tools.wire.http_client import AdminClient, segment

REDIRECTS = (301, 302, 303, 307, 308)
METADATA = "http://169.254.169.254/latest/meta-data/"


def forms_of(port: int) -> list[str]:
    """Ways to write http://127.0.0.1:port."""
    hosts = (
        *("127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0.0.0.0"),  # noqa: S104
        *(
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "127.0.0.1.",
            "LOCALHOST",
            "user@127.0.0.1",
            "good.example@127.0.0.1",
        ),
    )
    return [f"http://{host}:{port}" for host in hosts]


# ---- names that callers give ----


def test_no_address_in_any_form_is_taken_for_a_name(meet: Meet, outside: Outside) -> None:
    operations, server = meet(ANSWERS)
    tools = {tool.name: tool for tool in LMCacheToolkit(operations=operations).get_tools()}
    names = [
        *forms_of(outside.port),
        *(form.removeprefix("http://") for form in forms_of(outside.port)),
        *(f"{kind}:http://127.0.0.1:{outside.port}" for kind in ("fleet", "engine")),
        *("embedded:", "simulated:", "file:///etc/passwd", METADATA, "../prod", "prod/../x", "prod%2f", "prod?x", "prod#x"),
        *("prod\r\nHost: evil", "prod\0", f"prod/127.0.0.1:{outside.port}", f"prod@127.0.0.1:{outside.port}", "PROD", " prod"),
    ]
    for name in names:
        for tool in ("lmcache_get_status", "lmcache_get_config", "lmcache_list_entries"):
            answer = str(tools[tool].invoke({"cache": name}))
            assert answer.startswith("unknown_cache: "), (name, answer)
        for verb in (operations.clear, operations.undo):
            with pytest.raises(UnknownCacheError):
                io_loop.run(verb, name, "change-1", "tester")
    assert server.asked == []


ALSO_ASKED = {"/config/policies", "/quota", "/reconfigure/dax/l1/status"}
"""Fixed routes, with no name in them; this server does not have all of them."""


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "a?b#c", "a\r\nHost: evil", "@evil", "//evil", "a%2f..", "é ü\u2028"])
def test_a_tenants_name_stays_one_segment_of_a_path(meet: Meet, outside: Outside, name: str) -> None:
    operations, server = meet(ANSWERS | {"/quota": {"users": {name: {"limit_gb": 1.0}}}})
    assert name in io_loop.run(operations.tenants, "prod").tenants
    routes = [path for _, path in server.asked if path.startswith("/quota/")]
    assert f"/quota/{name}" in routes, "as the server decodes it"
    assert {path for _, path in server.asked if not path.startswith("/quota/")} <= {*ANSWERS, *ALSO_ASKED}


def test_half_a_character_is_refused_and_not_sent(meet: Meet) -> None:
    operations, server = meet(ANSWERS)
    with pytest.raises(ValueError, match="surrogates"):
        segment("\ud800")
    (tool,) = [one for one in LMCacheToolkit(operations=operations).get_tools() if one.name == "lmcache_set_tenant_quota"]
    told = tool.invoke({"cache": "prod", "tenant": "\ud800", "quota_mb": 1, "reason": "a test"})
    assert "holds half a character" in told
    assert server.changes == []


# ---- what servers answer ----


@pytest.mark.parametrize("status", REDIRECTS)
def test_redirects_are_not_followed_whoever_asks(meet: Meet, outside: Outside, status: int) -> None:
    operations, server = meet(ANSWERS)
    places = (
        f"http://{outside.host}:{outside.port}/x",
        f"//{outside.host}:{outside.port}/x",
        METADATA,
        "file:///etc/passwd",
        "/other",
    )
    for place in places:
        server.redirects = RedirectResponse(place, status)
        with pytest.raises(NotLMCacheError, match=r"with a redirect to .*, which LMCache never does"):
            io_loop.run(operations.status, "prod")
        with pytest.raises(LMCacheToolError):
            io_loop.run(operations.clear, "prod", "tester", "a test")
    assert "/other" not in {path for _, path in server.asked}


def test_a_refresh_header_and_links_are_not_followed(meet: Meet, outside: Outside) -> None:
    operations, server = meet(ANSWERS)
    there = f"http://{outside.host}:{outside.port}/"
    server.redirects = Response(
        "{}", headers={"Refresh": f"0; url={there}", "Link": f"<{there}>; rel=preload", "Location": there}
    )
    with pytest.raises(NotLMCacheError):
        io_loop.run(operations.status, "prod")


def test_the_number_of_a_prefetch_is_no_path(meet: Meet, outside: Outside) -> None:
    registered = {"7000": {"model_name": "llama", "world_size": 1}}
    operations, server = meet(ANSWERS | {"/status": ANSWERS["/status"] | {"non_cuda_context_meta": registered}})
    server.refuses = JSONResponse(
        {"status": "submitted", "chunks": 1, "request_id": f"../../@{outside.host}:{outside.port}/x?y#z\r\n"}, 202
    )
    with pytest.raises(LMCacheToolError):
        io_loop.run(operations.warm, "prod", "llama", [1, 2, 3], "", "test")
    assert any(path.startswith("/cache/prefetches/../../@") for _, path in server.asked)


def test_a_path_that_is_an_address_is_not_sent(outside: Outside) -> None:
    async def read(path: str) -> None:
        admin = AdminClient("http://127.0.0.1:9")
        admin._unmet = None
        try:
            await admin.read(path)
        finally:
            await admin.close()

    for form in forms_of(outside.port):
        with pytest.raises(NotLMCacheError, match=r"a request would have left|makes no URL"):
            io_loop.run(read, f"{form}/status")


# ---- what the operator's file may say ----


def test_who_logs_in_has_no_place_in_an_address(outside: Outside, tmp_path: Path) -> None:
    for target in (
        f"http://good.example@127.0.0.1:{outside.port}",
        f"http://a:b@127.0.0.1:{outside.port}",
        "http://h:1#x",
        "file:///x",
    ):
        with pytest.raises(SettingsError):
            Registry(Settings(caches={"a": CacheSettings(target=target)}, state_folder=tmp_path)).get("a")


def test_proxies_and_logins_of_the_environment_are_not_used(
    outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meet: Meet
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password rosebud\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("NO_PROXY", "")

    def through(proxy: Outside) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{proxy.host}:{proxy.port}")

    with listening() as proxy:
        through(proxy)
        with pytest.raises(httpx.HTTPError):
            httpx.get("http://127.0.0.1:9/")
        assert proxy.callers, "such a proxy is used by who follows the environment"
    through(outside)
    operations, server = meet(ANSWERS)
    assert io_loop.run(operations.status, "prod").lmcache_version == "0.5.6"
    assert ("GET", "/status") in server.asked
    assert "authorization" not in server.headers


# ---- what a coordinator says ----


def test_servers_that_a_coordinator_names_elsewhere_are_never_called(outside: Outside) -> None:
    ways = [form.removeprefix("http://").rpartition(":")[0] for form in forms_of(outside.port)]
    ways += [
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "127.0.0.1/x",
        "169.254.169.254",
        "10.0.0.1@127.0.0.1",
    ]
    instances: list[dict[str, Any]] = [
        {"instance_id": f"node-{number}", "ip": ip, "http_port": outside.port, "registration_time": 1.0}
        for number, ip in enumerate(ways)
    ]

    async def read(url: str) -> None:
        fleet = FleetDeployment(url, networks=[ip_network("10.0.0.0/8")], addresses={}, timeout=2.0)
        try:
            assert await fleet.members() == {}
            with pytest.raises(LMCacheToolError, match="no server that can be called"):
                await fleet.clear()
            for number in range(len(ways)):
                with pytest.raises(UnknownCacheError):
                    await fleet.member(f"node-{number}")
        finally:
            await fleet.close()

    with hostile({"/instances": {"instances": instances}, "/quota": {"by_cache_salt": []}}) as (url, server):
        io_loop.run(read, url)
    assert {path for _, path in server.asked} == {"/instances"}


def test_a_redirecting_coordinator_changes_nothing_elsewhere(outside: Outside, tmp_path: Path) -> None:
    with hostile({}) as (url, server):
        server.redirects = RedirectResponse(f"http://{outside.host}:{outside.port}/instances", 307)
        settings = CacheSettings(target=f"fleet:{url}", networks=(ip_network("127.0.0.0/8"),))
        operations = Operations(Registry(Settings(caches={"fleet": settings}, state_folder=tmp_path)))
        for call in (operations.status, operations.servers, operations.tenants):
            with pytest.raises(LMCacheToolError):
                io_loop.run(call, "fleet")
        update = ConfigUpdate(tenant_quotas_mb={"a": 1.0})
        with pytest.raises(LMCacheToolError):
            io_loop.run(operations.plan, "fleet", update, "a test")
        io_loop.run(operations.close)
