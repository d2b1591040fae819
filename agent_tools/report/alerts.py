"""Prometheus alert rules for `lmcache server`, the engine in front and our own agent, made from the names of LMCache 0.5.6."""

from dataclasses import dataclass

import yaml

ENGINE = "vllm:"
AGENT = "lmcache_agent_"


@dataclass(frozen=True)
class Alert:
    """One rule. ``$W`` in its texts stands for the length of the window, ``$JOB`` for the job of the LMCache servers."""

    name: str
    expression: str
    summary: str
    what_to_do: str
    severity: str = "warning"
    lasting: str = "$W"
    """How long the expression must hold before the alert fires; empty if once is enough."""


def _grew(counter: str) -> str:
    """Return an expression for a counter that grew within the window, also from nothing.

    LMCache exports most counters from their first count on. ``increase`` does not see that first count, because it needs two
    samples. A series that was not there a window ago, while its server was, has grown too.
    """
    born = f'({counter} unless {counter} offset $W) and on (instance) up{{job="$JOB"}} offset $W == 1'
    return f"(increase({counter}[$W]) > 0 or ({born}))"


HIT_RATE = (
    "sum by (instance) (rate(lmcache_mp_lookup_hit_tokens_total{job=\"$JOB\"}[$W]$O))"
    " / sum by (instance) (rate(lmcache_mp_lookup_requested_tokens_total{job=\"$JOB\"}[$W]$O))"
)  # fmt: skip
"""Token hit rate of a server; no value without requests. ``$O`` is an offset or nothing."""
ENOUGH = 'sum by (instance) (increase(lmcache_mp_lookups_requests_total{job="$JOB"}[$W]$O)) >= 20'
"""A server that was asked often enough for its hit rate to mean something."""
DROPPED = 'sum by (instance) (rate(lmcache_mp_l1_allocation_failure_chunks_total{job="$JOB", during="l1_store"}[$W])) > 0'

ALERTS = (
    Alert(
        "LMCacheDown",
        'up{job="$JOB"} == 0',
        "the LMCache server {{ $labels.instance }} does not answer Prometheus",
        "engines compute every prompt now: look at the process and its log",
        severity="critical",
        lasting="1m",
    ),
    Alert(
        "LMCacheRestarted",
        'changes(process_start_time_seconds{job="$JOB"}[$W]) > 0',
        "the LMCache server {{ $labels.instance }} restarted: L1 is empty, and settings changed live are gone",
        "compare `lmcache-agent changes` with `lmcache-agent export`, and set again what was lost",
        lasting="",
    ),
    Alert(
        "LMCacheStoresDropped",
        DROPPED,
        "the LMCache server {{ $labels.instance }} drops stores because L1 has no room for them",
        "run `lmcache-agent recommend`: more L1, a lower watermark or a larger eviction ratio",
    ),
    Alert(
        "LMCacheL1FullWithoutEviction",
        f'max by (instance) (lmcache_mp_l1_usage_ratio{{job="$JOB"}}) > 0.95 and on (instance) {DROPPED}'
        ' unless on (instance) sum by (instance) (rate(lmcache_mp_l1_evicted_chunks_total{job="$JOB"}[$W])) > 0',
        "L1 of {{ $labels.instance }} is full and nothing is evicted: new prompts are not cached",
        "policy noop without a reason, or an eviction thread that died: run `lmcache-agent diagnose`",
    ),
    Alert(
        "LMCacheEvictionStopped",
        'rate(lmcache_mp_l1_eviction_loop_ticks_total{job="$JOB"}[$W]) == 0',
        "the eviction thread of {{ $labels.instance }} does not run any more",
        "restart the server with policy LRU; IsolatedLRU on L1 ends the thread (LMCache 0.5.6)",
        severity="critical",
    ),
    Alert(
        "LMCacheEventsDropped",
        'increase(lmcache_mp_event_bus_dropped_events_total{job="$JOB"}[$W]) > 0',
        "the LMCache server {{ $labels.instance }} drops events before it counts them: its figures are too low",
        "raise --event-bus-queue-size; do not act on figures of this time",
        lasting="",
    ),
    Alert(
        "LMCacheModelNotRegistered",
        "sum by (instance) "
        + _grew('lmcache_mp_lookup_early_exit_requests_total{job="$JOB", reason=~"no_gpu_context|no_group_layout_descs"}'),
        "engines ask {{ $labels.instance }} for a model that none of them registered: every prompt is computed",
        "restart the engine, so that it registers its model with its world size",
        severity="critical",
        lasting="",
    ),
    Alert(
        "LMCacheHitRateFell",
        f"({HIT_RATE.replace('$O', '')} < {HIT_RATE.replace('$O', ' offset $LONG')} - 0.2)"
        f" and on (instance) {ENOUGH.replace('$O', '')} and on (instance) {ENOUGH.replace('$O', ' offset $LONG')}",
        "the token hit rate of {{ $labels.instance }} is more than 20 points below the rate of $LONG ago",
        "look for a change of traffic or settings: `lmcache-agent changes`, `lmcache-agent diagnose --window 60`",
    ),
    Alert(
        "LMCacheL2LoadsFail",
        "sum by (instance, reason) " + _grew('lmcache_mp_l2_prefetch_failure_chunks_total{job="$JOB"}'),
        "loads from L2 into L1 of {{ $labels.instance }} fail: {{ $labels.reason }}",
        "l1_oom: L1 has no room for loads; not_found: L2 lost chunks that it had",
        lasting="",
    ),
    Alert(
        "LMCacheAgentChangeUnclear",
        f"{AGENT}unclear_changes > 0",
        "a change of cache {{ $labels.cache }} has no clear outcome: it may be half in force",
        "read the configuration, then `lmcache-agent changes`; undo the change or make it again",
    ),
    Alert(
        "LMCacheAgentUndoesOften",
        f"{AGENT}undone_last_day >= 2",
        "two changes of cache {{ $labels.cache }} were undone within a day: advice does not hold for its traffic",
        'set max_mode = "recommend" for the cache and look at the evidence in the report',
        lasting="",
    ),
)
"""Every alert. The tests provoke each one once."""


def rules(job: str = "lmcache", window: str = "5m", long: str = "1h", lasting: str | None = None) -> str:
    """Return a rule file for Prometheus.

    Args:
        job: The job name of the LMCache servers in the scrape configuration.
        window: Length of the windows over which rates are taken.
        long: How long ago the hit rate is compared with.
        lasting: How long a condition must hold, in place of what each alert states. Tests shorten it.
    """

    def filled(text: str) -> str:
        return text.replace("$LONG", long).replace("$W", window).replace("$JOB", job)

    listed = [
        {
            "alert": one.name,
            "expr": filled(one.expression),
            **({"for": lasting or filled(one.lasting)} if one.lasting else {}),
            "labels": {"severity": one.severity},
            "annotations": {"summary": filled(one.summary), "description": one.what_to_do},
        }
        for one in ALERTS
    ]
    written: str = yaml.safe_dump({"groups": [{"name": "lmcache", "rules": listed}]}, sort_keys=False, width=120)
    return written
