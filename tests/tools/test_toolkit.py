"""The tools as LangChain and its agents use them, over a real server."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests
from pydantic import ValidationError
from real_cache import Play

from agent_tools import LMCacheToolkit, Operations
from agent_tools.caches.registry import Cache
from agent_tools.io_loop import io_loop
from agent_tools.models import (
    Advice,
    CacheMetrics,
    CacheOptimizationResult,
    ChangeRecord,
    ChangeResult,
    ConfigUpdate,
    LMCacheStatus,
    Plan,
    Verdict,
)
from agent_tools.prediction.forecast import Forecast
from agent_tools.tools import toolkit
from agent_tools.tools.spec import MOST_CHARACTERS
from agent_tools.tools.tune import TUNE
from agent_tools.workload.generate import AgentTraffic

TRAFFIC = AgentTraffic(requests=60, conversations=10, turns=6, seed=4).generate()
READING = {
    "lmcache_list_caches",
    "lmcache_list_changes",
    "lmcache_plan_update",
    "lmcache_verify_change",
    "lmcache_get_status",
    "lmcache_get_metrics",
    "lmcache_get_config",
    "lmcache_export_config",
    "lmcache_recommend",
    "lmcache_diagnose",
    "lmcache_predict_hit_rate",
    "lmcache_plot_hit_rate_curve",
    "lmcache_size",
    "lmcache_migrate",
    "lmcache_list_entries",
    "lmcache_list_tenants",
    "lmcache_recommend_tenant_quotas",
    "lmcache_compare_caches",
}
DESTRUCTIVE = {
    "lmcache_update_config",
    "lmcache_undo_change",
    "lmcache_optimize",
    "lmcache_clear_cache",
    "lmcache_tune",
    "lmcache_delete_prefix",
    "lmcache_set_tenant_quota",
}
CHANGING = {*DESTRUCTIVE, "lmcache_warm_prefix", "lmcache_pin_prefix"}
PREFIX = {"model": "some-model", "token_ids": list(range(512)), "reason": "test"}
MODEL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "dtype": "float16"}
ELSEWHERE = {
    "lmcache_migrate": ({"model_settings": MODEL}, "not inside an engine"),
    "lmcache_delete_prefix": (PREFIX, "no engine has registered"),
    "lmcache_warm_prefix": (PREFIX, "no engine has registered"),
    "lmcache_pin_prefix": (PREFIX, "coordinator"),
    "lmcache_recommend_tenant_quotas": ({}, "cannot compute quotas for default"),
    "lmcache_compare_caches": ({"caches": ["default", "unreachable"]}, "fewer than two caches can be compared"),
    "lmcache_set_tenant_quota": ({"tenant": "a", "quota_mb": 4, "reason": "test"}, "max_quotas_mb"),
}
"""Tools that need an L2, a fleet or an engine: arguments, and a word of what they say without (see test_fleet_tools.py)."""
HERE = sorted((READING | CHANGING) - ELSEWHERE.keys())
MARKS: dict[str, pytest.MarkDecorator] = {
    "lmcache_plot_hit_rate_curve": pytest.mark.needs("matplotlib"),
    "lmcache_export_config": pytest.mark.real_cache("a simulated cache starts from no configuration of LMCache"),
    "lmcache_delete_prefix": pytest.mark.real_cache("simulated prompts have no token ids"),
}
"""What the tests of a tool need."""
EXAMPLES: dict[str, dict[str, Any]] = {
    "lmcache_size": {"model_settings": MODEL, "gpu_free_gb": 0.01},
    "lmcache_plan_update": {"update": {"max_size_mb": 18}},
    "lmcache_update_config": {"update": {"max_size_mb": 18}, "reason": "test"},
    "lmcache_undo_change": {"change_id": "change-1f0c9a2b"},
    "lmcache_verify_change": {"change_id": "change-1f0c9a2b"},
    "lmcache_tune": {"mode": "observe", "window_seconds": 0, "reason": "test"},
    "lmcache_optimize": {"target_utilization_percent": 50, "reason": "test"},
    "lmcache_clear_cache": {"reason": "test"},
}
NEED_A_LOG = {"lmcache_predict_hit_rate", "lmcache_plot_hit_rate_curve", "lmcache_size"}


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


@pytest.fixture
def grown(operations: Operations, cache: Cache) -> str:
    """The id of a change from 16 to 20 MB."""
    plan = io_loop.run(operations.plan, "default", ConfigUpdate(max_size_mb=20), "test")
    return io_loop.run(operations.apply, plan, "test").change_id


def test_the_toolkit_has_the_tools_it_promises() -> None:
    assert {tool.name for tool in LMCacheToolkit().get_tools()} == READING | CHANGING


def test_no_two_tools_have_one_name() -> None:
    names = [tool.name for tool in LMCacheToolkit().get_tools()]
    assert sorted(set(names)) == sorted(names)


def test_a_read_only_toolkit_has_only_the_tools_that_change_nothing() -> None:
    tools = LMCacheToolkit().read_only().get_tools()
    assert {tool.name for tool in tools} == READING
    assert all(tool.metadata and tool.metadata["readOnlyHint"] for tool in tools)


def test_every_tool_states_all_four_hints() -> None:
    for tool in LMCacheToolkit().get_tools():
        assert tool.metadata is not None
        assert {"title", "readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"} <= tool.metadata.keys()
        assert tool.metadata["destructiveHint"] == (tool.name in DESTRUCTIVE)
        assert tool.metadata["readOnlyHint"] == (tool.name in READING)


def test_the_prefix_is_the_hosts_choice_also_in_descriptions() -> None:
    tools = LMCacheToolkit().prefixed("kv_").get_tools()
    assert all(tool.name.startswith("kv_") for tool in tools)
    assert not any("lmcache_" in tool.description for tool in tools)


def test_every_argument_is_described_for_the_model() -> None:
    for tool in LMCacheToolkit().get_tools():
        schema = tool.get_input_jsonschema()
        assert schema["additionalProperties"] is False
        for name, field in schema["properties"].items():
            described = field if "description" in field else schema["$defs"][field["$ref"].rsplit("/", 1)[1]]
            assert described.get("description"), f"{tool.name}.{name}"


@pytest.fixture
def example(request: pytest.FixtureRequest, tools: Tools, play: Play) -> Callable[[str], dict[str, Any]]:
    """Gives arguments with which a tool succeeds, and makes the cache such that it does."""

    def made(name: str) -> dict[str, Any]:
        if name in NEED_A_LOG:
            play(TRAFFIC.select(slice(0, 5)))
        if name == "lmcache_undo_change":
            return {"change_id": request.getfixturevalue("grown")}
        if name == "lmcache_verify_change":
            return {"change_id": request.getfixturevalue("grown"), "verify_seconds": 0.1}
        return ELSEWHERE[name][0] if name in ELSEWHERE else EXAMPLES.get(name, {})

    return made


def _standard_tests(kind: type, name: str) -> type:
    class Standard(kind):  # type: ignore[misc,valid-type]
        """LangChain's own tests for tools, over a real server."""

        @pytest.fixture(autouse=True)
        def _ready(self, tools: Tools, example: Callable[[str], dict[str, Any]]) -> None:
            self.made, self.arguments = tools.by_name[name], example(name)

        @property
        def tool_constructor(self) -> BaseTool:
            return self.made

        @property
        def tool_invoke_params_example(self) -> dict[str, Any]:
            return self.arguments

    return MARKS[name](Standard) if name in MARKS else Standard


