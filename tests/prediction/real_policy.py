"""LMCache's own eviction policy objects, driven by hand over a log as its server drives them."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from agent_tools.prediction.eviction_clock import EVERY_REQUEST
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog


def lmcache_module(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Google's packages warn about this Python when lmcache imports them
        return pytest.importorskip(name, reason="lmcache is not installed")


def drive(policy: Any, log: AccessLog, setting: ServerSetting, phase: float, period: float) -> dict[str, list[int] | int]:
    """Lookup, store batch, END_SESSION touch, with LMCache's policy object keeping the order; what it evicts is gone.

    The events are those of LMCache 0.5.6's ``L1Manager``: ``on_keys_reserved`` and ``on_keys_created`` for a store,
    ``on_keys_touched`` for END_SESSION, ``on_keys_removed`` after an eviction.
    """
    resident: set[int] = set()
    hits, dropped, evicted = [], [], 0
    next_tick = (log.timestamps[0] if len(log) else 0.0) + phase * period

    def tick() -> int:
        if not resident or len(resident) / setting.capacity_chunks < setting.watermark:
            return 0
        keys = [key for action in policy.get_eviction_actions(setting.ratio) for key in action.keys]
        resident.difference_update(keys)
        policy.on_keys_removed(keys)
        return len(keys)

    for index, request in enumerate(_requests(log)):
        while period != EVERY_REQUEST and next_tick <= log.timestamps[index]:
            evicted += tick()
            next_tick += period
        hit = next((i for i, chunk in enumerate(request) if chunk not in resident), len(request))
        missing = [chunk for chunk in request[hit:] if chunk not in resident]
        fits = len(resident) + len(missing) <= setting.capacity_chunks
        if fits:
            policy.on_keys_reserved(missing)
            policy.on_keys_created(missing)
            resident.update(missing)
        policy.on_keys_touched(request)
        hits.append(hit)
        dropped.append(0 if fits else len(missing))
        if period == EVERY_REQUEST:
            evicted += tick()
    return {"hits": hits, "dropped": dropped, "evicted": evicted}


def _requests(log: AccessLog) -> Iterator[list[int]]:
    for index in range(len(log)):
        yield log.request(index).astype(np.int64).tolist()
