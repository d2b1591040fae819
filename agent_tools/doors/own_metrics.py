"""Our own figures for Prometheus: changes by outcome, and the last advice of each cache that this process gave."""

from collections import Counter

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from agent_tools.changes.log import stories
from agent_tools.operations import Operations

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def own_metrics(operations: Operations) -> str:
    """Return the figures in Prometheus' text format. The change log is read; no cache is asked."""
    return generate_latest(await own_registry(operations)).decode()


async def own_registry(operations: Operations) -> CollectorRegistry:
    """Return the figures as they are now."""
    registry = CollectorRegistry()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"lmcache_agent_{name}", text, labels, registry=registry)

    changes = gauge("changes", "Changes on record, by what is last known of each", "cache", "outcome")
    advice = gauge("advice", "1 for the verdict of the last advice", "cache", "verdict")
    gain = gauge("predicted_gain_points", "Points of token hit rate that the last advice predicts", "cache")
    at = gauge("advice_timestamp_seconds", "When the last advice was given, Unix time", "cache")
    unread = gauge("change_log_problems", "Lines of the change log that cannot be read whole")
    outcomes = Counter((story[-1].cache, story[-1].outcome.value) for story in stories(await operations.changes()))
    for (cache, outcome), count in outcomes.items():
        changes.labels(cache, outcome).set(count)
    for cache, last in operations.last_advice.items():
        advice.labels(cache, last.verdict.value).set(1)
        at.labels(cache).set(last.created_at.timestamp())
        if last.best is not None and last.best.gain is not None:
            gain.labels(cache).set(100 * last.best.gain.estimate)
    unread.set(len(await operations.log_problems()))
    return registry
