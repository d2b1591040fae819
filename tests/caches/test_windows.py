"""Claims about windows: none spans a change of settings, whoever made it, and each says how long it really is."""

import threading
from dataclasses import replace

import pytest
from real_cache import Play
from real_logs import conversations, log_of

from agent_tools.caches import observer
from agent_tools.caches.registry import Cache
from agent_tools.deployments.base import silent
from agent_tools.deployments.snapshot import metrics_between
from agent_tools.io_loop import io_loop
from agent_tools.models import CacheMetrics, ConfigUpdate
from agent_tools.operations import Operations
from agent_tools.tools.observe import describe_advice, describe_metrics, describe_status
from agent_tools.tools.predict import describe_symptoms


def metrics(operations: Operations, window_seconds: float | None = None) -> CacheMetrics:
    return io_loop.run(operations.metrics, "default", window_seconds)


def change(operations: Operations, **settings: float) -> str:
    result = io_loop.run(operations.configure, "default", ConfigUpdate(**settings), "a test", "test")
    assert result is not None
    return result.change_id


def by_somebody_else(cache: Cache, **settings: float) -> None:
    """Change a setting without our change log."""
    io_loop.run(cache.deployment.apply, ConfigUpdate(**settings), silent)


def test_a_window_starts_at_our_own_change(operations: Operations, cache: Cache, play: Play) -> None:
    metrics(operations)
    play(log_of(*conversations(3, 8)), clients=1)
    change(operations, eviction_watermark=0.7)
    play(log_of(*conversations(3, 8)), clients=1)
    window = metrics(operations, 0.01)
    assert window.window.since_change
    assert window.tokens.hit_rate == 1, "the misses came before the change"
    assert metrics(operations).window.lifetime, "without a length these are the totals since the start"


def test_a_window_starts_where_a_change_by_somebody_else_was_noticed(operations: Operations, cache: Cache, play: Play) -> None:
    metrics(operations, 0.01)
    play(log_of(*conversations(3, 8)), clients=1)
    by_somebody_else(cache, eviction_watermark=0.7)
    noticed = metrics(operations, 0.01)
    assert noticed.window.since_change
    assert noticed.total_requests == 0
    play(log_of(*conversations(3, 8)), clients=1)
    assert metrics(operations, 0.01).tokens.hit_rate == 1


def test_a_long_window_does_not_hide_the_last_minute(cache: Cache) -> None:
    first = io_loop.run(observer.read, cache)
    later = [replace(first, asked_at=first.asked_at + after, taken_at=first.taken_at + after) for after in (100, 235, 240, 300)]
    for reading in later:
        cache.history.add(reading)
    recent = io_loop.run(lambda: observer.observe(cache, readings=(first, later[-1]), read_log=False)).recent
    assert recent is not None
    assert recent.window.seconds == pytest.approx(60)


def test_only_what_was_seen_since_the_last_change_is_steady(operations: Operations, cache: Cache) -> None:
    now = io_loop.run(cache.deployment.snapshot)
    cache.history.add(replace(now, asked_at=now.asked_at - 200, taken_at=now.taken_at - 200))
    change(operations, eviction_watermark=0.7)
    assert io_loop.run(operations.steady_seconds, "default") < 30


def test_a_change_while_we_wait_begins_the_window_anew(
    operations: Operations, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "MOST_WAITS", 20.0)  # a busy machine may take seconds to make the change
    meddling: list[threading.Thread] = []

    def meddle(_: str) -> None:
        if not meddling:
            meddling.append(threading.Thread(target=by_somebody_else, args=(cache,), kwargs={"eviction_watermark": 0.7}))
            meddling[0].start()

    window = io_loop.run(operations.metrics, "default", 3.0, meddle)
    meddling[0].join()
    assert window.window.since_change
    assert window.window.seconds >= 3.0


def test_advice_right_after_a_change_says_that_it_knows_too_little(operations: Operations, cache: Cache, play: Play) -> None:
    play(log_of(*conversations(4, 8), *conversations(4, 8)), clients=1)
    change(operations, eviction_ratio=0.3)
    advice = io_loop.run(operations.recommend, "default")
    assert advice.verdict.value == "no_data"
    assert advice.window.seconds < 60
    span = f"in {advice.window.seconds:.0f} s, all that was read since the settings changed"
    assert f"0 lookups are too few to judge ({span})" in advice.why


def test_a_status_names_no_symptom_that_a_change_has_ended(operations: Operations, cache: Cache, play: Play) -> None:
    play(log_of(*conversations(40, 8), *conversations(40, 8)), clients=1)  # 320 chunks of 512 L1 holds
    change(operations, eviction_watermark=0.75)
    status = io_loop.run(operations.status, "default")
    assert status.symptoms == ("no_data",)
    assert status.metrics.window.lifetime
    assert status.symptoms_window is not None
    assert status.symptoms_window.since_change


def test_every_output_of_a_window_prints_how_long_it_was(operations: Operations, cache: Cache) -> None:
    change(operations, eviction_ratio=0.25)
    window = metrics_between(*io_loop.run(observer.window, cache, None))
    assert f"window: {window.window.seconds:.0f} s, all that was read since the settings changed" in describe_metrics(window)
    symptoms, seen = io_loop.run(operations.diagnosis, "default")
    assert f"window: {seen.seconds:.0f} s, all that was read since the settings changed" in describe_symptoms(symptoms, seen)
    assert "s, all that was read since the settings changed" in describe_advice(io_loop.run(operations.recommend, "default"))
    assert "s, all that was read since the settings changed): no_data" in describe_status(
        "default", io_loop.run(operations.status, "default")
    )


@pytest.mark.real_cache("a simulated cache has one process")
def test_a_change_before_the_process_started_limits_nothing(operations: Operations, cache: Cache) -> None:
    latest = io_loop.run(cache.deployment.snapshot)
    assert latest.process_start is not None
    cache.history.changed_at = latest.process_start - 1
    seen, window = io_loop.run(operations.diagnosis, "default")
    assert seen
    assert window.lifetime or window.since_change, "our own earlier changes of this process still count"
