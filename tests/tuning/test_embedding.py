"""`tune_cache` at home in a parent graph: its state, its context, its checkpoints, its streams and its event loop."""

import asyncio
import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from blockbuster import blockbuster_ctx
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send
from tuning import Window, l1_mb
from typing_extensions import TypedDict

from agent_tools.caches.registry import Cache
from agent_tools.models import Mode
from agent_tools.operations import Operations
from agent_tools.tuning.state import TuneContext, tune_context
from agent_tools.tuning.tune_cache import build_tune_cache, tune_node

NOBODY = TuneContext(cache="unreachable", mode=Mode.OBSERVE)
"""A run that fails at once, where it does not matter how the run ends."""


class Host(TypedDict, total=False):
    """A parent's state with keys of its own."""

    goal: str
    cache_note: str
    done: list[str]


class Shared(TypedDict, total=False):
    """A parent's state with the keys of `tune_cache`."""

    tune_reason: str
    tune_report: dict[str, Any]


@dataclass(frozen=True)
class HostContext:
    """A parent's own context type, carrying ours."""

    user: str
    tune_cache: TuneContext


@pytest.fixture
def child(operations: Operations, cache: Cache) -> Any:
    """`tune_cache`, compiled as its host would."""
    return build_tune_cache(operations=operations).compile(name="tune_cache")


def parent(child: Any) -> Any:
    """A graph with the child as a step, a sibling beside it and a step after it."""
    builder = StateGraph(Host, context_schema=HostContext)
    builder.add_node("tune", child)
    builder.add_node("sibling", lambda _: {"done": ["sibling"]})
    builder.add_node("work", lambda state: {"goal": state["goal"] + " reached"})
    for start in ("tune", "sibling"):
        builder.add_edge(START, start)
    builder.add_edge(["tune", "sibling"], "work")
    builder.add_edge("work", END)
    return builder


def alone(node: Any) -> Any:
    """A graph whose one step is this."""
    builder = StateGraph(Shared, context_schema=HostContext)
    builder.add_node("tune", node)
    builder.add_edge(START, "tune")
    return builder.compile()


def noting(child: Any, **settings: Any) -> Any:
    """The child as a node that notes its outcome in the host's own key."""
    return tune_node(write=lambda report: {"cache_note": report["outcome"]}, graph=child, **settings)


def as_node(child: Any) -> Any:
    return tune_node(graph=child)


def as_it_is(child: Any) -> Any:
    return child


either_way = pytest.mark.parametrize("embedded", [as_it_is, as_node])
Embedded = Callable[[Any], Any]


# ---- state ----


def test_a_failed_cache_step_does_not_stop_its_host(child: Any) -> None:
    graph = parent(noting(child, read=lambda state: {"tune_reason": state["goal"]}, context=NOBODY)).compile()
    expected = {"goal": "answer reached", "cache_note": "failed", "done": ["sibling"]}
    assert graph.invoke({"goal": "answer"}) == expected
    assert asyncio.run(graph.ainvoke({"goal": "answer"})) == expected


@either_way
def test_siblings_may_write_what_the_child_reads(child: Any, embedded: Embedded) -> None:
    builder = StateGraph(Shared)
    builder.add_node("tune", embedded(child))
    builder.add_node("sibling", lambda _: {"tune_reason": "the sibling's"})
    for step in ("tune", "sibling"):
        builder.add_edge(START, step)
    result = builder.compile().invoke({"tune_reason": "the host's"}, context={"cache": "unreachable"})
    assert result["tune_reason"] == "the sibling's"
    assert result["tune_report"]["outcome"] == "failed"


def test_several_caches_are_tuned_side_by_side(child: Any) -> None:
    class Fleet(TypedDict, total=False):
        caches: list[str]
        outcomes: Annotated[list[tuple[str, str]], operator.add]

    tune = tune_node(
        write=lambda report: {"outcomes": [(report["cache"], report["outcome"])]},
        context=lambda state: TuneContext(cache=state["cache"], mode=Mode.OBSERVE, window_seconds=0),
        graph=child,
    )
    builder = StateGraph(Fleet)
    builder.add_node("tune", tune)
    builder.add_conditional_edges(START, lambda state: [Send("tune", {"cache": name}) for name in state["caches"]], ["tune"])
    result = builder.compile().invoke({"caches": ["default", "unreachable"]})
    assert sorted(result["outcomes"]) == [("default", "observed"), ("unreachable", "failed")]


# ---- context ----


@pytest.mark.parametrize(
    ("context", "name"),
    [
        (None, "default"),
        ({}, "default"),
        ({"cache": "a", "user": "me"}, "a"),
        ({"tune_cache": {"cache": "a"}}, "a"),
        (TuneContext(cache="a"), "a"),
        (HostContext("me", TuneContext(cache="a")), "a"),
        (Ellipsis, "default"),
    ],
    ids=str,
)
def test_any_context_a_host_may_pass_is_understood(context: object, name: str) -> None:
    assert tune_context(context).cache == name


