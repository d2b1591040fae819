"""The prediction of a setting, with the interval that results from not knowing exactly when a server evicts."""

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
from .in_process_disk import simulate_with_disk
from .in_process_model import simulate_in_process
from .in_process_setting import InProcessSetting
from .isolation import isolated
from .server_model import simulate_server
from .server_setting import ServerSetting

MODEL_ERROR = 0.0005
"""Added to the interval on either side: the remaining error when the server's true ticks were known."""

DEFAULT_CLOCK_COUNT = 20
"""Number of clocks that a prediction tries by default."""


@dataclass(frozen=True, eq=False)
class ServerPrediction:
    """The outcome of one setting over several possible clocks of the eviction thread."""

    setting: ServerSetting
    runs: tuple[CacheRun, ...]
    """One run for each clock; one alone for in-process LMCache, in which nothing depends on time."""

    @property
    def hit_rate(self) -> float:
        """Return the expected token hit rate over whole chunks, as the live metric counts it."""
        return float(np.mean([run.hit_rate for run in self.runs]))

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 90 % prediction interval of the hit rate that one server will show.

        The server has one clock, and it is unknown which.

        The interval uses order statistics of the runs and assumes no distribution. The full 90 % needs at least 19 clocks.
        """
        rates = [run.hit_rate for run in self.runs]
        lower, upper = np.quantile(rates, (0.05, 0.95), method="weibull")
        return max(float(lower) - MODEL_ERROR, 0.0), min(float(upper) + MODEL_ERROR, 1.0)

    @property
    def hit_chunks(self) -> npt.NDArray[np.float64]:
        """Return (requests,) expected hit chunks of each request, to compare two settings on the same requests."""
        mean: npt.NDArray[np.float64] = np.mean([run.hit_chunks for run in self.runs], axis=0, dtype=np.float64)
        return mean

    @property
    def failed_chunks(self) -> float:
        """Return the expected number of chunks whose store fails."""
        return float(np.mean([run.failed_chunks for run in self.runs]))

    @property
    def evicted_chunks(self) -> float:
        """Return the expected number of chunks that ticks drop from L1."""
        return float(np.mean([run.evicted_chunks for run in self.runs]))

    @property
    def peak_chunks(self) -> int:
        """Return the most chunks in L1 at one time, over all runs."""
        return max(run.peak_chunks for run in self.runs)


def predict_server(
    log: AccessLog,
    setting: ServerSetting,
    *,
    clocks: int | Sequence[EvictionClock] = DEFAULT_CLOCK_COUNT,
    delay: StoreDelay = AT_ONCE,
) -> ServerPrediction:
    """Predict what the server would have given on this log, from an empty cache.

    Args:
        log: The recorded lookups.
        setting: The server's configuration.
        clocks: How many possible clocks of the eviction thread to try, or the clocks themselves, e.g. the observed one.
        delay: The delay between a request's lookup and its store.

    Raises:
        ValueError: Times are not finite, or there is no clock.
    """
    return predict_settings(log, [setting], clocks=clocks, delay=delay)[0]


def predict_settings(
    log: AccessLog,
    settings: Iterable[ServerSetting],
    *,
    clocks: int | Sequence[EvictionClock] = DEFAULT_CLOCK_COUNT,
    delay: StoreDelay = AT_ONCE,
) -> list[ServerPrediction]:
    """Run `predict_server` for each setting, in threads (the model runs without the GIL).

    An `InProcessSetting` is predicted by the model of in-process LMCache, which needs no clocks and no delay.
    """
    log = isolated(log)
    tried = possible_clocks(clocks) if isinstance(clocks, int) else tuple(clocks)
    if not tried:
        raise ValueError("at least one clock is needed: give a positive number or some clocks")
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        predict = partial(_predict, log, tried, delay)
        return list(threads.map(predict, settings))


def _predict(log: AccessLog, clocks: tuple[EvictionClock, ...], delay: StoreDelay, setting: ServerSetting) -> ServerPrediction:
    if isinstance(setting, InProcessSetting):
        return ServerPrediction(setting, (_inside_an_engine(log, setting),))
    runs = (simulate_server(log, setting, phase=clock.phase, period=clock.period, delay=delay) for clock in clocks)
    return ServerPrediction(setting, tuple(runs))


def _inside_an_engine(log: AccessLog, setting: InProcessSetting) -> CacheRun:
    if setting.l2_capacity_chunks:
        return simulate_with_disk(log, setting.capacity_chunks, setting.l2_capacity_chunks, setting.cache_policy)
    return simulate_in_process(log, setting.capacity_chunks, setting.cache_policy)
