"""A prediction is a mean and an interval over the clocks the eviction thread may have."""

import numpy as np
import pytest
from random_logs import log_of, trace

from agent_tools.prediction.eviction_clock import EvictionClock, Poll, clocks_near, observed_clock, possible_clocks
from agent_tools.prediction.server_model import simulate_server
from agent_tools.prediction.server_prediction import MODEL_ERROR, predict_server, predict_settings
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog


@pytest.fixture(scope="module")
def pressed() -> AccessLog:
    """Agents in a cache too small for them, played fast enough that stores fail."""
    log = trace("lmcache_agent_miniswe")
    return AccessLog(**(vars(log) | {"timestamps": log.timestamps / 30}))


def test_the_interval_covers_nine_in_ten_of_the_clocks_a_server_may_have(pressed: AccessLog) -> None:
    draw = np.random.default_rng(0)
    covered = []
    for capacity in range(40, 160, 10):
        setting = ServerSetting(capacity)
        lower, upper = predict_server(pressed, setting).interval
        clocks = zip(draw.uniform(0, 1, 100), draw.uniform(1.001, 1.020, 100), strict=True)
        rates = np.array([simulate_server(pressed, setting, phase=phase, period=period).hit_rate for phase, period in clocks])
        covered.append(np.mean((rates >= lower) & (rates <= upper)))
        assert rates.std() > 5 * MODEL_ERROR  # there is something to cover
    assert np.mean(covered) >= 0.88


def test_a_cache_that_never_evicts_is_predicted_to_the_model_error(pressed: AccessLog) -> None:
    prediction = predict_server(pressed, ServerSetting(2 * pressed.unique_chunks))
    lower, upper = prediction.interval
    assert upper - lower == pytest.approx(2 * MODEL_ERROR)
    assert lower < prediction.hit_rate < upper
    assert (prediction.failed_chunks, prediction.evicted_chunks, prediction.peak_chunks) == (0, 0, pressed.unique_chunks)


def test_an_observed_clock_leaves_only_the_model_error(pressed: AccessLog) -> None:
    setting = ServerSetting(90)
    prediction = predict_server(pressed, setting, clocks=[EvictionClock(0.25, 1.004)])
    assert prediction.hit_rate == simulate_server(pressed, setting, phase=0.25, period=1.004).hit_rate
    assert prediction.interval[1] - prediction.interval[0] == pytest.approx(2 * MODEL_ERROR)


@pytest.mark.parametrize("seed", range(5))
def test_a_clock_is_found_from_polls_of_the_tick_counter(seed: int) -> None:
    log = log_of([[1]], times=[1e9])
    draw = np.random.default_rng(seed)
    sent = 1e9 + np.cumsum(draw.uniform(0.2, 0.8, 50))
    read = sent + draw.uniform(0, 0.05, 50)
    ticks = 500 + np.floor((read - 1e9 - 0.37) / 1.006)
    clock = observed_clock(log, [Poll(*poll) for poll in zip(sent, read + 0.02, ticks, strict=True)])
    assert clock is not None
    assert clock.period == pytest.approx(1.006, abs=0.005)
    assert clock.first_tick(log) + 12 * clock.period == pytest.approx(1e9 + 0.37 + 12 * 1.006, abs=0.02, rel=0)


def test_too_few_ticks_show_no_clock() -> None:
    log = log_of([[1]], times=[0.0])
    assert observed_clock(log, []) is None
    assert observed_clock(log, [Poll(0.1, 0.1, 7), Poll(0.5, 0.5, 7), Poll(0.9, 0.9, 8)]) is None
    once_a_minute = [Poll(60.0 * k, 60.0 * k, 59.0 * k) for k in range(5)]
    assert observed_clock(log, once_a_minute) is None
    assert observed_clock(log_of([]), [Poll(0.4 * k, 0.4 * k, k // 2) for k in range(20)]) is None


def test_settings_are_predicted_in_the_order_given(pressed: AccessLog) -> None:
    settings = [ServerSetting(capacity) for capacity in (30, 60, 90, 400)]
    predictions = predict_settings(pressed, settings, clocks=4)
    assert [prediction.setting for prediction in predictions] == settings
    for prediction in predictions:
        assert len(prediction.runs) == 4
        assert prediction.hit_chunks.sum() / len(pressed.chunk_ids) == pytest.approx(prediction.hit_rate)


def test_an_empty_log_is_predicted_to_be_nothing() -> None:
    prediction = predict_server(log_of([]), ServerSetting(10))
    assert (prediction.hit_rate, prediction.failed_chunks, prediction.peak_chunks) == (0.0, 0.0, 0)
    assert prediction.interval == (0.0, MODEL_ERROR)
    assert prediction.hit_chunks.tolist() == []


def test_no_clock_at_all_is_refused(pressed: AccessLog) -> None:
    for none in (0, []):
        with pytest.raises(ValueError, match="at least one clock"):
            predict_server(pressed, ServerSetting(10), clocks=none)
    with pytest.raises(ValueError, match="at least one clock"):
        clocks_near(EvictionClock(), 0)


def test_clocks_are_spread_over_what_is_open() -> None:
    anywhere = sorted(clock.phase for clock in possible_clocks(20))
    assert np.diff(anywhere) == pytest.approx(np.full(19, 0.05))
    near = [clock.phase * clock.period for clock in clocks_near(EvictionClock(0.5, 1.01), 10, seconds=0.02, store_delay=0.005)]
    assert np.ptp(near) == pytest.approx(0.036)
    assert np.mean(near) == pytest.approx(0.5)
    around_zero = clocks_near(EvictionClock(0.0, 1.0), 2, seconds=0.02, store_delay=0)
    assert [clock.phase for clock in around_zero] == pytest.approx([0.99, 0.01])
