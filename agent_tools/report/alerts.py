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
    lasting: bool = True
    """Whether the expression must hold for a whole window before the alert fires."""


HIT_RATE = (
    "sum by (instance) (rate(lmcache_mp_lookup_hit_tokens_total{job=\"$JOB\"}[$W]$O))"
    " / sum by (instance) (rate(lmcache_mp_lookup_requested_tokens_total{job=\"$JOB\"}[$W]$O))"
)  # fmt: skip
"""Token hit rate of a server; no value without requests. ``$O`` is an offset or nothing."""

ALERTS = (
    Alert(
        "LMCacheDown",
        'up{job="$JOB"} == 0',
        "the LMCache server {{ $labels.instance }} does not answer Prometheus",
        "engines compute every prompt now: look at the process and its log",
        severity="critical",
        lasting=False,
    ),
    Alert(
        "LMCacheRestarted",
        'changes(process_start_time_seconds{job="$JOB"}[$W]) > 0',
        "the LMCache server {{ $labels.instance }} restarted: L1 is empty, and settings changed live are gone",
        "compare `lmcache-agent changes` with `lmcache-agent export`, and set again what was lost",
        lasting=False,
    ),
    Alert(
        "LMCacheStoresDropped",
        'sum by (instance) (rate(lmcache_mp_l1_allocation_failure_chunks_total{job="$JOB", during="l1_store"}[$W])) > 0',
        "the LMCache server {{ $labels.instance }} drops stores because L1 has no room for them",
        "run `lmcache-agent recommend`: more L1, a lower watermark or a larger eviction ratio",
    ),
    Alert(
        "LMCacheL1FullWithoutEviction",
        'max by (instance) (lmcache_mp_l1_usage_ratio{job="$JOB"}) > 0.95'
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
        lasting=False,
    ),
    Alert(
        "LMCacheModelNotRegistered",
        "sum by (instance) (increase(lmcache_mp_lookup_early_exit_requests_total"
        '{job="$JOB", reason=~"no_gpu_context|no_group_layout_descs"}[$W])) > 0',
        "engines ask {{ $labels.instance }} for a model that none of them registered: every prompt is computed",
        "restart the engine, so that it registers its model with its world size",
        severity="critical",
        lasting=False,
    ),
    Alert(
        "LMCacheHitRateFell",
        f"{HIT_RATE.replace('$O', '')} < {HIT_RATE.replace('$O', ' offset $LONG')} - 0.2",
        "the token hit rate of {{ $labels.instance }} is more than 20 points below the rate of $LONG ago",
        "look for a change of traffic or settings: `lmcache-agent changes`, `lmcache-agent diagnose --window 60`",
    ),
    Alert(
        "LMCacheL2LoadsFail",
        'sum by (instance, reason) (increase(lmcache_mp_l2_prefetch_failure_chunks_total{job="$JOB"}[$W])) > 0',
        "loads from L2 into L1 of {{ $labels.instance }} fail: {{ $labels.reason }}",
        "l1_oom: L1 has no room for loads; not_found: L2 lost chunks that it had",
        lasting=False,
    ),
    Alert(
        "LMCacheAgentChangeUnclear",
        f'sum by (instance, cache) ({AGENT}changes{{outcome=~"started|unknown|failed"}}) > 0',
        "a change of cache {{ $labels.cache }} has no clear outcome: it may be half in force",
        "read the configuration, then `lmcache-agent changes`; undo the change or make it again",
    ),
    Alert(
        "LMCacheAgentUndoesOften",
        f'sum by (instance, cache) (delta({AGENT}changes{{outcome="undone"}}[24h])) >= 2',
        "two changes of cache {{ $labels.cache }} were undone within a day: advice does not hold for its traffic",
        'set max_mode = "recommend" for the cache and look at the evidence in the report',
        lasting=False,
    ),
)
"""Every alert. The tests provoke each one once."""


def rules(job: str = "lmcache", window: str = "5m", long: str = "1h", lasting: str | None = None) -> str:
    """Return a rule file for Prometheus.

    Args:
        job: The job name of the LMCache servers in the scrape configuration.
        window: Length of the windows over which rates are taken.
        long: How long ago the hit rate is compared with.
        lasting: How long a condition must hold; the window by default.
    """

    def filled(text: str) -> str:
        return text.replace("$LONG", long).replace("$W", window).replace("$JOB", job)

    listed = [
        {
            "alert": one.name,
            "expr": filled(one.expression),
            **({"for": lasting or window} if one.lasting else {}),
            "labels": {"severity": one.severity},
            "annotations": {"summary": filled(one.summary), "description": one.what_to_do},
        }
        for one in ALERTS
    ]
    written: str = yaml.safe_dump({"groups": [{"name": "lmcache", "rules": listed}]}, sort_keys=False, width=120)
    return written
