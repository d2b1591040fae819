"""The model of in-process LMCache with a local disk, against LMCache's own cache policies."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import log_of, logs, trace
from real_policy import lmcache_module

from agent_tools.errors import WorkloadError
from agent_tools.prediction.forecast import forecast
from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.prediction.in_process_disk import can_hang, simulate_with_disk, why_disk_not_modelled
from agent_tools.prediction.in_process_model import InProcessPolicy, simulate_in_process
from agent_tools.prediction.in_process_setting import InProcessSetting
from agent_tools.prediction.offline import forecasts_of_trace, setting_without_size
from agent_tools.workload.access_log import AccessLog

COVERED: list[InProcessPolicy] = ["LRU", "FIFO"]


class _Entry:
    can_evict = True


class Tier:
    """One backend of LMCache 0.5.6 with LMCache's policy object."""

    def __init__(self, policy: str, capacity: int) -> None:
        self.policy = lmcache_module("lmcache.v1.storage_backend.cache_policy").get_cache_policy(policy)
        self.held: dict[int, Any] = self.policy.init_mutable_mapping()
        self.capacity = capacity
        self.evicted = 0

    def room(self, taken: int) -> bool:
        """Evict until one more than ``taken`` fits beside what is held."""
        while len(self.held) + taken >= self.capacity:
            victims = self.policy.get_evict_candidates(self.held, num_candidates=1)
            if not victims:
                return False
            self.held.pop(victims[0])
            self.evicted += 1
        return True

    def put(self, chunk: int) -> None:
        if chunk not in self.held:
            self.held[chunk] = _Entry()
            self.policy.update_on_put(chunk)

    def touch(self, chunks: list[int]) -> None:
        for chunk in chunks:
            self.policy.update_on_hit(chunk, self.held)


def stored_on_disk(disk: Tier, chunks: list[int]) -> None:
    """A chunk that comes in is on the disk's list only when all of them are written."""
    fresh: list[int] = []
    for chunk in chunks:
        if chunk in disk.held:
            disk.touch([chunk])
        elif disk.room(len(fresh)):
            fresh.append(chunk)
    for chunk in fresh:
        disk.put(chunk)


def drive(policy: str, log: AccessLog, capacity: int, disk_capacity: int) -> tuple[list[int], list[int], list[int], int, int]:
    """The steps that were observed on the real engine: (hits in L1, on the disk, not stored, evicted, evicted from the disk)."""
    cpu, disk = Tier(policy, capacity), Tier(policy, disk_capacity)
    hits, disk_hits, dropped = [], [], []
    for index in range(len(log)):
        request: list[int] = log.request(index).tolist()
        first = next((i for i, chunk in enumerate(request) if chunk not in cpu.held), len(request))
        last = next((i for i, chunk in enumerate(request) if i >= first and chunk not in disk.held), len(request))
        for chunk in request[:first]:
            cpu.held[chunk].can_evict = False
        cpu.touch(request[:first][::-1])
        disk.touch(request[first:last][::-1])
        loaded = [cpu.room(taken) for taken in range(last - first)]
        disk.touch(request[first:last])
        for chunk, fits in zip(request[first:last], loaded, strict=True):
            if fits:
                cpu.put(chunk)
        for chunk in request[:first]:
            cpu.held[chunk].can_evict = True
        stored = [chunk for taken, chunk in enumerate(request[last:]) if cpu.room(taken)]
        for chunk in stored:
            cpu.put(chunk)
        stored_on_disk(disk, stored)
        hits.append(first)
        disk_hits.append(last - first)
        dropped.append(len(request) - last - len(stored))
    return hits, disk_hits, dropped, cpu.evicted, disk.evicted


def told(log: AccessLog, capacity: int, disk: int, policy: InProcessPolicy) -> tuple[list[int], list[int], list[int], int, int]:
    run = simulate_with_disk(log, capacity, disk, policy)
    columns = (run.l1_hit_chunks.tolist(), run.l2_hit_chunks.tolist(), run.dropped_chunks.tolist())
    return (*columns, run.evicted_chunks, run.l2_evicted_chunks)


@pytest.fixture(scope="module", params=COVERED)
def policy(request: pytest.FixtureRequest) -> InProcessPolicy:
    lmcache_module("lmcache.v1.storage_backend.cache_policy")
    return request.param  # type: ignore[no-any-return]


