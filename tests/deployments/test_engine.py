"""Claims about engines: real `LMCacheEngine` processes, without a model, behind their internal API servers."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine_process import CHUNK, CHUNK_BYTES, EngineProcess
from real_cache import Launch, eventually

from agent_tools.deployments.base import silent
from agent_tools.deployments.in_process.deployment import InProcessDeployment
from agent_tools.deployments.in_process.exposition import REFRESH_SECONDS
from agent_tools.deployments.server.process import free_port
from agent_tools.deployments.snapshot import Snapshot, metrics_between
from agent_tools.errors import NotLMCacheError, RefusedError, SettingsError, UnreachableError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, SETTINGS, ConfigUpdate, EvictionPolicy, L2Adapter, SupportLevel

Twins = tuple[EngineProcess, EngineProcess]
Connect = Callable[..., InProcessDeployment]
TOO_MANY = [(seed, 8) for seed in range(10)]
"""80 chunks in turn, for an L1 of 64: LRU finds none of them again."""


ODD: dict[str, Any] = {"cache_policy": "LFU", "max_local_cpu_size": 4 / 1024, "worker_id": 1, "world_size": 2}


@pytest.fixture(scope="module")
def engines(lmcache: None) -> Iterator[list[EngineProcess]]:
    """Three workers, started side by side; whatever stands here at the module's end is stopped."""
    engines: list[EngineProcess] = []
    try:
        engines.extend(EngineProcess(free_port(), **config) for config in ({}, {}, ODD))
        for engine in engines:
            engine.ready()
        yield engines
    finally:
        for engine in engines:
            engine.stop()


@pytest.fixture
def twins(engines: list[EngineProcess]) -> Twins:
    """Two workers with the same configuration, each alone in its world, as data-parallel replicas are."""
    return engines[0], engines[1]


