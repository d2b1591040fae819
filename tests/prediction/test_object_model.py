"""Claims about the model of chunks of several objects or of unequal bytes, against LMCache's own rules in plain Python."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logs import logs

from agent_tools.prediction.clairvoyant import clairvoyant_hits
from agent_tools.prediction.eviction_clock import AT_ONCE, EVERY_REQUEST, PERIOD, EvictionClock
from agent_tools.prediction.hit_rate_curve import hit_rate_curve, sized_hits_per_request
from agent_tools.prediction.isolation import isolated
from agent_tools.prediction.objects import needs_objects
from agent_tools.prediction.server_model import _run_objects, simulate_server
from agent_tools.prediction.server_setting import PrefetchPolicy, ServerSetting
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.chunk_layout import ALIGNMENT, ChunkLayout, ObjectGroup, with_layouts

MODELS = ("big", "small")


def layout(ranks: int, pages: int, *windows: int) -> ChunkLayout:
    """Return a layout whose objects take `pages` x 4096 bytes; one object group for each window, one whole group by default."""
    groups = tuple(ObjectGroup(pages * ALIGNMENT, window) for window in windows or (-1,))
    return ChunkLayout(groups, ranks, "m")


LAYOUTS = (
    (layout(2, 1), layout(2, 1)),
    (layout(8, 4), layout(1, 1)),
    (layout(1, 2, -1, 2), layout(1, 1)),
    (layout(2, 1, -1, -1), layout(3, 1, 1)),
)


def of_two_models(log: AccessLog, layouts: tuple[ChunkLayout, ChunkLayout]) -> AccessLog:
    models = (np.arange(len(log)) % 3 == 0).astype(np.int16)
    return isolated(with_layouts(isolated(replace(log, models=models, model_names=MODELS)), layouts))


class Plain:
    """The server as its own code does it: an ordered dictionary of object keys and their bytes."""

    def __init__(self, capacity: float, setting: ServerSetting) -> None:
        self.capacity, self.setting = capacity, setting
        self.objects: OrderedDict[tuple[int, int, int], int] = OrderedDict()

    def request(self, chunks: list[int], layout: ChunkLayout) -> int:
        ranks = range(layout.world_size or 1)
        hit = max((n for n in range(len(chunks) + 1) if self._servable(chunks[:n], layout)), default=0)
        for rank in ranks:
            for number, group in enumerate(layout.groups):
                missing = [(c, number, rank) for c in chunks[hit:] if (c, number, rank) not in self.objects]
                if sum(self.objects.values()) + len(missing) * group.allocated <= self.capacity:
                    self.objects |= dict.fromkeys(missing, group.allocated)
        touched = [(c, number, rank) for number in range(len(layout.groups)) for c in chunks for rank in ranks]
        for key in reversed(touched):
            if key in self.objects:
                self.objects.move_to_end(key)
        used = sum(self.objects.values())
        if self.objects and used / self.capacity >= self.setting.watermark:
            for _ in range(max(int(len(self.objects) * self.setting.ratio), 1)):
                self.objects.popitem(last=False)
        return hit

    def _servable(self, chunks: list[int], layout: ChunkLayout) -> bool:
        return all(
            (c, number, rank) in self.objects
            for number, group in enumerate(layout.groups)
            for c in (chunks if group.window < 0 else chunks[max(len(chunks) - group.window, 0) :])
            for rank in range(layout.world_size or 1)
        )


def by_hand(log: AccessLog, setting: ServerSetting) -> list[int]:
    assert log.chunk_bytes is not None
    server = Plain(setting.capacity_chunks * log.chunk_bytes, setting)
    layouts = [one for one in log.layouts if one is not None]
    return [server.request(log.request(i).tolist(), layouts[log.models[i]]) for i in range(len(log))]


@pytest.mark.parametrize("layouts", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(log=logs(), capacity=st.integers(1, 40), ratio=st.sampled_from([0.05, 0.2, 0.5]))
def test_it_evicts_and_stores_object_by_object_as_lmcache_does(
    layouts: tuple[ChunkLayout, ChunkLayout], log: AccessLog, capacity: int, ratio: float
) -> None:
    log = of_two_models(log, layouts)
    setting = ServerSetting(capacity / 2, watermark=0.8, ratio=ratio)
    assert needs_objects(log)
    assert simulate_server(log, setting, period=EVERY_REQUEST).hit_chunks.tolist() == by_hand(log, setting)


@settings(max_examples=80, deadline=None)
@given(
    log=logs(),
    capacity=st.integers(1, 30),
    l2=st.sampled_from([0, 7, 20]),
    policy=st.sampled_from(["default", "retain"]),
    hard=st.booleans(),
)
def test_for_chunks_of_one_object_it_equals_the_model_that_counts_chunks(
    log: AccessLog, capacity: int, l2: int, policy: PrefetchPolicy, hard: bool
) -> None:
    setting = ServerSetting(capacity, l2_capacity_chunks=l2, l2_prefetch_policy=policy, l2_hard_limit=hard)
    log = with_layouts(isolated(log), [layout(1, 1)] * len(log.model_names))
    assert not needs_objects(log)
    by_object = _run_objects(log, setting, EvictionClock(0.5, PERIOD).first_tick(log), PERIOD, AT_ONCE)
    by_chunk = simulate_server(log, setting, phase=0.5)
    for column in ("l1_hit_chunks", "l2_hit_chunks", "dropped_chunks"):
        assert getattr(by_object, column).tolist() == getattr(by_chunk, column).tolist()
    assert (by_object.evicted_chunks, by_object.l2_evicted_chunks) == (by_chunk.evicted_chunks, by_chunk.l2_evicted_chunks)


@settings(max_examples=60, deadline=None)
@given(log=logs(), capacity=st.integers(0, 60))
def test_the_exact_curve_counts_bytes(log: AccessLog, capacity: int) -> None:
    log = of_two_models(log, (layout(1, 3), layout(1, 1)))
    if not len(log.chunk_ids) or log.chunk_bytes is None:
        return
    size = capacity * ALIGNMENT
    held: OrderedDict[int, int] = OrderedDict()
    found = []
    for i in range(len(log)):
        chunks, weight = log.request(i).tolist(), 3 if log.models[i] == 0 else 1
        here = [chunk in held for chunk in chunks]
        found.append(here.index(False) if False in here else len(here))
        for chunk in reversed(chunks):
            held[chunk] = weight * ALIGNMENT
            held.move_to_end(chunk)
        while sum(held.values()) > size:
            held.popitem(last=False)
    curve = hit_rate_curve(log)
    assert curve.hits(size / log.chunk_bytes) == sum(found)
    assert sized_hits_per_request(log, size / log.chunk_bytes).tolist() == found
    assert clairvoyant_hits(log, size / log.chunk_bytes).sum() >= sum(found)
