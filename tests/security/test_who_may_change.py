"""Claims about the operator's cap on what anybody may do to a cache, and about who may approve: kept below all doors."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from mcp_session import connected
from pydantic import SecretStr, ValidationError
from serving import serving

from agent_tools import LMCacheToolkit
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.simulated.deployment import SimulatedDeployment, SimulatedOptions
from agent_tools.doors.mcp import mcp_server
from agent_tools.doors.rest import rest_app
from agent_tools.errors import BusyError, LMCacheToolError, OutOfBoundsError, UnknownChangeError
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate, Mode, WarmResult
from agent_tools.operations import Operations
from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache

Verb = Callable[[Operations], Awaitable[Any]]
VERBS: dict[str, Verb] = {
    "undo": lambda operations: operations.undo("a", "change-0", "test"),
    "optimize": lambda operations: operations.optimize("a", 50, "test"),
    "clear": lambda operations: operations.clear("a", "test"),
    "delete_chunks": lambda operations: operations.delete_chunks("a", "m", ["00"], "", "test"),
    "delete_prefix": lambda operations: operations.delete_prefix("a", "m", [1], "", "test", ""),
    "warm": lambda operations: operations.warm("a", "m", [1], "", "test"),
    "pin": lambda operations: operations.pin("a", "m", [1], "", "test", ""),
}
"""All that change something, but `apply`, which needs a plan."""


@pytest.fixture
def capped(tmp_path: Path) -> Iterator[Callable[..., Operations]]:
    """Makes operations on a simulated cache ``a`` that more memory would help, with these settings."""
    made: list[Operations] = []

    def capped(approvers: tuple[str, ...] = (), **settings: object) -> Operations:
        options = SimulatedOptions(l1_size_mb=64, kv_bytes_per_token=4096)
        bounds = Bounds(min_size_mb=16, max_size_mb=256)
        a = CacheSettings.model_validate(
            {"target": "simulated:", "simulated": options, "bounds": bounds, "cooldown_seconds": 0, **settings}
        )
        tokens = {name: SecretStr(f"the own token of {name}") for name in approvers}
        made.append(Operations(Registry(Settings(caches={"a": a}, state_folder=tmp_path, approvers=tokens))))
        deployment = made[-1].registry.get("a").deployment
        assert isinstance(deployment, SimulatedDeployment)
        io_loop.run(deployment.advance, 400.0)
        return made[-1]

    yield capped
    for operations in made:
        io_loop.run(operations.close)


def apply(operations: Operations, max_size_mb: float = 96) -> Any:
    plan = io_loop.run(operations.plan, "a", ConfigUpdate(max_size_mb=max_size_mb), "a test")
    return io_loop.run(operations.apply, plan, "test")


def l1_mb(operations: Operations) -> float | None:
    return io_loop.run(operations.settings, "a").max_size_mb


# ---- the cap ----


@pytest.mark.parametrize("mode", ["observe", "recommend", "approve"])
def test_beyond_the_operators_max_mode_nothing_is_changed(capped: Callable[..., Operations], mode: str) -> None:
    operations = capped(max_mode=mode)
    with pytest.raises(OutOfBoundsError, match=f"max_mode is {mode}.*nothing was changed"):
        apply(operations)
    for verb in VERBS.values():
        with pytest.raises(OutOfBoundsError, match=f"max_mode is {mode}"):
            io_loop.run(verb, operations)
    assert l1_mb(operations) == 64
    assert io_loop.run(operations.changes) == []


@pytest.mark.parametrize("mode", ["observe", "recommend"])
def test_no_approval_lifts_a_cap_that_lets_nobody_change(capped: Callable[..., Operations], mode: str) -> None:
    operations = capped(max_mode=mode).approved("alice")
    with pytest.raises(OutOfBoundsError, match="may not be changed"):
        apply(operations)


def test_an_approved_change_is_made_and_says_who_approved(capped: Callable[..., Operations]) -> None:
    operations = capped(max_mode="approve")
    done = apply(operations.approved("alice"))
    assert done.config.max_size_mb == 96
    assert {one.actor for one in io_loop.run(operations.changes)} == {"test, approved by alice"}
    with pytest.raises(OutOfBoundsError):
        io_loop.run(operations.undo, "a", done.change_id, "test")


async def test_it_holds_for_tools_over_mcp(capped: Callable[..., Operations]) -> None:
    operations = capped(max_mode="approve")
    update = {"cache": "a", "update": {"max_size_mb": 96}, "reason": "a test"}
    async with connected(mcp_server(LMCacheToolkit(operations=operations).get_tools())) as client:
        assert "out_of_bounds" in str((await client.call("lmcache_update_config", **update))["content"])
        tuned = await client.call("lmcache_tune", cache="a", mode="auto", window_seconds=0, reason="a test")
        assert "max_mode is approve" in str(tuned["content"])
    assert (await io_loop.arun(operations.settings, "a")).max_size_mb == 64


def test_it_holds_for_the_routes(capped: Callable[..., Operations]) -> None:
    operations = capped(max_mode="approve")
    with serving(rest_app(lambda: operations)) as url, httpx.Client(base_url=f"{url}/lmcache", params={"cache": "a"}) as client:
        for answer in (
            client.post("config", json={"max_size_mb": 96}),
            client.delete("clear", params={"reason": "a test"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (422, "out_of_bounds")
    assert l1_mb(operations) == 64


def test_warming_is_on_record_and_calls_for_no_pause(capped: Callable[..., Operations], monkeypatch: pytest.MonkeyPatch) -> None:
    operations = capped(cooldown_seconds=60)
    deployment = operations.registry.get("a").deployment

    async def warm(*_: object) -> Any:
        return WarmResult(requested_chunks=2, found_chunks=2, message="2 of 2 chunks are now in L1")

    monkeypatch.setattr(deployment, "warm", warm)  # a simulated cache cannot
    warmed = io_loop.run(operations.warm, "a", "m", [1], "", "test", "before the batch")
    story = io_loop.run(operations.changes)
    assert [(one.change_id, one.operation, one.outcome.value, one.reason) for one in story] == [
        (warmed.change_id, "warm", "started", "before the batch"),
        (warmed.change_id, "warm", "applied", "before the batch"),
    ]
    io_loop.run(operations.check_cooldown, "a")


# ---- approvals ----


class Run:
    """A run of `tune_cache` on a host that says who its callers are."""

    def __init__(self, operations: Operations, mode: Mode = Mode.APPROVE) -> None:
        self._graph = build_tune_cache(operations=operations).compile(checkpointer=InMemorySaver())
        self._context = TuneContext(cache="a", mode=mode, window_seconds=0, verify_seconds=1)

    def by(self, person: str | None, given: Any) -> dict[str, Any]:
        """Start or resume it."""
        configurable = {"thread_id": "1"} | ({"langgraph_auth_user_id": person} if person else {})
        found: dict[str, Any] = self._graph.invoke(given, {"configurable": configurable}, context=self._context)
        return found

    def report(self, found: dict[str, Any]) -> TuneReport:
        """What became of it."""
        return TuneReport.model_validate(found["tune_report"])


YES = Command(resume={"decisions": [{"type": "approve"}]})


def test_a_run_that_asks_nobody_is_refused_and_one_that_asks_is_not(capped: Callable[..., Operations]) -> None:
    operations = capped(max_mode="approve")
    auto = Run(operations, Mode.AUTO)
    refused = auto.report(auto.by("alice", {}))
    assert refused.outcome is Outcome.FAILED
    assert "max_mode is approve" in refused.summary
    assert l1_mb(operations) == 64
    asked = Run(operations)
    asked.by(None, {})
    assert asked.report(asked.by(None, YES)).change is not None
    assert io_loop.run(operations.changes)[0].actor == "graph tune_cache, approved by a person"


@pytest.mark.parametrize("person", ["token", None])
def test_where_approvers_are_named_nobody_else_approves(capped: Callable[..., Operations], person: str | None) -> None:
    operations = capped(approvers=("alice", "bob"))
    run = Run(operations)
    run.by("token", {})
    refused = run.report(run.by(person, YES))
    assert refused.outcome is Outcome.FAILED
    assert "may not approve changes: the operator's approvers are alice, bob" in refused.summary
    assert l1_mb(operations) == 64
    run = Run(operations)
    run.by("token", {})
    done = run.report(run.by("alice", YES))
    assert done.change is not None
    assert {one.actor for one in io_loop.run(operations.changes)} == {"graph tune_cache, approved by alice"}


@pytest.mark.parametrize("name", ["token", "local", "a person"])
def test_an_approver_is_not_named_as_callers_without_a_name_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="choose other names"):
        Settings(state_folder=tmp_path, approvers={name: SecretStr("a token of his own")})


# ---- undo ----


def test_an_undo_makes_no_restart_that_the_operator_does_not_allow(capped: Callable[..., Operations]) -> None:
    operations = capped(bounds=Bounds(max_size_mb=256, allow_restart=True))
    cache = operations.registry.get("a")
    plan = io_loop.run(operations.plan, "a", ConfigUpdate(chunk_size=128), "a test")
    done = io_loop.run(operations.apply, plan, "test")
    cache.settings = cache.settings.model_copy(update={"bounds": Bounds(max_size_mb=256)})
    with pytest.raises(OutOfBoundsError, match="chunk_size needs a restart, which the operator's bounds do not allow"):
        io_loop.run(operations.undo, "a", done.change_id, "test")
    assert io_loop.run(operations.settings, "a").chunk_size == 128


def test_an_undo_may_go_back_to_a_value_outside_the_bounds(capped: Callable[..., Operations]) -> None:
    operations = capped()
    cache = operations.registry.get("a")
    done = apply(operations)
    cache.settings = cache.settings.model_copy(update={"bounds": Bounds(min_size_mb=90, max_size_mb=256)})
    assert io_loop.run(operations.undo, "a", done.change_id, "test").config.max_size_mb == 64


def test_of_two_undos_at_once_exactly_one_is_made(capped: Callable[..., Operations], monkeypatch: pytest.MonkeyPatch) -> None:
    operations = capped()
    done = apply(operations)
    note, second = operations.actor.note, []

    async def noted_late(*arguments: Any) -> None:
        """The other one comes when the first has set back the change and not yet said so."""
        if not second:
            second.append("begun")
            try:
                await operations.undo("a", done.change_id, "second")
            except LMCacheToolError as error:
                second.append(type(error).__name__)
        await note(*arguments)

    monkeypatch.setattr(operations.actor, "note", noted_late)
    io_loop.run(operations.undo, "a", done.change_id, "first")
    assert second == ["begun", BusyError.__name__]
    with pytest.raises(UnknownChangeError, match="is not in force any more"):
        io_loop.run(operations.undo, "a", done.change_id, "third")
    assert [one.outcome.value for one in io_loop.run(operations.changes)].count("undone") == 1