@either_way
def test_settings_come_from_the_hosts_own_context(child: Any, embedded: Embedded) -> None:
    result = alone(embedded(child)).invoke({"tune_reason": "x"}, context=HostContext("me", NOBODY))
    assert result["tune_report"]["cache"] == "unreachable"
    assert result["tune_report"]["outcome"] == "failed"


@either_way
def test_settings_that_make_no_sense_end_in_the_report(child: Any, embedded: Embedded) -> None:
    builder = StateGraph(Shared)
    builder.add_node("tune", embedded(child))
    builder.add_edge(START, "tune")
    report = builder.compile().invoke({}, context={"window_seconds": -1})["tune_report"]
    assert report["outcome"] == "failed"
    assert "window_seconds" in report["summary"]


# ---- checkpoints ----


def test_an_approval_inside_a_parent_is_answered_through_the_parent(child: Any, cache: Cache, filled: Window) -> None:
    graph = parent(noting(child, context=asking(filled))).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    assert graph.invoke({"goal": "answer"}, config)["__interrupt__"]
    assert l1_mb(cache) == 16
    result = graph.invoke(Command(resume={"decisions": [{"type": "reject"}]}), config)
    assert result["cache_note"] == "rejected"


@either_way
def test_an_approval_is_answered_after_the_graph_that_asked_is_gone(
    child: Any, operations: Operations, cache: Cache, filled: Window, tmp_path: Path, embedded: Embedded
) -> None:
    config: Any = {"configurable": {"thread_id": "1"}}
    context = HostContext("me", asking(filled))
    database = str(tmp_path / "checkpoints.db")

    def host(child: Any) -> Any:
        builder = StateGraph(Shared, context_schema=HostContext)
        builder.add_node("tune", embedded(child))
        builder.add_edge(START, "tune")
        return builder

    with SqliteSaver.from_conn_string(database) as saver:
        assert host(child).compile(checkpointer=saver).invoke({}, config, context=context)["__interrupt__"]
    assert l1_mb(cache) == 16

    async def resume() -> dict[str, Any]:
        another = build_tune_cache(operations=operations).compile()
        async with AsyncSqliteSaver.from_conn_string(database) as saver:
            graph = host(another).compile(checkpointer=saver)
            return dict(await graph.ainvoke(Command(resume={"decisions": [{"type": "approve"}]}), config, context=context))

    report = asyncio.run(resume())["tune_report"]
    assert report["outcome"] == "kept_undecided", report["summary"]
    assert l1_mb(cache) == report["change"]["config"]["max_size_mb"] > 16


def asking(window: Window) -> TuneContext:
    """Settings of a run that will ask, and then not wait for traffic."""
    return TuneContext(window_seconds=window.seconds, verify_seconds=1)


# ---- what a host sees of it ----


@either_way
def test_progress_is_streamed_through_the_parent(child: Any, embedded: Embedded) -> None:
    context = HostContext("me", TuneContext(mode=Mode.OBSERVE, window_seconds=0))
    events = list(alone(embedded(child)).stream({}, context=context, stream_mode="custom", subgraphs=True))
    assert all(namespace[0].startswith("tune:") for namespace, _ in events)
    assert events[0][1]["message"] == "reading default"
    assert {(event["type"], event["step"]) for _, event in events} == {("lmcache_progress", "read_metrics")}


@either_way
def test_the_hosts_drawing_shows_the_steps_of_the_child(child: Any, embedded: Embedded) -> None:
    drawn = alone(embedded(child)).get_graph(xray=True)
    assert {"tune:read_metrics", "tune:approve", "tune:roll_back"} <= drawn.nodes.keys()
    assert (drawn.nodes["tune:read_metrics"].metadata or {})["label"] == "Read metrics"


# ---- the host's event loop and threads ----


def test_nothing_blocks_the_hosts_event_loop(child: Any, cache: Cache, filled: Window) -> None:
    context = TuneContext(cache=cache.name, mode=Mode.AUTO, window_seconds=filled.seconds, verify_seconds=2)
    with blockbuster_ctx() as blocking:
        # As `langgraph dev` does: a lock that is held for microseconds blocks nothing.
        for lock in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
            blocking.functions[lock].deactivate()
        report = asyncio.run(child.ainvoke({}, context=context))["tune_report"]
    assert report["outcome"] == "kept_undecided"


def test_runs_that_wait_hold_no_threads(child: Any) -> None:
    context = TuneContext(mode=Mode.OBSERVE, window_seconds=1.5)

    async def run(many: int) -> int:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, threading.active_count())
                await asyncio.sleep(0.05)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(child.ainvoke({}, context=context) for _ in range(many)))
        watcher.cancel()
        return most

    # Reading the access log takes a worker thread for a moment; anyio lends at most 40 of those.
    assert asyncio.run(run(100)) < 70
