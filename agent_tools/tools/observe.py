"""The tools that only read."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agent_tools.models import Advice, CacheMetrics, LMCacheStatus, Window
from agent_tools.plain import plain

from .spec import READ, Arguments, CacheArguments, Operations, ToolSpec

if TYPE_CHECKING:
    from agent_tools.caches.settings import CacheSettings


class WindowArguments(CacheArguments):
    """A cache and a window of time."""

    window_seconds: Annotated[float, Field(gt=0, le=600)] | None = None
    """Seconds to cover, ending now; the call waits for what was not observed yet. Leave out for all since the cache started."""


class NoArguments(Arguments):
    """Nothing to choose."""


async def list_caches(operations: Operations, _: NoArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_list_caches`: artifact ``{"caches": {name: {"kind": text, "bounds": Bounds}}}``; no addresses."""
    caches = await operations.caches()
    listed = {name: {"kind": one.kind, "bounds": one.bounds.model_dump(mode="json")} for name, one in caches.items()}
    return "\n".join(describe_cache(name, one) for name, one in caches.items()), {"caches": listed}


async def get_status(operations: Operations, arguments: CacheArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_get_status`: content is three lines, artifact an `LMCacheStatus`."""
    status = await operations.status(arguments.cache)
    return describe_status(arguments.cache, status), status.model_dump(mode="json")


async def get_metrics(operations: Operations, arguments: WindowArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_get_metrics`: content is the main figures, artifact a `CacheMetrics`."""
    metrics = await operations.metrics(arguments.cache, arguments.window_seconds)
    return describe_metrics(metrics), metrics.model_dump(mode="json")


async def get_config(operations: Operations, arguments: CacheArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_get_config`: artifact ``{"config": CacheConfig, "support": {setting: Support}}``."""
    config, support = await operations.config(arguments.cache)
    values = config.known()
    lines = [f"{name} = {values.get(name, 'unknown')} [{one.level.value}: {one.reason}]" for name, one in support.items()]
    return "\n".join(lines), {
        "config": config.model_dump(mode="json"),
        "support": {name: one.model_dump(mode="json") for name, one in support.items()},
    }


async def recommend(operations: Operations, arguments: WindowArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_recommend`: content is verdict, symptoms and recommendations, artifact an `Advice`."""
    advice = await operations.recommend(arguments.cache, arguments.window_seconds)
    return describe_advice(advice), advice.model_dump(mode="json")


def describe_cache(name: str, settings: "CacheSettings") -> str:
    """A cache of the directory in a line: what it is, and what may be done to it."""
    bounds = settings.bounds
    size = "L1 may not grow" if bounds.max_size_mb is None else f"L1 may grow to {bounds.max_size_mb:g} MB"
    return f"{name}: {settings.kind}; {size}; {'may' if bounds.allow_restart else 'may not'} be restarted"


def describe_status(name: str, status: LMCacheStatus) -> str:
    """A status in a few lines."""
    health = "healthy" if status.health.healthy else "NOT healthy: " + "; ".join(status.health.problems)
    return "\n".join(
        (
            f"{name}: {status.backend}, LMCache {plain(status.lmcache_version or 'of unknown version')}, {health}",
            describe_metrics(status.metrics),
            f"symptoms: {', '.join(status.symptoms)}",
        )
    )


def describe_metrics(metrics: CacheMetrics) -> str:
    """The main figures of a window in a few lines."""
    tokens = metrics.tokens
    span = "since the cache started" if metrics.window.lifetime else "observed"
    lines = [
        f"{_simulated(metrics.window)}window: {metrics.window.seconds:.0f} s {span}"
        + (", counters were reset in it" if metrics.window.counters_reset else "")
    ]
    if metrics.total_requests is None:
        lines.append(f"no counters: {metrics.unavailable.get('total_requests')}")
    elif tokens.hit_rate is None:
        lines.append(f"{metrics.total_requests} lookups, no tokens requested")
    else:
        lines.append(
            f"token hit rate {tokens.hit_rate:.1%} (L1 {tokens.hit_l1 / tokens.requested:.1%},"
            f" L2 {tokens.hit_l2 / tokens.requested:.1%}) of {tokens.requested} tokens in {metrics.total_requests} lookups"
        )
        lines.append(
            f"chunks stored {metrics.stored_chunks}, evicted {metrics.evictions},"
            f" not stored for want of room {metrics.failed_stores}"
        )
    lines.append(f"L1 {metrics.used_size_mb:.1f} of {metrics.total_size_mb:.1f} MB used")
    lines += [describe_engine(metrics)] if metrics.engine else []
    lines += [
        f"{figure} by member: worst {one.worst:.4g} ({one.worst_member}), median {one.median:.4g}, best {one.best:.4g}"
        f" ({one.best_member})"
        for figure, one in metrics.spread.items()
    ]
    return "\n".join(lines)


def describe_engine(metrics: CacheMetrics) -> str:
    """What the engine in front of the cache measured, in a line."""
    engine = metrics.engine
    if engine is None or engine.ttft_ms is None:
        return "engine: no request ended" if engine else f"engine: {metrics.unavailable.get('engine')}"
    return (
        f"engine: time to first token {engine.ttft_ms}; {engine.requests} requests of {engine.prompt_tokens} prompt tokens:"
        f" computed {engine.computed_tokens}, loaded from LMCache {engine.lmcache_tokens}, in its own cache"
        f" {engine.own_cache_tokens}; {engine.running} running, {engine.waiting} waiting"
    )


def describe_advice(advice: Advice) -> str:
    """An advice in a few lines."""
    lines = [f"{_simulated(advice.window)}{advice.verdict.value} ({advice.rung.value}): {advice.why}"]
    lines += [f"symptom {symptom.code.value} [{symptom.severity.value}]: {symptom.summary}" for symptom in advice.symptoms]
    for rank, one in enumerate(advice.recommendations, 1):
        settings = f"; update={one.update.known()}" if one.update else ""
        allowed = "" if one.within_bounds else f"; NOT ALLOWED: {one.risk}"
        lines.append(
            f"{rank}. {one.title}: {one.expected_impact}; {one.implementation_effort}; cost {one.cost};"
            f" confidence {one.confidence.value}{settings}{allowed}"
        )
    return "\n".join(lines)


def _simulated(window: Window) -> str:
    return "SIMULATED, no figure is of a real cache; " if window.simulated else ""


OBSERVE = (
    ToolSpec(
        name="list_caches",
        title="Known caches",
        description="Names of the caches there are, what each is (embedded: a private server of ours), and what the operator lets"
        " you change.",
        arguments=NoArguments,
        run=list_caches,
        hints=READ,
    ),
    ToolSpec(
        name="get_status",
        title="Cache status",
        description="State of an LMCache KV cache: health, figures since it started, what looks wrong. Start here.",
        arguments=CacheArguments,
        run=get_status,
        hints=READ,
    ),
    ToolSpec(
        name="get_metrics",
        title="Cache metrics",
        description="Token hit rate by tier, evictions, failed stores and sizes of a cache over a window of time.",
        arguments=WindowArguments,
        run=get_metrics,
        hints=READ,
    ),
    ToolSpec(
        name="get_config",
        title="Cache configuration",
        description="All settings of a cache as they are in force, and whether each can be changed live, by a restart, or not.",
        arguments=CacheArguments,
        run=get_config,
        hints=READ,
    ),
    ToolSpec(
        name="recommend",
        title="Recommend cache settings",
        description="What would make a cache better within the operator's bounds, with evidence and gain; often: do nothing."
        " Changes nothing. Pass the `update` of a recommendation to lmcache_update_config to follow it.",
        arguments=WindowArguments,
        run=recommend,
        hints=READ,
    ),
)