@pytest.fixture
def odd_one(engines: list[EngineProcess]) -> EngineProcess:
    """A worker of another configuration: LFU, 4 MiB, the second of a tensor-parallel pair; a new one if the last was killed."""
    if not engines[-1].alive:
        engines.append(EngineProcess(free_port(), **ODD).ready())
    return engines[-1]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes an `InProcessDeployment` of workers or addresses; closed at the end of the test."""
    made: list[InProcessDeployment] = []

    def connect(*workers: EngineProcess | str, **options: Any) -> InProcessDeployment:
        urls = [worker if isinstance(worker, str) else worker.url for worker in workers]
        made.append(InProcessDeployment(urls, **options))
        return made[-1]

    yield connect
    for deployment in made:
        io_loop.run(deployment.close)


@pytest.fixture
def engine(connect: Connect, twins: Twins) -> InProcessDeployment:
    """The twins, with an empty L1."""
    deployment = connect(*twins)
    io_loop.run(deployment.clear)
    return deployment


def disk(folder: Path, size_mb: float = 16) -> L2Adapter:
    return L2Adapter(type="local_disk", settings={"path": str(folder), "max_capacity_gb": size_mb / 1024})


def apply(deployment: InProcessDeployment, **update: Any) -> None:
    io_loop.run(deployment.apply, ConfigUpdate(**update), silent)


@contextlib.contextmanager
def collected(wrong: list[AssertionError]) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        wrong.append(error)


def minima(*workers: EngineProcess, connect: Connect) -> list[int | None]:
    return [io_loop.run(connect(worker).config).min_prefix_length for worker in workers]


def test_what_workers_count_is_summed(engine: InProcessDeployment, twins: Twins) -> None:
    before = all_counted(engine, twins)
    assert twins[0].play((101, 8), (101, 8), *TOO_MANY) == [0, 8, *[0] * 10]
    assert twins[1].play((101, 8), (101, 4)) == [0, 4]
    after = all_counted(engine, twins)
    seen = metrics_between(before, after)
    assert (seen.total_requests, seen.cache_misses, seen.cache_hits) == (14, 12, 2)
    assert (seen.by_model["toy"].requested, seen.tokens_served) == (108 * CHUNK, 12 * CHUNK)
    assert (seen.stored_chunks, seen.evictions) == (96, 24)
    assert seen.avg_latency_ms is not None
    assert 0 < seen.avg_latency_ms < 100
    assert (after.resident_objects, after.l1_used_bytes) == (72, 72 * CHUNK_BYTES)
    assert (after.l1_total_bytes, after.chunk_size, after.objects_per_chunk) == (4 * MB, CHUNK, 1)
    assert (after.l2_used_bytes, after.l2_total_bytes) == (None, None)
    assert seen.spread["evictions"].worst_member == "worker0"


def all_counted(engine: InProcessDeployment, twins: Twins) -> Snapshot:
    """A reading in which LMCache has counted all that was played; it does so every ten seconds."""

    def read() -> Snapshot | None:
        now = io_loop.run(engine.snapshot)
        return now if now.counters is not None and now.counters.lookups == twins[0].played + twins[1].played else None

    seen = eventually(read, 2 * REFRESH_SECONDS)
    assert seen is not None
    return seen


def test_the_configuration_is_that_in_which_all_agree(engine: InProcessDeployment) -> None:
    config = io_loop.run(engine.config)
    assert (config.enabled, config.max_size_mb, config.eviction_policy) == (True, 2, EvictionPolicy.LRU)
    assert (config.chunk_size, config.min_prefix_length) == (CHUNK, CHUNK)
    assert (config.l2_adapters, config.hash_algorithm, config.differences) == ((), "sha256_cbor", {})
    assert io_loop.run(engine.version) == "0.5.6"


def test_where_workers_differ_that_is_said(connect: Connect, twins: Twins, odd_one: EngineProcess) -> None:
    config = io_loop.run(connect(twins[0], odd_one).config)
    assert (config.max_size_mb, config.eviction_policy, config.chunk_size) == (None, None, CHUNK)
    assert config.differences["max_size_mb"] == {"worker0": 2, "worker1": 4}
    assert config.differences["eviction_policy"] == {"worker0": "lru", "worker1": "lfu"}


def test_no_worker_at_all_is_unreachable(connect: Connect) -> None:
    nobody = connect(f"http://127.0.0.1:{free_port()}", timeout=1)
    for ask in (nobody.snapshot, nobody.config, nobody.version, nobody.support, nobody.clear):
        with pytest.raises(UnreachableError, match="internal_api_server_port_start"):
            io_loop.run(ask)


def test_a_disk_tier_attached_live_raises_the_hit_rate_and_goes_again(
    engine: InProcessDeployment, twins: Twins, tmp_path: Path
) -> None:
    for worker in twins:
        assert sum(worker.play(*TOO_MANY) + worker.play(*TOO_MANY)) == 0
    apply(engine, l2_adapters=(disk(tmp_path),))
    assert io_loop.run(engine.config).l2_adapters == (disk(tmp_path),)
    assert io_loop.run(engine.snapshot).l2_total_bytes == 32 * MB
    for worker in twins:
        worker.play(*TOO_MANY)
        eventually(lambda worker=worker: sum(worker.play(*TOO_MANY)) == 80)
    apply(engine, l2_adapters=())
    assert io_loop.run(engine.config).l2_adapters == ()
    assert io_loop.run(engine.snapshot).health.healthy
    apply(engine, l2_adapters=(disk(tmp_path / "again"),))
    assert io_loop.run(engine.snapshot).health.healthy  # LMCache remembers that it was bypassed
    apply(engine, l2_adapters=())


def test_a_disk_tier_comes_and_goes_under_traffic_without_an_error(
    engine: InProcessDeployment, twins: Twins, tmp_path: Path
) -> None:
    over = threading.Event()
    wrong: list[AssertionError] = []

    def traffic() -> None:
        while not over.is_set():
            with collected(wrong):
                twins[0].play(*TOO_MANY)

    client = threading.Thread(target=traffic)
    client.start()
    try:
        for _ in range(3):
            apply(engine, l2_adapters=(disk(tmp_path),))
            apply(engine, l2_adapters=())
    finally:
        over.set()
        client.join()
    assert wrong == []


def test_a_tier_that_one_worker_cannot_make_is_made_on_none(
    connect: Connect, engine: InProcessDeployment, twins: Twins, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match=r"worker0 refused .*500.*Nothing was changed"):
        apply(engine, l2_adapters=(disk(tmp_path / "file" / "folder"),))
    assert io_loop.run(engine.config).l2_adapters == ()
    # A worker in whose /conf somebody has named another backend would make that too.
    io_loop.run(engine.workers["worker1"].change, "POST", "/conf", {"remote_url": f"fs://x:1/{tmp_path}/remote"})
    try:
        with pytest.raises(
            RefusedError, match=r"worker1 refused .*RemoteBackend.*; the change was undone on worker0\. Nothing was changed"
        ):
            apply(engine, l2_adapters=(disk(tmp_path / "fine"),))
    finally:
        io_loop.run(engine.workers["worker1"].change, "POST", "/conf", {"remote_url": None})
    for worker in engine.workers.values():
        assert io_loop.run(worker.read, "/backends") == {"LocalCPUBackend": "LocalCPUBackend"}
        assert io_loop.run(worker.state).conf["local_disk"] is None


def test_nonsense_is_refused_before_anything_is_sent(engine: InProcessDeployment, tmp_path: Path) -> None:
    nonsense = (
        (L2Adapter(type="local_disk", settings={"path": str(tmp_path)}), "path and max_capacity_gb"),
        (L2Adapter(type="local_disk", settings={"path": "here", "max_capacity_gb": 1}), "absolute path"),
        (L2Adapter(type="local_disk", settings={"path": "/a,/b", "max_capacity_gb": 1}), "one absolute path"),
        (L2Adapter(type="local_disk", settings={"path": "/a", "max_capacity_gb": -1}), "above 0"),
        (L2Adapter(type="local_disk", settings={"path": "/a", "max_capacity_gb": True}), "above 0"),
        (L2Adapter(type="fs", settings={"base_path": "/a"}), "attach or detach only one local_disk tier"),
    )
    for adapter, why in nonsense:
        with pytest.raises(UnsupportedError, match=rf"{why}.*Nothing was changed"):
            apply(engine, l2_adapters=(adapter,))
    with pytest.raises(UnsupportedError, match="Nothing was changed"):
        apply(engine, l2_adapters=(disk(tmp_path), disk(tmp_path / "other")))
    assert io_loop.run(engine.config).l2_adapters == ()


def test_the_minimum_to_retrieve_is_set_live_and_chunk_size_means_none(
    connect: Connect, engine: InProcessDeployment, twins: Twins
) -> None:
    assert io_loop.run(engine.support)["min_prefix_length"].level is SupportLevel.LIVE
    apply(engine, min_prefix_length=500)
    assert minima(*twins, connect=connect) == [500, 500]
    apply(engine, min_prefix_length=CHUNK)
    assert minima(*twins, connect=connect) == [CHUNK, CHUNK]
    assert io_loop.run(engine.workers["worker0"].state).conf["min_retrieve_tokens"] == 0


def test_a_minimum_that_no_process_here_would_read_is_refused(connect: Connect, odd_one: EngineProcess) -> None:
    engine = connect(odd_one)
    with pytest.raises(UnsupportedError, match=r"vLLM's scheduler reads min_retrieve_tokens.*Nothing was changed"):
        apply(engine, min_prefix_length=500)


def test_the_scheduler_takes_the_minimum_and_holds_no_cache(connect: Connect, odd_one: EngineProcess) -> None:
    scheduler = EngineProcess(free_port(), role="scheduler", world_size=2)
    try:
        engine = connect(odd_one, scheduler.ready())
        apply(engine, min_prefix_length=500)
        for worker in engine.workers.values():
            assert io_loop.run(worker.state).conf["min_retrieve_tokens"] == 500
        assert list(io_loop.run(engine.snapshot).members) == ["worker0"]
        config = io_loop.run(engine.config)
        assert (config.max_size_mb, config.min_prefix_length, config.differences) == (4, 500, {})
        apply(engine, min_prefix_length=CHUNK)
        with pytest.raises(UnsupportedError, match="only the engine's scheduler answers"):
            io_loop.run(connect(scheduler).config)
    finally:
        scheduler.stop()


def test_size_and_policy_need_a_restart_and_the_reason_names_the_key(engine: InProcessDeployment) -> None:
    support = io_loop.run(engine.support)
    assert set(support) == set(SETTINGS)
    for setting, key in (("max_size_mb", "max_local_cpu_size"), ("eviction_policy", "cache_policy")):
        assert support[setting].level is SupportLevel.RESTART
        assert key in support[setting].reason
    with pytest.raises(UnsupportedError, match=r"crashes a running engine.*max_local_cpu_size.*Nothing was changed"):
        apply(engine, max_size_mb=4, min_prefix_length=500)
    config = io_loop.run(engine.config)
    assert (config.max_size_mb, config.min_prefix_length) == (2, CHUNK)
    assert io_loop.run(engine.restart_command, ConfigUpdate(max_size_mb=4)) is None


def test_clearing_l1_says_how_many_tokens_went_and_other_backends_are_refused(
    engine: InProcessDeployment, twins: Twins, tmp_path: Path
) -> None:
    for worker in twins:
        worker.play((1, 8))
    apply(engine, l2_adapters=(disk(tmp_path),))
    assert io_loop.run(engine.clear_backend, "LocalCPUBackend") == 16 * CHUNK
    assert io_loop.run(engine.snapshot).resident_objects == 0
    with pytest.raises(UnsupportedError, match=r"can clear only LocalCPUBackend.*Nothing was removed"):
        io_loop.run(engine.clear_backend, "LocalDiskBackend")
    with pytest.raises(UnsupportedError, match=r"worker0 has no backend Nope; it has: LocalCPUBackend, LocalDiskBackend"):
        io_loop.run(engine.clear_backend, "Nope")
    apply(engine, l2_adapters=())
    assert twins[0].play((1, 8)) == [0]


def test_a_frozen_engine_stores_nothing_and_says_so(engine: InProcessDeployment, twins: Twins) -> None:
    twins[0].play((1, 8))
    io_loop.run(engine.freeze, True)
    try:
        assert twins[0].play((1, 8), (2, 8), (2, 8)) == [8, 0, 0]
        assert any("worker1: LMCache is frozen" in one for one in io_loop.run(engine.snapshot).health.problems)
    finally:
        io_loop.run(engine.freeze, False)
    assert twins[0].play((2, 8), (2, 8)) == [0, 8]
    assert io_loop.run(engine.snapshot).health.healthy


def test_a_bypassed_backend_is_not_read_and_keeps_what_it_has(engine: InProcessDeployment, twins: Twins) -> None:
    twins[0].play((1, 8))
    io_loop.run(engine.bypass, "LocalCPUBackend", True)
    try:
        assert twins[0].play((1, 8), (1, 8)) == [0, 0]
        assert io_loop.run(engine.config).enabled is False
        assert "LocalCPUBackend is bypassed" in io_loop.run(engine.snapshot).health.problems[0]
    finally:
        io_loop.run(engine.bypass, "LocalCPUBackend", False)
    assert twins[0].play((1, 8)) == [8]
    with pytest.raises(UnsupportedError, match="it has: LocalCPUBackend"):
        io_loop.run(engine.bypass, "RemoteBackend", True)


def test_a_hot_cache_that_is_turned_off_is_empty_when_it_is_on_again(engine: InProcessDeployment, twins: Twins) -> None:
    twins[0].play((1, 8))
    io_loop.run(engine.hot_cache, False)
    try:
        assert twins[0].play((1, 8), (1, 8)) == [0, 0]
        assert "the hot cache is off" in io_loop.run(engine.snapshot).health.problems[0]
    finally:
        io_loop.run(engine.hot_cache, True)
    assert twins[0].play((1, 8), (1, 8)) == [0, 8]


def test_what_an_engine_cannot_do_is_refused_with_the_alternative(engine: InProcessDeployment) -> None:
    refused: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: io_loop.run(engine.entries, 10), "cannot list"),
        (lambda: io_loop.run(engine.tenants), "by tenant"),
        (lambda: io_loop.run(engine.warm, "toy", [1], ""), "send the prompt"),
        (lambda: io_loop.run(engine.delete, "toy", ["00"], ""), "clear L1 instead"),
        (lambda: io_loop.run(engine.delete_prefix, "toy", [1], ""), "clear L1 instead"),
        (lambda: io_loop.run(partial(engine.pin, "toy", [1], "", pinned=True)), "freeze"),
    )
    for ask, alternative in refused:
        with pytest.raises(UnsupportedError, match=alternative):
            ask()
    assert io_loop.run(engine.access_log) is None


def test_an_lmcache_server_is_no_engine_and_its_ports_are_told_apart(connect: Connect, launch: Launch) -> None:
    server = launch({})
    with pytest.raises(NotLMCacheError, match=r"it is the admin API of an `lmcache server`.*internal_api_server_port_start"):
        io_loop.run(connect(server.http_url).config)
    with pytest.raises(NotLMCacheError, match="is not an engine's internal API"):
        io_loop.run(connect(server.rpc_url.replace("tcp", "http")).snapshot)


def test_addresses_that_cannot_be_are_refused() -> None:
    for urls, why in (((), "none is given"), (("http://a:1", "http://a:1/"), "given twice"), (("a:1",), "not an address")):
        with pytest.raises(SettingsError, match=why):
            InProcessDeployment(urls)


@pytest.mark.long
def test_a_killed_worker_is_left_out_of_readings_and_nothing_is_changed_without_it(
    connect: Connect, twins: Twins, odd_one: EngineProcess
) -> None:
    engine = connect(twins[0], odd_one, timeout=2)
    assert io_loop.run(engine.snapshot).l1_total_bytes == 6 * MB

    def kill(step: str) -> None:
        if "worker1" in step:
            odd_one.kill()

    with pytest.raises(
        RefusedError, match=r"worker1 refused .* no longer answers .*; the change was undone on worker0\. Nothing was changed"
    ):
        io_loop.run(engine.freeze, True, kill)
    seen = io_loop.run(engine.snapshot)
    assert (list(seen.members), seen.l1_total_bytes) == (["worker0"], 2 * MB)
    assert len(seen.health.problems) == 1  # worker0 is not frozen
    assert "worker1 is missing from the sums: no engine answered" in seen.health.problems[0]
    assert io_loop.run(engine.config).max_size_mb == 2
    for change in (lambda: apply(engine, min_prefix_length=500), lambda: io_loop.run(engine.freeze, True)):
        with pytest.raises(UnreachableError, match=r"a change needs all workers.*worker1.*Nothing was changed"):
            change()
    assert minima(twins[0], connect=connect) == [CHUNK]
