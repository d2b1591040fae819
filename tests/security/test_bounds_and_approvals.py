"""Claims that bounds, reading rights and approvals are kept below the tools: by the operations, whichever door is knocked at.

The caches are simulated, since none of this depends on LMCache; that a real one obeys is for `tests/changes/test_actor.py`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile_server import Meet
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from mcp_session import connected
from recorded_answers import ANSWERS
from serving import serving

from agent_tools import LMCacheToolkit
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.changes.actor import fingerprint
from agent_tools.deployments.simulated.deployment import SimulatedDeployment, SimulatedOptions
from agent_tools.doors.mcp import mcp_server
from agent_tools.doors.rest import rest_app
from agent_tools.errors import OutOfBoundsError, StalePlanError
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate, L2Adapter, Plan, SupportLevel
from agent_tools.operations import Operations
from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache

OUTSIDE: list[dict[str, Any]] = [
    {"max_size_mb": 257},
    {"max_size_mb": 1e300},
    {"max_size_mb": 15},
    {"eviction_watermark": 0.96},
    {"eviction_watermark": 0.29},
    {"eviction_ratio": 0.61},
    {"eviction_ratio": 0.01},
    {"chunk_size": 128},
    {"l2_adapters": [{"type": "fs", "settings": {"base_path": "/"}}]},
    {"tenant_quotas_mb": {"a": 1}},
    {"max_size_mb": 32, "eviction_ratio": 0.9},
]


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    """Two simulated caches, ``a`` and ``b``, after some minutes of traffic that is too much for them."""
    options = SimulatedOptions(l1_size_mb=64, kv_bytes_per_token=4096)
    bounds = Bounds(min_size_mb=16, max_size_mb=256)
    one = CacheSettings(target="simulated:", simulated=options, bounds=bounds, cooldown_seconds=0)
    operations = Operations(Registry(Settings(caches={"a": one, "b": one}, state_folder=tmp_path)))
    for name in ("a", "b"):
        deployment = operations.registry.get(name).deployment
        assert isinstance(deployment, SimulatedDeployment)
        io_loop.run(deployment.advance, 400.0)
    yield operations
    io_loop.run(operations.close)


def state(operations: Operations) -> list[dict[str, Any]]:
    return [io_loop.run(operations.settings, name).known() for name in ("a", "b")]


def planned(operations: Operations, cache: str = "a", **update: Any) -> Plan:
    return io_loop.run(operations.plan, cache, ConfigUpdate.model_validate(update), "a test")


# ---- bounds ----


@pytest.mark.parametrize("update", OUTSIDE, ids=str)
def test_no_door_lets_a_change_out_of_bounds_through(operations: Operations, update: dict[str, Any]) -> None:
    before = state(operations)
    with pytest.raises(OutOfBoundsError, match="nothing was changed"):
        planned(operations, **update)
    for tool in LMCacheToolkit(operations=operations).get_tools():
        if tool.name in {"lmcache_plan_update", "lmcache_update_config"}:
            reason = {"reason": "a test"} if tool.name.endswith("config") else {}
            assert str(tool.invoke({"cache": "a", "update": update, **reason})).startswith("out_of_bounds: ")
    assert state(operations) == before
    assert io_loop.run(operations.changes) == []


def test_nor_do_the_routes(operations: Operations) -> None:
    before = state(operations)
    with serving(rest_app(lambda: operations)) as url, httpx.Client(base_url=f"{url}/lmcache", params={"cache": "a"}) as client:
        for update in OUTSIDE:
            answer = client.post("config", json=update)
            assert (answer.status_code, answer.json()["code"]) == (422, "out_of_bounds"), update
    assert state(operations) == before


async def test_nor_does_mcp(operations: Operations) -> None:
    async with connected(mcp_server(LMCacheToolkit(operations=operations).get_tools())) as client:
        for update in OUTSIDE:
            result = await client.call("lmcache_update_config", cache="a", update=update, reason="a test")
            assert result["isError"]
            assert "out_of_bounds" in str(result["content"])


Forge = Callable[[Operations, Plan], Plan]


def _another_update(_: Operations, plan: Plan) -> Plan:
    return plan.model_copy(update={"update": ConfigUpdate(max_size_mb=128)})


def _another_cache(_: Operations, plan: Plan) -> Plan:
    return plan.model_copy(update={"cache": "b"})


def _another_digest(_: Operations, plan: Plan) -> Plan:
    return plan.model_copy(update={"fingerprint": "0" * 16})


@pytest.mark.parametrize("forge", [_another_update, _another_cache, _another_digest])
def test_a_plan_that_was_changed_is_another_plan(operations: Operations, forge: Forge) -> None:
    before = state(operations)
    with pytest.raises(StalePlanError, match="Nothing was changed"):
        io_loop.run(operations.apply, forge(operations, planned(operations, max_size_mb=96)), "forger")
    assert state(operations) == before


@pytest.mark.parametrize(
    "update", [{"max_size_mb": 4096}, {"eviction_ratio": 0.9}, {"chunk_size": 128}, {"tenant_quotas_mb": {"a": 1}}]
)
def test_a_plan_that_nobody_checked_is_checked_when_it_is_carried_out(operations: Operations, update: dict[str, Any]) -> None:
    """Whoever can write a plan, as into a checkpoint, can also write its digest, which is no secret."""
    before, cache = state(operations), operations.registry.get("a")
    wanted = ConfigUpdate.model_validate(update)
    config, snapshot = io_loop.run(cache.deployment.config), io_loop.run(cache.deployment.snapshot)
    changes = io_loop.run(operations.actor._plan, cache, ConfigUpdate(max_size_mb=96), config, "a test").changes
    if "chunk_size" in update:
        changes = tuple(change.model_copy(update={"how": SupportLevel.RESTART}) for change in changes)
    forged = planned(operations, max_size_mb=96).model_copy(
        update={"update": wanted, "changes": changes, "fingerprint": fingerprint("a", config, snapshot, wanted)}
    )
    with pytest.raises(OutOfBoundsError, match="nothing was changed"):
        io_loop.run(operations.apply, forged, "forger")
    assert state(operations) == before


def test_bounds_that_were_narrowed_meanwhile_hold(operations: Operations) -> None:
    plan, cache = planned(operations, max_size_mb=200), operations.registry.get("a")
    cache.settings = cache.settings.model_copy(update={"bounds": Bounds(max_size_mb=100)})
    with pytest.raises(OutOfBoundsError):
        io_loop.run(operations.apply, plan, "tester")


def test_a_run_cannot_widen_what_the_operator_allows(operations: Operations) -> None:
    wide = Bounds(max_size_mb=1e6, max_quotas_mb=1e6, max_l2_size_mb=1e6, allow_restart=True, l2_adapter=L2Adapter(type="fs"))
    for update in OUTSIDE:
        with pytest.raises(OutOfBoundsError):
            io_loop.run(operations.plan, "a", ConfigUpdate.model_validate(update), "a test", wide)


# ---- reading rights ----


def test_reading_tools_send_nothing_but_readings(meet: Meet) -> None:
    operations, server = meet(ANSWERS)
    for tool in LMCacheToolkit(operations=operations).read_only().get_tools():
        arguments = {"lmcache_plan_update": {"update": {"eviction_ratio": 0.3}}, "lmcache_list_caches": {}}.get(tool.name, {})
        tool.invoke({**arguments, **({} if tool.name == "lmcache_list_caches" else {"cache": "prod"})})
    assert len(server.asked) > 20
    assert server.changes == []
    assert not operations.registry.settings.state_folder.exists()


async def test_a_reading_mcp_server_takes_no_changing_call(meet: Meet) -> None:
    operations, server = meet(ANSWERS)
    async with connected(mcp_server(LMCacheToolkit(operations=operations).read_only().get_tools())) as client:
        every = {tool.name for tool in LMCacheToolkit().get_tools()}
        listed = {tool["name"] for tool in await client.tools()}
        for name in sorted(every - listed):
            result = await client.call(name, cache="prod", reason="a test")
            assert result["isError"]
    assert len(every - listed) >= 6
    assert server.asked == []


@pytest.mark.parametrize("mode", ["observe", "recommend"])
def test_a_run_that_only_reads_changes_nothing(operations: Operations, mode: str) -> None:
    before = state(operations)
    graph = build_tune_cache(operations=operations).compile()
    graph.invoke({}, context=TuneContext.model_validate({"cache": "a", "mode": mode, "window_seconds": 0}))
    assert state(operations) == before
    assert io_loop.run(operations.changes) == []


# ---- approvals ----


class Asked:
    """A run that waits for a person, who is shown a plan of at most so many MB."""

    def __init__(self, operations: Operations, cache: str, most_mb: float) -> None:
        self._graph = build_tune_cache(operations=operations).compile(checkpointer=InMemorySaver())
        self._config: Any = {"configurable": {"thread_id": "1"}}
        bounds = Bounds(max_size_mb=most_mb)
        self._context = TuneContext(cache=cache, window_seconds=0, verify_seconds=1, bounds=bounds)
        shown = self._graph.invoke({}, self._config, context=self._context)["__interrupt__"][0].value
        self.arguments: dict[str, Any] = shown["action_requests"][0]["args"]

    def answer(self, decision: dict[str, Any], **more: Any) -> TuneReport:
        """Resume with it."""
        resumed = self._graph.invoke(Command(resume={"decisions": [decision], **more}), self._config, context=self._context)
        return TuneReport.model_validate(resumed["tune_report"])


def test_an_approval_is_for_one_plan_of_one_cache(operations: Operations) -> None:
    small, large, other = (Asked(operations, name, most) for name, most in (("a", 80), ("a", 120), ("b", 80)))
    assert small.arguments["update"] != large.arguments["update"], "two plans for one cache as it is now"
    assert small.arguments["update"] == other.arguments["update"], "one plan for two caches that are alike"
    before = state(operations)
    for asked in (large, other):
        report = asked.answer({"type": "approve"}, fingerprint=small.arguments["fingerprint"])
        assert report.outcome is Outcome.FAILED
        assert "is for another plan" in report.summary
    assert state(operations) == before
    assert small.answer({"type": "approve"}, fingerprint=small.arguments["fingerprint"]).change is not None


def test_an_edit_of_another_plan_is_refused(operations: Operations) -> None:
    small, large = Asked(operations, "a", 80), Asked(operations, "a", 120)
    before = state(operations)
    edited = {"args": small.arguments | {"update": {"max_size_mb": 100}}}
    report = large.answer({"type": "edit", "edited_action": edited})
    assert report.outcome is Outcome.FAILED
    assert state(operations) == before


def test_an_edit_is_carried_out_as_it_was_written_and_within_bounds(operations: Operations) -> None:
    asked = Asked(operations, "a", 120)
    report = asked.answer({"type": "edit", "edited_action": {"args": asked.arguments | {"update": {"max_size_mb": 130}}}})
    assert report.outcome is Outcome.FAILED
    assert "above the operator's bound of 120" in report.summary
    asked = Asked(operations, "a", 120)
    report = asked.answer({"type": "edit", "edited_action": {"args": asked.arguments | {"update": {"max_size_mb": 90}}}})
    assert report.change is not None
    assert report.change.plan.update == ConfigUpdate(max_size_mb=90)


def test_an_edit_for_a_cache_that_has_changed_is_refused(operations: Operations) -> None:
    asked = Asked(operations, "a", 120)
    io_loop.run(operations.apply, planned(operations, eviction_ratio=0.3), "somebody else")
    report = asked.answer({"type": "edit", "edited_action": {"args": {"update": {"max_size_mb": 90}}}})
    assert report.outcome is Outcome.FAILED
    assert io_loop.run(operations.settings, "a").max_size_mb == 64


@pytest.mark.parametrize("cache", ["a", "b"])
def test_what_was_planned_is_no_word_on_another_update_or_cache(operations: Operations, cache: str) -> None:
    word = planned(operations, "a", max_size_mb=96).fingerprint
    update = {"max_size_mb": 97 if cache == "a" else 96}
    (tool,) = [one for one in LMCacheToolkit(operations=operations).get_tools() if one.name == "lmcache_update_config"]
    before = state(operations)
    told = tool.invoke({"cache": cache, "update": update, "plan_fingerprint": word, "reason": "a test"})
    assert str(told).startswith("stale_plan: ")
    with serving(rest_app(lambda: operations)) as url:
        answer = httpx.post(f"{url}/lmcache/config", params={"cache": cache, "fingerprint": word}, json=update)
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_plan")
    assert state(operations) == before


def test_a_plan_that_was_undone_is_not_carried_out_again(operations: Operations) -> None:
    plan = planned(operations, max_size_mb=96)
    done = io_loop.run(operations.apply, plan, "tester")
    io_loop.run(operations.undo, "a", done.change_id, "tester")
    with pytest.raises(StalePlanError, match="set back since"):
        io_loop.run(operations.apply, plan, "replayed")
    assert io_loop.run(operations.settings, "a").max_size_mb == 64
