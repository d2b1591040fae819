"""Claims about windows: what two readings of a cache say together."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_tools.caches.history import History
from agent_tools.deployments.counters import Counters, TokenCounters
from agent_tools.deployments.snapshot import Served, Snapshot, metrics_between
from agent_tools.models import MB, CacheMetrics, CacheStatus, Health
from agent_tools.prediction.eviction_clock import Poll
from agent_tools.serving.engine_reading import EngineCounters, EngineReading

EARLY = Snapshot(
    asked_at=999.9,
    taken_at=1_000.0,
    process_start=900.0,
    instance_id="i",
    counters=Counters(lookups=10, stored_chunks=20, evictions=5, failed_stores=1),
    tokens={("llama", "a"): TokenCounters(requested=1024, hit_l1=256)},
    l1_used_bytes=2 * MB,
    l1_total_bytes=16 * MB,
    resident_objects=64,
    objects_per_chunk=1.0,
    chunk_size=256,
    health=Health(healthy=True),
)
LATE = replace(
    EARLY,
    asked_at=1_059.9,
    taken_at=1_060.0,
    counters=Counters(lookups=30, stored_chunks=50, evictions=15, failed_stores=4),
    tokens={
        ("llama", "a"): TokenCounters(requested=3072, hit_l1=1280),
        ("qwen", "a"): TokenCounters(requested=512, hit_l2=256),
        ("qwen", ""): TokenCounters(requested=512),
    },
)


def test_a_window_counts_what_happened_between_its_readings() -> None:
    metrics = metrics_between(EARLY, LATE)
    assert metrics.window.seconds == 60
    assert not metrics.window.lifetime
    assert (metrics.total_requests, metrics.stored_chunks, metrics.evictions, metrics.failed_stores) == (20, 30, 10, 3)
    assert (metrics.tokens.requested, metrics.tokens.hit_l1, metrics.tokens.hit_l2) == (2048 + 1024, 1024, 256)
    assert metrics.hit_rate_percent == pytest.approx(100 * 1280 / 3072)
    assert metrics.tokens_served == 1280
    assert metrics.tokens_computed == 3072 - 1280


def test_models_and_tenants_are_summed_apart() -> None:
    metrics = metrics_between(EARLY, LATE)
    assert {name: counts.requested for name, counts in metrics.by_model.items()} == {"llama": 2048, "qwen": 1024}
    assert {name: counts.requested for name, counts in metrics.by_tenant.items()} == {"": 512, "a": 2560}


def test_sizes_are_those_of_the_later_reading() -> None:
    metrics = metrics_between(EARLY, replace(LATE, l1_used_bytes=4 * MB, resident_objects=128))
    assert (metrics.used_size_mb, metrics.available_size_mb, metrics.utilization_percent) == (4, 12, 25)
    assert (metrics.resident_chunks, metrics.tokens_cached, metrics.kv_bytes_per_token) == (128, 128 * 256, 128)
    assert metrics.memory_saved_mb == pytest.approx(1280 * 128 / MB)


def test_objects_of_several_ranks_make_one_chunk() -> None:
    metrics = metrics_between(None, replace(LATE, objects_per_chunk=4.0))
    assert (metrics.resident_chunks, metrics.tokens_cached, metrics.kv_bytes_per_token) == (16, 16 * 256, 512)


def test_one_reading_gives_the_lifetime_of_the_process_and_says_so() -> None:
    metrics = metrics_between(None, LATE)
    assert metrics.window.lifetime
    assert not metrics.window.counters_reset
    assert metrics.window.seconds == 160
    assert metrics.total_requests == 30


def test_a_new_process_start_begins_a_new_window() -> None:
    restarted = replace(LATE, process_start=1_050.0)
    metrics = metrics_between(EARLY, restarted)
    assert metrics.window.lifetime
    assert metrics.window.counters_reset
    assert metrics.window.seconds == 10
    assert metrics.total_requests == 30


@pytest.mark.parametrize(
    "later",
    [
        replace(LATE, counters=Counters(lookups=9)),
        replace(LATE, tokens={}),
        replace(LATE, tokens={("llama", "a"): TokenCounters(requested=1023)}),
        replace(LATE, tokens={("llama", "a"): TokenCounters(requested=3072, hit_l1=255)}),
    ],
)
def test_a_counter_that_went_down_begins_a_new_window(later: Snapshot) -> None:
    metrics = metrics_between(EARLY, later)
    assert metrics.window.lifetime
    assert metrics.window.counters_reset


def test_a_cache_without_counters_still_has_sizes_and_says_why_the_rest_is_missing() -> None:
    metrics = metrics_between(EARLY, replace(LATE, counters=None, tokens={}))
    assert metrics.total_size_mb == 16
    assert metrics.total_requests is None
    assert not metrics.window.counters_reset
    assert "--otlp-endpoint" in metrics.unavailable["total_requests"]
    explained(metrics)


@pytest.mark.parametrize(
    "after",
    [
        LATE,
        EARLY,
        replace(LATE, tokens={}, counters=Counters(), resident_objects=0, l1_used_bytes=0),
        replace(LATE, objects_per_chunk=None),
        replace(LATE, counters=None, objects_per_chunk=None),
        replace(LATE, l1_total_bytes=0, l1_used_bytes=0),
        replace(LATE, process_start=None),
        replace(LATE, counters=Counters(lookup_calls=2, lookup_seconds=0.5)),
    ],
)
def test_every_missing_figure_says_why(after: Snapshot) -> None:
    explained(metrics_between(None, after))


def explained(metrics: CacheMetrics) -> None:
    missing = {name for name in CacheMetrics.model_fields if getattr(metrics, name) is None}
    assert set(metrics.unavailable) == missing
    assert all(metrics.unavailable.values())
    assert CacheMetrics.model_validate(metrics.model_dump()) == metrics


def test_a_sick_cache_is_in_error() -> None:
    assert metrics_between(None, replace(LATE, health=Health(healthy=False, problems=("x",)))).status is CacheStatus.ERROR


def test_a_reading_between_two_of_lmcaches_own_additions_does_not_fail() -> None:
    torn = replace(LATE, tokens={("llama", "a"): TokenCounters(requested=1280, hit_l1=256 + 512)})
    metrics = metrics_between(EARLY, torn)
    assert metrics.tokens.hit == 512
    assert metrics.tokens.requested == 512


def test_hits_counted_after_their_requests_still_count() -> None:
    torn = replace(LATE, tokens={("llama", "a"): TokenCounters(requested=1024, hit_l1=512)})
    assert metrics_between(EARLY, torn).tokens.hit == 256


counts = st.integers(0, 10**12)


@given(
    st.lists(st.tuples(counts, counts, counts), min_size=2, max_size=2),
    st.floats(0, 2e9),
    st.floats(-100, 100),
    st.none() | st.floats(0, 2e9),
)
def test_any_two_readings_make_a_valid_window(
    tokens: list[tuple[int, int, int]], taken_at: float, later_by: float, process_start: float | None
) -> None:
    before, after = (
        replace(EARLY, taken_at=taken_at + shift, process_start=process_start, tokens={("m", ""): TokenCounters(*one)})
        for one, shift in zip(tokens, (0.0, later_by), strict=True)
    )
    metrics = metrics_between(before, after)
    assert CacheMetrics.model_validate(metrics.model_dump()) == metrics


def test_a_history_finds_the_reading_a_window_starts_at() -> None:
    history = History()
    assert history.latest is None
    for second in range(10):
        history.add(replace(EARLY, taken_at=float(second)))
    assert history.latest is not None
    assert history.latest.taken_at == 9
    reached = history.at_or_before(4.5)
    assert reached is not None
    assert reached.taken_at == 4
    assert history.at_or_before(-1) is None


def test_a_history_keeps_the_tick_readings_of_the_present_process_only() -> None:
    history = History()
    for second, start in enumerate([900.0, 900.0, 950.0, 950.0]):
        counters = Counters(eviction_ticks=10 * second)
        history.add(replace(EARLY, asked_at=second - 0.1, taken_at=float(second), process_start=start, counters=counters))
    history.add(replace(EARLY, taken_at=4.0, process_start=950.0, counters=None))
    assert history.polls() == [Poll(1.9, 2.0, 20), Poll(2.9, 3.0, 30)]


@given(st.floats(1e9, 3e9))
def test_a_reading_to_the_microsecond_is_in_the_window_that_begins_with_it(instant: float) -> None:
    reading = replace(EARLY, taken_at=round(instant, 6), process_start=None)
    window = metrics_between(None, reading).window
    assert window.start.timestamp() == window.end.timestamp() == reading.taken_at


def test_what_was_served_is_told_between_readings_of_one_process() -> None:
    history = History()
    for second, (start, requested, hit) in enumerate([(0, 0, 0), (0, 512, 256), (0, 512, 256), (7, 256, 0), (7, 768, 256)]):
        tokens = {("m", ""): TokenCounters(requested=requested, hit_l1=hit)}
        history.add(replace(EARLY, taken_at=float(second), process_start=float(start), tokens=tokens))
    served = [Served(0.0, 1.0, 512, 256), Served(1.0, 2.0, 0, 0), Served(3.0, 4.0, 512, 256)]
    assert history.served(0, 10) == served
    assert history.served(1, 3) == served[1:2]


def test_what_the_engine_loaded_is_told_with_it_also_across_a_reading_that_failed_and_not_across_its_restart() -> None:
    history = History()
    loaded = {0: (1.0, 0), 1: (1.0, 100), 3: (1.0, 400), 4: (3.5, 50), 5: (3.5, 60)}
    for second in range(6):
        start, tokens = loaded.get(second, (0, 0))
        counters = EngineCounters(prompt_tokens=tokens, lmcache_tokens=tokens)
        engine = (
            EngineReading(float(second), start, counters, {}, running=0, waiting=0, kv_usage=None) if second in loaded else None
        )
        history.add(replace(EARLY, taken_at=float(second), engine=engine))
    assert [one.loaded for one in history.served(0, 10)] == [100, 0, 300, None, 10]
    assert [one.loaded for one in history.served(2, 3)] == [None], "nothing says where the counter stood"
