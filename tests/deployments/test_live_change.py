"""Claims about changes that the server's module makes live: all of an update or nothing of it, and what stays a restart."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_cache import Play
from real_logs import conversations, log_of

from agent_tools.caches.registry import Cache
from agent_tools.deployments.all_or_nothing import all_or_nothing
from agent_tools.deployments.base import silent
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.live_change import AdapterChange, adapter_change
from agent_tools.deployments.server.module_client import LiveAdapter, module_of
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import OutcomeUnknownError, RefusedError, UnreachableError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import CacheConfig, ConfigUpdate, L2Adapter, SupportLevel

Connect = Callable[..., ServerDeployment]
LRU = {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2}


def mock(size: float = 0.01, **settings: object) -> L2Adapter:
    return L2Adapter(type="mock", settings={"max_size_gb": size, "mock_bandwidth_gb": 1.0, **settings})


@pytest.fixture
def remote(connect: Connect, cache: Cache, server: ServerProcess) -> Iterator[ServerDeployment]:
    """The embedded server by its address alone, with neither log nor arena folder; put back as it was after the test."""
    deployment = connect(server.http_url, token=cache.deployment.admin._token)
    before = config(deployment)
    yield deployment
    same = before.model_dump(include={"eviction_policy", "l2_adapters", "l2_prefetch_policy", "l2_store_policy"})
    io_loop.run(deployment.apply, ConfigUpdate.model_validate(same), silent)
    assert config(deployment).l2_adapters == ()


def config(deployment: ServerDeployment) -> CacheConfig:
    return io_loop.run(deployment.config)


def apply(deployment: ServerDeployment, **settings: object) -> list[str]:
    said: list[str] = []
    io_loop.run(deployment.apply, ConfigUpdate.model_validate(settings), said.append)
    return said


# ---- on a real server ----


def test_all_that_the_module_can_change_is_changed_live_and_no_chunk_is_lost(remote: ServerDeployment, play: Play) -> None:
    play(log_of(*conversations(10, 16)))
    before, process_start = io_loop.run(remote.snapshot).resident_objects, io_loop.run(remote.snapshot).process_start
    wanted = ConfigUpdate(
        eviction_policy="arc", eviction_watermark=0.6, eviction_ratio=0.1, l2_prefetch_policy="retain", l2_adapters=(mock(),)
    )
    io_loop.run(remote.apply, wanted, silent)
    assert {name: config(remote).known()[name] for name in wanted.known()} == wanted.known()
    after = io_loop.run(remote.snapshot)
    assert (after.resident_objects, after.process_start) == (before, process_start)
    assert before == 160


def test_an_update_of_which_one_part_is_refused_changes_nothing(remote: ServerDeployment) -> None:
    before = config(remote)
    with pytest.raises(UnsupportedError, match="not listed in the module's l2_adapters"):
        apply(remote, eviction_watermark=0.5, l2_prefetch_policy="retain", l2_adapters=(mock(), L2Adapter(type="fs")))
    assert config(remote) == before


def test_a_change_may_take_longer_than_a_read(connect: Connect, remote: ServerDeployment) -> None:
    """A new eviction thread waits for the old one's sleep of a second."""
    hasty = connect(remote.admin.base_url, timeout=0.3, token=remote.admin._token)
    for watermark in (0.5, 0.6, 0.7):
        apply(hasty, eviction_watermark=watermark)
        assert config(remote).eviction_watermark == watermark


def test_an_adapter_is_attached_retuned_and_detached(remote: ServerDeployment) -> None:
    assert apply(remote, l2_adapters=[mock()]) == ["attaching an L2 adapter mock"]
    retuned = mock(eviction={**LRU, "trigger_watermark": 0.5})
    assert apply(remote, l2_adapters=[retuned]) == []
    assert config(remote).l2_adapters == (retuned,)
    assert apply(remote, l2_adapters=[]) == ["detaching the L2 adapter mock"]
    assert config(remote).l2_adapters == ()


def test_another_capacity_and_unknown_secrets_are_not_live(remote: ServerDeployment) -> None:
    apply(remote, l2_adapters=[mock()])
    larger = io_loop.run(remote.support, ConfigUpdate(l2_adapters=(mock(0.02),)))["l2_adapters"]
    assert (larger.level, "capacity" in larger.reason) == (SupportLevel.RESTART, True)
    secret = ConfigUpdate(l2_adapters=(mock(), L2Adapter(type="resp", settings={"host": "h", "password": "***"})))
    assert io_loop.run(remote.support, secret)["l2_adapters"].level is SupportLevel.UNSUPPORTED
    with pytest.raises(UnsupportedError, match="Nothing was changed"):
        io_loop.run(remote.apply, secret, silent)


def test_automatic_eviction_is_switched_off_and_on(remote: ServerDeployment) -> None:
    apply(remote, auto_eviction=False)
    assert config(remote).auto_eviction is False
    apply(remote, auto_eviction=True)
    assert (config(remote).auto_eviction, config(remote).eviction_policy) == (True, "lru")


