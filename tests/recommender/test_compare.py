"""Claims about the comparison of caches: memory goes where it earns most, within the bounds, and what is unknown is named."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.simulated.deployment import SimulatedDeployment, SimulatedOptions
from agent_tools.errors import OutOfBoundsError, UnknownCacheError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate, SupportLevel, Verdict
from agent_tools.operations import Operations
from agent_tools.recommender.compare import CacheComparison, CacheShare
from agent_tools.workload.generate import AgentTraffic


def simulated(size_mb: float, conversations: int, bounds: Bounds, seed: int) -> CacheSettings:
    traffic = AgentTraffic(conversations=conversations)
    options = SimulatedOptions(l1_size_mb=size_mb, kv_bytes_per_token=4096, traffic=traffic, seed=seed)
    return CacheSettings(target="simulated:", simulated=options, bounds=bounds, cooldown_seconds=0)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Operations]:
    """``starving`` has many conversations and little memory, ``spare`` few and much; ``idle`` has none."""
    bounds = Bounds(max_size_mb=1024, allow_restart=True)
    idle = SimulatedOptions(l1_size_mb=64, kv_bytes_per_token=4096, traffic=None)
    caches = {
        "starving": simulated(192, 40, bounds, 1),
        "spare": simulated(1024, 3, bounds, 2),
        "rigid": simulated(1024, 3, Bounds(max_size_mb=1024), 4),
        "bounded": simulated(192, 40, Bounds(min_size_mb=180, max_size_mb=200), 3),
        "idle": CacheSettings(target="simulated:", simulated=idle),
        "unreachable": CacheSettings(target="http://127.0.0.1:9", timeout_seconds=1),
    }
    operations = Operations(Registry(Settings(caches=caches, state_folder=tmp_path)))
    yield operations
    io_loop.run(operations.close)


def compared(operations: Operations, *caches: str, budget_mb: float | None = None) -> CacheComparison:
    return io_loop.run(operations.compare_caches, caches, None, budget_mb)


def share(found: CacheComparison, cache: str) -> CacheShare:
    return next(one for one in found.caches if one.cache == cache)


def test_memory_goes_from_the_cache_that_does_not_need_it_to_the_one_that_starves(machine: Operations) -> None:
    found = compared(machine, "spare", "starving")
    starving, spare = share(found, "starving"), share(found, "spare")
    assert found.verdict is Verdict.ACT, found.why
    assert starving.proposed_mb > 1.5 * starving.size_mb
    assert spare.proposed_mb < spare.size_mb
    assert starving.proposed_mb + spare.proposed_mb <= found.budget_mb + 0.5
    assert found.budget_mb == 1216
    assert found.caches[0].cache == "starving", "its next megabyte earns most"
    assert starving.gain is not None
    assert starving.gain.lower > 0.05
    assert found.tokens_per_hour > 0


def test_after_it_was_followed_nothing_more_is_advised(machine: Operations) -> None:
    first = compared(machine, "spare", "starving")
    for one in sorted(first.caches, key=lambda one: one.proposed_mb - one.size_mb):
        io_loop.run(machine.configure, one.cache, ConfigUpdate(max_size_mb=one.proposed_mb), "as compared", "test")
    for name in ("spare", "starving"):
        deployment = machine.registry.get(name).deployment
        assert isinstance(deployment, SimulatedDeployment)
        io_loop.run(deployment.advance, 1200.0)
    assert compared(machine, "spare", "starving").verdict is Verdict.DO_NOTHING


def test_the_bounds_and_the_floor_hold(machine: Operations) -> None:
    found = compared(machine, "spare", "bounded")
    bounded, spare = share(found, "bounded"), share(found, "spare")
    assert 180 <= bounded.proposed_mb <= 200
    assert spare.proposed_mb >= 0.25 * found.budget_mb / 2
    with pytest.raises(OutOfBoundsError, match="do not cover the smallest sizes"):
        compared(machine, "spare", "bounded", budget_mb=100)


def test_a_cache_that_shrinks_only_by_a_restart_keeps_its_size_unless_the_bounds_allow_one(machine: Operations) -> None:
    """A simulated server, like a real one, gives no memory back below its first arena while it runs."""
    found = compared(machine, "rigid", "starving")
    assert share(found, "rigid").proposed_mb == share(found, "rigid").least_mb == 1024
    assert share(compared(machine, "spare", "starving"), "spare").how is SupportLevel.RESTART


def test_what_is_unknown_is_named_and_keeps_its_memory(machine: Operations) -> None:
    found = compared(machine, "spare", "starving", "idle", "unreachable")
    assert found.unknown.keys() == {"idle", "unreachable"}
    assert {one.cache for one in found.caches} == {"spare", "starving"}
    with pytest.raises(UnsupportedError, match="fewer than two caches can be compared"):
        compared(machine, "spare", "idle")
    with pytest.raises(UnknownCacheError):
        compared(machine, "spare", "nobody")
