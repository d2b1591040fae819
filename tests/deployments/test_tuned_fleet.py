"""A real fleet of three servers with our module, one of them with an L2, through the tools and through `tune_fleet`."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_processes import FleetProcesses, engine
from langchain_core.messages import ToolMessage
from real_cache import eventually
from real_logs import CHUNK_SIZE, log_of

from agent_tools import LMCacheToolkit
from agent_tools.arena_file import reserve
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.command_line import Flags
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Bounds, ChangeOutcome
from agent_tools.operations import Operations
from agent_tools.tuning.fleet_state import FleetContext, FleetReport, ServerOutcome
from agent_tools.tuning.tune_fleet import build_tune_fleet
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay
from agent_tools.workload.tokens import prompt

THRASHING = AgentTraffic(requests=360, conversations=40, turns=6, tool_tokens=1500, spread=0.3, seed=1).generate()
NO_REUSE = AgentTraffic(requests=80, conversations=80, turns=1, system_tokens=100, user_tokens=1500, seed=2).generate()
LOG = log_of(range(4), tail=10)
TOKENS = list(prompt(LOG.request(0), int(LOG.tokens[0]), CHUNK_SIZE))
PREFIX = {"model": "known", "token_ids": TOKENS, "reason": "a test"}


@pytest.fixture(scope="module")
def processes(lmcache: None, arena_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcesses]:
    files: list[Path] = []

    def devdax() -> Flags:
        files.append(reserve(arena_folder, 16 * MB))
        module = {"module_path": "agent_tools.server_module", "config": {"arena_folder": str(arena_folder), "max_l1_mb": 64}}
        return {
            "--server-module": json.dumps(module),
            "--l1-devdax-path": str(files[-1]),
            "--no-l1-use-lazy": True,
            "--shm-name": "",
        }

    processes = FleetProcesses(tmp_path_factory.mktemp("fleet"), ("node-c",), devdax)
    try:
        yield processes.wait_ready()
    finally:
        processes.stop()
        for file in files:
            file.unlink(missing_ok=True)


@pytest.fixture
def operations(processes: FleetProcesses, tmp_path: Path) -> Iterator[Operations]:
    bounds = Bounds(max_size_mb=64, max_quotas_mb=64)
    prod = CacheSettings(target=f"fleet:{processes.url}", networks=("127.0.0.1/32",), bounds=bounds, cooldown_seconds=0)
    operations = Operations(Registry(Settings(caches={"prod": prod}, state_folder=tmp_path)))
    yield operations
    io_loop.run(operations.close)


def call(operations: Operations, name: str, **arguments: Any) -> ToolMessage:
    """A tool as a model calls it, on the fleet unless it names a cache."""
    tools = {tool.name: tool for tool in LMCacheToolkit(operations=operations).get_tools()}
    message = tools[name].invoke({"type": "tool_call", "id": "1", "name": name, "args": {"cache": "prod", **arguments}})
    assert isinstance(message, ToolMessage)
    return message


def test_the_tools_for_entries_prefixes_and_tenants_work_on_a_fleet(operations: Operations, processes: FleetProcesses) -> None:
    replay(LOG, processes.servers["node-c"].rpc_url, ReplaySettings(clients=1, model="known"))
    assert "utilization_percent by member: worst" in call(operations, "lmcache_get_status").content
    listed = eventually(lambda: found if (found := call(operations, "lmcache_list_entries")).artifact["entries"] else None)
    assert "node-c" in listed.content
    eventually(lambda: call(operations, "lmcache_pin_prefix", **PREFIX).artifact["chunks"] == 4)
    assert "unpinned 4 chunks of known" in call(operations, "lmcache_pin_prefix", pinned=False, **PREFIX).content
    with engine(processes.servers["node-c"], "known"):
        warmed = call(operations, "lmcache_warm_prefix", **{**PREFIX, "cache": "prod"})
    assert warmed.status == "success", warmed.content
    deleted = call(operations, "lmcache_delete_prefix", **PREFIX)
    assert deleted.status == "success", deleted.content
    changed = call(operations, "lmcache_set_tenant_quota", tenant="acme", quota_mb=8, reason="a test")
    assert changed.artifact["config"]["tenant_quotas_mb"] == {"acme": 8}
    assert "acme: no requests" in call(operations, "lmcache_list_tenants").content
    undone = call(operations, "lmcache_undo_change", change_id=changed.artifact["change_id"])
    assert undone.artifact["config"]["tenant_quotas_mb"] == {}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("lmcache_set_tenant_quota", {"tenant": "a@b", "quota_mb": 1, "reason": "test"}, "'a@b' is not a cache salt"),
        ("lmcache_set_tenant_quota", {"tenant": "a", "quota_mb": 99, "reason": "test"}, "above the operator's bound of 64"),
        ("lmcache_pin_prefix", {**PREFIX, "token_ids": [1, 2, 3]}, "shorter than"),
        ("lmcache_warm_prefix", {**PREFIX, "model": "nobody"}, "no engine has registered the model nobody"),
        ("lmcache_get_status", {"cache": "prod/node-z"}, "it has: node-a, node-b, node-c"),
        ("lmcache_update_config", {"update": {"max_size_mb": 32}, "reason": "test"}, "tune_fleet"),
    ],
)
def test_what_a_model_gets_wrong_about_a_fleet_comes_back_in_a_sentence(
    operations: Operations, name: str, arguments: dict[str, Any], said: str
) -> None:
    message = call(operations, name, **arguments)
    assert message.status == "error"
    assert said in message.content
    assert {one.outcome for one in io_loop.run(operations.changes)} <= {ChangeOutcome.STARTED, ChangeOutcome.REFUSED}
    assert not io_loop.run(operations.changes) or name in {"lmcache_pin_prefix", "lmcache_warm_prefix"}


@pytest.mark.long
def test_a_fleet_is_tuned_one_first_then_its_like_and_others_are_left_alone(
    operations: Operations, processes: FleetProcesses
) -> None:
    pace = THRASHING.duration / 7
    rpc = {f"prod/{name}": server.rpc_url for name, server in processes.servers.items()}
    before = {server: THRASHING if server != "prod/node-c" else NO_REUSE for server in rpc}
    # node-a gets a little more than node-b, so it is the canary.
    replay(log_of(range(900, 908)), rpc["prod/node-a"], ReplaySettings(clients=1))
    traffic = [threading.Thread(target=replay, args=(log, rpc[s], ReplaySettings(pace=pace))) for s, log in before.items()]
    _all(traffic)

    def again_and_more(server: str) -> None:
        """As many tokens as before the change, also when the first of them were served before verification began to count."""
        replay(THRASHING, rpc[server], ReplaySettings(pace=pace))
        replay(log_of(*[range(900, 908)] * 20), rpc[server], ReplaySettings(clients=1))

    def again(server: str) -> threading.Thread:
        thread = threading.Thread(target=again_and_more, args=(server,))
        thread.start()
        return thread

    graph = build_tune_fleet(operations=operations).compile()
    context = FleetContext(caches=("prod",), mode="auto", window_seconds=0, verify_seconds=60)
    order, later, report = [], [], None
    for kind, event in graph.stream({"fleet_reason": "test"}, context=context, stream_mode=["custom", "values"]):
        if kind == "values":
            report = event.get("fleet_report")
        elif event["step"] == "change" and "applying" in event["message"]:
            order.append(event["message"].partition(":")[0])
            later.append(again(order[-1]))
    for thread in later:
        thread.join()
    found = FleetReport.model_validate(report)
    advised = [group.servers for group in found.groups if group.update]
    assert advised == [("prod/node-a", "prod/node-b")], [(group.servers, group.advice.why) for group in found.groups]
    assert order == ["prod/node-a", "prod/node-b"], found
    assert {server: step.outcome for server, step in found.servers.items()} == {
        "prod/node-a": ServerOutcome.IMPROVED,
        "prod/node-b": ServerOutcome.IMPROVED,
    }, found.summary
    sizes = {server: io_loop.run(operations.settings, server).max_size_mb for server in rpc}
    assert sizes["prod/node-a"] == sizes["prod/node-b"] > sizes["prod/node-c"] == 16


def _all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
