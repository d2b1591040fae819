"""Claims about symptoms: for each, when it speaks and when it must not."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from observed import CHUNK_SIZE, CONFIG, QUIET, as_served, observation
from real_logs import conversations, log_of

from agent_tools.models import CacheConfig, EvictionPolicy, Health, L2Adapter, Rung, Severity, SymptomCode, TokenCounts
from agent_tools.models.config import UNKNOWN_SETTINGS
from agent_tools.models.cost import Economics, Prefill
from agent_tools.models.engine import EngineMetrics, EngineSpeed, TimeToFirstToken
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.symptoms import RULES, diagnose, engine, l1, l2, owners, server, shapes, traffic
from agent_tools.recommender.symptoms.rule import Rule
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.chunk_layout import ChunkLayout, ObjectGroup, with_layouts

NEW = log_of(*conversations(50, 8))
"""No prefix twice."""
AGAIN = log_of(*conversations(50, 8), *conversations(50, 8))
"""Every prefix twice: at best half of the tokens are found."""
HEADED = log_of(*([0, *range(100 + 9 * n, 109 + 9 * n)] for n in range(50)))
"""Ten chunks each; only the first one is shared."""
NO_HITS = TokenCounts(requested=1000 * CHUNK_SIZE)
FROM_L2 = TokenCounts(requested=1000 * CHUNK_SIZE, hit_l2=400 * CHUNK_SIZE)
LRU_BLOCK = {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2}
BOUNDED = L2Adapter(type="fs_native", settings={"max_capacity_gb": 1, "eviction": LRU_BLOCK})
BY_TENANT = L2Adapter(type="mock", settings={"max_size_gb": 1, "eviction": LRU_BLOCK | {"eviction_policy": "IsolatedLRU"}})
QUOTAS = {"a": 9, "_default": 1}
ISOLATED = CONFIG.model_copy(update={"eviction_policy": EvictionPolicy.ISOLATED_LRU})
ENGINE = Economics(prefill=Prefill(tokens_per_second=10_000))


def with_l2(adapter: L2Adapter = BOUNDED, log: AccessLog | None = None, **figures: object) -> Observation:
    settings = {name: figures.pop(name) for name in CacheConfig.model_fields.keys() & figures.keys()}
    config = CONFIG.model_copy(update={"l2_adapters": (adapter,), "l2_prefetch_policy": "default"} | settings)
    return observation(log, config=config, **figures)  # type: ignore[arg-type]


def served(**figures: object) -> Observation:
    """Behind an engine that loads 60,000 of 100,000 tokens, at 100 us each, and takes 500 ms to the first token."""
    ttft = TimeToFirstToken(mean=500, p50=500, p95=900, p99=1_000)
    quiet = {"requests": 20, "prompt_tokens": 100_000, "computed_tokens": 40_000, "own_cache_tokens": 0, "lmcache_tokens": 60_000}
    times = {"ttft_ms": ttft, "queue_ms": 310.0, "prefill_ms": 150.0, "decode_ms": 4_000.0}
    speed = EngineSpeed(per_request=0.01, per_computed_token=1e-4, per_loaded_token=1e-4, requests=20, intervals=9)
    return replace(observation(engine=EngineMetrics(seconds=60, **quiet | times | figures)), engine_speed=speed)


def beside_own_cache(own_tokens: int, own_share: float, **figures: object) -> Observation:
    """Every prefix twice, an L1 that lost all, and an engine with an own cache of that size that served that share."""
    prompts = int(AGAIN.tokens.sum())
    sources = {"computed_tokens": int(prompts * (1 - own_share)), "own_cache_tokens": int(prompts * own_share)}
    engine = EngineMetrics(
        seconds=36_000, requests=100, prompt_tokens=prompts, lmcache_tokens=0, own_cache_size_tokens=own_tokens, **sources
    )
    return observation(AGAIN, tokens=TokenCounts(requested=prompts), evictions=1, engine=engine, **figures)


NOOP = CONFIG.model_copy(update={"eviction_policy": EvictionPolicy.NOOP, "auto_eviction": False})
BUFFER: dict[str, object] = {
    "eviction_policy": EvictionPolicy.NOOP,
    "l2_store_policy": "skip_l1",
    "l2_prefetch_policy": "default",
}
"""L1 only passes chunks on to L2."""


def lately(**figures: object) -> Observation:
    """A long quiet window whose last minute has these figures."""
    return replace(observation(), recent=QUIET.model_copy(update=figures))


def aged(seconds: float, **figures: object) -> Observation:
    """A server that has run so long, seen since its start."""
    window = QUIET.window.model_copy(update={"end": QUIET.window.start + timedelta(seconds=seconds), "lifetime": True})
    return replace(observation(window=window, **figures), age_seconds=seconds)


def windows(*, reset: bool) -> dict[str, object]:
    return {"window": QUIET.window.model_copy(update={"counters_reset": reset})}


def two_models(*, big: float, small: float) -> Observation:
    """Two models ask for every prefix twice, at best half of it is found; `big` and `small` are their measured hit rates."""
    layouts = (ChunkLayout((ObjectGroup(131_072),), 8, "big"), ChunkLayout((ObjectGroup(4096),), 1, "small"))
    models = np.tile(np.arange(2, dtype=np.int16), len(AGAIN) // 2)
    log = with_layouts(replace(AGAIN, models=models, model_names=("big", "small")), layouts)
    counts = {
        name: TokenCounts(requested=100_000, hit_l1=round(100_000 * rate)) for name, rate in (("big", big), ("small", small))
    }
    return observation(log, by_model=counts)


ALL_HITS = TokenCounts(requested=800 * CHUNK_SIZE, hit_l1=400 * CHUNK_SIZE)


def two_tenants(*, again: bool = False) -> AccessLog:
    """A chat that asks for 15 prompts again and again, and a crawler whose large prompts nobody asks for again."""
    chat = [range(20 * (i % 15), 20 * (i % 15) + 20) for i in range(240)]
    crawler = [range(10_000 + 60 * (i * (not again)), 10_060 + 60 * (i * (not again))) for i in range(80)]
    log = log_of(*(part for i in range(80) for part in (*chat[3 * i : 3 * i + 3], crawler[i])))
    return replace(log, tenants=(log.chunks_per_request == 60).astype("int16"), tenant_names=("chat", "crawler"))


@pytest.mark.parametrize(
    ("rule", "seen", "code", "severity", "figures"),
    [
        (
            server.eviction_dead,
            observation(health=Health(healthy=False, problems=("the L1 eviction thread is dead",))),
            SymptomCode.EVICTION_DEAD,
            Severity.CRITICAL,
            [1.0],
        ),
        (server.counters_incomplete, observation(dropped_events=1), SymptomCode.COUNTERS_INCOMPLETE, Severity.HIGH, [1.0]),
        (
            server.counters_incomplete,
            observation(dropped_events=None, total_requests=None),
            SymptomCode.COUNTERS_INCOMPLETE,
            Severity.HIGH,
            [],
        ),
        (traffic.no_data, observation(total_requests=19), SymptomCode.NO_DATA, Severity.INFO, [19.0]),
        # Versions up to 0.5.4 count no lookups, so the requested chunks must be enough.
        (
            traffic.no_data,
            observation(total_requests=None, tokens=TokenCounts(requested=199 * CHUNK_SIZE)),
            SymptomCode.NO_DATA,
            Severity.INFO,
            [199.0],
        ),
        (
            server.model_not_registered,
            observation(total_requests=230, unregistered_lookups=200, missing_models=("toy/m",)),
            SymptomCode.MODEL_NOT_REGISTERED,
            Severity.CRITICAL,
            [200.0, 230.0],
        ),
        (
            server.model_not_registered,  # the total hides it, and the model is not registered now
            observation(total_requests=100_000, unregistered_lookups=20, missing_models=("toy/m",)),
            SymptomCode.MODEL_NOT_REGISTERED,
            Severity.CRITICAL,
            [20.0, 100_000.0],
        ),
        (
            server.model_not_registered,  # another world size: the model itself is registered
            lately(total_requests=50, unregistered_lookups=50, unregistered_models={"toy/m": 50}),
            SymptomCode.MODEL_NOT_REGISTERED,
            Severity.CRITICAL,
            [50.0, 50.0],
        ),
        (
            server.model_without_layout,
            observation(layoutless_lookups=1000),
            SymptomCode.MODEL_WITHOUT_LAYOUT,
            Severity.CRITICAL,
            [1000.0],
        ),
        (
            l1.l1_never_evicts,
            observation(config=NOOP, failed_stores=9, utilization_percent=99),
            SymptomCode.L1_NEVER_EVICTS,
            Severity.HIGH,
            [9.0, 0.99],
        ),
        (
            l1.l1_never_evicts,  # a buffer that keeps what it loads is none
            with_l2(**BUFFER | {"l2_prefetch_policy": "retain"}, l2_loads_failed=9, utilization_percent=99),
            SymptomCode.L1_NEVER_EVICTS,
            Severity.HIGH,
            [9.0, 0.99],
        ),
        (
            l1.evicted_too_soon,  # 1000 s of evictions, of which the sample can hold 700 s of those that nobody needed
            aged(1000, evicted_followed=27, evicted_needed=20, evictions=500),
            SymptomCode.L1_TOO_SMALL,
            Severity.MEDIUM,
            [27.0, 20.0, 20 / 30 * 0.5],
        ),
        (owners.crowded_out, as_served(two_tenants()), SymptomCode.CROWDED_OUT, Severity.MEDIUM, [0.5, 0.0, 0.9375]),
        (traffic.no_data, observation(tokens=TokenCounts()), SymptomCode.NO_DATA, Severity.INFO, [1000.0]),
        (
            traffic.no_data,
            observation(tokens=TokenCounts(), unavailable={"tokens.requested": "a proxy dropped it"}),
            SymptomCode.NO_DATA,
            Severity.MEDIUM,
            [1000.0],
        ),
        (
            traffic.short_prompts,
            observation(total_requests=20, short_prompts=10),
            SymptomCode.SHORT_PROMPTS,
            Severity.MEDIUM,
            [10.0],
        ),
        (
            l1.request_larger_than_l1,
            observation(log_of(range(513))),
            SymptomCode.REQUEST_LARGER_THAN_L1,
            Severity.HIGH,
            [513.0, 512.0],
        ),
        (
            l1.watermark_too_high,
            observation(failed_stores=1, evictions=0, utilization_percent=79),
            SymptomCode.WATERMARK_TOO_HIGH,
            Severity.MEDIUM,  # without a log nobody knows what it costs
            [1.0, 0.79, 0.8],
        ),
        (l1.stores_fail, observation(failed_stores=1, stored_chunks=99), SymptomCode.STORES_FAIL, Severity.MEDIUM, [1.0, 99.0]),
        (traffic.nothing_to_reuse, observation(NEW, tokens=NO_HITS), SymptomCode.NOTHING_TO_REUSE, Severity.INFO, [0.0]),
        (traffic.nothing_to_reuse, observation(tokens=NO_HITS), SymptomCode.NOTHING_TO_REUSE, Severity.INFO, [256000.0]),
        (
            l1.l1_too_small,
            observation(AGAIN, tokens=NO_HITS, evictions=1),
            SymptomCode.L1_TOO_SMALL,
            Severity.HIGH,
            [0.0, 0.5, 400.0, 1.0],
        ),
        (
            l1.l1_too_small,
            observation(AGAIN, tokens=NO_HITS, failed_stores=1),
            SymptomCode.L1_TOO_SMALL,
            Severity.HIGH,
            [0.0, 0.5, 400.0, 0.0],
        ),
        (
            l1.l1_too_small,
            beside_own_cache(CHUNK_SIZE, 0.0),
            SymptomCode.L1_TOO_SMALL,
            Severity.HIGH,
            [0.0, 0.5, 400.0, 1.0],
        ),
        (l1.evicts_unjudged, observation(evictions=1), SymptomCode.EVICTS_UNJUDGED, Severity.LOW, [1.0]),
        (
            l1.returns_too_late,
            observation(AGAIN, tokens=NO_HITS, evictions=1, stored_chunks=360_000),
            SymptomCode.RETURNS_TOO_LATE,
            Severity.LOW,
            [50.0, 40.96],
        ),
        (
            l1.evicted_too_soon,
            observation(evicted_followed=20, evicted_needed=1, evictions=500),
            SymptomCode.L1_TOO_SMALL,
            Severity.MEDIUM,
            [20.0, 1.0, 0.025],
        ),
        (
            l1.locks_held,
            observation(locked_chunks=20, resident_chunks=100),
            SymptomCode.LOCKS_HELD,
            Severity.MEDIUM,
            [20.0, 100.0],
        ),
        (
            l1.locks_held,
            observation(log_of(range(9)), locked_chunks=20, resident_chunks=100),
            SymptomCode.LOCKS_HELD,
            Severity.MEDIUM,
            [20.0, 100.0],
        ),
        (shapes.model_starves, two_models(big=0.02, small=0.5), SymptomCode.MODEL_STARVES, Severity.HIGH, [0.02, 0.5, 0.0]),
        (
            shapes.chunks_incomplete,
            observation(incomplete_chunks=20, resident_chunks=100),
            SymptomCode.CHUNKS_INCOMPLETE,
            Severity.MEDIUM,
            [20.0, 100.0],
        ),
        (
            shapes.chunks_incomplete,
            observation(incomplete_chunks=51, resident_chunks=100),
            SymptomCode.CHUNKS_INCOMPLETE,
            Severity.HIGH,
            [51.0, 100.0],
        ),
        (server.isolated_lru_on_l1, observation(config=ISOLATED), SymptomCode.ISOLATED_LRU_ON_L1, Severity.CRITICAL, [0.5]),
        (server.hashes_unstable, with_l2(hash_algorithm="md5"), SymptomCode.HASHES_UNSTABLE, Severity.HIGH, [1.0]),
        (server.restarted, observation(**windows(reset=True)), SymptomCode.RESTARTED, Severity.INFO, [36000.0]),
        (
            traffic.under_stored,
            observation(stored_chunks=200, failed_stores=50),
            SymptomCode.UNDER_STORED,
            Severity.HIGH,
            [500.0, 250.0],
        ),
        (
            traffic.tails_not_cached,
            observation(log_of(range(2), range(2), tail=255)),
            SymptomCode.TAILS_NOT_CACHED,
            Severity.LOW,
            [510.0],
        ),
        (traffic.prefix_diverges_early, observation(NEW), SymptomCode.PREFIX_DIVERGES_EARLY, Severity.LOW, [1.0, 0.0, 8.0]),
        (traffic.prefix_diverges_early, observation(HEADED), SymptomCode.PREFIX_DIVERGES_EARLY, Severity.LOW, [1.0, 1.0, 10.0]),
        (
            l2.l2_too_small,
            with_l2(log=AGAIN, tokens=NO_HITS, l2_evictions=1),
            SymptomCode.L2_TOO_SMALL,
            Severity.HIGH,
            [0.0, 0.5, 1.0],
        ),
        (
            l2.l2_not_retained,
            with_l2(log=AGAIN, tokens=FROM_L2, max_size_mb=64),
            SymptomCode.L2_NOT_RETAINED,
            Severity.LOW,
            [102400.0, 0.0, 0.5],
        ),
        (
            l2.l2_slow,
            with_l2(tokens=FROM_L2, l2_load_gb_per_second=0.001, economics=ENGINE),
            SymptomCode.L2_SLOW,
            Severity.HIGH,
            [0.001, 0.0013],
        ),
        (l2.l2_loads_fail, with_l2(l2_loads_failed=1), SymptomCode.L2_LOADS_FAIL, Severity.MEDIUM, [1.0]),
        (l2.l2_loses_chunks, with_l2(l2_loads_lost=1), SymptomCode.L2_LOSES_CHUNKS, Severity.HIGH, [1.0]),
        (
            l2.l2_unbounded,
            with_l2(L2Adapter(type="fs", settings={"eviction": LRU_BLOCK})),
            SymptomCode.L2_UNBOUNDED,
            Severity.LOW,
            [1.0],
        ),
        (
            l2.l2_unbounded,
            with_l2(L2Adapter(type="fs_native", settings={"max_capacity_gb": 1})),
            SymptomCode.L2_UNBOUNDED,
            Severity.LOW,
            [1.0],
        ),
        (
            l2.tenant_without_quota,
            with_l2(BY_TENANT, by_tenant={"a": ALL_HITS, "b": ALL_HITS}, tenant_quotas_mb={"a": 9}),
            SymptomCode.TENANT_WITHOUT_QUOTA,
            Severity.HIGH,
            [1.0, 204800.0],
        ),
        (
            l2.tenant_without_quota,
            with_l2(BY_TENANT, by_tenant={"": ALL_HITS}, tenant_quotas_mb={}),
            SymptomCode.TENANT_WITHOUT_QUOTA,
            Severity.HIGH,
            [1.0, 204800.0],
        ),
        (
            engine.engine_queues,
            served(queue_ms=560.0, waiting=1),
            SymptomCode.ENGINE_QUEUES,
            Severity.MEDIUM,
            [260.0, 500.0, 1.0, 0.0],
        ),
        (engine.engine_decodes, served(decode_ms=5_000.0), SymptomCode.ENGINE_DECODES, Severity.INFO, [5000.0, 500.0]),
        (
            engine.engine_cache_serves,
            served(own_cache_tokens=5_000, lmcache_tokens=55_000),
            SymptomCode.ENGINE_CACHE_SERVES,
            Severity.LOW,
            [5000.0, 55000.0, 128000.0],
        ),
        (
            engine.lmcache_saves_nothing,
            served(own_cache_tokens=60_000, lmcache_tokens=1_999),
            SymptomCode.LMCACHE_SAVES_NOTHING,
            Severity.HIGH,
            [60000.0, 1999.0, 128000.0],
        ),
        (
            engine.l1_smaller_than_engine_cache,
            served(own_cache_size_tokens=200_000),
            SymptomCode.L1_SMALLER_THAN_ENGINE_CACHE,
            Severity.LOW,
            [131072.0, 200000.0],
        ),
        (
            engine.engine_figures_do_not_fit,
            served(doubt="it is another cache's engine"),
            SymptomCode.ENGINE_FIGURES_DO_NOT_FIT,
            Severity.MEDIUM,
            [100000.0, 256000.0, 128000.0],
        ),
    ],
)
def test_a_symptom_speaks(rule: Rule, seen: Observation, code: SymptomCode, severity: Severity, figures: list[float]) -> None:
    found = rule(seen)
    assert found is not None
    assert (found.code, found.severity) == (code, severity)
    assert [one.value for one in found.evidence] == pytest.approx(figures, abs=1e-4)
    assert found.summary


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        (owners.crowded_out, observation()),
        (owners.crowded_out, as_served(two_tenants(again=True))),
        (owners.crowded_out, as_served(two_tenants(), config=CONFIG.model_copy(update={"max_size_mb": 400}))),
        (server.eviction_dead, observation()),
        (server.counters_incomplete, observation()),
        (server.counters_incomplete, observation(dropped_events=None)),  # an engine, which counts its lookups
        (traffic.no_data, observation(total_requests=20)),
        (traffic.no_data, observation(total_requests=None, tokens=TokenCounts(requested=200 * CHUNK_SIZE))),
        (traffic.no_data, observation(total_requests=203, tokens=TokenCounts(), unregistered_lookups=203)),
        (server.counters_incomplete, observation(total_requests=None, tokens_served=7)),  # an older server
        (server.model_not_registered, observation()),
        (server.model_not_registered, observation(unregistered_lookups=1)),  # an engine that was just starting
        (server.model_not_registered, lately(total_requests=50, unregistered_lookups=0, missing_models=("gone",))),
        (server.model_without_layout, observation(layoutless_lookups=1)),
        (l1.l1_never_evicts, observation(config=NOOP, failed_stores=0, utilization_percent=99)),
        (l1.l1_never_evicts, with_l2(**BUFFER, failed_stores=1, utilization_percent=99)),
        (l1.l1_never_evicts, observation(failed_stores=9, utilization_percent=99)),
        (l1.watermark_too_high, observation(config=NOOP, failed_stores=1, evictions=0, utilization_percent=79)),
        (l1.evicts_unjudged, with_l2(**BUFFER, evictions=1000)),
        (l1.evicts_unjudged, with_l2(evictions=1000, l2_evictions=0)),  # what L1 drops is in L2
        (l1.evicted_too_soon, with_l2(evicted_followed=100, evicted_needed=90, evictions=500, l2_evictions=0)),
        (l1.evicted_too_soon, aged(250, evicted_followed=100, evicted_needed=100, evictions=500)),
        (l2.l2_not_retained, with_l2(log=AGAIN, tokens=FROM_L2, max_size_mb=64, **BUFFER)),
        (l2.l2_unbounded, with_l2(L2Adapter(type="fs", settings=UNKNOWN_SETTINGS))),
        (traffic.no_data, observation(total_requests=20, short_prompts=20, tokens=TokenCounts())),
        (traffic.short_prompts, observation(total_requests=20, short_prompts=9)),
        (traffic.short_prompts, observation(total_requests=0, short_prompts=0)),
        (traffic.short_prompts, observation(total_requests=19, short_prompts=19)),
        (traffic.nothing_to_reuse, observation(NEW, tokens=NO_HITS, total_requests=19)),  # a moment after a restart, say
        (l1.request_larger_than_l1, observation(log_of(range(512)))),
        (l1.request_larger_than_l1, observation()),
        (l1.watermark_too_high, observation(failed_stores=1, evictions=1, utilization_percent=79)),
        (l1.watermark_too_high, observation(failed_stores=1, evictions=0, utilization_percent=80)),
        (l1.watermark_too_high, observation(failed_stores=0, evictions=0, utilization_percent=79)),
        (l1.stores_fail, observation(failed_stores=1, stored_chunks=100)),
        (l1.stores_fail, observation(failed_stores=0)),
        (traffic.nothing_to_reuse, observation(AGAIN, tokens=NO_HITS)),
        (traffic.nothing_to_reuse, observation(tokens=NO_HITS, evictions=1)),
        (traffic.nothing_to_reuse, observation(tokens=NO_HITS, failed_stores=1)),
        (traffic.nothing_to_reuse, observation(NEW, tokens=ALL_HITS)),  # LMCache dropped lookups before they were logged
        (traffic.nothing_to_reuse, observation(tokens=TokenCounts())),
        (l1.l1_too_small, observation(AGAIN, tokens=ALL_HITS, evictions=1)),
        (l1.returns_too_late, observation(AGAIN, tokens=NO_HITS, evictions=1, stored_chunks=36_000)),
        (l1.returns_too_late, observation(NEW, tokens=NO_HITS, evictions=1, stored_chunks=360_000)),
        (l1.returns_too_late, with_l2(log=AGAIN, tokens=NO_HITS, evictions=1, stored_chunks=360_000, l2_evictions=1, **BUFFER)),
        (l1.returns_too_late, with_l2(log=AGAIN, tokens=NO_HITS, evictions=1, stored_chunks=360_000, l2_evictions=0)),
        (engine.engine_figures_do_not_fit, served()),
        (l1.l1_too_small, observation(AGAIN, tokens=NO_HITS)),
        (l1.l1_too_small, beside_own_cache(10_000_000, 0.5)),  # the engine's own cache had all that L1 lost
        (l1.l1_too_small, observation(tokens=NO_HITS, evictions=1)),
        (l1.evicts_unjudged, observation(NEW, evictions=1)),
        (l1.evicts_unjudged, observation()),
        (l1.evicted_too_soon, observation(evicted_followed=19, evicted_needed=19, evictions=500)),
        (l1.evicted_too_soon, observation(evicted_followed=100, evicted_needed=1, evictions=500)),
        (l1.l1_too_small, with_l2(log=AGAIN, tokens=NO_HITS, evictions=1)),
        (shapes.model_starves, two_models(big=0.02, small=0.1)),
        (shapes.model_starves, two_models(big=0.4, small=0.5)),
        (shapes.model_starves, observation(AGAIN)),
        (shapes.chunks_incomplete, observation(incomplete_chunks=19, resident_chunks=50)),
        (shapes.chunks_incomplete, observation(incomplete_chunks=199, resident_chunks=1000)),
        (shapes.chunks_incomplete, observation(incomplete_chunks=None)),
        (l1.locks_held, observation(locked_chunks=19, resident_chunks=100)),
        (l1.locks_held, observation(log_of(range(10)), locked_chunks=20, resident_chunks=100)),
        (l1.locks_held, observation(locked_chunks=None, resident_chunks=100)),
        (server.isolated_lru_on_l1, observation()),
        (server.hashes_unstable, with_l2(hash_algorithm="blake3")),
        (server.hashes_unstable, observation(config=CONFIG.model_copy(update={"hash_algorithm": "md5"}))),
        (server.restarted, observation(**windows(reset=False))),
        (traffic.under_stored, observation(stored_chunks=250, failed_stores=50)),
        (traffic.under_stored, observation(stored_chunks=None)),
        (traffic.under_stored, observation(stored_chunks=0, incomplete_chunks=200, resident_chunks=200)),
        (traffic.tails_not_cached, observation(log_of(range(3), range(3), tail=100))),
        (traffic.prefix_diverges_early, observation(AGAIN)),
        (traffic.prefix_diverges_early, observation(log_of(*conversations(19, 8)))),
        (traffic.prefix_diverges_early, observation(log_of(*conversations(50, 7)))),
        (traffic.prefix_diverges_early, observation()),
        (l2.l2_too_small, with_l2(log=AGAIN, tokens=NO_HITS, l2_evictions=0)),
        (l2.l2_too_small, with_l2(log=NEW, tokens=NO_HITS, l2_evictions=1)),
        (l2.l2_not_retained, with_l2(log=AGAIN, tokens=FROM_L2, max_size_mb=64, l2_prefetch_policy="retain")),
        (l2.l2_not_retained, with_l2(log=AGAIN, tokens=ALL_HITS, max_size_mb=64)),
        (l2.l2_not_retained, with_l2(tokens=FROM_L2, max_size_mb=64)),
        (l2.l2_not_retained, with_l2(log=AGAIN, tokens=FROM_L2)),
        (l2.l2_slow, with_l2(tokens=FROM_L2, l2_load_gb_per_second=0.002, economics=ENGINE)),
        (l2.l2_slow, with_l2(tokens=FROM_L2, l2_load_gb_per_second=0.001)),
        (l2.l2_slow, with_l2(tokens=FROM_L2, economics=ENGINE)),
        (l2.l2_loads_fail, with_l2(l2_loads_failed=0)),
        (l2.l2_loses_chunks, with_l2(l2_loads_failed=9)),
        (l2.l2_loses_chunks, with_l2(l2_loads_lost=1, tokens=TokenCounts(requested=1001 * CHUNK_SIZE))),
        (l2.l2_unbounded, with_l2()),
        (l2.l2_unbounded, with_l2(L2Adapter(type="fs", settings={"eviction": BY_TENANT.eviction}))),
        (l2.tenant_without_quota, with_l2(BY_TENANT, by_tenant=dict.fromkeys(("a", ""), ALL_HITS), tenant_quotas_mb=QUOTAS)),
        (l2.tenant_without_quota, with_l2(by_tenant={"a": ALL_HITS}, tenant_quotas_mb={})),
        (engine.engine_queues, served(queue_ms=560.0, waiting=0)),
        (engine.engine_queues, served(queue_ms=540.0, waiting=1)),  # 300 ms of it load hits
        (engine.engine_queues, served(queue_ms=560.0, waiting=1, requests=19)),
        (engine.engine_queues, observation()),
        (engine.engine_decodes, served(decode_ms=4_400.0)),
        (engine.engine_decodes, served(decode_ms=None)),
        (engine.engine_cache_serves, served(own_cache_tokens=4_000)),
        (engine.engine_cache_serves, beside_own_cache(10_000_000, 0.5)),  # LMCache counts no hits that could be overstated
        (engine.engine_cache_serves, served(own_cache_tokens=60_000, lmcache_tokens=0)),  # a finding of its own
        (engine.lmcache_saves_nothing, served(own_cache_tokens=60_000, lmcache_tokens=2_000)),
        (engine.lmcache_saves_nothing, served(own_cache_tokens=4_000, lmcache_tokens=0)),
        (engine.l1_smaller_than_engine_cache, served(own_cache_size_tokens=100_000)),
        (engine.l1_smaller_than_engine_cache, served()),
    ],
)
def test_a_symptom_does_not_speak(rule: Rule, seen: Observation) -> None:
    assert rule(seen) is None


def test_an_engine_with_its_default_hash_is_told_of_the_seed_and_not_of_a_servers_flag() -> None:
    told = server.hashes_unstable(with_l2(hash_algorithm="builtin"))
    assert told is not None
    assert "PYTHONHASHSEED" in told.summary
    assert "--hash-algorithm" not in told.summary


def test_every_rule_is_tried() -> None:
    tried = {argument[0] for mark in test_a_symptom_speaks.pytestmark for argument in mark.args[1]}
    assert set(RULES) <= tried


def test_a_healthy_cache_has_nothing_wrong() -> None:
    (only,) = diagnose(observation(AGAIN, tokens=ALL_HITS))
    assert (only.code, only.severity) == (SymptomCode.NOTHING_WRONG, Severity.INFO)
    assert "50.0%" in only.summary


def test_the_worst_comes_first() -> None:
    sick = Health(healthy=False, problems=("the L1 eviction thread is dead",))
    told = diagnose(observation(AGAIN, health=sick, failed_stores=10, stored_chunks=90, tokens=NO_HITS, evictions=1))
    order = list(Severity)
    assert [symptom.severity for symptom in told] == sorted((symptom.severity for symptom in told), key=order.index, reverse=True)
    assert told[0].code is SymptomCode.EVICTION_DEAD


def test_what_only_a_log_can_tell_rests_on_the_log() -> None:
    told = {
        symptom.code: symptom.rung for symptom in diagnose(observation(AGAIN, tokens=NO_HITS, evictions=1, failed_stores=500))
    }
    assert told[SymptomCode.L1_TOO_SMALL] is Rung.ACCESS_LOG
    assert told[SymptomCode.STORES_FAIL] is Rung.COUNTERS


def test_without_a_log_it_says_how_to_get_one() -> None:
    (only,) = diagnose(observation(evictions=7))
    assert only.code is SymptomCode.EVICTS_UNJUDGED
    assert "--lookup-hash-log-dir" in only.summary


def test_a_log_of_other_times_is_no_evidence_for_this_window() -> None:
    seen = observation(AGAIN, tokens=NO_HITS, evictions=1)
    assert seen.log is not None
    later = observation(AGAIN, tokens=NO_HITS, evictions=1)
    object.__setattr__(later, "log", log_of(*conversations(50, 8)))  # at second 0 of 1970
    assert later.rung is Rung.COUNTERS
    assert later.curve is None


def test_a_cache_of_unknown_size_or_chunks_is_not_called_too_small() -> None:
    unknown = CONFIG.model_copy(update={"max_size_mb": None})
    assert l1.request_larger_than_l1(observation(log_of(range(513)), config=unknown)) is None
    assert l1.request_larger_than_l1(observation(log_of(range(513)), kv_bytes_per_token=None)) is None


def test_one_tenants_prompts_that_nobody_asks_for_again_are_named_with_what_they_cost_the_others() -> None:
    found = owners.crowded_out(as_served(two_tenants()))
    assert found is not None
    assert (found.code, found.severity) == (SymptomCode.CROWDED_OUT, Severity.MEDIUM)
    share, again, cost = (one.value for one in found.evidence)
    assert share == pytest.approx(0.5)
    assert again == 0
    assert cost > 0.1
    assert (
        "The prompts of tenant crawler take 50% of the requested tokens, and 0% of them come again: 80 prompts" in found.summary
    )
    assert "lmcache.max_offload_tokens set to 0" in found.summary


def test_models_are_told_apart_like_tenants() -> None:
    log = two_tenants()
    by_model = replace(log, models=log.tenants, model_names=("small", "large"), tenants=0 * log.tenants, tenant_names=("",))
    found = owners.crowded_out(as_served(by_model))
    assert found is not None
    assert "The prompts of model large" in found.summary
