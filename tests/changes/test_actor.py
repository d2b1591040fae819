"""Claims about changing a real cache: bound to a plan, one at a time, on record, read back, and undone."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import blockbuster
import psutil
import pytest
from change_under_way import change_under_way
from real_logs import conversations, log_of

from agent_tools.caches.registry import Cache, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import (
    BusyError,
    CacheDiedError,
    CooldownError,
    LMCacheToolError,
    OutOfBoundsError,
    RefusedError,
    StalePlanError,
    UnknownCacheError,
    UnknownChangeError,
    UnreachableError,
    UnsupportedError,
)
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ChangeOutcome, ChangeRecord, ChangeResult, ConfigUpdate, L2Adapter, Plan, SupportLevel
from agent_tools.operations import Operations
from agent_tools.workload.replay import replay

Outcome = ChangeOutcome
Foreign = Callable[..., Operations]
NONSENSE = L2Adapter(type="nonsense")
"""An L2 that the operator allows and LMCache does not have."""
GROW = ConfigUpdate(max_size_mb=24)


@pytest.fixture
def foreign(tmp_path: Path, arena_folder: Path) -> Iterator[Foreign]:
    """Makes operations on the cache ``prod`` at an address, with these settings, all with the same change log."""
    made: list[Operations] = []

    def foreign(url: str, **settings: object) -> Operations:
        prod = {"target": url, "arena_folder": arena_folder, "bounds": {"max_size_mb": 64}, **settings}
        caches = {"prod": CacheSettings.model_validate(prod)}
        made.append(Operations(Registry(Settings(caches=caches, state_folder=tmp_path / "state"))))
        return made[-1]

    yield foreign
    for operations in made:
        io_loop.run(operations.close)


@pytest.fixture
def private(lmcache: None, tmp_path: Path, arena_folder: Path) -> Iterator[Operations]:
    """Operations on an embedded server of its own, which may be killed."""
    embedded = CacheSettings(
        bounds=Bounds(max_size_mb=64, allow_restart=True, l2_adapter=NONSENSE),
        embedded=EmbeddedOptions(l1_size_mb=8, arena_folder=arena_folder),
    )
    operations = Operations(Registry(Settings(caches={"default": embedded}, state_folder=tmp_path / "private")))
    yield operations
    io_loop.run(operations.close)


def plan(operations: Operations, update: ConfigUpdate = GROW, cache: str = "default") -> Plan:
    return io_loop.run(operations.plan, cache, update, "a test wants it")


def apply(operations: Operations, made: Plan) -> ChangeResult:
    return io_loop.run(operations.apply, made, "test")


def undo(operations: Operations, change_id: str, cache: str = "default") -> ChangeResult:
    return io_loop.run(operations.undo, cache, change_id, "test")


def size(operations: Operations, cache: str = "default") -> float | None:
    return io_loop.run(operations.config, cache)[0].max_size_mb


def records(operations: Operations) -> list[ChangeRecord]:
    return io_loop.run(operations.changes)


# ---- the way of a change ----


def test_a_plan_changes_nothing_and_says_what_it_would_change(operations: Operations, cache: Cache) -> None:
    before = records(operations)
    made = plan(operations, ConfigUpdate(max_size_mb=24, chunk_size=128, eviction_watermark=0.8))
    assert [(c.setting, c.old, c.new, c.how.value) for c in made.changes] == [
        ("max_size_mb", 16, 24, "live"),
        ("chunk_size", 256, 128, "restart"),
    ]
    assert made.needs_restart
    assert made.loses is not None
    assert made.command is None
    assert size(operations) == 16
    assert records(operations) == before


def test_a_change_is_applied_read_back_recorded_and_undone(operations: Operations, cache: Cache) -> None:
    known = len(records(operations))
    made = plan(operations)
    done = apply(operations, made)
    assert done.config.max_size_mb == 24 == size(operations)
    back = undo(operations, done.change_id)
    assert back.config.max_size_mb == 16 == size(operations)
    told = [(r.change_id, r.operation, r.outcome, r.undoes) for r in records(operations)[known:]]
    assert told == [
        (done.change_id, "reconfigure", Outcome.STARTED, None),
        (done.change_id, "reconfigure", Outcome.APPLIED, None),
        (back.change_id, "undo", Outcome.STARTED, done.change_id),
        (back.change_id, "undo", Outcome.APPLIED, done.change_id),
        (done.change_id, "reconfigure", Outcome.UNDONE, None),
    ]
    first = records(operations)[known]
    assert (first.actor, first.reason, first.changes) == ("test", "a test wants it", made.changes)
    assert first.before is not None
    assert first.before.max_size_mb == 16


def test_an_undo_can_be_undone_and_a_change_only_once(operations: Operations, cache: Cache) -> None:
    done = apply(operations, plan(operations))
    back = undo(operations, done.change_id)
    with pytest.raises(UnknownChangeError, match=f"{done.change_id} is not in force any more"):
        undo(operations, done.change_id)
    assert undo(operations, back.change_id).config.max_size_mb == 24


def test_a_plan_is_carried_out_once(operations: Operations, cache: Cache) -> None:
    grow = plan(operations)
    first, second = apply(operations, grow), apply(operations, grow)
    assert second.change_id == first.change_id
    assert second.config.max_size_mb == 24
    assert [r.outcome for r in io_loop.run(operations.changes) if r.plan_id == grow.plan_id] == [
        ChangeOutcome.STARTED,
        ChangeOutcome.APPLIED,
    ]
    undo(operations, first.change_id)
    with pytest.raises(StalePlanError, match=f"carried out as {first.change_id} and set back since"):
        apply(operations, grow)  # though the cache is again as it was when the plan was made


def test_a_plan_whose_process_died_before_it_could_say_so_is_found_in_force(operations: Operations, cache: Cache) -> None:
    grow = plan(operations)
    apply(operations, grow)
    lines = operations.actor.log.path.read_bytes().splitlines(keepends=True)
    operations.actor.log.path.write_bytes(b"".join(lines[:-1]))  # as if it had died before the last line
    story = io_loop.run(operations.changes)[-1:]
    assert [record.outcome for record in story] == [ChangeOutcome.STARTED]
    again = apply(operations, grow)
    assert again.change_id == story[0].change_id
    assert io_loop.run(operations.changes)[-1].detail == "found in force"


def test_what_cannot_be_undone_is_refused(operations: Operations, cache: Cache) -> None:
    with pytest.raises(UnknownChangeError, match="there is no change 'change-0'"):
        undo(operations, "change-0")
    cleared = io_loop.run(operations.clear, "default", "test")
    assert cleared.change_id is not None
    with pytest.raises(UnknownChangeError, match="is not a change of settings of default"):
        undo(operations, cleared.change_id)
    done = apply(operations, plan(operations))
    with pytest.raises(UnreachableError):  # whether it is the same server under another name, only the server can tell
        undo(operations, done.change_id, "unreachable")


@pytest.mark.long
def test_a_restart_keeps_what_was_changed_live_and_nothing_of_it_all_blocks_the_loop(
    private: Operations, arena_folder: Path
) -> None:
    """Every kind of operation in turn on a server of its own, with every blocking call on the loop made an error."""
    deployment = private.registry.get("default").deployment
    assert isinstance(deployment, EmbeddedDeployment)
    server = io_loop.run(deployment.started)
    replay(log_of(*conversations(4, 8)), server.rpc_url)
    io_loop.run(private.recommend)  # its modules are imported at the first call, once in a process

    async def all_of_it() -> None:
        before = await private.metrics()
        await private.apply(await private.plan("default", GROW, ""), "test")
        assert (await private.metrics()).resident_chunks == before.resident_chunks
        trimmed = await private.optimize("default", 2, "test")
        assert (trimmed.entries_before, trimmed.entries_after) == (32, 15)
        await private.apply(await private.plan("default", ConfigUpdate(eviction_watermark=0.6), ""), "test")
        smaller = await private.plan("default", ConfigUpdate(chunk_size=128), "")
        restarted = await private.apply(smaller, "test")
        assert (restarted.config.max_size_mb, restarted.config.eviction_watermark) == (24, 0.6)
        assert (await private.clear("default", "test")).entries_before == 0
        await private.status()
        await private.recommend()
        undone = await private.undo("default", restarted.change_id, "test")
        assert (undone.config.max_size_mb, undone.config.chunk_size) == (24, 256)
        await private.changes()

    async def blocks() -> None:
        time.sleep(0)  # noqa: ASYNC251  that it is noticed is what is checked

    with blockbuster.blockbuster_ctx():
        with pytest.raises(blockbuster.BlockingError):
            io_loop.run(blocks)
        io_loop.run(all_of_it)
    again = io_loop.run(deployment.started)
    assert (again.http_url, again.rpc_url) == (server.http_url, server.rpc_url)
    # What it was started with is now one arena, so less needs another restart.
    assert io_loop.run(deployment.support, ConfigUpdate(max_size_mb=16))["max_size_mb"].level is SupportLevel.RESTART
    assert list(arena_folder.iterdir()) == []


# ---- what is refused, with nothing changed ----


@pytest.mark.parametrize(
    ("update", "error", "said"),
    [
        ({"max_size_mb": 65}, OutOfBoundsError, "max_size_mb=65 is above the operator's bound of 64; nothing was changed"),
        ({"eviction_watermark": 0.99}, OutOfBoundsError, "above the operator's bound of 0.95"),
        ({"max_size_mb": 16, "eviction_ratio": 0.2}, UnsupportedError, "already has these settings"),
        ({"enable_prefix_caching": False}, UnsupportedError, "is always on. Nothing was changed"),
        ({"eviction_policy": "mru"}, UnsupportedError, "only LRU, ARC and noop"),
        ({"max_size_mb": 24, "cache_warmup": True}, UnsupportedError, "this is an operation, not a setting"),
    ],
)
def test_a_change_that_cannot_be_is_refused_before_anything_happens(
    operations: Operations, cache: Cache, update: dict[str, object], error: type[LMCacheToolError], said: str
) -> None:
    before = records(operations)
    with pytest.raises(error) as refused:
        plan(operations, ConfigUpdate.model_validate(update))
    assert said in str(refused.value)
    assert size(operations) == 16
    assert records(operations) == before


@pytest.mark.parametrize(
    ("update", "bounds", "said"),
    [
        (GROW, Bounds(max_size_mb=20), "above the operator's bound of 20"),
        (
            ConfigUpdate(chunk_size=128),
            Bounds(allow_restart=False),
            "needs a restart, which the operator's bounds do not allow",
        ),
        (GROW, Bounds(min_watermark=0.97, max_watermark=1), "outside the operator's"),
    ],
)
def test_a_run_can_only_narrow_what_the_operator_allows(
    operations: Operations, cache: Cache, update: ConfigUpdate, bounds: Bounds, said: str
) -> None:
    with pytest.raises(OutOfBoundsError) as refused:
        io_loop.run(operations.plan, "default", update, "", bounds)
    assert said in str(refused.value)


def test_a_run_that_names_no_size_leaves_the_operators_in_force(operations: Operations, cache: Cache) -> None:
    assert io_loop.run(operations.plan, "default", GROW, "", Bounds(max_watermark=0.9)).changes


def test_a_plan_for_a_cache_that_changed_since_is_refused(operations: Operations, cache: Cache) -> None:
    old = plan(operations)
    apply(operations, plan(operations, ConfigUpdate(max_size_mb=20)))
    before = records(operations)
    with pytest.raises(StalePlanError, match=rf"default has changed since {old.plan_id} was made; make a new plan. Nothing was"):
        apply(operations, old)
    assert size(operations) == 20
    assert records(operations) == before


def test_an_unknown_or_unreachable_cache_is_refused_and_not_recorded(operations: Operations, cache: Cache) -> None:
    before = records(operations)
    with pytest.raises(UnknownCacheError):
        plan(operations, cache="nowhere")
    with pytest.raises(UnreachableError, match="nothing was changed"):
        plan(operations, cache="unreachable")
    with pytest.raises(UnreachableError):
        io_loop.run(operations.clear, "unreachable", "test")
    assert records(operations) == before


def test_two_changes_of_one_server_at_the_same_time_are_refused(server: ServerProcess, foreign: Foreign) -> None:
    one, other = foreign(server.http_url), foreign(server.http_url)
    made = plan(other, cache="prod")

    async def both() -> None:
        async with change_under_way(one, "prod"):
            with pytest.raises(BusyError, match="another change of prod is under way"):
                await other.apply(made, "test")
        await other.apply(made, "test")

    io_loop.run(both)
    assert size(other, "prod") == 24


def test_after_a_change_there_is_a_pause(server: ServerProcess, foreign: Foreign) -> None:
    operations = foreign(server.http_url, cooldown_seconds=60)
    io_loop.run(operations.check_cooldown, "prod")
    done = apply(operations, plan(operations, cache="prod"))
    with pytest.raises(CooldownError, match=rf"last changed \d s ago \({done.change_id}\); wait (60|5\d) s more"):
        io_loop.run(operations.check_cooldown, "prod")
    io_loop.run(foreign(server.http_url, cooldown_seconds=0).check_cooldown, "prod")


def test_a_change_that_was_refused_calls_for_no_pause(server: ServerProcess, foreign: Foreign) -> None:
    operations = foreign(server.http_url)
    with pytest.raises(UnsupportedError):
        apply(operations, plan(operations, ConfigUpdate(chunk_size=128), cache="prod"))
    assert [r.outcome for r in records(operations)] == [Outcome.STARTED, Outcome.REFUSED]
    io_loop.run(operations.check_cooldown, "prod")


def test_a_server_that_is_not_ours_is_not_restarted_and_its_new_command_line_is_told(
    server: ServerProcess, foreign: Foreign
) -> None:
    operations = foreign(server.http_url)
    made = plan(operations, ConfigUpdate(chunk_size=128), cache="prod")
    assert made.command is not None
    assert made.command.startswith("lmcache server ")
    assert "--chunk-size 128" in made.command
    with pytest.raises(UnsupportedError) as refused:
        apply(operations, made)
    assert made.command in str(refused.value)
    assert io_loop.run(operations.config, "prod")[0].chunk_size == 256


# ---- what goes wrong in the middle ----


def test_a_change_that_is_interrupted_is_recorded_as_unknown(operations: Operations, cache: Cache, arena_folder: Path) -> None:
    made = plan(operations)

    async def interrupted() -> bool:
        with anyio.CancelScope() as scope:
            await operations.apply(made, "test", lambda _: scope.cancel())
        return scope.cancelled_caught

    assert io_loop.run(interrupted)
    last = records(operations)[-1]
    assert (last.outcome, last.detail) == (Outcome.UNKNOWN, "interrupted")
    assert list(arena_folder.iterdir()) == []
    # The lock was given back.
    assert apply(operations, plan(operations)).config.max_size_mb == 24


def kill_server(operations: Operations) -> None:
    deployment = operations.registry.get("default").deployment
    assert isinstance(deployment, EmbeddedDeployment)
    assert deployment._process is not None
    guard = psutil.Process(deployment._process._guard.pid)
    server = guard.children()[0]
    server.kill()
    server.wait(10)


def test_a_server_that_dies_in_the_middle_of_a_change_is_told_with_its_last_known_state(
    not_forked: None, private: Operations, foreign: Foreign, arena_folder: Path
) -> None:
    made = plan(private)
    with pytest.raises(
        CacheDiedError, match=r"It died in the middle of the change; last known state: 0.0 of 8.0 MB used, 0 entries"
    ):
        io_loop.run(private.apply, made, "test", lambda _: kill_server(private))
    assert [r.outcome for r in records(private)] == [Outcome.STARTED, Outcome.FAILED]
    assert list(arena_folder.iterdir()) == []
    # The next call starts another, and the plan is not for that one.
    with pytest.raises(StalePlanError):
        apply(private, made)
    deployment = private.registry.get("default").deployment
    assert isinstance(deployment, EmbeddedDeployment)
    stranger = foreign(io_loop.run(deployment.started).http_url)
    made = plan(stranger, cache="prod")
    with pytest.raises(
        CacheDiedError, match=r"prod died, or hangs, in the middle of the change: .*; last known state: 0.0 of 8.0"
    ):
        io_loop.run(stranger.apply, made, "test", lambda _: kill_server(private))
    assert [r.outcome for r in records(stranger)] == [Outcome.STARTED, Outcome.FAILED]


@pytest.mark.long
def test_a_restart_that_fails_is_recorded_as_refused_and_the_old_settings_are_in_force(private: Operations) -> None:
    before = io_loop.run(private.config)[0]
    made = plan(private, ConfigUpdate(l2_adapters=(NONSENSE,), chunk_size=128))
    with pytest.raises(
        RefusedError, match=r"ended while starting: .*nonsense.*\. The old settings are in force again; the restart"
    ):
        apply(private, made)
    assert [r.outcome for r in records(private)] == [Outcome.STARTED, Outcome.REFUSED]
    assert io_loop.run(private.config)[0] == before


def test_an_update_that_is_refused_live_is_recorded_so_and_nothing_of_it_stays(private: Operations) -> None:
    before = io_loop.run(private.config)[0]
    with pytest.raises(RefusedError, match="nonsense"):
        apply(private, plan(private, ConfigUpdate(eviction_ratio=0.3, l2_adapters=(NONSENSE,))))
    assert [r.outcome for r in records(private)] == [Outcome.STARTED, Outcome.REFUSED]
    assert io_loop.run(private.config)[0] == before


def test_an_l2_that_the_operator_did_not_name_is_never_added(operations: Operations, cache: Cache) -> None:
    anywhere = L2Adapter(type="fs", settings={"base_path": "/etc"})
    with pytest.raises(OutOfBoundsError, match=r"an L2 adapter fs may not be added: the operator's bounds name (mock|none)"):
        plan(operations, ConfigUpdate(l2_adapters=(anywhere,)))


def test_without_a_set_cooldown_the_pause_is_the_time_that_fills_l1_once(server: ServerProcess, foreign: Foreign) -> None:
    operations = foreign(server.http_url, cooldown_seconds=None)
    apply(operations, plan(operations, cache="prod"))
    with pytest.raises(CooldownError, match=r"wait (60|5\d) s more"):  # nothing was read since: the shortest there is
        io_loop.run(operations.check_cooldown, "prod")
    prod = operations.registry.get("prod")
    now = io_loop.run(prod.deployment.snapshot)
    counters = replace(now.counters, stored_chunks=2)
    # Two chunks of half of L1 each in an hour.
    prod.history.add(
        replace(
            now, process_start=now.taken_at - 3600, counters=counters, l1_used_bytes=now.l1_total_bytes // 2, resident_objects=1
        )
    )
    with pytest.raises(CooldownError, match=r"wait (3600|35\d\d) s more"):
        io_loop.run(operations.check_cooldown, "prod")
