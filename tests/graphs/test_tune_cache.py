"""`tune_cache` against a real server: what it does in each mode, and that it is at home in a parent graph."""

import asyncio
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from pydantic import ValidationError
from real_cache import Play
from typing_extensions import TypedDict

from agent_tools.deployments.directory import Cache, Directory
from agent_tools.deployments.server_process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate, Mode
from agent_tools.operations import Operations
from agent_tools.settings import CacheSettings, Settings
from agent_tools.workload.generate import AgentTraffic
from graphs.state import Outcome, TuneContext, TuneReport, context_of
from graphs.tune_cache import build_tune_cache, tune_node

THRASHING = AgentTraffic(requests=240, conversations=30, turns=6, tool_tokens=1500, seed=1).generate()
"""Far more than 16 MB of KV: what is evicted is asked for again."""
FEW_BIG = AgentTraffic(requests=60, conversations=15, turns=4, tool_tokens=1500, seed=3).generate()
"""The same in a second: with 128 KB a chunk, a quarter of the chunks fills the cache."""
NO_REUSE = AgentTraffic(
    requests=200, conversations=200, turns=1, system_tokens=100, user_tokens=1500, spread=0.2, seed=2
).generate()
"""Every conversation has one turn, and no system prompt fills a chunk."""


@dataclass(frozen=True)
class Window:
    """Traffic that was observed, second by second."""

    seconds: float


@pytest.fixture
def thrashed(cache: Cache, play: Play, operations: Operations) -> Window:
    """The cache after it has thrashed; readings were taken all the while, so that there is an interval to judge by."""
    io_loop.run(operations.metrics)
    started = time.time()
    with readings(operations):
        play(THRASHING, pace=THRASHING.duration / 5)
    assert cache.history.latest is not None
    return Window(time.time() - started + 0.5)


@pytest.fixture
def filled(cache: Cache, play: Play, operations: Operations) -> Window:
    """The cache after it has thrashed for a moment: enough to recommend by, too little to verify by."""
    io_loop.run(operations.metrics)
    started = time.time()
    play(FEW_BIG, kv_bytes_per_token=512)
    assert cache.history.latest is not None
    return Window(time.time() - started + 0.2)


class readings:  # noqa: N801  reads as a verb at its uses
    """Reads the metrics every half second in the background, as a watching agent would."""

    def __init__(self, operations: Operations) -> None:
        self._operations, self._stop = operations, threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._stop.wait(0.5):
            io_loop.run(self._operations.metrics)


def tuned(operations: Operations, context: TuneContext, while_verifying: Any = None) -> TuneReport:
    """Run the graph in auto mode; once the change is applied, call `while_verifying`."""
    graph = build_tune_cache(operations=operations).compile()
    report, traffic = None, None
    for kind, event in graph.stream({"tune_reason": "test"}, context=context, stream_mode=["custom", "values"]):
        if kind == "values":
            report = event.get("tune_report")
        elif event["message"].startswith("applied") and while_verifying is not None:
            traffic = threading.Thread(target=while_verifying)
            traffic.start()
    if traffic is not None:
        traffic.join()
    return TuneReport.model_validate(report)


def l1_mb(cache: Cache) -> float:
    """L1 capacity as the server itself reports it, MB."""
    return io_loop.run(cache.deployment.snapshot).l1_total_bytes / 2**20


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


def test_an_unreachable_cache_ends_in_a_report_and_not_in_an_exception(operations: Operations) -> None:
    report = tuned(operations, TuneContext(cache="unreachable", mode=Mode.AUTO))
    assert report.outcome is Outcome.FAILED
    assert "nothing was changed" in report.summary


def test_an_unknown_cache_is_answered_with_the_names_there_are(operations: Operations) -> None:
    report = tuned(operations, TuneContext(cache="prod"))
    assert report.outcome is Outcome.FAILED
    assert "default, unreachable" in report.summary


class Asked:
    """A run of the graph that waits for approval."""

    def __init__(self, operations: Operations, window: Window) -> None:
        self.graph = build_tune_cache(operations=operations).compile(checkpointer=InMemorySaver())
        self.config: Any = {"configurable": {"thread_id": "1"}}
        self.context = TuneContext(window_seconds=window.seconds, verify_seconds=1)
        self.request = self.graph.invoke({}, self.config, context=self.context)["__interrupt__"][0].value

    def answer(self, *decisions: dict[str, Any], **more: Any) -> TuneReport:
        """Resume with decisions."""
        result = self.graph.invoke(Command(resume={"decisions": list(decisions), **more}), self.config, context=self.context)
        return TuneReport.model_validate(result["tune_report"])


@pytest.fixture
def asked(operations: Operations, filled: Window) -> Asked:
    return Asked(operations, filled)


