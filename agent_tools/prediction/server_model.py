"""`lmcache server` 0.5.6 over time: what a setting would have given on a log, request by request.

The model does what the server does. A lookup finds the leading chunks that are resident. The server stores the missing chunks as
one batch when the engine has computed them, and drops the whole batch if it does not fit into the free space. END_SESSION touches
all chunks of the request, tail first. A thread wakes once a second; if the used share has reached the watermark, it drops a share
of the *keys*, oldest first. A log records when requests arrived but not when that thread woke. So a prediction runs the model
with several phases and gives a mean and an interval.
"""

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

from .cache_run import CacheRun
from .eviction_clock import AT_ONCE, PERIOD, EvictionClock, StoreDelay
from .eviction_order import empty_order
from .isolation import isolated
from .object_model import run_objects
from .objects import needs_objects, objects_of
from .one_tier import OneTier, run_one_tier
from .server_setting import ServerSetting
from .two_tiers import EVICTED, L2_EVICTED, L2_PEAK, LOAD_FAILED, PEAK, Order, SecondTier, run_two_tiers

Int32 = npt.NDArray[np.int32]


def simulate_server(
    log: AccessLog, setting: ServerSetting, *, phase: float = 0.5, period: float = PERIOD, delay: StoreDelay = AT_ONCE
) -> CacheRun:
    """Run the model once, from an empty cache.

    Cost: with L1 only, one step per hit or stored chunk (about 500 M chunk accesses a second); with an L2, or for chunks of
    several objects or of unequal bytes, a few list steps for each chunk or object (about 50 M).

    Args:
        log: The recorded lookups.
        setting: The server's configuration.
        phase: When the eviction thread first wakes after the first request, as a share of its period.
        period: Seconds between two wake-ups, or `EVERY_REQUEST` for one watermark check after each request.
        delay: The delay between a request's lookup and its store.

    Raises:
        ValueError: Times are not finite, or the period is not positive.
    """
    log = isolated(log)
    first_tick = EvictionClock(phase, period).first_tick(log)
    if needs_objects(log):
        return _run_objects(log, setting, first_tick, period, delay)
    run = _run_two_tiers if setting.l2_capacity_chunks > 0 else _run_one_tier
    return run(log, setting, first_tick, period, delay)


def _run_one_tier(log: AccessLog, setting: ServerSetting, first_tick: float, period: float, delay: StoreDelay) -> CacheRun:
    hits, dropped = (np.zeros(len(log), np.int32) for _ in range(2))
    tier = first_tier(setting)
    evicted, peak = run_one_tier(
        log.chunk_ids, log.offsets, log.timestamps, log.unique_chunks, tier, period, first_tick, delay, hits, dropped
    )
    return CacheRun.of_one_tier(log, hits, dropped, evicted, peak)


def _run_two_tiers(log: AccessLog, setting: ServerSetting, first_tick: float, period: float, delay: StoreDelay) -> CacheRun:
    l1_hits, l2_hits, dropped = (np.zeros(len(log), np.int32) for _ in range(3))
    counts = np.zeros(5, np.int64)
    second = second_tier(setting, log.tenant_names)
    owners = log.tenants.astype(np.int32) if second.isolated else np.zeros(len(log), np.int32)
    l1 = Order(*empty_order(log.unique_chunks))
    l2 = Order(*empty_order(log.unique_chunks, len(second.quotas)))
    tier = first_tier(setting)
    run_two_tiers(
        log.chunk_ids,
        log.offsets,
        log.timestamps,
        owners,
        tier,
        second,
        l1,
        l2,
        period,
        first_tick,
        delay,
        l1_hits,
        l2_hits,
        dropped,
        counts,
    )
    return CacheRun(
        chunk_size=log.chunk_size,
        asked_chunks=log.chunks_per_request.astype(np.int32),
        l1_hit_chunks=l1_hits,
        l2_hit_chunks=l2_hits,
        dropped_chunks=dropped,
        evicted_chunks=int(counts[EVICTED]),
        peak_chunks=int(counts[PEAK]),
        l2_evicted_chunks=int(counts[L2_EVICTED]),
        l2_peak_chunks=int(counts[L2_PEAK]),
        load_failed_chunks=int(counts[LOAD_FAILED]),
    )


def _run_objects(log: AccessLog, setting: ServerSetting, first_tick: float, period: float, delay: StoreDelay) -> CacheRun:
    l1_hits, l2_hits = (np.zeros(len(log), np.int32) for _ in range(2))
    dropped, counts = np.zeros(len(log)), np.zeros(5)
    objects, second = objects_of(log), second_tier(setting, log.tenant_names)
    count = int(objects.first[-1])
    run_objects(
        log.chunk_ids,
        log.offsets,
        log.timestamps,
        log.models,
        log.tenants.astype(np.int32) if second.isolated else np.zeros(len(log), np.int32),
        objects,
        first_tier(setting),
        second,
        Order(*empty_order(count)),
        Order(*empty_order(count, len(second.quotas))),
        period,
        first_tick,
        delay,
        l1_hits,
        l2_hits,
        dropped,
        counts,
    )
    return CacheRun(
        chunk_size=log.chunk_size,
        asked_chunks=log.chunks_per_request.astype(np.int32),
        l1_hit_chunks=l1_hits,
        l2_hit_chunks=l2_hits,
        dropped_chunks=np.rint(dropped).astype(np.int32),
        evicted_chunks=round(counts[EVICTED]),
        peak_chunks=round(counts[PEAK]),
        l2_evicted_chunks=round(counts[L2_EVICTED]),
        l2_peak_chunks=round(counts[L2_PEAK]),
        load_failed_chunks=round(counts[LOAD_FAILED]),
    )


def first_tier(setting: ServerSetting) -> OneTier:
    """Return L1 in the form that the kernels take."""
    return OneTier(float(setting.capacity_chunks), float(setting.watermark), float(setting.ratio), setting.evicts)


def second_tier(setting: ServerSetting, tenants: tuple[str, ...]) -> SecondTier:
    """Return L2 in the form that the kernel takes. `tenants` are the log's tenants, in its order, for the quotas."""
    quotas = setting.tenant_quotas
    per_list = [setting.l2_capacity_chunks] if quotas is None else [quotas.get(tenant, 0) for tenant in tenants]
    return SecondTier(
        capacity=float(setting.l2_capacity_chunks),
        watermark=float(setting.l2_watermark),
        ratio=float(setting.l2_ratio),
        evicts=setting.l2_evicts,
        hard_limit=setting.l2_hard_limit,
        retain=setting.l2_prefetch_policy == "retain",
        isolated=quotas is not None,
        quotas=np.array(per_list, np.float64),
    )
