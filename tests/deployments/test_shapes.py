"""Claims about the shapes of production on real servers: several KV ranks, two models, two object groups, an L2 behind L1."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_cache import Launch, eventually
from real_engine import BYTES, CHUNKS, engine
from real_logs import CHUNK_SIZE, log_of

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.deployments.snapshot import Snapshot, metrics_between
from agent_tools.errors import UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, CacheMetrics
from agent_tools.operations import Operations
from agent_tools.workload.tokens import prompt


@pytest.fixture(scope="module")
def l2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("l2")


@pytest.fixture(scope="module")
def plain(launch: Launch, l2: Path) -> ServerProcess:
    """A server without our module, with an L2 that keeps everything."""
    return launch({"--l2-adapter": [json.dumps({"type": "fs", "base_path": str(l2)})], "--l2-prefetch-policy": "retain"})


@pytest.fixture(scope="module")
def with_module(launch: Launch) -> ServerProcess:
    """A server with our module, and one that gives models named hybrid two object groups."""
    modules = [{"module_path": name, "config": {}} for name in ("benchmarks.hybrid_module", "agent_tools.server_module")]
    root = str(Path(__file__).parents[2])
    return launch({"--server-module": [json.dumps(module) for module in modules]}, {"PYTHONPATH": root})


def tokens_of(first: int) -> list[int]:
    log = log_of(range(first, first + CHUNKS))
    return list(prompt(log.request(0) + first, int(log.tokens[0]), CHUNK_SIZE))


@contextmanager
def operated(process: ServerProcess, tmp_path: Path, **settings: object) -> Iterator[Operations]:
    caches = {"prod": CacheSettings.model_validate({"target": process.http_url, "cooldown_seconds": 0} | settings)}
    operations = Operations(Registry(Settings(caches=caches, state_folder=tmp_path)))
    try:
        yield operations
    finally:
        io_loop.run(operations.close)


def reading(process: ServerProcess) -> Snapshot:
    async def read() -> Snapshot:
        deployment = ServerDeployment(process.http_url)
        try:
            return await deployment.snapshot()
        finally:
            await deployment.close()

    return io_loop.run(read)


def figures_of(process: ServerProcess, model: str, ranks: int, first: int, **how: bool) -> CacheMetrics:
    """Return the figures of a window in which two prompts are stored and one of them is asked for again."""
    with engine(process, model, ranks, **how) as ask:
        before = reading(process)
        assert [ask(first), ask(first + CHUNKS), ask(first)] == [0, 0, CHUNKS]
        wanted = 3 * CHUNKS * CHUNK_SIZE
        eventually(lambda: metrics_between(before, reading(process)).tokens.requested == wanted)
        eventually(lambda: (metrics_between(before, reading(process)).stored_chunks or 0) >= 2 * CHUNKS)
        return metrics_between(before, reading(process))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_deleted_prefix_is_found_in_no_tier_and_on_no_rank(plain: ServerProcess, l2: Path, tmp_path: Path, ranks: int) -> None:
    model, first = f"deleted{ranks}", 1000 * ranks
    with engine(plain, model, ranks) as ask, operated(plain, tmp_path) as operations:
        assert (ask(first), ask(first)) == (0, CHUNKS)
        eventually(lambda: sum(model in file.name for file in l2.iterdir()) == CHUNKS * ranks)
        deleted = io_loop.run(operations.delete_prefix, "prod", model, tokens_of(first), "", "test", "leaked")
        assert deleted.success
        assert deleted.message == f"{CHUNKS} chunks of the prefix were deleted; a lookup no longer finds it, in any tier"
        again = io_loop.run(operations.delete_prefix, "prod", model, tokens_of(first), "", "test", "leaked")
        assert not again.success
        assert again.message.startswith("nothing of the prefix was in L1; a lookup no longer finds it")
        assert ask(first) == 0


def test_a_prefix_that_l2_alone_holds_is_deleted_and_warmed_with_all_its_ranks(
    plain: ServerProcess, l2: Path, tmp_path: Path
) -> None:
    with engine(plain, "warm2", 2) as ask, operated(plain, tmp_path) as operations:
        assert ask(50_000) == 0
        eventually(lambda: sum("warm2" in file.name for file in l2.iterdir()) == 2 * CHUNKS)
        io_loop.run(operations.clear, "prod", "test")
        warmed = io_loop.run(operations.warm, "prod", "warm2", tokens_of(50_000), "", "test")
        assert (warmed.requested_chunks, warmed.found_chunks) == (CHUNKS, CHUNKS)
        assert reading(plain).resident_objects == 2 * CHUNKS


def test_without_a_registered_engine_the_world_size_is_unknown_and_nothing_is_deleted(
    plain: ServerProcess, tmp_path: Path
) -> None:
    with (
        operated(plain, tmp_path) as operations,
        pytest.raises(UnsupportedError, match=r"world size is unknown.*Nothing was deleted"),
    ):
        io_loop.run(operations.delete_prefix, "prod", "nobody", tokens_of(0), "", "test", "leaked")


def test_trimming_a_server_of_two_ranks_removes_its_coldest_chunks(plain: ServerProcess, tmp_path: Path) -> None:
    io_loop.run(cleared, plain)
    with engine(plain, "trimmed", 2) as ask, operated(plain, tmp_path, access_log=plain.folder / "lookups") as operations:
        for number in range(20):
            ask(60_000 + CHUNKS * number)
        before = reading(plain).l1_used_bytes
        target = 0.5 * 100 * before / (16 * MB)
        trimmed = io_loop.run(operations.optimize, "prod", target, "test")
        assert trimmed.entries_evicted > 0
        assert 0 < reading(plain).l1_used_bytes <= before / 2


@pytest.mark.parametrize("ranks", [2, 8])
def test_without_our_module_every_count_is_in_chunks(plain: ServerProcess, ranks: int) -> None:
    io_loop.run(cleared, plain)
    seen = figures_of(plain, f"counted{ranks}", ranks, 70_000 + 1000 * ranks)
    assert (seen.stored_chunks, seen.failed_stores) == (2 * CHUNKS, 0)


async def cleared(process: ServerProcess) -> None:
    deployment = ServerDeployment(process.http_url)
    await deployment.clear()
    await deployment.close()


@pytest.mark.parametrize(
    ("model", "ranks", "groups"), [("one", 1, 1), ("eight", 8, 1), ("hybrid", 1, 2), ("hybrid2", 2, 2), ("triple4", 4, 3)]
)
def test_with_our_module_chunks_and_bytes_are_those_of_all_ranks_and_groups(
    with_module: ServerProcess, model: str, ranks: int, groups: int
) -> None:
    io_loop.run(cleared, with_module)
    size = groups * max(BYTES * CHUNK_SIZE, 4096 * ranks)
    seen = figures_of(with_module, model, ranks, 80_000 + 1000 * ranks + 100 * groups, retrieves=groups == 1)
    assert (seen.stored_chunks, seen.failed_stores, seen.resident_chunks) == (2 * CHUNKS, 0, 2 * CHUNKS)
    assert seen.incomplete_chunks == 0
    assert seen.kv_bytes_per_token == size / CHUNK_SIZE
    assert seen.memory_saved_mb == pytest.approx(CHUNKS * size / MB)


@pytest.mark.parametrize(("model", "ranks", "groups"), [("six", 6, 1), ("hybrid2", 2, 2), ("triple3", 3, 3)])
def test_a_prefix_is_deleted_with_all_objects_of_its_chunks_and_the_others_stay(
    with_module: ServerProcess, tmp_path: Path, model: str, ranks: int, groups: int
) -> None:
    io_loop.run(cleared, with_module)
    with engine(with_module, model, ranks, retrieves=groups == 1) as ask, operated(with_module, tmp_path) as operations:
        first = 97_000 + 100 * ranks
        assert (ask(first), ask(first + CHUNKS)) == (0, 0)
        eventually(lambda: reading(with_module).resident_objects == 2 * CHUNKS * ranks * groups)
        deleted = io_loop.run(operations.delete_prefix, "prod", model, tokens_of(first), "", "test", "leaked")
        assert deleted.message == f"{CHUNKS} chunks of the prefix were deleted; a lookup no longer finds it, in any tier"
        assert reading(with_module).resident_objects == CHUNKS * ranks * groups
        assert (ask(first), ask(first + CHUNKS)) == (0, CHUNKS)


def test_chunks_that_one_rank_did_not_store_are_counted_as_incomplete(with_module: ServerProcess) -> None:
    io_loop.run(cleared, with_module)
    with engine(with_module, "half", 2) as ask:
        assert (ask(90_000, stored_by=1), ask(90_000, stored_by=1)) == (0, 0)
        eventually(lambda: metrics_between(None, reading(with_module)).incomplete_chunks == CHUNKS)


def test_one_model_with_two_world_sizes_shares_no_chunk_in_the_log(with_module: ServerProcess) -> None:
    deployment = ServerDeployment(with_module.http_url)
    with engine(with_module, "same", 1) as alone, engine(with_module, "same", 2) as together:
        assert [alone(95_000), together(95_000), together(95_000)] == [0, 0, CHUNKS]

        def names() -> set[str]:
            log = io_loop.run(deployment.access_log)
            return set() if log is None else {log.model_names[label] for label in log.models}

        eventually(lambda: {"same (world size 1)", "same (world size 2)"} <= names())
        log = io_loop.run(deployment.access_log)
    io_loop.run(deployment.close)
    assert log is not None
    layouts = {layout.world_size: layout for layout in log.layouts if layout is not None and layout.model == "same"}
    assert {size: layout.objects for size, layout in layouts.items()} == {1: 1, 2: 2}
