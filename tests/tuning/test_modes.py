"""What `tune_cache` does in each mode, against a real server, and how a run ends that cannot do it."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from real_cache import Play
from tuning import NO_REUSE, THRASHING, Window, l1_mb, tuned

from agent_tools.caches.registry import Cache, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, Mode
from agent_tools.operations import Operations
from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache

pytestmark = pytest.mark.usefixtures("known_state")


def test_auto_mode_grows_a_thrashing_cache_and_verifies_that_it_helped(
    operations: Operations, cache: Cache, play: Play, thrashed: Window
) -> None:
    context = TuneContext(mode=Mode.AUTO, window_seconds=thrashed.seconds, verify_seconds=60)
    report = tuned(operations, context, lambda: play(THRASHING, pace=THRASHING.duration / 8))
    assert report.outcome is Outcome.IMPROVED, report.summary
    assert report.change is not None
    assert report.verification is not None
    assert report.verification.in_force
    assert report.verification.paired, "both passes hold the same requests by the server's own log"
    assert l1_mb(cache) == pytest.approx(report.change.config.max_size_mb)
    assert l1_mb(cache) > 16
    before, after = report.verification.before.tokens.hit_rate, report.verification.after.tokens.hit_rate
    assert before is not None
    assert after is not None
    assert after > before + 0.05
    outcomes = [r.outcome.value for r in io_loop.run(operations.changes, "default") if r.change_id == report.change.change_id]
    assert outcomes == ["started", "applied", "verified"]
    io_loop.run(operations.undo, "default", report.change.change_id, "test")
    assert l1_mb(cache) == 16


@pytest.mark.long
def test_a_change_that_does_harm_is_rolled_back(operations: Operations, cache: Cache, play: Play, thrashed: Window) -> None:
    graph = build_tune_cache(operations=operations).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    context = TuneContext(window_seconds=thrashed.seconds, verify_seconds=30)
    assert graph.invoke({}, config, context=context)["__interrupt__"]
    harmful = {"type": "edit", "edited_action": {"name": "lmcache_apply_plan", "args": {"update": {"max_size_mb": 4}}}}
    traffic = threading.Thread(target=lambda: play(THRASHING, pace=THRASHING.duration / 8))
    for _, event in graph.stream(
        Command(resume={"decisions": [harmful]}), config, context=context, stream_mode=["custom", "updates"]
    ):
        if event.get("message", "").startswith("applied"):
            traffic.start()
    traffic.join()
    report = TuneReport.model_validate(graph.get_state(config).values["tune_report"])
    assert report.outcome is Outcome.ROLLED_BACK, report.summary
    assert report.undo is not None
    assert l1_mb(cache) == 16
    assert io_loop.run(operations.changes, "default")[-1].outcome.value == "undone"


def test_harder_traffic_after_a_change_is_not_held_against_it(
    operations: Operations, cache: Cache, play: Play, thrashed: Window
) -> None:
    context = TuneContext(mode=Mode.AUTO, window_seconds=thrashed.seconds, verify_seconds=10)
    report = tuned(operations, context, lambda: play(NO_REUSE, pace=NO_REUSE.duration / 9))
    assert report.outcome is Outcome.KEPT_UNDECIDED, report.summary
    assert report.verification is not None
    assert report.verification.paired, "the model says what the old setting would have given on the new requests"
    before, after = report.verification.before.tokens.hit_rate, report.verification.after.tokens.hit_rate
    assert before is not None
    assert after is not None
    assert after < before - 0.1, "before against after alone would have called it harm"
    assert l1_mb(cache) > 16


def test_nothing_is_done_when_nothing_can_be_reused(operations: Operations, cache: Cache, play: Play) -> None:
    io_loop.run(operations.clear, "default", "test")
    io_loop.run(operations.metrics)
    started = time.time()
    play(NO_REUSE)
    report = tuned(operations, TuneContext(mode=Mode.AUTO, window_seconds=time.time() - started + 0.5))
    assert report.outcome is Outcome.DO_NOTHING, report.summary
    assert report.change is None
    assert l1_mb(cache) == 16


def test_without_traffic_there_is_no_data(operations: Operations, cache: Cache) -> None:
    report = tuned(operations, TuneContext(mode=Mode.AUTO, cache=cache.name, window_seconds=1))
    assert report.outcome is Outcome.NO_DATA
    assert report.change is None


@pytest.mark.parametrize(("mode", "outcome"), [(Mode.OBSERVE, Outcome.OBSERVED), (Mode.RECOMMEND, Outcome.RECOMMENDED)])
def test_observing_and_recommending_change_nothing(
    operations: Operations, cache: Cache, filled: Window, mode: Mode, outcome: Outcome
) -> None:
    report = tuned(operations, TuneContext(mode=mode, window_seconds=filled.seconds))
    assert report.outcome is outcome, report.summary
    assert l1_mb(cache) == 16


def test_a_server_of_somebody_else_gets_the_command_line_its_operator_needs(
    operations: Operations, server: ServerProcess, filled: Window, tmp_path: Path
) -> None:
    foreign = CacheSettings(
        target=server.http_url, access_log=server.folder / "lookups", bounds=Bounds(max_size_mb=64, allow_restart=True)
    )
    theirs = Operations(Registry(Settings(caches={"theirs": foreign}, state_folder=tmp_path)))
    report = tuned(theirs, TuneContext(cache="theirs", mode=Mode.AUTO, window_seconds=0))
    io_loop.run(theirs.close)
    assert report.outcome is Outcome.NEEDS_OPERATOR, report.summary
    assert report.plan is not None
    assert report.plan.command is not None
    assert report.plan.command.startswith("lmcache server ")
    assert f"--http-port {server.http_port}" in report.plan.command


def test_an_unreachable_cache_ends_in_a_report_and_not_in_an_exception(operations: Operations) -> None:
    report = tuned(operations, TuneContext(cache="unreachable", mode=Mode.AUTO))
    assert report.outcome is Outcome.FAILED
    assert "nothing was changed" in report.summary


def test_an_unknown_cache_is_answered_with_the_names_there_are(operations: Operations) -> None:
    report = tuned(operations, TuneContext(cache="prod"))
    assert report.outcome is Outcome.FAILED
    assert "default, unreachable" in report.summary
