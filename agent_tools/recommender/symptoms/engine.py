"""Symptoms from the serving engine's own metrics: cases in which requests do not wait for the cache."""

from agent_tools.models import Evidence, Severity, Symptom, SymptomCode
from agent_tools.models.engine import EngineMetrics
from agent_tools.recommender.observation import Observation

from .rule import ENOUGH_LOOKUPS, figure

MOST = 0.5
"""Smallest share of the time to first token that the queue must take for `engine_queues`."""
LITTLE = 0.1
"""Share of a request's time below which the time to first token hardly matters."""
NOTHING = 0.02
"""Share of the prompt tokens below which LMCache saves next to nothing."""
WORTH_SAVING = 0.01
"""Share of the requested tokens from which it is worth to have LMCache."""
OVERLAP = 0.05
"""Smallest share of the prompt tokens, served by the engine's own prefix cache, that is reported."""


def engine_queues(seen: Observation) -> Symptom | None:
    """Report that requests queue in the engine for capacity. No cache setting can add that capacity."""
    engine = _enough(seen)
    if engine is None or engine.ttft_ms is None or engine.queue_ms is None or not engine.waiting:
        return None
    waiting = engine.queue_ms - _load_ms(seen, engine)
    if waiting < MOST * engine.ttft_ms.mean:
        return None
    return Symptom(
        code=SymptomCode.ENGINE_QUEUES,
        severity=Severity.MEDIUM,
        summary=f"A request waits {waiting:,.0f} ms of its {engine.ttft_ms.mean:,.0f} ms to the first token in the engine's"
        f" queue; {engine.waiting} requests wait there now. More engines or a larger batch shorten the wait; a better hit rate"
        " helps only indirectly, by freeing the engine sooner",
        evidence=(
            figure("mean time in the queue without loads (vllm:request_queue_time_seconds)", waiting, "ms"),
            figure("mean time to first token (vllm:time_to_first_token_seconds)", engine.ttft_ms.mean, "ms"),
            figure("requests waiting for capacity (vllm:num_requests_waiting_by_reason, capacity)", engine.waiting, "requests"),
            figure("requests preempted (vllm:num_preemptions)", engine.preemptions, "requests"),
        ),
    )


def engine_decodes(seen: Observation) -> Symptom | None:
    """Report that the engine spends nearly all of a request's time on generating the answer."""
    engine = _enough(seen)
    if engine is None or engine.ttft_ms is None or engine.decode_ms is None:
        return None
    whole = engine.ttft_ms.mean + engine.decode_ms
    if not whole or engine.ttft_ms.mean >= LITTLE * whole:
        return None
    return Symptom(
        code=SymptomCode.ENGINE_DECODES,
        severity=Severity.INFO,
        summary=f"The engine spends {engine.decode_ms:,.0f} ms of a request's {whole:,.0f} ms on generating the answer. A better"
        f" hit rate shortens only the {engine.ttft_ms.mean:,.0f} ms before it, and frees the engine",
        evidence=(
            figure("mean time from first to last token (vllm:request_decode_time_seconds)", engine.decode_ms, "ms"),
            figure("mean time to first token (vllm:time_to_first_token_seconds)", engine.ttft_ms.mean, "ms"),
        ),
    )


def engine_cache_serves(seen: Observation) -> Symptom | None:
    """Report that the engine's own prefix cache serves tokens that LMCache counts as hits but does not load."""
    engine = _enough(seen)
    if engine is None or engine.doubt or lmcache_saves_nothing(seen) is not None:
        return None
    own, loaded = engine.own_cache_share, engine.lmcache_tokens
    if own is None or loaded is None or own < OVERLAP or not seen.metrics.tokens.hit:
        return None
    return Symptom(
        code=SymptomCode.ENGINE_CACHE_SERVES,
        severity=Severity.LOW,
        summary=f"The engine's own prefix cache serves {own:.1%} of the prompt tokens. The engine looks them"
        f" up in LMCache too, and LMCache counts them as hits, but the engine loaded only {loaded:,} tokens from"
        " LMCache. LMCache's hit rate therefore overstates what it saves, and a higher hit rate is worth less",
        evidence=_sources(seen, engine),
    )


