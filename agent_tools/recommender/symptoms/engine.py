"""What the serving engine's own figures say: where the cache is not what requests wait for."""

from agent_tools.models import Severity, Symptom, SymptomCode
from agent_tools.models.engine import EngineMetrics
from agent_tools.recommender.observation import Observation

from .rule import ENOUGH_LOOKUPS, figure

MOST = 0.5
"""Share of the time to first token from which on it is the queue that counts."""
LITTLE = 0.1
"""Share of a request's time below which it does not matter how soon its first token comes."""
OVERLAP = 0.05
"""Share of the prompt tokens that the engine's own prefix cache serves that is worth a word."""


def engine_queues(seen: Observation) -> Symptom | None:
    """Requests wait for room in the engine, which no cache setting gives them."""
    engine = _enough(seen)
    if engine is None or engine.ttft_ms is None or engine.queue_ms is None or not engine.waiting:
        return None
    waiting = engine.queue_ms - _load_ms(seen, engine)
    if waiting < MOST * engine.ttft_ms.mean:
        return None
    return Symptom(
        code=SymptomCode.ENGINE_QUEUES,
        severity=Severity.MEDIUM,
        summary=f"of {engine.ttft_ms.mean:,.0f} ms to the first token a request waits {waiting:,.0f} ms for room in the engine,"
        f" where {engine.waiting} wait now: more engines or a larger batch shorten that, a better hit rate only as far as it"
        " frees them",
        evidence=(
            figure("mean time before prefill, loads taken off (vllm:request_queue_time_seconds)", waiting, "ms"),
            figure("mean time to first token (vllm:time_to_first_token_seconds)", engine.ttft_ms.mean, "ms"),
            figure("requests waiting for room (vllm:num_requests_waiting_by_reason, capacity)", engine.waiting, "requests"),
            figure("requests preempted (vllm:num_preemptions)", engine.preemptions, "requests"),
        ),
    )


def engine_decodes(seen: Observation) -> Symptom | None:
    """Nearly all of a request's time is spent on its answer."""
    engine = _enough(seen)
    if engine is None or engine.ttft_ms is None or engine.decode_ms is None:
        return None
    whole = engine.ttft_ms.mean + engine.decode_ms
    if not whole or engine.ttft_ms.mean >= LITTLE * whole:
        return None
    return Symptom(
        code=SymptomCode.ENGINE_DECODES,
        severity=Severity.INFO,
        summary=f"of {whole:,.0f} ms that a request takes, {engine.decode_ms:,.0f} ms are its answer: a better hit rate shortens"
        f" the {engine.ttft_ms.mean:,.0f} ms before it and frees the engine, no more",
        evidence=(
            figure("mean time from first to last token (vllm:request_decode_time_seconds)", engine.decode_ms, "ms"),
            figure("mean time to first token (vllm:time_to_first_token_seconds)", engine.ttft_ms.mean, "ms"),
        ),
    )


def engine_cache_serves(seen: Observation) -> Symptom | None:
    """The engine's own prefix cache serves prompts that LMCache counts as hits without loading them."""
    engine = _enough(seen)
    if engine is None or engine.own_cache_share < OVERLAP:
        return None
    return Symptom(
        code=SymptomCode.ENGINE_CACHE_SERVES,
        severity=Severity.LOW,
        summary=f"the engine's own prefix cache serves {engine.own_cache_share:.1%} of the prompt tokens; LMCache is asked for"
        f" them all the same and counts what it has as hits, though it loads only {engine.lmcache_tokens} tokens: its hit rate"
        " says more than it saves, and a gain in it is worth less",
        evidence=(
            figure("tokens from the engine's own cache (vllm:prefix_cache_hits)", engine.own_cache_tokens, "tokens"),
            figure("tokens loaded from LMCache (vllm:external_prefix_cache_hits)", engine.lmcache_tokens, "tokens"),
            figure("tokens that LMCache counts as hits (lookup_hit_tokens)", seen.metrics.tokens.hit, "tokens"),
        ),
    )


def _enough(seen: Observation) -> EngineMetrics | None:
    engine = seen.metrics.engine
    return engine if engine is not None and engine.requests >= ENOUGH_LOOKUPS else None


def _load_ms(seen: Observation, engine: EngineMetrics) -> float:
    """Mean time a request waits for what it loads, which vLLM counts as queueing."""
    per_token = seen.engine_speed.per_loaded_token if seen.engine_speed else None
    return 1e3 * (per_token or 0.0) * engine.lmcache_tokens / engine.requests