def test_the_approval_shows_what_changes_why_and_what_it_costs(asked: Asked) -> None:
    action = asked.request["action_requests"][0]
    assert action["args"]["update"].keys() == {"max_size_mb"}
    for word in ("max_size_mb", "token hit rate", "loses", "Cost", "Undo"):
        assert word in action["description"]
    assert asked.request["review_configs"][0]["allowed_decisions"] == ["approve", "edit", "reject"]


def test_an_approved_plan_is_applied(asked: Asked, cache: Cache) -> None:
    report = asked.answer({"type": "approve"}, fingerprint=asked.request["action_requests"][0]["args"]["fingerprint"])
    assert report.outcome is Outcome.KEPT_UNDECIDED, "no traffic came after it"
    assert l1_mb(cache) == asked.request["action_requests"][0]["args"]["update"]["max_size_mb"]


def test_a_rejected_plan_changes_nothing(asked: Asked, cache: Cache) -> None:
    report = asked.answer({"type": "reject", "message": "not today"})
    assert report.outcome is Outcome.REJECTED
    assert "not today" in report.summary
    assert l1_mb(cache) == 16


def test_an_edited_plan_is_applied_as_edited(asked: Asked, cache: Cache) -> None:
    asked.answer({"type": "edit", "edited_action": {"name": "lmcache_apply_plan", "args": {"update": {"max_size_mb": 20}}}})
    assert l1_mb(cache) == 20


def test_an_edit_outside_the_bounds_changes_nothing(asked: Asked, cache: Cache) -> None:
    report = asked.answer({"type": "edit", "edited_action": {"name": "x", "args": {"update": {"max_size_mb": 6400}}}})
    assert report.outcome is Outcome.FAILED
    assert "above the operator's bound of 64" in report.summary
    assert l1_mb(cache) == 16


def test_an_approval_of_another_plan_changes_nothing(asked: Asked, cache: Cache) -> None:
    assert asked.answer({"type": "approve"}, fingerprint="0" * 16).outcome is Outcome.FAILED
    assert l1_mb(cache) == 16


def test_a_cache_that_changed_while_the_approval_waited_is_left_alone(asked: Asked, operations: Operations, cache: Cache) -> None:
    plan = io_loop.run(operations.plan, "default", ConfigUpdate(max_size_mb=18), "meanwhile")
    io_loop.run(operations.apply, plan, "somebody else")
    report = asked.answer({"type": "approve"})
    assert report.outcome is Outcome.FAILED
    assert "changed since" in report.summary
    assert l1_mb(cache) == 18


@pytest.mark.parametrize(
    "answer", [{"decisions": []}, {"decisions": [{"type": "yes"}]}, {"decisions": [{"type": "edit"}]}, True], ids=str
)
def test_a_malformed_answer_is_refused_and_the_question_stays_open(asked: Asked, cache: Cache, answer: object) -> None:
    with pytest.raises(ValidationError):
        asked.graph.invoke(Command(resume=answer), asked.config, context=asked.context)
    assert asked.answer({"type": "reject"}).outcome is Outcome.REJECTED
    assert l1_mb(cache) == 16


def test_without_a_checkpointer_approve_changes_nothing(operations: Operations, cache: Cache, filled: Window) -> None:
    result = build_tune_cache(operations=operations).compile().invoke({}, context=TuneContext(window_seconds=filled.seconds))
    assert "tune_report" not in result
    assert l1_mb(cache) == 16


def test_a_server_of_somebody_else_gets_the_command_line_its_operator_needs(
    operations: Operations, server: ServerProcess, filled: Window, tmp_path: Path
) -> None:
    foreign = CacheSettings(
        target=server.http_url, access_log=server.folder / "lookups", bounds=Bounds(max_size_mb=64, allow_restart=True)
    )
    theirs = Operations(Directory(Settings(caches={"theirs": foreign}, state_folder=tmp_path)))
    report = tuned(theirs, TuneContext(cache="theirs", mode=Mode.AUTO, window_seconds=0))
    io_loop.run(theirs.close)
    assert report.outcome is Outcome.NEEDS_OPERATOR, report.summary
    assert report.plan is not None
    assert report.plan.command is not None
    assert report.plan.command.startswith("lmcache server ")
    assert f"--http-port {server.http_port}" in report.plan.command


class Host(TypedDict, total=False):
    """A parent's state with keys of its own."""

    goal: str
    cache_note: str
    done: list[str]


@dataclass(frozen=True)
class HostContext:
    """A parent's own context type, carrying ours."""

    user: str
    tune_cache: TuneContext


