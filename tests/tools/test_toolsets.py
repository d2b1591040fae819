"""Claims about toolsets: how they compose, and what they cost a model."""

import json
import os
from pathlib import Path

import pytest
from langchain_core.utils.function_calling import convert_to_openai_tool

from agent_tools import LMCacheToolkit, Operations
from agent_tools.caches.registry import Cache
from agent_tools.doors.rates import SEARCHES
from agent_tools.models import ConfigUpdate
from agent_tools.tools.on_demand import START
from agent_tools.tools.toolkit import SPECS

CHARACTERS_A_TOKEN = 4.0
"""Of JSON schemas, by the tokenizer of `benchmarks/tool_tokens.py`: at most this many (4.27 were measured)."""


def names(toolkit: LMCacheToolkit) -> list[str]:
    return [tool.name for tool in toolkit.get_tools()]


def test_each_step_returns_another_toolkit_and_leaves_the_first_as_it_is() -> None:
    every = LMCacheToolkit()
    assert names(every.only("get_status", "clear_cache").prefixed("kv_")) == ["kv_get_status", "kv_clear_cache"]
    assert names(every.only("get_status", "clear_cache").read_only()) == ["lmcache_get_status"]
    assert len(names(every)) == len(SPECS)


def test_an_unknown_tool_and_a_bad_prefix_are_refused() -> None:
    with pytest.raises(ValueError, match="no tool get_stats; it has: list_caches"):
        LMCacheToolkit().only("get_stats")
    with pytest.raises(ValueError, match="letters, digits"):
        LMCacheToolkit().prefixed("kv.")


def test_what_asks_a_person_is_exactly_what_changes_something() -> None:
    toolkit = LMCacheToolkit().requiring_approval()
    assert toolkit.interrupt_on() == {f"lmcache_{spec.name}": True for spec in SPECS if not spec.hints.read_only}
    assert toolkit.read_only().interrupt_on() == {}
    assert set(toolkit.on_demand().interrupt_on()) == {
        "lmcache_update_config", "lmcache_undo_change", "lmcache_use_changing_tool",
    }  # fmt: skip


def test_tools_beyond_the_start_are_marked_for_the_providers_search() -> None:
    deferred = {tool.name: bool((tool.extras or {}).get("defer_loading")) for tool in LMCacheToolkit().deferring().get_tools()}
    assert {name for name, later in deferred.items() if not later} == {f"lmcache_{name}" for name in START}


def test_the_start_set_costs_a_model_at_most_2500_tokens() -> None:
    tools = LMCacheToolkit().on_demand().get_tools()
    characters = sum(len(json.dumps(convert_to_openai_tool(tool))) for tool in tools)
    assert characters / CHARACTERS_A_TOKEN <= 2500, f"{characters} characters"


def test_a_compact_schema_still_takes_every_setting() -> None:
    (plan,) = LMCacheToolkit().only("plan_update").get_tools()
    shown = plan.get_input_jsonschema()["properties"]["update"]["properties"]
    assert shown.keys() < ConfigUpdate.model_fields.keys()
    assert "null" not in json.dumps(shown)


async def test_other_tools_are_found_and_called(operations: Operations, cache: Cache) -> None:
    tools = {tool.name: tool for tool in LMCacheToolkit(operations=operations).on_demand().get_tools()}
    found = await tools["lmcache_find_tools"].ainvoke({"query": "who changed the cache"})
    assert "lmcache_list_changes (by lmcache_use_reading_tool)" in found
    every = await tools["lmcache_find_tools"].ainvoke({})
    assert "lmcache_clear_cache" in every
    use = tools["lmcache_use_reading_tool"]
    called = await use.ainvoke(
        {"type": "tool_call", "id": "1", "name": use.name, "args": {"name": "lmcache_get_config", "arguments": {}}}
    )
    assert "max_size_mb=16" in called.text
    assert called.artifact["config"]["max_size_mb"] == 16
    wrong = {"name": "lmcache_get_config", "arguments": {"cache": "prod"}}
    refused = await use.ainvoke({"type": "tool_call", "id": "2", "name": use.name, "args": wrong})
    assert (refused.status, refused.text.partition(":")[0]) == ("error", "unknown_cache")


async def test_a_changing_tool_is_not_called_by_the_one_that_reads(operations: Operations) -> None:
    tools = {tool.name: tool for tool in LMCacheToolkit(operations=operations).on_demand().get_tools()}
    before = len(await operations.changes("default"))
    said = await tools["lmcache_use_reading_tool"].ainvoke({"name": "lmcache_clear_cache", "arguments": {"reason": "test"}})
    assert said.startswith("bad_arguments: lmcache_clear_cache is")
    assert len(await operations.changes("default")) == before


def test_what_searches_is_named_as_the_tools_and_operations_are() -> None:
    known = {spec.name for spec in SPECS} | {name for name in dir(Operations) if not name.startswith("_")}
    assert SEARCHES - {"compare_caches", "verify"} <= known


@pytest.mark.skipif("LMCACHE_TOKENIZER" not in os.environ, reason="LMCACHE_TOKENIZER names no tokenizer.json")
def test_it_holds_by_a_real_tokenizer() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(os.environ["LMCACHE_TOKENIZER"])))
    tools = LMCacheToolkit().on_demand().get_tools()
    assert sum(len(tokenizer.encode(json.dumps(convert_to_openai_tool(tool))).ids) for tool in tools) <= 2500
