"""What is wrong with a cache: one rule per symptom, in the room of what it is about, each with the figures it rests on.

To add a symptom: give it a code in `models.SymptomCode`, write its rule in `server`, `traffic`, `l1`, `l2` or `engine`, and
list it here.
"""

from agent_tools.models import Severity, Symptom, SymptomCode
from agent_tools.recommender.observation import Observation

from . import engine, l1, l2, server, traffic
from .rule import Rule

RULES: tuple[Rule, ...] = (
    server.eviction_dead,
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
    l1.request_larger_than_l1,
    l1.watermark_too_high,
    l1.stores_fail,
    l1.locks_held,
    l1.l1_too_small,
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
    engine.engine_cache_serves,
)


def diagnose(seen: Observation) -> tuple[Symptom, ...]:
    """All symptoms, worst first; `nothing_wrong` when there is none."""
    order = list(Severity)
    found = [symptom for rule in RULES if (symptom := rule(seen)) is not None]
    if not found:
        rate = seen.metrics.tokens.hit_rate or 0.0
        found = [
            Symptom(
                code=SymptomCode.NOTHING_WRONG, severity=Severity.INFO, summary=f"nothing is wrong: token hit rate {rate:.1%}"
            )
        ]
    return tuple(sorted(found, key=lambda symptom: -order.index(symptom.severity)))
