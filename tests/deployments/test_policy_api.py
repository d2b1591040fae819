"""Claims about LMCache's runtime policy API, which its pull request 4382 brings: used where the server has it, our module else.

No release has it. The server is a real 0.5.6 with a stand-in of the API, made from the pull request (`policy_api`).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from real_cache import Launch
from recorded_answers import ANSWERS

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.base import silent
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import RefusedError
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate, EvictionPolicy, L2Adapter, SupportLevel
from agent_tools.operations import Operations

EVICTING = {"type": "mock", "max_size_gb": 0.01, "mock_bandwidth_gb": 1.0}
BLOCK = {"eviction_policy": "LRU", "trigger_watermark": 0.9, "eviction_ratio": 0.1}
Serve = Callable[..., ServerProcess]
ROUTE = "/config/policies"
SHAPES = [[], {}, {"version": 1}, {"version": 1, "capabilities": {"store_policy": {}}}, "<h1>Welcome</h1>"]
"""Of answers that are not the pull request's."""


@pytest.fixture(scope="module")
def serve(launch: Launch) -> Serve:
    """Starts a server with the API, and with our module too if asked."""

    def serve(*, ours: bool = False, **flags: Any) -> ServerProcess:
        module = json.dumps({"module_path": "policy_routes", "config": {"ours": ours}})
        path = str(Path(__file__).with_name("policy_api"))
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("PYTHONPATH", path)
            return launch({"--server-module": module, "--l2-adapter": json.dumps(EVICTING | {"eviction": BLOCK}), **flags})

    return serve


@pytest.fixture(scope="module")
def plain(serve: Serve) -> ServerProcess:
    return serve()


@pytest.fixture(scope="module")
def both(serve: Serve) -> ServerProcess:
    return serve(ours=True)


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[ServerProcess], Operations]]:
    made: list[Operations] = []

    def connect(server: ServerProcess) -> Operations:
        default = CacheSettings(target=server.http_url, cooldown_seconds=0, bounds=Bounds(max_size_mb=64))
        made.append(Operations(Registry(Settings(caches={"default": default}, state_folder=tmp_path / "state"))))
        return made[-1]

    yield connect
    for one in made:
        io_loop.run(one.close)


@pytest.fixture
def deployments() -> Iterator[list[ServerDeployment]]:
    made: list[ServerDeployment] = []
    yield made
    for one in made:
        io_loop.run(one.close)


def policies(server: ServerProcess) -> Any:
    return httpx.get(f"{server.http_url}{ROUTE}", trust_env=False).json()


def test_without_our_module_policies_watermark_and_ratio_change_live_and_are_read_back(
    plain: ServerProcess, connect: Callable[[ServerProcess], Operations]
) -> None:
    operations, before = connect(plain), policies(plain)["version"]
    update = ConfigUpdate(eviction_watermark=0.7, eviction_ratio=0.35, l2_store_policy="skip_l1", l2_prefetch_policy="retain")
    change = io_loop.run(operations.configure, "default", update, "test", "test")
    now = io_loop.run(operations.settings)
    assert (now.eviction_watermark, now.eviction_ratio) == (0.7, 0.35)
    assert (now.l2_store_policy, now.l2_prefetch_policy) == ("skip_l1", "retain")
    told = policies(plain)
    assert told["version"] == before + 1  # one step, not four
    assert told["capabilities"]["store_policy"]["current"] == "skip_l1"
    status = httpx.get(f"{plain.http_url}/status", trust_env=False).json()
    assert status["storage_manager"]["l1_eviction_controllers"]["_default"]["trigger_watermark"] == 0.7

    assert change is not None
    io_loop.run(operations.undo, "default", change.change_id, "test")
    after = io_loop.run(operations.settings)
    assert (after.eviction_watermark, after.eviction_ratio, after.l2_store_policy) == (0.8, 0.2, "default")


