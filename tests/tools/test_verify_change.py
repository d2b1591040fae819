"""Claims about verifying a change by its id: from a tool, the client and the command line, also for a change made by hand."""

import threading

import pytest
from langchain_core.messages import ToolMessage
from real_cache import Play
from real_logs import FEW_BIG

from agent_tools import LMCacheToolkit
from agent_tools.caches.registry import Cache
from agent_tools.deployments.base import silent
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate, Verification, VerificationVerdict
from agent_tools.operations import Operations

BIG = {"kv_bytes_per_token": 512}


def call(operations: Operations, name: str, **arguments: object) -> ToolMessage:
    by_name = {tool.name: tool for tool in LMCacheToolkit(operations=operations).get_tools()}
    message = by_name[name].invoke({"type": "tool_call", "id": "1", "name": name, "args": arguments})
    assert isinstance(message, ToolMessage)
    return message


@pytest.fixture
def grown(operations: Operations, cache: Cache, play: Play) -> str:
    """The id of a change that was made by hand after traffic that thrashed."""
    io_loop.run(operations.clear, "default", "test")
    play(FEW_BIG, pace=40, **BIG)
    result = io_loop.run(operations.configure, "default", ConfigUpdate(max_size_mb=48), "by hand", "test")
    assert result is not None
    return result.change_id


def test_a_change_by_hand_is_verified_with_what_was_predicted_and_measured(
    operations: Operations, cache: Cache, play: Play, grown: str
) -> None:
    play(FEW_BIG, pace=40, **BIG)
    message = call(operations, "lmcache_verify_change", change_id=grown, verify_seconds=1)
    found = Verification.model_validate({name: value for name, value in message.artifact.items() if name != "keep"})
    assert found.verdict is VerificationVerdict.BETTER
    assert found.change_id == grown
    assert found.predicted is not None, "nobody asked for a prediction before, so the model made it from the earlier requests"
    assert found.gain is not None
    assert found.predicted.estimate > 0.05
    assert message.artifact["keep"] is True
    verdict, figures, windows, _ = str(message.content).split("\n", 3)
    assert verdict == "better: keep it"
    assert figures.startswith("predicted +")
    assert "; measured +" in figures
    assert "; after it: " in windows
    assert "verified as better, +" in str(call(operations, "lmcache_list_changes").content)


def test_the_traffic_since_the_change_counts_without_waiting(
    operations: Operations, cache: Cache, play: Play, grown: str
) -> None:
    play(FEW_BIG, pace=40, **BIG)
    found = io_loop.run(operations.verify_change, grown, 0.01)
    asked = int(FEW_BIG.chunks_per_request.sum()) * FEW_BIG.chunk_size
    assert found.after.tokens.requested == asked
    assert found.after.window.since_change


def test_a_change_of_other_settings_meanwhile_leaves_it_undecided(
    operations: Operations, cache: Cache, play: Play, grown: str
) -> None:
    meddled: list[threading.Thread] = []

    def meddle(_: str) -> None:
        if not meddled:
            change = (cache.deployment.apply, ConfigUpdate(eviction_ratio=0.3), silent)
            meddled.append(threading.Thread(target=lambda: io_loop.run(*change)))
            meddled[0].start()

    found = io_loop.run(operations.verify_change, grown, 2.0, None, meddle)
    meddled[0].join()
    assert found.verdict is VerificationVerdict.UNDECIDED
    assert "Somebody changed other settings" in found.why


def test_a_change_that_is_unknown_or_undone_is_not_verified(operations: Operations, cache: Cache, play: Play, grown: str) -> None:
    assert "there is no change" in str(call(operations, "lmcache_verify_change", change_id="change-0").content)
    io_loop.run(operations.undo, "default", grown, "test")
    message = call(operations, "lmcache_verify_change", change_id=grown, verify_seconds=1)
    assert message.status == "error"
    assert "is not in force" in str(message.content)
