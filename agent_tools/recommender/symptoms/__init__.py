"""The rules that find what is wrong with a cache. Each rule finds one symptom and reports the figures behind it.

To add a symptom: add a code to `models.SymptomCode`, write its rule in `server`, `traffic`, `owners`, `shapes`, `l1`, `l2` or
`engine`, and list the rule here.
"""

from agent_tools.models import Severity, Symptom, SymptomCode
from agent_tools.recommender.observation import Observation

from . import engine, l1, l2, owners, server, shapes, traffic
from .rule import Rule

RULES: tuple[Rule, ...] = (
    server.eviction_dead,
    server.model_not_registered,
    server.model_without_layout,
    server.isolated_lru_on_l1,
    server.counters_incomplete,
    server.hashes_unstable,
    server.restarted,
    traffic.no_data,
    traffic.short_prompts,
    traffic.nothing_to_reuse,
    traffic.prefix_diverges_early,
    traffic.under_stored,
    traffic.tails_not_cached,
    owners.crowded_out,
    l1.request_larger_than_l1,
    l1.l1_never_evicts,
    l1.watermark_too_high,
    l1.stores_fail,
    l1.locks_held,
    l1.l1_too_small,
    l1.returns_too_late,
    shapes.model_starves,
    shapes.chunks_incomplete,
    l1.evicted_too_soon,
    l1.evicts_unjudged,
    l2.l2_too_small,
    l2.l2_not_retained,
    l2.l2_slow,
    l2.l2_loads_fail,
    l2.l2_loses_chunks,
    l2.l2_unbounded,
    l2.tenant_without_quota,
    engine.engine_queues,
    engine.engine_decodes,
    engine.lmcache_saves_nothing,
    engine.engine_cache_serves,
    engine.l1_smaller_than_engine_cache,
    engine.engine_figures_do_not_fit,
)


def diagnose(seen: Observation) -> tuple[Symptom, ...]:
    """Return all symptoms, the most severe first. Without a symptom, return the one symptom `nothing_wrong`."""
    order = list(Severity)
    found = [symptom for rule in RULES if (symptom := rule(seen)) is not None]
    if not found:
        rate = seen.metrics.tokens.hit_rate or 0.0
        found = [
            Symptom(
                code=SymptomCode.NOTHING_WRONG,
                severity=Severity.INFO,
                summary=f"Nothing is wrong: the token hit rate is {rate:.1%}",
            )
        ]
    return tuple(sorted(found, key=lambda symptom: -order.index(symptom.severity)))