def lmcache_saves_nothing(seen: Observation) -> Symptom | None:
    """Report that the engine loads next to nothing from LMCache, because its own prefix cache holds what comes again."""
    engine = _enough(seen)
    if engine is None or not seen.metrics.tokens.hit:
        return None
    own, saved = engine.own_cache_share, engine.saved_share
    if own is None or saved is None or saved >= NOTHING or own < OVERLAP:
        return None
    size = f" of {engine.own_cache_size_tokens:,} tokens" if engine.own_cache_size_tokens else ""
    little = "next to nothing" if engine.lmcache_tokens else "nothing"
    return Symptom(
        code=SymptomCode.LMCACHE_SAVES_NOTHING,
        severity=Severity.HIGH,
        summary=f"LMCache saves {little} here: the engine loaded {engine.lmcache_tokens:,} of {engine.prompt_tokens:,} prompt"
        f" tokens from it. The engine's own cache{size} served {own:.1%}, and holds what comes again. " + _would_begin(seen),
        evidence=_sources(seen, engine),
    )


def l1_smaller_than_engine_cache(seen: Observation) -> Symptom | None:
    """Report that L1 holds fewer tokens than the engine's own prefix cache, so most of its hits are there already."""
    own, chunks, size = seen.own_cache_size, seen.capacity_chunks, seen.config.chunk_size
    if not own or chunks is None or size is None or chunks * size >= own or seen.config.l2_adapters:
        return None  # behind an L2, what LMCache holds is not L1 alone
    return Symptom(
        code=SymptomCode.L1_SMALLER_THAN_ENGINE_CACHE,
        severity=Severity.LOW,
        summary=f"L1 holds {chunks * size:,.0f} tokens, fewer than the {own:,} tokens of the engine's own cache, which is asked"
        " first: LMCache saves most when it holds much more than the engine does",
        evidence=(
            figure("tokens that L1 holds", chunks * size, "tokens"),
            figure("tokens that the engine's own cache holds", own, "tokens"),
        ),
    )


def engine_figures_do_not_fit(seen: Observation) -> Symptom | None:
    """Report that the engine's figures cannot be this cache's: it is another cache's engine, or loads from elsewhere."""
    engine = seen.metrics.engine
    if engine is None or engine.doubt is None:
        return None
    tokens = seen.metrics.tokens
    return Symptom(
        code=SymptomCode.ENGINE_FIGURES_DO_NOT_FIT,
        severity=Severity.MEDIUM,
        summary=f"Nothing says what LMCache saves: {engine.doubt}",
        evidence=(
            figure("prompt tokens of the engine", engine.prompt_tokens, "tokens"),
            figure("tokens that LMCache was asked for (lookup_requested_tokens)", tokens.requested, "tokens"),
            figure("tokens that LMCache counts as hits (lookup_hit_tokens)", tokens.hit, "tokens"),
        ),
    )


def _sources(seen: Observation, engine: EngineMetrics) -> tuple[Evidence, ...]:
    return (
        figure("tokens from the engine's own cache (vllm:prefix_cache_hits)", engine.own_cache_tokens or 0, "tokens"),
        figure("tokens loaded from LMCache (vllm:external_prefix_cache_hits)", engine.lmcache_tokens or 0, "tokens"),
        figure("tokens that LMCache counts as hits (lookup_hit_tokens)", seen.metrics.tokens.hit, "tokens"),
    )


def _would_begin(seen: Observation) -> str:
    """Say what would change it."""
    if seen.ceiling is None or not seen.savings_known or seen.own_cache is None:
        return "It would save something if prompts came back after the engine has dropped them, and L1 still held them"
    if seen.ceiling < WORTH_SAVING:
        return f"No L1 size would change that: an unbounded L1 would save {seen.ceiling:.1%} of the requested tokens"
    return (
        f"An unbounded L1 would save {seen.ceiling:.1%} of the requested tokens; lmcache_predict_hit_rate says from which size on"
    )


def _enough(seen: Observation) -> EngineMetrics | None:
    engine = seen.metrics.engine
    return engine if engine is not None and engine.requests >= ENOUGH_LOOKUPS else None


def _load_ms(seen: Observation, engine: EngineMetrics) -> float:
    """Return the mean time in ms that a request waits for its loads from LMCache. vLLM counts this time as queueing."""
    per_token = seen.engine_speed.per_loaded_token if seen.engine_speed else None
    return 1e3 * (per_token or 0.0) * (engine.lmcache_tokens or 0) / engine.requests
