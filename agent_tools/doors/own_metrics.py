"""Our own figures for Prometheus: changes by outcome, and the last advice of each cache that this process gave."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from agent_tools.changes.log import stories
from agent_tools.models import ChangeOutcome, ChangeRecord
from agent_tools.models.metrics import now
from agent_tools.operations import Operations

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DAY = timedelta(days=1)
UNCLEAR = {ChangeOutcome.STARTED, ChangeOutcome.UNKNOWN, ChangeOutcome.FAILED}

Story = Sequence[ChangeRecord]


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
    unclear = gauge("unclear_changes", "Changes of the last day without a clear outcome, if no later change is clear", "cache")
    undone = gauge("undone_last_day", "Changes that were undone within the last day", "cache")
    unread = gauge("change_log_problems", "Lines of the change log that cannot be read whole")
    on_record = stories(await operations.changes())
    outcomes = Counter((story[-1].cache, story[-1].outcome.value) for story in on_record)
    for (cache, outcome), count in outcomes.items():
        changes.labels(cache, outcome).set(count)
    for cache in {*operations.registry.names, *(cache for cache, _ in outcomes)}:  # 0 as well: an alert needs a value
        of_cache = [story for story in on_record if story[-1].cache == cache]
        unclear.labels(cache).set(_unclear(of_cache))
        undone.labels(cache).set(sum(map(_undone_lately, of_cache)))
    for cache, last in operations.last_advice.items():
        advice.labels(cache, last.verdict.value).set(1)
        at.labels(cache).set(last.created_at.timestamp())
        if last.best is not None and last.best.gain is not None:
            gain.labels(cache).set(100 * last.best.gain.estimate)
    unread.set(len(await operations.log_problems()))
    return registry


def _unclear(latest_first: Sequence[Story]) -> int:
    """Count the changes of the last day whose outcome is not known, up to the latest change of settings whose outcome is."""
    count = 0
    for story in latest_first:
        if story[-1].outcome in UNCLEAR:
            count += _lately(story[-1])
        elif story[0].changes and story[-1].outcome is not ChangeOutcome.REFUSED:
            break
    return count


def _undone_lately(story: Story) -> bool:
    return any(record.outcome is ChangeOutcome.UNDONE and _lately(record) for record in story)


def _lately(record: ChangeRecord) -> bool:
    return now() - record.recorded_at < DAY
