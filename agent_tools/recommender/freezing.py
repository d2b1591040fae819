"""A frozen L1: it is below its watermark, so the server evicts nothing, and no store fits. What that costs, and what helps."""

from dataclasses import replace

import numpy as np

from agent_tools.models import Gain, Window
from agent_tools.models.metrics import utc
from agent_tools.prediction.isolation import isolated
from agent_tools.prediction.running_server import RunningServer
from agent_tools.prediction.server_setting import ServerSetting

from .modelled import gain_between, predicted_rate, server_setting
from .observation import Observation, PredictedHits

THAWED = ((0.8, 0.2), (0.6, 0.2), (0.5, 0.1))
"""Watermarks and ratios, from LMCache's default down, to compare a frozen L1 with."""


def lost_by_freezing(seen: Observation) -> float | None:
    """Return the token hit rate that a lower watermark would add, or ``None`` if the model cannot say.

    A frozen L1 can be the best L1 there is: it keeps a working set that every eviction would break up.
    """
    here = server_setting(seen)
    if here is None or seen.in_process or seen.log is None or seen.curve is None:
        return None
    lower = [replace(here, watermark=watermark, ratio=ratio) for watermark, ratio in THAWED if watermark < here.watermark]
    now = predicted_rate(seen, here)
    return max((predicted_rate(seen, setting) for setting in lower), default=now) - now


def gain_of_dropping(seen: Observation, target_utilization: float) -> Gain | None:
    """Return the predicted gain of dropping the coldest entries once, with all settings as they are.

    The model drops them in the middle of the window and serves the second half with and without that. The relief does not last,
    so a longer window shows less of it.

    Args:
        seen: The observation.
        target_utilization: Share of L1 that stays in use, (0, 1).
    """
    here = server_setting(seen)
    if here is None or seen.in_process or seen.log is None or here.tenant_quotas is not None or seen.in_window.sum() < 2:
        return None
    times = seen.log.timestamps[seen.in_window]
    middle = float(np.median(times))
    half = seen.during(Window(start=utc(middle), end=seen.metrics.window.end))
    if not half.in_window.any():
        return None
    kept, dropped = (_second_half(half, here, share) for share in (None, target_utilization))
    gain = gain_between(kept, dropped)
    return gain.model_copy(update={"method": f"{gain.method}; the entries are dropped in the middle of the window"})


def _second_half(half: Observation, setting: ServerSetting, share: float | None) -> PredictedHits:
    """Return the hits of the window's requests if L1 is cut to a share of its size when the window begins."""
    assert half.log is not None  # noqa: S101  callers have a log
    log, start = isolated(half.log), half.metrics.window.start.timestamp()
    first = int(np.searchsorted(log.timestamps, start))
    l1, l2 = [], []
    for clock in half.clocks:
        server = RunningServer(setting, first_tick=clock.first_tick(log), period=clock.period, delay=half.store_delay)
        server.run(log, slice(0, first), start)
        if share is not None:
            server.drop_least_recent(int(server.in_l1.sum() - share * setting.capacity_chunks))
        hits, from_l2, _ = server.run(log, slice(first, len(log)), float(log.timestamps[-1]))
        counted = half.in_window[first:]
        l1.append(hits[counted])
        l2.append(from_l2[counted])
    asked = half.window_chunks.astype(np.float64)
    return PredictedHits(asked=asked, l1=np.array(l1, np.float64), l2=np.array(l2, np.float64), own=half.own_hits)