@given(log=logs(), capacity=st.integers(0, 16), disk=st.integers(0, 20))
def test_the_model_equals_lmcaches_policy_objects(policy: InProcessPolicy, log: AccessLog, capacity: int, disk: int) -> None:
    assert told(log, capacity, disk, policy) == drive(policy, log, capacity, disk)


@pytest.mark.parametrize(("name", "share"), [("mooncake_conversation", 0.1), ("lmcache_agent_miniswe", 0.1)])
def test_recorded_traffic_equals_lmcaches_policy_objects(policy: InProcessPolicy, name: str, share: float) -> None:
    log = trace(name).select(slice(0, 1500))
    capacity, disk = int(share * log.unique_chunks), int(3 * share * log.unique_chunks)
    found = told(log, capacity, disk, policy)
    assert found == drive(policy, log, capacity, disk)
    assert sum(found[1]) > 0
    assert found[4] > 0


@given(log=logs(), capacity=st.integers(0, 16))
def test_no_disk_gives_what_memory_alone_gives(log: AccessLog, capacity: int) -> None:
    for name in COVERED:
        run, alone = simulate_with_disk(log, capacity, 0, name), simulate_in_process(log, capacity, name)
        assert run.l1_hit_chunks.tolist() == alone.l1_hit_chunks.tolist()
        assert (run.evicted_chunks, run.peak_chunks, run.l2_peak_chunks) == (alone.evicted_chunks, alone.peak_chunks, 0)


@given(logs())
def test_a_disk_that_holds_all_gives_what_the_curve_gives(log: AccessLog) -> None:
    longest = int(log.chunks_per_request.max(initial=0))
    for name in COVERED:
        run = simulate_with_disk(log, longest, math.inf, name)
        assert run.hit_tokens == hit_rate_curve(log).hit_tokens(log.unique_chunks)
        assert run.load_failed_chunks == 0


def test_what_l1_lost_comes_from_the_disk_and_stays_in_l1() -> None:
    run = simulate_with_disk(log_of([[1, 2], [3, 4], [1, 2], [1, 2]]), 2, 4)
    assert (run.l1_hit_chunks.tolist(), run.l2_hit_chunks.tolist()) == ([0, 0, 0, 2], [0, 0, 2, 0])


def test_a_disk_hit_that_l1_cannot_hold_is_counted() -> None:
    log = log_of([[1, 2], [1, 2, 3], [5, 6], [1, 2, 3]])
    assert [simulate_with_disk(log, size, 9).load_failed_chunks for size in (2, 3)] == [1, 0]
    assert [can_hang(4, size) for size in (3.9, 4, 4.2)] == [True, False, False]


def test_a_policy_without_a_model_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match="KeyError"):
        simulate_with_disk(log_of([[1]]), 3, 3, "LFU")
    for name, reason in (("LFU", "KeyError"), ("MRU", "3 points")):
        with pytest.raises(WorkloadError, match=reason):
            setting_without_size(name, 0.8, 0.2, "default", l2_mb=4, in_process=True)
    assert "not several tiers" in (why_disk_not_modelled("LRU", other=True) or "")
    assert "local_cpu false" in (why_disk_not_modelled("FIFO", local_cpu=False) or "")
    assert why_disk_not_modelled("LRU") is None


def _busy() -> AccessLog:
    return replace(log_of([[n % 9 * 10 + depth for depth in range(6)] for n in range(90)]), chunk_bytes=2**20)


def test_a_forecast_says_what_the_disk_serves_and_names_sizes_that_can_hang() -> None:
    under = setting_without_size("LRU", 0.8, 0.2, "default", l2_mb=40, in_process=True)
    (found,) = forecasts_of_trace(_busy(), under, sizes_mb=[4, 20, 60], l2_mb=40).values()
    assert found.second_tier == "a local disk of 40 chunks"
    for row in found.rows:
        run = simulate_with_disk(_busy(), row.capacity_chunks, 40)
        assert (row.server, row.from_l2) == (run.hit_rate, run.l2_hit_rate)
    (note,) = [note for note in found.notes if "hang" in note]
    assert "6 chunks" in note
    assert "6.0 MB" in note
    assert "the 1 smallest sizes shown are below" in note


def test_no_size_that_can_hang_is_in_the_default_grid() -> None:
    found = forecast(_busy(), InProcessSetting(1, l2_capacity_chunks=40))
    assert found.rows
    assert min(row.capacity_chunks for row in found.rows) >= 6
    assert not [note for note in found.notes if "sizes shown are below" in note]
    assert all(small.server <= large.server + 0.2 for small, large in pairwise(found.rows))
