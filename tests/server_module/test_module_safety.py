"""Claims about servers that the module does not fit, that it is not allowed to change, or about its config."""

import contextlib
import json
import subprocess
import sys
import types
from pathlib import Path

import httpx
import pytest
from module_client import ModuleClient
from real_cache import Launch
from real_logs import conversations, log_of

from agent_tools.server_module import build_server_modules

PARTS = {"eviction", "l2", "arenas", "window", "entries"}
LMCACHE_WARNS = pytest.mark.filterwarnings("ignore")  # of what OpenTelemetry and Google have deprecated, when it is imported
HEAVY = ("langchain", "langchain_core", "langgraph", "agent_tools.operations", "agent_tools.prediction", "agent_tools.workload")


def test_status_says_what_there_is_and_within_which_bounds(module: ModuleClient) -> None:
    status = module.ask("GET", "status")
    assert (status["version"], status["lmcache"]["is_tested"], status["config_error"]) == (1, True, None)
    assert {part for part, one in status["parts"].items() if one["enabled"]} == PARTS
    assert status["bounds"]["max_l1_mb"] == 64
    assert status["recording"]["on"]
    assert set(module.status()["agent_tools"]["parts"]) == PARTS


def test_on_an_lmcache_without_some_private_names_the_rest_works(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    spec = {"module_path": "future_lmcache", "config": {"off": ["arenas"], "read_only": True}}
    with contextlib.closing(ModuleClient(launch({"--server-module": json.dumps(spec)}))) as module:
        parts = module.ask("GET", "status")["parts"]
        assert {part for part, one in parts.items() if one["enabled"]} == {"window", "entries"}
        assert parts["eviction"]["why"] == "this LMCache has no storage_manager._eviction_controllers.*._listener._policy"
        assert parts["l2"]["why"] == "this LMCache has no storage_manager.add_l2_adapter"
        assert "switched off" in parts["arenas"]["why"]
        assert module.refused("GET", "eviction") == (501, f"this part is off: {parts['eviction']['why']}")
        assert module.refused("GET", "arenas")[0] == 501
        for method, path in (("PUT", "eviction"), ("POST", "entries/remove"), ("DELETE", "window")):
            status, reason = module.refused(method, path, json={})
            assert (status, "read_only" in reason) == (403, True)
        module.replay(log_of(*conversations(2, 4)), "future")
        assert module.ask("GET", "entries")["chunks"] == 8
        assert module.status()["is_healthy"]


@LMCACHE_WARNS
def test_with_a_config_that_is_not_understood_all_is_off_and_said_so(lmcache: None) -> None:
    module = build_server_modules(started_with({"arena_foldr": "/dev/shm"}))
    assert "arena_foldr" in module.status()["config_error"]
    assert not any(part["enabled"] for part in module.status()["parts"].values())


@LMCACHE_WARNS
def test_without_observability_the_parts_that_record_are_off_and_say_so(lmcache: None) -> None:
    from lmcache.v1.mp_observability.event_bus import EventBus, EventBusConfig  # noqa: PLC0415

    silent = EventBus(EventBusConfig(enabled=False))
    parts = build_server_modules(started_with({}, event_bus=silent)).status()["parts"]
    assert "--disable-observability" in parts["window"]["why"]


def started_with(config: dict[str, object], **context: object) -> types.SimpleNamespace:
    """What LMCache hands to the factory, less what a test does not need."""
    return types.SimpleNamespace(config=config, server_context=types.SimpleNamespace(chunk_size=256, **context))


def test_a_factory_that_cannot_do_anything_gives_the_server_nothing_and_no_error(lmcache: None) -> None:
    assert build_server_modules(object()) is None


def test_what_is_not_json_is_refused_as_a_problem(module: ModuleClient) -> None:
    assert module.refused("PUT", "eviction", content=b"\x00\xff{")[0] == 422
    assert module.refused("GET", "nothing")[0] == 404
    assert httpx.get(f"{module.process.http_url}/healthcheck").status_code == 200


def test_the_module_itself_brings_nothing_heavy_into_the_server(lmcache: None) -> None:
    folder = Path(__file__).parents[2] / "agent_tools"
    script = f"""
import sys, types
package = types.ModuleType("agent_tools")  # without what its __init__ imports
package.__path__ = [{str(folder)!r}]
sys.modules["agent_tools"] = package
import agent_tools.server_module.module, agent_tools.server_module.eviction, agent_tools.server_module.l2
import agent_tools.server_module.arenas, agent_tools.server_module.entries
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
