"""Claims about `tune_fleet`: groups, canary, batches, stop and undo at the first harm, approval, and going on after a crash."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from scripted_fleet import ScriptedFleet, refused

from agent_tools.tuning.fleet_nodes import NOBODY
from agent_tools.tuning.fleet_state import FleetContext, FleetReport, ServerOutcome
from agent_tools.tuning.tune_fleet import build_tune_fleet

AUTO = FleetContext(caches=("prod",), mode="auto", batch_size=4)


def run(fleet: ScriptedFleet, context: FleetContext = AUTO) -> FleetReport:
    """One run from start to report."""
    graph = build_tune_fleet(operations=fleet).compile()  # type: ignore[arg-type]  it has the verbs that are used
    return FleetReport.model_validate(graph.invoke({}, context=context)["fleet_report"])


def outcomes(report: FleetReport) -> dict[ServerOutcome | None, list[str]]:
    """Servers by how it ended for them."""
    found: dict[ServerOutcome | None, list[str]] = {}
    for server, step in report.servers.items():
        found.setdefault(step.outcome, []).append(server)
    return found


def test_the_canary_is_changed_and_verified_first_then_the_rest_in_batches() -> None:
    fleet = ScriptedFleet(10)
    report = run(fleet)
    assert [group.servers for group in report.groups] == [tuple(fleet.names)]
    assert fleet.servers_of("recommend") == ["prod/000"]
    assert outcomes(report) == {ServerOutcome.IMPROVED: fleet.names}
    order = [what for what in fleet.done if what[0] in {"apply", "verify"}]
    assert order[:2] == [("apply", "prod/000"), ("verify", "prod/000")]
    for first, last in ((1, 5), (5, 9), (9, 10)):
        batch = set(fleet.names[first:last])
        part = order[2 * first : 2 * last]
        assert [verb for verb, _ in part] == ["apply"] * len(batch) + ["verify"] * len(batch)
        assert {server for _, server in part} == batch


def test_a_canary_that_gets_worse_is_undone_and_nobody_else_is_touched() -> None:
    fleet = ScriptedFleet(5, worse=lambda server: server == "prod/000")
    report = run(fleet)
    assert outcomes(report) == {ServerOutcome.ROLLED_BACK: ["prod/000"], ServerOutcome.NOT_REACHED: fleet.names[1:]}
    assert fleet.servers_of("apply") == fleet.servers_of("undo") == ["prod/000"]
    assert report.servers["prod/000"].summary.startswith("the change made the cache worse: seen to be worse. It was undone:")


def test_the_roll_out_stops_at_the_first_batch_with_a_server_that_gets_worse() -> None:
    fleet = ScriptedFleet(10, worse=lambda server: server == "prod/002")
    report = run(fleet)
    assert outcomes(report)[ServerOutcome.ROLLED_BACK] == ["prod/002"]
    assert sorted(outcomes(report)[ServerOutcome.IMPROVED]) == ["prod/000", "prod/001", "prod/003", "prod/004"]
    assert outcomes(report)[ServerOutcome.NOT_REACHED] == fleet.names[5:]


@pytest.mark.parametrize("verb", ["plan", "apply", "verify"])
def test_an_error_on_one_server_stops_its_group_and_is_told(verb: str) -> None:
    fleet = ScriptedFleet(10, fails_at=refused(verb, "prod/003"))
    report = run(fleet)
    assert report.servers["prod/003"].outcome is ServerOutcome.FAILED
    assert report.servers["prod/003"].summary == "refused by the script"
    assert sorted(outcomes(report)[ServerOutcome.IMPROVED]) == ["prod/000", "prod/001", "prod/002", "prod/004"]
    assert outcomes(report)[ServerOutcome.NOT_REACHED] == fleet.names[5:]


def test_servers_set_otherwise_are_a_group_of_their_own_with_a_canary_of_their_own() -> None:
    fleet = ScriptedFleet(6, sizes_mb={"prod/001": 1024, "prod/004": 1024}, worse=lambda server: server == "prod/001")
    report = run(fleet)
    assert [group.servers for group in report.groups] == [
        ("prod/000", "prod/002", "prod/003", "prod/005"),
        ("prod/001", "prod/004"),
    ]
    assert fleet.servers_of("recommend") == ["prod/000", "prod/001"]
    assert outcomes(report)[ServerOutcome.NOT_REACHED] == ["prod/004"]
    assert sorted(outcomes(report)[ServerOutcome.IMPROVED]) == ["prod/000", "prod/002", "prod/003", "prod/005"]


def test_a_hundred_servers_are_read_side_by_side_and_silent_ones_left_out() -> None:
    fleet = ScriptedFleet(100, silent=lambda server: server.endswith("7"))
    report = run(fleet, FleetContext(caches=("prod",), mode="observe"))
    assert report.summary == "mode observe: the servers were only read"
    assert len(report.left_out) == 10
    assert report.left_out["prod/017"] == "no cache answered at prod/017"
    assert not fleet.done


def test_a_fleet_whose_coordinator_does_not_answer_is_named_and_the_others_are_tuned() -> None:
    fleet = ScriptedFleet(2)
    report = run(fleet, FleetContext(caches=("gone", "prod"), mode="auto"))
    assert report.left_out == {"gone": "the coordinator of gone does not answer"}
    assert outcomes(report) == {ServerOutcome.IMPROVED: fleet.names}
    alone = run(fleet, FleetContext(caches=("gone",), mode="auto"))
    assert alone.summary == NOBODY
    assert alone.left_out.keys() == {"gone"}


def test_nothing_is_changed_when_no_server_answers_or_the_settings_make_no_sense() -> None:
    silent = ScriptedFleet(3, silent=lambda _: True)
    assert run(silent).summary == NOBODY
    graph = build_tune_fleet(operations=silent).compile()  # type: ignore[arg-type]
    odd: Any = type("Host", (), {"tune_fleet": {"mode": "fast"}})()
    summary = graph.invoke({}, context=odd)["fleet_report"]["summary"]
    assert summary.startswith("the settings of this run are invalid (mode: ")


# ---- approval ----


@pytest.fixture
def asked() -> tuple[ScriptedFleet, Callable[[Any], FleetReport], dict[str, Any]]:
    """(a fleet of three, answers the approval and finishes, what was asked)."""
    fleet = ScriptedFleet(3)
    graph = build_tune_fleet(operations=fleet).compile(checkpointer=InMemorySaver())  # type: ignore[arg-type]
    config: Any = {"configurable": {"thread_id": "one"}}
    context = FleetContext(caches=("prod",))
    paused = graph.invoke({}, config, context=context)
    request = paused["__interrupt__"][0].value
    return (
        fleet,
        lambda answer: FleetReport.model_validate(graph.invoke(Command(resume=answer), config, context=context)["fleet_report"]),
        request,
    )


def test_a_roll_out_waits_for_one_approval_of_all_changes(asked: Any) -> None:
    fleet, answer, request = asked
    arguments = request["action_requests"][0]["args"]
    assert [list(change["servers"]) for change in arguments["changes"]] == [fleet.names]
    assert not fleet.servers_of("plan")
    report = answer({"decisions": [{"type": "approve"}], "fingerprint": arguments["fingerprint"]})
    assert outcomes(report) == {ServerOutcome.IMPROVED: fleet.names}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({"decisions": [{"type": "reject", "message": "not today"}]}, "not approved: not today; nothing was changed"),
        (
            {"decisions": [{"type": "approve"}], "fingerprint": "another"},
            "the approval is for other changes than the ones shown; start a new run. Nothing was changed",
        ),
    ],
)
def test_without_approval_nothing_is_changed(asked: Any, reply: dict[str, Any], said: str) -> None:
    fleet, answer, _ = asked
    report = answer(reply)
    assert report.summary == said
    assert not fleet.servers_of("plan")
    assert not report.servers


# ---- crashes ----


@pytest.mark.parametrize("verb", ["plan", "apply", "verify"])
@pytest.mark.parametrize("server", ["prod/000", "prod/002"])
def test_a_run_that_died_goes_on_without_repeating_or_skipping_a_change(tmp_path: Path, verb: str, server: str) -> None:
    alive = {"yet": False}

    def dies(what: str, where: str) -> Exception | None:
        return KeyboardInterrupt() if (what, where) == (verb, server) and not alive["yet"] else None  # type: ignore[return-value]

    fleet = ScriptedFleet(6, fails_at=dies)
    config: Any = {"configurable": {"thread_id": "one"}}
    with sqlite3.connect(tmp_path / "runs.sqlite", check_same_thread=False) as connection:
        graph = build_tune_fleet(operations=fleet).compile(checkpointer=SqliteSaver(connection))  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            graph.invoke({}, config, context=AUTO)
    connection.close()
    alive["yet"] = True
    with sqlite3.connect(tmp_path / "runs.sqlite", check_same_thread=False) as connection:
        graph = build_tune_fleet(operations=fleet).compile(checkpointer=SqliteSaver(connection))  # type: ignore[arg-type]
        report = FleetReport.model_validate(graph.invoke(None, config, context=AUTO)["fleet_report"])
    connection.close()
    assert sorted(outcomes(report)[ServerOutcome.IMPROVED]) == fleet.names
    assert sorted(fleet.servers_of("apply")) == fleet.names, "each server was changed once"