def test_the_eviction_of_an_l2_adapter_is_retuned_live_and_another_policy_class_needs_a_restart(
    plain: ServerProcess, deployments: list[ServerDeployment]
) -> None:
    server = ServerDeployment(plain.http_url)
    deployments.append(server)
    (adapter,) = io_loop.run(server.config).l2_adapters or ()
    assert adapter.eviction == BLOCK

    def with_block(**block: Any) -> ConfigUpdate:
        return ConfigUpdate(l2_adapters=(L2Adapter(type="mock", settings={**adapter.settings, "eviction": BLOCK | block}),))

    assert io_loop.run(server.support, with_block(eviction_policy="noop"))["l2_adapters"].level is SupportLevel.RESTART
    assert io_loop.run(server.support, ConfigUpdate(l2_adapters=()))["l2_adapters"].level is SupportLevel.RESTART
    assert io_loop.run(server.support, ConfigUpdate(eviction_policy=EvictionPolicy.NOOP))["eviction_policy"].level is (
        SupportLevel.RESTART
    )
    update = with_block(trigger_watermark=0.6)
    assert io_loop.run(server.support, update)["l2_adapters"].level is SupportLevel.LIVE
    io_loop.run(server.apply, update, silent)
    assert policies(plain)["capabilities"]["l2_eviction"][0]["runtime_tunables"]["trigger_watermark"]["current"] == 0.6
    assert io_loop.run(server.config).l2_adapters == update.l2_adapters
    assert '"trigger_watermark": 0.6' in (io_loop.run(server.restart_command, ConfigUpdate(chunk_size=128)) or "")
    io_loop.run(server.apply, with_block(), silent)


def test_with_both_the_api_changes_what_it_can_and_our_module_the_rest(
    both: ServerProcess, connect: Callable[[ServerProcess], Operations]
) -> None:
    operations, before = connect(both), policies(both)["version"]
    update = ConfigUpdate(eviction_policy=EvictionPolicy.ARC, eviction_watermark=0.75, l2_prefetch_policy="retain")
    io_loop.run(operations.configure, "default", update, "test", "test")
    now = io_loop.run(operations.settings)
    assert (now.eviction_policy, now.eviction_watermark, now.l2_prefetch_policy) == (EvictionPolicy.ARC, 0.75, "retain")
    assert policies(both)["version"] == before + 1


class Meddling(httpx.AsyncHTTPTransport):
    """Somebody else changes the policies between our reading and our change."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self.on = url, True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH" and self.on:
            self.on = False
            body = {"l1_eviction": {"tunables": {"eviction_ratio": 0.15}}}
            other = httpx.Request("PATCH", f"{self._url}{ROUTE}", json=body)
            assert (await super().handle_async_request(other)).is_success
        return await super().handle_async_request(request)


def test_a_change_of_somebody_else_in_between_is_not_overwritten(
    plain: ServerProcess, deployments: list[ServerDeployment]
) -> None:
    server = ServerDeployment(plain.http_url, transport=Meddling(plain.http_url))
    deployments.append(server)
    with pytest.raises(RefusedError, match="somebody else changed the policies"):
        io_loop.run(server.apply, ConfigUpdate(eviction_watermark=0.5), silent)
    now = io_loop.run(server.config)
    assert (now.eviction_watermark, now.eviction_ratio) == (0.8, 0.15)
    io_loop.run(server.apply, ConfigUpdate(eviction_ratio=0.2), silent)


@pytest.mark.parametrize(
    ("said", "asked"),
    [((404, {"detail": "Not Found"}), 1), ((403, {"detail": "no"}), 1), ((503, {"error": "engine not initialized"}), 3)],
)
def test_a_server_without_it_is_asked_once_unless_it_is_starting(
    said: tuple[int, Any], asked: int, deployments: list[ServerDeployment]
) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        if request.url.path == ROUTE:
            return httpx.Response(said[0], json=said[1])
        found = ANSWERS.get(request.url.path)
        return httpx.Response(404) if found is None else httpx.Response(200, json=found)

    server = ServerDeployment("http://127.0.0.1:9", transport=httpx.MockTransport(answer))
    deployments.append(server)
    for _ in range(3):
        assert io_loop.run(server.config).l2_store_policy == "default"
    assert seen.count(ROUTE) == asked
    assert io_loop.run(server.support)["eviction_ratio"].level is SupportLevel.RESTART


@pytest.mark.parametrize("answer", SHAPES)
def test_an_api_of_another_shape_is_left_alone(answer: Any, deployments: list[ServerDeployment]) -> None:
    def of(request: httpx.Request) -> httpx.Response:
        if request.url.path == ROUTE:
            return httpx.Response(200, text=answer) if isinstance(answer, str) else httpx.Response(200, json=answer)
        found = ANSWERS.get(request.url.path)
        return httpx.Response(404) if found is None else httpx.Response(200, json=found)

    server = ServerDeployment("http://127.0.0.1:9", transport=httpx.MockTransport(of))
    deployments.append(server)
    assert io_loop.run(server.config).l2_store_policy == "default"
    assert io_loop.run(server.support)["eviction_ratio"].level is SupportLevel.RESTART