for _name in sorted(READING | CHANGING):
    for _kind in (ToolsUnitTests, ToolsIntegrationTests) if _name in HERE else (ToolsUnitTests,):
        globals()[f"Test{_kind.__name__}_{_name}"] = _standard_tests(_kind, _name)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in HERE])
async def test_every_tool_answers_sync_and_async_in_bounded_text_and_plain_json(
    tools: Tools, example: Callable[[str], dict[str, Any]], name: str, way: str
) -> None:
    call = {"type": "tool_call", "id": "1", "name": name, "args": example(name)}
    message = tools.by_name[name].invoke(call) if way == "invoke" else await tools.by_name[name].ainvoke(call)
    assert message.status == "success", message.content
    assert 0 < len(message.content) <= MOST_CHARACTERS
    assert json.loads(json.dumps(message.artifact)) == message.artifact


@pytest.mark.real_cache("reasons are LMCache's")
@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_what_a_single_server_cannot_do_is_refused_with_what_could(tools: Tools, name: str) -> None:
    arguments, word = ELSEWHERE[name]
    message = tools.call(name, **arguments)
    assert message.status == "error"
    assert word in message.content


def with_a_tool_that(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Return a toolkit whose `lmcache_tune` does something else: what no real tool can be made to do."""
    monkeypatch.setattr(toolkit, "SPECS", (replace(TUNE, run=run),))
    return Tools(LMCacheToolkit())


def test_a_long_answer_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talks(*_: Any) -> tuple[str, dict[str, Any]]:
        return "word " * MOST_CHARACTERS, {"all": True}

    message = with_a_tool_that(talks, monkeypatch).call("lmcache_tune", **EXAMPLES["lmcache_tune"])
    assert len(message.content) <= MOST_CHARACTERS
    assert message.content.endswith("the artifact has the rest")
    assert message.artifact == {"all": True}


@pytest.mark.real_cache("it names the embedded cache")
def test_the_caches_are_listed_by_name_without_an_address(tools: Tools) -> None:
    message = tools.call("lmcache_list_caches")
    assert message.artifact["caches"]["default"]["bounds"]["max_size_mb"] == 64
    assert message.artifact["caches"]["unreachable"]["kind"] == "http"
    assert message.content.splitlines()[0] == "default: embedded; L1 may grow to 64 MB; may be restarted"
    assert "127.0.0.1" not in json.dumps([message.content, message.artifact])


@pytest.mark.real_cache("it names LMCache's version")
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
    tools.call("lmcache_get_metrics")  # a reading from before the traffic
    play(TRAFFIC)
    message = tools.call("lmcache_recommend")
    advice = Advice.model_validate(message.artifact)
    assert f"{advice.verdict.value} ({advice.rung.value}): {advice.why}" in message.content.splitlines()[1]
    assert (advice.verdict is Verdict.ACT) == (advice.best is not None and advice.best.within_bounds)
    for rank, one in enumerate(advice.recommendations, 1):
        (line,) = [line for line in message.content.splitlines() if line.startswith(f"{rank}. {one.title}: ")]
        assert one.expected_impact in line
        assert ("NOT ALLOWED" in line) == (not one.within_bounds)
        if one.within_bounds and one.update is not None:
            assert tools.call("lmcache_plan_update", update=one.update.model_dump(exclude_none=True)).status == "success"


def test_a_diagnosis_names_symptoms_with_their_figures(tools: Tools, play: Play) -> None:
    play(TRAFFIC)
    message = tools.call("lmcache_diagnose")
    assert message.artifact["symptoms"]
    for symptom in message.artifact["symptoms"]:
        assert symptom["code"] in message.content
        assert symptom["summary"] in message.content
        for one in symptom["evidence"]:
            assert one["metric"] in message.content
            assert f"{one['value']:g}" in message.content


@pytest.mark.needs("matplotlib")
def test_a_prediction_covers_the_present_size_and_is_drawn_as_svg(tools: Tools, play: Play) -> None:
    play(TRAFFIC)
    forecast = Forecast.model_validate(tools.call("lmcache_predict_hit_rate").artifact)
    assert any(row.size_mb == pytest.approx(16) for row in forecast.rows)
    assert forecast.requests >= len(TRAFFIC)
    picture = tools.call("lmcache_plot_hit_rate_curve").artifact
    assert picture["svg"].startswith("<svg")
    assert Forecast.model_validate(picture["forecast"]).ceiling == forecast.ceiling


def test_a_plan_changes_nothing_and_following_it_reads_back(tools: Tools, cache: Cache) -> None:
    message = tools.call("lmcache_plan_update", update={"max_size_mb": 20})
    plan = Plan.model_validate(message.artifact)
    assert plan.changes[0].new == 20
    for shown in (plan.plan_id, plan.fingerprint, "max_size_mb 16 -> 20 (live)", "no cached data is lost", "nothing was changed"):
        assert shown in message.content
    assert io_loop.run(cache.deployment.snapshot).l1_total_bytes == 16 * 2**20
    message = tools.call("lmcache_update_config", update={"max_size_mb": 20}, reason="test", plan_fingerprint=plan.fingerprint)
    result = ChangeResult.model_validate(message.artifact)
    assert result.change_id in message.content
    assert io_loop.run(cache.deployment.snapshot).l1_total_bytes == 20 * 2**20


def test_a_plan_is_not_followed_on_a_cache_that_changed_since(tools: Tools, cache: Cache, grown: str) -> None:
    plan = tools.call("lmcache_plan_update", update={"max_size_mb": 24}).artifact
    tools.call("lmcache_undo_change", change_id=grown)
    message = tools.call("lmcache_update_config", update={"max_size_mb": 24}, reason="test", plan_fingerprint=plan["fingerprint"])
    assert message.status == "error"
    assert message.content.startswith("stale_plan: ")
    assert io_loop.run(cache.deployment.snapshot).l1_total_bytes == 16 * 2**20


def test_a_change_is_undone_once_by_its_id(tools: Tools, cache: Cache, grown: str) -> None:
    result = ChangeResult.model_validate(tools.call("lmcache_undo_change", change_id=grown).artifact)
    assert result.config.max_size_mb == 16
    assert io_loop.run(cache.deployment.snapshot).l1_total_bytes == 16 * 2**20
    again = tools.call("lmcache_undo_change", change_id=grown)
    assert again.status == "error"
    assert "not in force any more" in again.content


def test_the_history_tells_each_change_once_the_latest_first(tools: Tools, grown: str) -> None:
    undo = tools.call("lmcache_undo_change", change_id=grown).artifact["change_id"]
    message = tools.call("lmcache_list_changes", limit=2)
    stories = [[ChangeRecord.model_validate(line) for line in story] for story in message.artifact["changes"]]
    assert [story[0].change_id for story in stories] == [undo, grown]
    assert [line.outcome.value for line in stories[1]] == ["started", "applied", "undone"]
    first, second = message.content.splitlines()[:2]
    assert first.startswith(undo)
    assert f"undo of {grown}: max_size_mb 20 -> 16 (live): applied" in first
    assert "max_size_mb 16 -> 20 (live): applied, undone (by test: test)" in second
    assert len(tools.call("lmcache_list_changes", limit=1).artifact["changes"]) == 1


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
            "there is no cache named 'prod'; the caches are: default, unreachable",
        ),
        ("lmcache_get_status", {"cache": "unreachable"}, "nothing was changed"),
        ("lmcache_undo_change", {"change_id": "change-00000000"}, "list the changes to find its id"),
        ("lmcache_tune", {"mode": "auto", "cache": "unreachable", "reason": "try"}, "nothing was changed"),
        ("lmcache_plan_update", {"update": {"max_size_mb": 999}}, "above the operator's bound of 64"),
        ("lmcache_update_config", {"update": {"max_size_mb": 999}, "reason": "more"}, "above the operator's bound of 64"),
        ("lmcache_update_config", {"update": {"enable_sharing": False}, "reason": "apart"}, "cannot be changed"),
        ("lmcache_update_config", {"update": {"eviction_policy": "isolated_lru"}, "reason": "x y"}, "the eviction thread dies"),
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
def test_wrong_arguments_come_back_naming_the_argument(
    tools: Tools, cache: Cache, name: str, arguments: dict[str, Any], words: str
) -> None:
    message = tools.call(name, **arguments)
    assert message.status == "error"
    assert message.content.startswith("bad_arguments: ")
    assert words in message.content
    assert "\n" not in message.content
    assert io_loop.run(cache.deployment.snapshot).l1_total_bytes == 16 * 2**20


def test_many_wrong_arguments_are_not_told_all_at_once(tools: Tools) -> None:
    message = tools.call("lmcache_plan_update", update={f"setting_{number}": "x" * 1000 for number in range(50)})
    assert "and 47 more" in message.content
    assert len(message.content) < 1000


def test_a_model_of_ours_that_does_not_validate_is_a_bug_and_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> tuple[str, dict[str, Any]]:
        return str(ConfigUpdate.model_validate({})), {}

    buggy = with_a_tool_that(broken, monkeypatch)
    with pytest.raises(ValidationError, match="ConfigUpdate"):
        buggy.call("lmcache_tune", **EXAMPLES["lmcache_tune"])


@pytest.mark.parametrize("size", ["20", "2e1", 20, 20.0])
def test_a_number_as_text_is_that_number(tools: Tools, size: object) -> None:
    assert Plan.model_validate(tools.call("lmcache_plan_update", update={"max_size_mb": size}).artifact).changes[0].new == 20
