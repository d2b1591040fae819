"""The server model in the middle of its run: the same as in one go, and what is changed changes only what comes after."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import log_of, logs, trace

from agent_tools.prediction.cache_run import CacheRun
from agent_tools.prediction.running_server import RunningServer
from agent_tools.prediction.server_model import simulate_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog

PHASE, PERIOD = 0.3, 0.73205
SETTINGS = [
    ServerSetting(7, watermark=0.5, ratio=0.3),
    ServerSetting(7, watermark=0.7, l2_capacity_chunks=12),
    ServerSetting(7, watermark=0.7, l2_capacity_chunks=12, l2_hard_limit=True, l2_prefetch_policy="retain"),
    ServerSetting(9, policy="noop", l2_capacity_chunks=float("inf"), l2_evicts=False),
]


def started(setting: ServerSetting, log: AccessLog) -> RunningServer:
    first = float(log.timestamps[0]) if len(log) else 0.0
    return RunningServer(setting, first_tick=first + PHASE * PERIOD, period=PERIOD)


def in_parts(server: RunningServer, log: AccessLog, ends: list[int]) -> list[Any]:
    """(L1 hits, L2 hits, dropped) of a run that is looked at after each of these requests; it knows no more of the log then."""
    columns = []
    for start, stop in pairwise([0, *ends, len(log)]):
        known = log.select(slice(0, stop))
        until = float(log.timestamps[stop - 1]) if stop else 0.0
        columns.append(server.run(known, slice(start, stop), until))
    return [np.concatenate(column).tolist() for column in zip(*columns, strict=True)]


def columns_of(run: CacheRun) -> list[Any]:
    return [column.tolist() for column in (run.l1_hit_chunks, run.l2_hit_chunks, run.dropped_chunks)]


@given(logs(), st.sampled_from(SETTINGS), st.lists(st.integers(0, 14), max_size=5))
def test_a_run_in_parts_is_the_run_in_one_go(log: AccessLog, setting: ServerSetting, ends: list[int]) -> None:
    server, run = started(setting, log), simulate_server(log, setting, phase=PHASE, period=PERIOD)
    assert in_parts(server, log, sorted(min(end, len(log)) for end in ends)) == columns_of(run)
    assert server.removed >= run.evicted_chunks
    assert server.stored - server.removed == int(server.in_l1.sum())
    assert (server.l2_evicted, server.load_failed) == (run.l2_evicted_chunks, run.load_failed_chunks)


@pytest.mark.parametrize("capacity", [60, 120, 400])
def test_recorded_traffic_looked_at_a_hundred_times_gives_what_the_fast_model_gives(capacity: int) -> None:
    log = trace("lmcache_agent_miniswe")
    log = replace(log, timestamps=log.timestamps / 30)
    server = started(ServerSetting(capacity), log)
    run = simulate_server(log, server.setting, phase=PHASE, period=PERIOD)
    assert in_parts(server, log, np.linspace(0, len(log), 100, dtype=int).tolist()) == columns_of(run)
    assert server.removed == run.evicted_chunks
    assert server.ticks == int((log.duration - PHASE * PERIOD) / PERIOD) + 1


@given(logs(), st.sampled_from(SETTINGS), st.sampled_from(SETTINGS), st.integers(0, 14))
def test_a_change_touches_only_what_comes_after(log: AccessLog, old: ServerSetting, new: ServerSetting, at: int) -> None:
    at = min(at, len(log))
    server = started(old, log)
    before = server.run(log, slice(0, at), float(log.timestamps[at - 1]) if at else 0.0)
    held = server.in_l1.copy()
    server.setting = new
    assert server.in_l1.tolist() == held.tolist()
    unchanged = simulate_server(log, old, phase=PHASE, period=PERIOD)
    assert [column.tolist() for column in before] == [column[:at] for column in columns_of(unchanged)]


def test_after_a_change_the_contents_are_still_hit_and_the_new_watermark_evicts() -> None:
    log = log_of([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]], times=[0, 0.1, 5])
    server = RunningServer(ServerSetting(5, watermark=1.0), first_tick=0.5)
    assert server.run(log, slice(0, 1), 0.05)[0].tolist() == [0]
    server.setting = ServerSetting(5, watermark=0.5, ratio=0.5)
    assert server.run(log, slice(1, 2), 0.4)[0].tolist() == [4]
    server.run(log, slice(2, 2), 0.6)
    assert server.in_l1[:4].tolist() == [True, True, False, False], "the tick at 0.5 dropped half, the deepest first"
    assert (server.removed, server.ticks) == (2, 1)


def test_least_recent_chunks_go_first_and_chosen_ones_only() -> None:
    log = log_of([[1, 2, 3], [4, 5]], times=[0, 0.1])
    server = RunningServer(ServerSetting(10), first_tick=0.5)
    server.run(log, slice(0, 2), 0.2)
    server.drop_least_recent(2)
    assert server.in_l1[:5].tolist() == [True, False, False, True, True]
    assert server.drop(np.array([0, 1, 4], np.int32)) == 2
    assert server.in_l1[:5].tolist() == [False, False, False, True, False]
    server.drop_least_recent(100)
    assert (server.in_l1.any(), server.removed, server.stored) == (False, 5, 5)


def test_another_l2_is_empty() -> None:
    log = log_of([[1, 2], [1, 2], [1, 2]], times=[0, 0.1, 0.2])
    server = RunningServer(ServerSetting(4, l2_capacity_chunks=9), first_tick=0.5)
    server.run(log, slice(0, 1), 0.05)
    server.drop_least_recent(2)
    assert server.run(log, slice(1, 2), 0.15)[1].tolist() == [2]
    server.empty_l2()
    assert not server.in_l2.any()
    server.drop_least_recent(2)
    assert server.run(log, slice(2, 3), 0.25)[1].tolist() == [0]