@pytest.mark.long
def test_what_was_changed_live_survives_a_restart_for_another_setting(cache: Cache) -> None:
    deployment = cache.deployment
    io_loop.run(deployment.apply, ConfigUpdate(eviction_ratio=0.3, max_size_mb=20), silent)
    io_loop.run(deployment.apply, ConfigUpdate(chunk_size=128), silent)
    after = io_loop.run(deployment.config)
    assert (after.eviction_ratio, after.max_size_mb, after.chunk_size) == (0.3, 20, 128)
    io_loop.run(deployment.apply, ConfigUpdate(chunk_size=256, max_size_mb=16), silent)


# ---- a server elsewhere, whose module makes the arenas ----


def test_a_remote_l1_grows_and_shrinks_by_the_module_within_its_operators_limit(
    connect: Connect, module_server: ServerProcess
) -> None:
    remote = connect(module_server.http_url)
    assert io_loop.run(remote.support)["max_size_mb"].level is SupportLevel.LIVE
    assert apply(remote, max_size_mb=24) == ["resizing L1 to 24.0 MB"]
    assert config(remote).max_size_mb == 24
    too_large = io_loop.run(remote.support, ConfigUpdate(max_size_mb=65))["max_size_mb"]
    assert (too_large.level, "64 MB" in too_large.reason) == (SupportLevel.RESTART, True)
    nowhere = L2Adapter(type="fs_native", settings={"base_path": "/proc/nowhere"})
    with pytest.raises(RefusedError, match="LMCache"):
        apply(remote, max_size_mb=40, l2_adapters=[nowhere])
    assert config(remote).max_size_mb == 24
    apply(remote, max_size_mb=16)
    assert config(remote).max_size_mb == 16


# ---- the steps themselves ----


def steps(done: list[str], error: Exception | None = None) -> None:
    """Two steps that can be taken back, and then an error."""

    async def take_back(step: str) -> None:
        done.append(step)

    async def scenario() -> None:
        async with all_or_nothing() as undo:
            undo.push_async_callback(take_back, "first")
            undo.push_async_callback(take_back, "second")
            if error is not None:
                raise error

    io_loop.run(scenario)


@pytest.mark.parametrize(
    ("error", "taken_back"),
    [
        (RefusedError("no", 409), ["second", "first"]),
        (UnsupportedError("no"), ["second", "first"]),
        (OutcomeUnknownError("who knows"), []),
        (UnreachableError("gone"), []),
        (None, []),
    ],
)
def test_steps_are_taken_back_in_reverse_when_a_later_one_is_refused(error: Exception | None, taken_back: list[str]) -> None:
    done: list[str] = []
    if error is None:
        steps(done)
    else:
        with pytest.raises(type(error)):
            steps(done, error)
    assert done == taken_back


def test_what_cannot_be_taken_back_is_unknown() -> None:
    async def fails() -> None:
        raise UnreachableError("gone")

    async def scenario() -> None:
        async with all_or_nothing() as undo:
            undo.push_async_callback(fails)
            raise RefusedError("no", 409)

    with pytest.raises(OutcomeUnknownError, match=r"no; the undo of .* failed as well: gone"):
        io_loop.run(scenario)


STORES = st.sampled_from([L2Adapter(type="fs", settings={"base_path": f"/{name}"}) for name in "abcd"])
EVICTIONS = st.sampled_from([None, LRU, {**LRU, "eviction_ratio": 0.5}])


@st.composite
def adapters(draw: st.DrawFn) -> list[L2Adapter]:
    stores = draw(st.lists(STORES, unique_by=lambda one: one.settings["base_path"]))
    return [
        one if (block := draw(EVICTIONS)) is None else L2Adapter(type=one.type, settings={**one.settings, "eviction": block})
        for one in stores
    ]


@given(adapters(), adapters())
def test_a_change_of_adapters_leads_to_those_wanted(live: list[L2Adapter], wanted: list[L2Adapter]) -> None:
    numbered = [LiveAdapter(number, one) for number, one in enumerate(live)]
    change = adapter_change(numbered, wanted)
    if not isinstance(change, AdapterChange):
        return
    gone, retuned = {one.number for one in change.detached}, {one.number: new for one, new in change.retuned}
    after = [retuned.get(one.number, one.adapter) for one in numbered if one.number not in gone]
    assert [*after, *change.attached] == wanted


def test_the_order_of_adapters_is_that_of_their_attachment() -> None:
    one, other = (L2Adapter(type="fs", settings={"base_path": path}) for path in ("/a", "/b"))
    live = [LiveAdapter(0, one), LiveAdapter(1, other)]
    assert isinstance(adapter_change(live, [other]), AdapterChange)
    reordered = adapter_change(live, [other, one])
    assert isinstance(reordered, str)
    assert "order" in reordered


@pytest.mark.parametrize("told", [{}, {"agent_tools": None}, {"agent_tools": {"version": 2, "parts": ["eviction"]}}])
def test_a_server_without_the_module_or_with_another_interface_has_none(connect: Connect, told: dict[str, object]) -> None:
    assert module_of(connect("http://127.0.0.1:9").admin, told) is None


def test_a_module_that_is_read_only_changes_nothing(connect: Connect) -> None:
    told = {"agent_tools": {"version": 1, "parts": ["eviction"], "read_only": True}}
    module = module_of(connect("http://127.0.0.1:9").admin, told)
    assert module is not None
    assert not module.changes("eviction")