def parent(child: Any, *, after: str = "work") -> Any:
    """A graph with the child as a step, a sibling beside it and a step after it."""
    builder = StateGraph(Host)
    builder.add_node("tune", child)
    builder.add_node("sibling", lambda _: {"done": ["sibling"]})
    builder.add_node(after, lambda state: {"goal": state["goal"] + " reached"})
    for start in ("tune", "sibling"):
        builder.add_edge(START, start)
    builder.add_edge(["tune", "sibling"], after)
    builder.add_edge(after, END)
    return builder


def test_a_failed_cache_step_does_not_stop_its_host(operations: Operations) -> None:
    child = tune_node(
        read=lambda state: {"tune_reason": state["goal"]},
        write=lambda report: {"cache_note": report["outcome"]},
        context=TuneContext(cache="unreachable"),
        graph=build_tune_cache(operations=operations).compile(),
    )
    graph = parent(child).compile()
    expected = {"goal": "answer reached", "cache_note": "failed", "done": ["sibling"]}
    assert graph.invoke({"goal": "answer"}) == expected
    assert asyncio.run(graph.ainvoke({"goal": "answer"})) == expected


def test_as_a_plain_node_it_takes_its_settings_from_the_hosts_context(operations: Operations) -> None:
    class Shared(TypedDict, total=False):
        tune_reason: str
        tune_report: dict[str, Any]

    builder = StateGraph(Shared, context_schema=HostContext)
    builder.add_node("tune", build_tune_cache(operations=operations).compile())
    builder.add_edge(START, "tune")
    result = builder.compile().invoke({"tune_reason": "x"}, context=HostContext("me", TuneContext(cache="unreachable")))
    assert result["tune_report"]["cache"] == "unreachable"
    assert result["tune_report"]["outcome"] == "failed"


def test_an_approval_inside_a_parent_is_answered_through_the_parent(operations: Operations, cache: Cache, filled: Window) -> None:
    child = tune_node(
        write=lambda report: {"cache_note": report["outcome"]},
        context=TuneContext(window_seconds=filled.seconds, verify_seconds=1),
        graph=build_tune_cache(operations=operations).compile(),
    )
    graph = parent(child).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    assert graph.invoke({"goal": "answer"}, config)["__interrupt__"]
    assert l1_mb(cache) == 16
    result = graph.invoke(Command(resume={"decisions": [{"type": "reject"}]}), config)
    assert result["cache_note"] == "rejected"


def test_nothing_blocks_the_hosts_event_loop(operations: Operations, cache: Cache, filled: Window) -> None:
    graph = build_tune_cache(operations=operations).compile()
    context = TuneContext(cache=cache.name, mode=Mode.AUTO, window_seconds=filled.seconds, verify_seconds=2)
    with blockbuster_ctx() as blocking:
        # As `langgraph dev` does: a lock that is held for microseconds blocks nothing.
        for lock in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
            blocking.functions[lock].deactivate()
        report = asyncio.run(graph.ainvoke({}, context=context))["tune_report"]
    assert report["outcome"] == "kept_undecided"


@pytest.mark.parametrize(
    ("context", "name"),
    [
        (None, "default"),
        ({}, "default"),
        ({"cache": "a", "user": "me"}, "a"),
        ({"tune_cache": {"cache": "a"}}, "a"),
        (TuneContext(cache="a"), "a"),
        (HostContext("me", TuneContext(cache="a")), "a"),
        (object(), "default"),
    ],
    ids=str,
)
def test_any_context_a_host_may_pass_is_understood(context: object, name: str) -> None:
    assert context_of(context).cache == name


def test_settings_that_make_no_sense_end_in_the_report(operations: Operations) -> None:
    class Shared(TypedDict, total=False):
        tune_report: dict[str, Any]

    builder = StateGraph(Shared)
    builder.add_node("tune", build_tune_cache(operations=operations).compile())
    builder.add_edge(START, "tune")
    report = builder.compile().invoke({}, context={"window_seconds": -1})["tune_report"]
    assert report["outcome"] == "failed"
    assert "window_seconds" in report["summary"]


def test_runs_that_wait_hold_no_threads(operations: Operations) -> None:
    graph = build_tune_cache(operations=operations).compile()
    context = TuneContext(mode=Mode.OBSERVE, window_seconds=1.5)

    async def run(many: int) -> int:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, threading.active_count())
                await asyncio.sleep(0.05)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(graph.ainvoke({}, context=context) for _ in range(many)))
        watcher.cancel()
        return most

    # Reading the access log takes a worker thread for a moment; anyio lends at most 40 of those.
    assert asyncio.run(run(100)) < 70


@pytest.fixture(autouse=True)
def _known_state(cache: Cache) -> None:
    """Every test starts from a cache of 16 MB."""
    assert l1_mb(cache) == 16
