"""The tools as LangChain and its agents use them, over a real server."""

import asyncio
import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool
from langchain_tests.unit_tests import ToolsUnitTests
from langgraph.graph import MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import ValidationError
from real_cache import Play

from agent_tools import LMCacheToolkit, Operations
from agent_tools.deployments.directory import Cache
from agent_tools.io_loop import io_loop
from agent_tools.models import Advice, CacheMetrics, CacheOptimizationResult, ChangeResult, LMCacheStatus, Plan
from agent_tools.prediction.forecast import Forecast
from agent_tools.tools.spec import MOST_CHARACTERS
from agent_tools.tools.toolkit import SPECS
from agent_tools.workload.generate import AgentTraffic

TRAFFIC = AgentTraffic(requests=60, conversations=10, turns=6, seed=4).generate()
READING = {
    "lmcache_get_status",
    "lmcache_get_metrics",
    "lmcache_get_config",
    "lmcache_recommend",
    "lmcache_diagnose",
    "lmcache_predict_hit_rate",
    "lmcache_plot_hit_rate_curve",
}
CHANGING = {"lmcache_update_config", "lmcache_optimize", "lmcache_clear_cache"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "lmcache_update_config": {"update": {"max_size_mb": 18}, "reason": "test", "dry_run": True},
    "lmcache_optimize": {"target_utilization_percent": 50, "reason": "test"},
    "lmcache_clear_cache": {"reason": "test"},
}


class Tools:
    """The tools by name, called as a model calls them."""

    def __init__(self, toolkit: LMCacheToolkit) -> None:
        self.by_name: dict[str, BaseTool] = {tool.name: tool for tool in toolkit.get_tools()}

    def call(self, name: str, **arguments: Any) -> ToolMessage:
        message = self.by_name[name].invoke({"type": "tool_call", "id": "1", "name": name, "args": arguments})
        assert isinstance(message, ToolMessage)
        return message


@pytest.fixture
def tools(operations: Operations, cache: Cache) -> Tools:
    return Tools(LMCacheToolkit(operations=operations))


def test_the_toolkit_has_the_tools_it_promises() -> None:
    assert {tool.name for tool in LMCacheToolkit().get_tools()} == READING | CHANGING


def test_a_read_only_toolkit_has_only_the_tools_that_change_nothing() -> None:
    tools = LMCacheToolkit(read_only=True).get_tools()
    assert {tool.name for tool in tools} == READING
    assert all(tool.metadata and tool.metadata["readOnlyHint"] for tool in tools)


def test_every_tool_states_all_four_hints() -> None:
    for tool in LMCacheToolkit().get_tools():
        assert tool.metadata is not None
        assert {"title", "readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"} <= tool.metadata.keys()
        assert tool.metadata["destructiveHint"] == (tool.name in CHANGING)


def test_the_prefix_is_the_hosts_choice_also_in_descriptions() -> None:
    tools = LMCacheToolkit(prefix="kv_").get_tools()
    assert all(tool.name.startswith("kv_") for tool in tools)
    assert not any("lmcache_" in tool.description for tool in tools)


def test_every_argument_is_described_for_the_model() -> None:
    for tool in LMCacheToolkit().get_tools():
        schema = tool.get_input_jsonschema()
        assert schema["additionalProperties"] is False
        for name, field in schema["properties"].items():
            described = field if "description" in field else schema["$defs"][field["$ref"].rsplit("/", 1)[1]]
            assert described.get("description"), f"{tool.name}.{name}"


def _standard_tests(spec_name: str) -> type:
    name = f"lmcache_{spec_name}"

    class Standard(ToolsUnitTests):
        """LangChain's own tests for tools."""

        @property
        def tool_constructor(self) -> BaseTool:
            return {tool.name: tool for tool in LMCacheToolkit().get_tools()}[name]

        @property
        def tool_invoke_params_example(self) -> dict[str, Any]:
            return EXAMPLES.get(name, {})

    return type(f"TestStandard_{name}", (Standard,), {})


for _spec in SPECS:
    globals()[f"TestStandard_{_spec.name}"] = _standard_tests(_spec.name)


@pytest.mark.parametrize("name", sorted(READING | CHANGING))
def test_every_tool_works_sync_and_async_with_the_same_answer_shape(tools: Tools, play: Play, name: str) -> None:
    play(TRAFFIC.select(slice(0, 5)))
    arguments = EXAMPLES.get(name, {})
    call = {"type": "tool_call", "id": "1", "name": name, "args": arguments}
    for message in (tools.by_name[name].invoke(call), asyncio.run(tools.by_name[name].ainvoke(call))):
        assert message.status == "success", message.content
        assert 0 < len(message.content) <= MOST_CHARACTERS
        assert json.loads(json.dumps(message.artifact)) == message.artifact


def test_the_status_carries_the_servers_own_figures(tools: Tools, cache: Cache, play: Play) -> None:
    before = io_loop.run(cache.deployment.snapshot)
    play(TRAFFIC)
    message = tools.call("lmcache_get_status")
    status = LMCacheStatus.model_validate(message.artifact)
    after = io_loop.run(cache.deployment.snapshot)
    assert status.metrics.total_requests == after.counters.lookups
    assert after.counters.lookups - before.counters.lookups == len(TRAFFIC)
    assert status.metrics.used_size_mb == after.l1_used_bytes / 2**20
    assert status.lmcache_version == "0.5.6"
    assert f"{status.metrics.hit_rate_percent:.1f}%" in message.content


