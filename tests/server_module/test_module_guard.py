"""Claims about who may call the module."""

import contextlib
import json
from collections.abc import Iterator

import httpx
import pytest
from module_client import ModuleClient
from pydantic import SecretStr
from real_cache import Launch

from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.io_loop import io_loop
from agent_tools.models import L2Adapter
from agent_tools.server_module.guard import Guard
from agent_tools.server_module.module import with_adapters_of_environment
from agent_tools.server_module.options import Options

FOREIGN = [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "127.0.0.1.evil.example:80"}]
TOKEN = "a-token-of-the-operator"  # noqa: S105


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "eviction"), ("POST", "entries/remove"), ("DELETE", "window"), ("GET", "window")]
)
def test_what_a_page_of_another_site_sends_is_refused(
    module: ModuleClient, method: str, path: str, headers: dict[str, str]
) -> None:
    before = module.ask("GET", "eviction")
    assert module.refused(method, path, headers=headers)[0] == 403
    assert module.ask("GET", "eviction") == before


def test_a_page_of_the_server_itself_is_answered(module: ModuleClient) -> None:
    assert module.http.get("/agent-tools/window", headers={"Origin": module.process.http_url}).is_success


@pytest.fixture(scope="module")
def guarded(launch: Launch) -> Iterator[ModuleClient]:
    """A server whose module has a token, and an adapter that is listed in its environment."""
    config = {"token_env": "OF_A_TEST", "l2_adapters_env": "LISTED_BY_A_TEST"}
    environment = {
        "OF_A_TEST": TOKEN,
        "LISTED_BY_A_TEST": json.dumps([{"type": "mock", "max_size_gb": 0.001, "mock_bandwidth_gb": 1}]),
    }
    spec = {"module_path": "agent_tools.server_module", "config": config}
    with contextlib.closing(ModuleClient(launch({"--server-module": json.dumps(spec)}, environment))) as client:
        yield client


@pytest.mark.parametrize("path", ["status", "eviction", "l2", "window", "entries", "nothing"])
def test_with_a_token_no_route_answers_without_it(guarded: ModuleClient, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
        assert guarded.refused("GET", path, headers=headers)[0] == 401
    answer = guarded.http.get(f"/agent-tools/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == (404 if path == "nothing" else 200)


def test_the_token_is_shown_nowhere(guarded: ModuleClient) -> None:
    for path in ("/env", "/config", "/status", "/metrics"):
        assert TOKEN not in guarded.http.get(path).text


def test_our_client_sends_it_to_the_module_alone_and_attaches_what_is_listed(guarded: ModuleClient) -> None:
    server = ServerDeployment(guarded.process.http_url, token=SecretStr(TOKEN))
    try:
        module = io_loop.run(server.module)
        assert module is not None
        number = io_loop.run(module.attach, L2Adapter(type="mock", settings={"max_size_gb": 0.001, "mock_bandwidth_gb": 1}))
        io_loop.run(module.detach, number)
    finally:
        io_loop.run(server.close)
    sent: list[httpx.Request] = []
    recorded = httpx.MockTransport(lambda request: sent.append(request) or httpx.Response(200, json={}))
    client = ServerDeployment("http://127.0.0.1:9", transport=recorded, token=SecretStr(TOKEN))
    for path in ("/status", "/agent-tools/l2"):
        io_loop.run(client.admin.read, path)
    assert ["Authorization" in request.headers for request in sent] == [False, True]


def test_a_variable_that_is_not_set_is_an_error_and_one_that_is_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTED", '[{"password": "hunter2"')
    for options in (
        Options(token_env="NOT_SET"),  # noqa: S106
        Options(l2_adapters_env="NOT_SET"),
    ):
        with pytest.raises(ValueError, match="NOT_SET"):
            Guard(options) if options.token_env else with_adapters_of_environment(options)
    with pytest.raises(ValueError, match="LISTED") as caught:
        with_adapters_of_environment(Options(l2_adapters_env="LISTED"))
    assert "hunter2" not in str(caught.value)
