"""Claims about the speed fitted to an engine's metrics, on metrics of an engine whose speed is known."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from agent_tools.models.cost import KvSize
from agent_tools.models.engine import EngineSpeed
from agent_tools.prediction.cost import measured_economics
from agent_tools.prediction.time_to_first_token import seconds_to_first_token, time_to_first_token
from agent_tools.serving.engine_reading import EngineCounters, EngineReading
from agent_tools.serving.engine_speed import fitted_speed

QUEUE, PREFILL, ELSEWHERE = 0.004, 0.02, 0.011
PER_COMPUTED, PER_LOADED = 600e-6, 40e-6
Request = tuple[int, int]
"""(computed, loaded) tokens"""


def readings(requests: Sequence[Sequence[Request]], *, waiting: int = 0, noise: float = 0.0) -> list[EngineReading]:
    """Of an engine that has served so many more requests at each of them."""
    draw = np.random.default_rng(0)
    counted = [EngineCounters()]
    for some in requests:
        last, n = counted[-1], len(some)
        computed, loaded = sum(c for c, _ in some), sum(x for _, x in some)
        slow = 1 + noise * draw.standard_normal()
        queue, prefill = slow * (n * QUEUE + PER_LOADED * loaded), slow * (n * PREFILL + PER_COMPUTED * computed)
        counted.append(
            EngineCounters(
                requests=last.requests + n,
                prompt_tokens=last.prompt_tokens + computed + loaded,
                computed_tokens=last.computed_tokens + computed,
                queue_seconds=last.queue_seconds + queue,
                prefill_seconds=last.prefill_seconds + prefill,
                first_tokens=last.first_tokens + n,
                ttft_seconds=last.ttft_seconds + queue + prefill + n * ELSEWHERE,
                lmcache_tokens=last.lmcache_tokens + loaded,
            )
        )
    return [EngineReading(float(at), 1.0, one, {}, 0, waiting, 0.1) for at, one in enumerate(counted)]


def mixed(intervals: int) -> list[list[Request]]:
    draw = np.random.default_rng(1)

    def request() -> Request:
        return int(draw.integers(50, 3000)), 256 * int(draw.integers(0, 10))

    return [[request() for _ in range(draw.integers(1, 4))] for _ in range(intervals)]


def test_the_speed_of_an_engine_is_found() -> None:
    speed = fitted_speed(readings(mixed(20)))
    assert speed is not None
    assert speed.per_computed_token == pytest.approx(PER_COMPUTED)
    assert speed.per_loaded_token == pytest.approx(PER_LOADED)
    assert speed.per_request == pytest.approx(QUEUE + PREFILL + ELSEWHERE)
    assert (speed.requests, speed.intervals) == (sum(map(len, mixed(20))), 20)


def test_a_noisy_engine_is_found_nearly() -> None:
    speed = fitted_speed(readings(mixed(60), noise=0.2))
    assert speed is not None
    assert speed.per_computed_token == pytest.approx(PER_COMPUTED, rel=0.15)


def test_an_engine_that_never_loaded_shows_no_speed_of_loading() -> None:
    speed = fitted_speed(readings([[(1000 + 10 * n, 0)] for n in range(12)]))
    assert speed is not None
    assert speed.per_loaded_token is None


@pytest.mark.parametrize(
    "too_few",
    [
        [],
        readings(mixed(4)),
        readings([[(100, 0)]] * 9),
        readings(mixed(20), waiting=1),
        [*readings(mixed(20)), EngineReading(99.0, 50.0, EngineCounters(), {}, 0, 0, 0.0)],
    ],
    ids=["none", "few intervals", "few requests", "all waited for room", "another process since"],
)
def test_nothing_is_said_from_too_little(too_few: list[EngineReading]) -> None:
    assert fitted_speed(too_few) is None


def test_requests_all_alike_still_give_the_time_they_take() -> None:
    speed = fitted_speed(readings([[(1000, 512)]] * 12))
    assert speed is not None
    (took,) = seconds_to_first_token(speed, np.array([1512.0]), np.array([512.0]))
    assert took == pytest.approx(QUEUE + PREFILL + ELSEWHERE + 1000 * PER_COMPUTED + 512 * PER_LOADED, rel=0.01)


def served(arrivals: Iterator[tuple[float, int]], clients: int, *, latency: float = 0.0) -> list[EngineReading]:
    """Readings, two a second, of an engine that serves in turn; requests are (earliest arrival, computed tokens).

    Each of the clients sends its next request after an answer. The first token comes `latency` after the work for it is done.
    """
    free, ready, ended = 0.0, [0.0] * clients, []
    for earliest, tokens in arrivals:
        client = ready.index(min(ready))
        asked = max(earliest, ready[client])
        begins = max(asked, free)
        free = begins + PREFILL + PER_COMPUTED * tokens
        ready[client] = free + latency
        ended.append((ready[client], asked, begins, tokens))
    found, one = [], EngineCounters()
    for at in np.arange(0.0, ended[-1][0] + 1, 0.5):
        while ended and ended[0][0] <= at:
            told, asked, begins, tokens = ended.pop(0)
            one = EngineCounters(
                requests=one.requests + 1,
                prompt_tokens=one.prompt_tokens + tokens,
                computed_tokens=one.computed_tokens + tokens,
                queue_seconds=one.queue_seconds + begins - asked,
                prefill_seconds=one.prefill_seconds + told - begins,
                first_tokens=one.first_tokens + 1,
                ttft_seconds=one.ttft_seconds + told - asked,
            )
        found.append(EngineReading(float(at), 1.0, one, {}, 0, 0, 0.1))
    return found


def prompts(number: int, every: float = 0.0) -> Iterator[tuple[float, int]]:
    """Agents' turns: prompts grow, and each conversation's first turns come when others end."""
    draw = np.random.default_rng(3)
    return ((every * n, int(draw.integers(200, 1200) * (1 + n % 30 / 15))) for n in range(number))


def mean_ttft(found: list[EngineReading]) -> float:
    return found[-1].counters.ttft_seconds / found[-1].counters.first_tokens


@pytest.mark.parametrize("clients", [2, 3, 6])
def test_requests_that_wait_for_each_other_show_what_each_takes_of_the_engines_time(clients: int) -> None:
    readings = served(prompts(200), clients)
    speed = fitted_speed(readings)
    assert speed is not None
    assert speed.per_computed_token == pytest.approx(PER_COMPUTED, rel=0.1)
    # If the engine computed half of the tokens, all would wait for half as long.
    work = [tokens for _, tokens in prompts(200)]
    now, then = (speed.per_request + speed.per_computed_token * np.mean(work) * share for share in (1, 0.5))
    fewer = served(((at, tokens // 2) for at, tokens in prompts(200)), clients)
    assert mean_ttft(readings) * then / now == pytest.approx(mean_ttft(fewer), rel=0.05)


def test_a_latency_beside_the_work_is_no_wait_for_others() -> None:
    """Requests overlap, but come so slowly that none waits: what sets the pace of first tokens is when requests arrive."""
    readings = served(prompts(200, every=1.5), clients=50, latency=3.0)
    assert mean_ttft(readings) > 3.0
    speed = fitted_speed(readings)
    assert speed is not None
    assert speed.per_computed_token == pytest.approx(PER_COMPUTED, rel=0.1)
    assert speed.per_request == pytest.approx(3.0 + PREFILL, rel=0.1)


@pytest.mark.parametrize("odd", [{"ttft_seconds": 0.0}, {"computed_tokens": 0.0}], ids=["no times", "nothing computed"])
def test_an_engine_that_does_not_tell_what_shared_work_took_is_read_by_its_requests_own_times(odd: dict[str, float]) -> None:
    readings = [replace(one, counters=replace(one.counters, **odd)) for one in served(prompts(200), clients=3)]
    backwards = [replace(one, taken_at=-one.taken_at) for one in readings]
    assert fitted_speed(backwards) == fitted_speed(readings)
    assert fitted_speed(readings) is not None


def test_times_follow_from_hits() -> None:
    speed = EngineSpeed(per_request=0.1, per_computed_token=1e-3, per_loaded_token=1e-4, requests=20, intervals=9)
    hits = np.array([[0.0, 1000.0], [500.0, 1000.0]])  # two clocks, two requests
    seconds = seconds_to_first_token(speed, np.array([1000.0, 1000.0]), hits)
    assert seconds.tolist() == [[pytest.approx(1.1), pytest.approx(0.201)], [pytest.approx(0.65), pytest.approx(0.201)]]
    assert time_to_first_token(seconds).mean == pytest.approx(1e3 * seconds.mean())
    assert time_to_first_token(np.array([0.1] * 99 + [9.0])).p50 == pytest.approx(100)


def test_the_cost_model_takes_the_speeds_that_the_engine_showed() -> None:
    speed = EngineSpeed(per_request=0.1, per_computed_token=1e-3, per_loaded_token=1e-4, requests=20, intervals=9)
    economics = measured_economics(speed, KvSize(bytes_per_token=8192, source="measured"))
    assert economics is not None
    assert economics.prefill.tokens_per_second == pytest.approx(1000)
    assert "measured" in economics.prefill.source
    assert economics.l1_load_gb_per_second == pytest.approx(8192 / 1e-4 / 1e9)
    assert measured_economics(None, None) is None
