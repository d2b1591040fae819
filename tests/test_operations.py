"""Claims about the verbs: windows, what is dropped, and that reading writes nothing. Figures are the server's own."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_cache import Play
from real_logs import CHUNK_SIZE, conversations, log_of

from agent_tools.caches.history import MOST_INTERVALS, merged, requests_digest
from agent_tools.caches.registry import Cache
from agent_tools.errors import UnknownCacheError, UnreachableError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, SETTINGS, CacheMetrics, ChangeOutcome
from agent_tools.operations import Operations
from agent_tools.operations.read import TOP_ENTRIES
from agent_tools.workload.access_log import AccessLog

CHUNK_MB = 128 * CHUNK_SIZE / MB


def metrics(operations: Operations, window_seconds: float | None = None) -> CacheMetrics:
    return io_loop.run(operations.metrics, "default", window_seconds)


# ---- reading ----


@pytest.mark.real_cache("it names LMCache's version")
def test_the_status_holds_all_that_can_be_known_and_says_what_cannot(operations: Operations, cache: Cache, play: Play) -> None:
    play(log_of(*conversations(2, 8), *conversations(2, 8)), model="status")  # chunks that no other test has used
    status = io_loop.run(operations.status)
    assert (status.lmcache_version, status.backend) == ("0.5.6", "embedded")
    assert status.health.healthy
    assert status.metrics.resident_chunks == 16
    assert status.metrics.window.lifetime
    assert status.config.max_size_mb == 16
    assert status.top_entries is not None
    assert [entry.hit_count for entry in status.top_entries] == [1] * min(16, TOP_ENTRIES)
    assert status.symptoms


def test_a_window_that_earlier_readings_cover_needs_no_waiting(operations: Operations, cache: Cache, play: Play) -> None:
    metrics(operations)
    result = play(log_of(*conversations(3, 8)), clients=1)
    said: list[str] = []
    window = io_loop.run(operations.metrics, "default", 0.01, said.append)
    assert said == [], "nothing was waited for"
    assert (window.total_requests, window.stored_chunks) == (result.requests, result.sent_chunks)
    assert not window.window.lifetime


def test_a_window_that_is_not_covered_is_waited_for(operations: Operations, cache: Cache) -> None:
    said: list[str] = []
    began = time.monotonic()
    window = io_loop.run(operations.metrics, "default", 1.2, said.append)
    assert time.monotonic() - began >= 1.2
    assert window.window.seconds >= 1.2
    assert said[0] == "observing default: 1 s left"
    assert not window.window.lifetime


def test_every_setting_comes_with_how_it_can_be_changed(operations: Operations, cache: Cache) -> None:
    config, support = io_loop.run(operations.config)
    assert config.max_size_mb == 16
    assert set(support) == set(SETTINGS)


def test_reading_writes_nothing(operations: Operations, cache: Cache, state_folder: Path) -> None:
    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in state_folder.rglob("*") if path.is_file() and path.suffix != ".log"}

    async def read_all() -> None:
        await operations.status()
        await operations.metrics()
        await operations.config()
        await operations.recommend()
        await operations.changes("default")
        await operations.baseline("default")

    before = state()
    io_loop.run(read_all)
    assert state() == before


@pytest.mark.parametrize("verb", ["status", "metrics", "config", "recommend", "changes", "baseline"])
def test_a_name_that_is_not_listed_is_refused_by_every_verb(operations: Operations, verb: str) -> None:
    with pytest.raises(UnknownCacheError, match="no cache named 'nope'; the caches are: default, unreachable"):
        io_loop.run(getattr(operations, verb), "nope")


@pytest.mark.parametrize("verb", ["status", "metrics", "config", "recommend", "baseline"])
def test_a_cache_that_does_not_answer_is_unreachable(operations: Operations, verb: str) -> None:
    with pytest.raises(UnreachableError, match="no cache answered"):
        io_loop.run(getattr(operations, verb), "unreachable")


# ---- dropping entries ----


def test_optimize_comes_down_to_the_asked_use_and_counts_what_went(operations: Operations, cache: Cache, play: Play) -> None:
    play(log_of(*conversations(20, 16)), clients=1)
    done = io_loop.run(operations.optimize, "default", 50, "test", "too full")
    assert (done.entries_before, done.entries_after, done.entries_evicted) == (320, 256, 64)
    assert done.memory_freed_mb == pytest.approx(64 * CHUNK_MB)
    assert metrics(operations).utilization_percent == 50
    last = io_loop.run(operations.changes, "default")[-1]
    assert (last.change_id, last.operation, last.outcome, last.reason) == (
        done.change_id,
        "optimize",
        ChangeOutcome.APPLIED,
        "too full",
    )


def test_clear_counts_what_went(operations: Operations, cache: Cache, play: Play) -> None:
    play(log_of(*conversations(4, 8)))
    done = io_loop.run(operations.clear, "default", "test")
    assert (done.entries_before, done.entries_after, done.entries_evicted) == (32, 0, 32)
    assert metrics(operations).used_size_mb == 0


def test_chunks_are_deleted_by_hash_and_counted_by_the_server(operations: Operations, cache: Cache, play: Play) -> None:
    play(log_of(range(8)), model="gone")
    hashes = [entry.prefix_hash for entry in io_loop.run(cache.deployment.entries, 3)]
    done = io_loop.run(operations.delete_chunks, "default", "gone", hashes, "", "test")
    assert (done.entries_evicted, done.entries_after) == (3, 5)


# ---- judging ----


def test_a_baseline_tells_whether_two_windows_held_the_same_requests(operations: Operations, cache: Cache, play: Play) -> None:
    logs = [log_of(*conversations(4, 8)), log_of(*conversations(4, 8)), log_of(*conversations(5, 8))]
    digests = []
    for log in logs:
        cache.history.add(io_loop.run(cache.deployment.snapshot))
        play(log, model="digest")
        baseline = io_loop.run(operations.baseline, "default", 0.001)
        assert baseline.metrics.total_requests == len(log)
        assert sum(requested for requested, _ in baseline.intervals) == len(log.chunk_ids) * CHUNK_SIZE
        digests.append(baseline.requests_digest)
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] is not None


@given(st.permutations(range(6)))
def test_the_digest_does_not_depend_on_the_order_of_requests(order: list[int]) -> None:
    log = hashed(log_of(*conversations(5, 4), []))
    assert requests_digest(log.select(order)) == requests_digest(log)
    assert requests_digest(log.select(order[1:])) != requests_digest(log) or len(log.request(order[0])) == 0


def test_a_log_without_hashes_has_no_digest() -> None:
    assert requests_digest(log_of(range(3))) is None


def hashed(log: AccessLog) -> AccessLog:
    hashes = np.random.default_rng(0).integers(0, 256, (log.unique_chunks, 32), dtype=np.uint8)
    return AccessLog(**{**vars(log), "hashes": hashes})


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=3 * MOST_INTERVALS))
def test_merged_intervals_are_few_and_lose_nothing(intervals: list[tuple[int, int]]) -> None:
    few = merged(intervals)
    assert len(few) <= MOST_INTERVALS
    assert [sum(part) for part in zip(*few, strict=True)] == [sum(part) for part in zip(*intervals, strict=True)]
