"""What a setting will give, with the interval that follows from not knowing when exactly the server evicts."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

from .cache_run import CacheRun
from .eviction_clock import AT_ONCE, EvictionClock, StoreDelay, possible_clocks
from .isolation import isolated
from .server_model import simulate_server
from .server_setting import ServerSetting

MODEL_ERROR = 0.0005
"""Added to the interval on either side: what was left of the error when the server's true ticks were known."""

CLOCKS = 20
"""How many clocks a prediction tries unless told otherwise."""


@dataclass(frozen=True, eq=False)
class ServerPrediction:
    """One setting's outcome over several possible clocks of the eviction thread."""

    setting: ServerSetting
    runs: tuple[CacheRun, ...]
    """One run per clock."""

    @property
    def hit_rate(self) -> float:
        """Expected token hit rate over whole chunks, as the live metric counts it."""
        return float(np.mean([run.hit_rate for run in self.runs]))

    @property
    def interval(self) -> tuple[float, float]:
        """90 % prediction interval of the hit rate one server will show: it has one clock, and we do not know which.

        Order statistics of the runs, without assuming a distribution; 19 clocks or more are needed for the full 90 %.
        """
        rates = [run.hit_rate for run in self.runs]
        lower, upper = np.quantile(rates, (0.05, 0.95), method="weibull")
        return max(float(lower) - MODEL_ERROR, 0.0), min(float(upper) + MODEL_ERROR, 1.0)

    @property
    def hit_chunks(self) -> npt.NDArray[np.float64]:
        """(requests,) expected hit chunks of each request, to compare two settings on the same requests."""
        mean: npt.NDArray[np.float64] = np.mean([run.hit_chunks for run in self.runs], axis=0, dtype=np.float64)
        return mean

    @property
    def failed_chunks(self) -> float:
        """Expected chunks whose store fails."""
        return float(np.mean([run.failed_chunks for run in self.runs]))

    @property
    def evicted_chunks(self) -> float:
        """Expected chunks that ticks drop from L1."""
        return float(np.mean([run.evicted_chunks for run in self.runs]))

    @property
    def peak_chunks(self) -> int:
        """Most chunks in L1 at once, over all runs."""
        return max(run.peak_chunks for run in self.runs)


def predict_server(
    log: AccessLog,
    setting: ServerSetting,
    *,
    clocks: int | Sequence[EvictionClock] = CLOCKS,
    delay: StoreDelay = AT_ONCE,
) -> ServerPrediction:
    """What the server would have given on this log, from an empty cache.

    Args:
        log: What was asked, and when.
        setting: The server's configuration.
        clocks: Of the eviction thread: how many of the possible ones to try, or the one that was observed.
        delay: How long after its lookup a request stores.

    Raises:
        ValueError: If times are not finite, or there is no clock.
    """
    return predict_settings(log, [setting], clocks=clocks, delay=delay)[0]


def predict_settings(
    log: AccessLog,
    settings: Iterable[ServerSetting],
    *,
    clocks: int | Sequence[EvictionClock] = CLOCKS,
    delay: StoreDelay = AT_ONCE,
) -> list[ServerPrediction]:
    """`predict_server` for each setting, over threads (the model runs without the GIL)."""
    log = isolated(log)
    tried = possible_clocks(clocks) if isinstance(clocks, int) else tuple(clocks)
    if not tried:
        raise ValueError("at least one clock is needed")
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        predict = partial(_predict, log, tried, delay)
        return list(threads.map(predict, settings))


def _predict(log: AccessLog, clocks: tuple[EvictionClock, ...], delay: StoreDelay, setting: ServerSetting) -> ServerPrediction:
    runs = (simulate_server(log, setting, phase=clock.phase, period=clock.period, delay=delay) for clock in clocks)
    return ServerPrediction(setting, tuple(runs))