def test_metrics_over_a_window_leave_out_what_came_before(tools: Tools, play: Play) -> None:
    play(TRAFFIC)
    metrics = CacheMetrics.model_validate(tools.call("lmcache_get_metrics", window_seconds=1).artifact)
    assert not metrics.window.lifetime
    assert metrics.tokens.requested == 0


def test_the_configuration_says_of_every_setting_whether_it_can_be_changed(tools: Tools) -> None:
    artifact = tools.call("lmcache_get_config").artifact
    assert artifact["config"]["max_size_mb"] == 16
    assert artifact["support"]["max_size_mb"]["level"] == "live"
    assert all(one["reason"] for one in artifact["support"].values())


def test_a_recommendation_is_an_advice_a_model_can_act_on(tools: Tools, play: Play) -> None:
    play(TRAFFIC)
    message = tools.call("lmcache_recommend")
    advice = Advice.model_validate(message.artifact)
    assert message.content.startswith(advice.verdict.value)


def test_a_diagnosis_names_symptoms_with_their_figures(tools: Tools, play: Play) -> None:
    play(TRAFFIC)
    message = tools.call("lmcache_diagnose")
    assert message.artifact["symptoms"]
    assert message.artifact["symptoms"][0]["code"] in message.content


def test_a_prediction_covers_the_present_size_and_is_drawn_as_svg(tools: Tools, play: Play) -> None:
    play(TRAFFIC)
    forecast = Forecast.model_validate(tools.call("lmcache_predict_hit_rate").artifact)
    assert any(row.size_mb == pytest.approx(16) for row in forecast.rows)
    assert forecast.requests >= len(TRAFFIC)
    picture = tools.call("lmcache_plot_hit_rate_curve").artifact
    assert picture["svg"].startswith("<svg")
    assert Forecast.model_validate(picture["forecast"]).ceiling == forecast.ceiling


def test_a_dry_run_changes_nothing_and_a_real_one_reads_back(tools: Tools, cache: Cache) -> None:
    plan = Plan.model_validate(
        tools.call("lmcache_update_config", update={"max_size_mb": 20}, reason="test", dry_run=True).artifact
    )
    assert plan.changes[0].new == 20
    assert io_loop.run(cache.deployment.snapshot).l1_total_bytes == 16 * 2**20
    message = tools.call("lmcache_update_config", update={"max_size_mb": 20}, reason="test")
    result = ChangeResult.model_validate(message.artifact)
    assert result.change_id in message.content
    assert io_loop.run(cache.deployment.snapshot).l1_total_bytes == 20 * 2**20


def test_optimize_drops_entries_by_the_servers_own_count(tools: Tools, cache: Cache, play: Play) -> None:
    play(TRAFFIC)
    before = io_loop.run(cache.deployment.snapshot)
    result = CacheOptimizationResult.model_validate(
        tools.call("lmcache_optimize", target_utilization_percent=20, reason="test").artifact
    )
    after = io_loop.run(cache.deployment.snapshot)
    assert (result.entries_before, result.entries_after) == (before.resident_objects, after.resident_objects)
    assert 0.15 * after.l1_total_bytes < after.l1_used_bytes <= 0.2 * after.l1_total_bytes


def test_clear_empties_the_cache(tools: Tools, cache: Cache, play: Play) -> None:
    play(TRAFFIC)
    tools.call("lmcache_clear_cache", reason="test")
    assert io_loop.run(cache.deployment.snapshot).resident_objects == 0


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (
            "lmcache_get_status",
            {"cache": "prod"},
            "there is no cache named 'prod'; the operator's directory has: default, unreachable",
        ),
        ("lmcache_get_status", {"cache": "unreachable"}, "nothing was changed"),
        ("lmcache_update_config", {"update": {"max_size_mb": 999}, "reason": "more"}, "above the operator's bound of 64"),
        ("lmcache_update_config", {"update": {"enable_sharing": False}, "reason": "apart"}, "cannot be changed"),
        ("lmcache_update_config", {"update": {"eviction_policy": "isolated_lru"}, "reason": "x y"}, "kills the eviction thread"),
        ("lmcache_update_config", {"update": {"max_size_mb": 16}, "reason": "same"}, "nothing to change"),
    ],
)
def test_what_cannot_be_done_comes_back_as_an_error_the_model_can_act_on(
    tools: Tools, cache: Cache, name: str, arguments: dict[str, Any], words: str
) -> None:
    message = tools.call(name, **arguments)
    assert message.status == "error"
    assert words in message.content
    assert io_loop.run(cache.deployment.snapshot).l1_total_bytes == 16 * 2**20


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("lmcache_get_status", {"host": "http://evil"}, "host"),
        ("lmcache_update_config", {"update": {"max_size_mb": -1}, "reason": "less"}, "greater than 0"),
        ("lmcache_update_config", {"update": {"l1_size": 5}, "reason": "more"}, "l1_size"),
        ("lmcache_update_config", {"update": {}, "reason": "none"}, "at least one setting"),
        ("lmcache_optimize", {"target_utilization_percent": 0, "reason": "all"}, "greater than 0"),
        ("lmcache_clear_cache", {}, "reason"),
    ],
)
def test_wrong_arguments_come_back_naming_the_argument(tools: Tools, name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        tools.call(name, **arguments)


def test_in_an_agents_tool_node_wrong_arguments_are_an_error_message(tools: Tools) -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("tools", ToolNode(list(tools.by_name.values())))
    builder.set_entry_point("tools")
    call = {"type": "tool_call", "id": "1", "name": "lmcache_optimize", "args": {"target": 5}}
    messages = builder.compile().invoke({"messages": [AIMessage("", tool_calls=[call])]})["messages"]
    assert messages[-1].status == "error"
    assert "target" in messages[-1].content
