"""The tools that only read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agent_tools.models import Advice, CacheMetrics, LMCacheStatus, OptimizationRecommendation, Support, SupportLevel, Window
from agent_tools.models.engine import EngineMetrics
from agent_tools.plain import names_cut, plain

from .spec import READ, Arguments, CacheArguments, Operations, ToolSpec

if TYPE_CHECKING:
    from agent_tools.caches.settings import CacheSettings


class WindowArguments(CacheArguments):
    """A cache and a window of time."""

    window_seconds: Annotated[float, Field(gt=0, le=600)] | None = None
    """Length of the window in seconds, ending now. The call waits for the part that was not observed yet. Leave out: since the
    start."""


class NoArguments(Arguments):
    """No arguments."""


async def list_caches(operations: Operations, _: NoArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_list_caches`. The artifact is ``{"caches": {name: {"kind": text, "bounds": Bounds}}}``, without addresses."""
    caches = await operations.caches()
    listed = {name: {"kind": one.kind, "bounds": one.bounds.model_dump(mode="json")} for name, one in caches.items()}
    return "\n".join(describe_cache(name, one) for name, one in caches.items()), {"caches": listed}


async def get_status(operations: Operations, arguments: CacheArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_get_status`. The content is three lines; the artifact is an `LMCacheStatus`."""
    status = await operations.status(arguments.cache)
    return describe_status(arguments.cache, status), status.model_dump(mode="json")


async def get_metrics(operations: Operations, arguments: WindowArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_get_metrics`. The content is the main figures; the artifact is a `CacheMetrics`."""
    metrics = await operations.metrics(arguments.cache, arguments.window_seconds)
    return describe_metrics(metrics), metrics.model_dump(mode="json")


class ConfigArguments(CacheArguments):
    """A cache, and how much to show of its settings."""

    all_settings: bool = False
    """Also list how each setting can be changed, with the reason. Without it: the values in a few lines."""


async def get_config(operations: Operations, arguments: ConfigArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_get_config`. The artifact is ``{"config": CacheConfig, "support": {setting: Support}}``."""
    config, support = await operations.config(arguments.cache)
    values = {name: names_cut(value) for name, value in config.known().items()}
    if arguments.all_settings:
        lines = [f"{name} = {values.get(name, 'unknown')} [{one.level.value}: {one.reason}]" for name, one in support.items()]
    else:
        lines = describe_config(values, support)
    return "\n".join(lines), {
        "config": config.model_dump(mode="json"),
        "support": {name: one.model_dump(mode="json") for name, one in support.items()},
    }


def describe_config(values: Mapping[str, Any], support: Mapping[str, Support]) -> list[str]:
    """Return the settings in force, a line for each way in which they can be changed."""
    how = {SupportLevel.LIVE: "live", SupportLevel.RESTART: "by a restart", SupportLevel.UNSUPPORTED: "cannot be changed"}
    lines = []
    for level, words in how.items():
        names = [name for name, one in support.items() if one.level is level and name in values]
        listed = ", ".join(f"{name}={values[name]}" for name in names)
        lines += [f"{words}: {listed}"] if names else []
    return lines


async def recommend(operations: Operations, arguments: WindowArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_recommend`. The content is verdict, symptoms and recommendations; the artifact is an `Advice`."""
    advice = await operations.recommend(arguments.cache, arguments.window_seconds)
    return describe_advice(advice), advice.model_dump(mode="json")


def describe_cache(name: str, settings: "CacheSettings") -> str:
    """Return a cache as one line: its kind, and what the operator allows."""
    bounds = settings.bounds
    size = "L1 may not grow" if bounds.max_size_mb is None else f"L1 may grow to {bounds.max_size_mb:g} MB"
    return f"{name}: {settings.kind}; {size}; {'may' if bounds.allow_restart else 'may not'} be restarted"


def describe_status(name: str, status: LMCacheStatus) -> str:
    """Return a status as a few lines of text."""
    health = "healthy" if status.health.healthy else "NOT healthy: " + "; ".join(status.health.problems)
    return "\n".join(
        (
            f"{name}: {status.backend}, LMCache {plain(status.lmcache_version or 'of unknown version')}, {health}",
            describe_metrics(status.metrics),
            f"symptoms{_of(status.symptoms_window)}: {', '.join(status.symptoms)}",
        )
    )


def _of(window: Window | None) -> str:
    return "" if window is None else f" ({window.span})"


def describe_metrics(metrics: CacheMetrics) -> str:
    """Return the main figures of a window as a few lines of text."""
    tokens = metrics.tokens
    lines = [f"{_simulated(metrics.window)}window: {metrics.window.span}"]
    lookups = "lookups that are not counted" if metrics.total_requests is None else f"{metrics.total_requests} lookups"
    if metrics.tokens_served is None:
        lines.append(f"no counters: {metrics.unavailable.get('tokens_served')}")
    elif tokens.hit_rate is None:
        lines.append(f"{lookups}, no tokens requested")
    else:
        lines += [_saved(metrics.engine)] if metrics.engine and metrics.engine.prompt_tokens else []
        lines.append(
            f"token hit rate {tokens.hit_rate:.1%} (L1 {tokens.hit_l1 / tokens.requested:.1%},"
            f" L2 {tokens.hit_l2 / tokens.requested:.1%}) of {tokens.requested} tokens in {lookups}"
        )
        counts = {
            "chunks stored": metrics.stored_chunks,
            "evicted": metrics.evictions,
            "stores dropped because L1 was full": metrics.failed_stores,
        }
        known = [f"{name} {count}" for name, count in counts.items() if count]
        lines += [", ".join(known)] if known else []
    lines.append(f"L1 {metrics.used_size_mb:.1f} of {metrics.total_size_mb:.1f} MB used")
    lines += [describe_engine(metrics)] if metrics.engine else []
    lines += [
        f"{figure} by member: worst {one.worst:.4g} ({one.worst_member}), median {one.median:.4g}, best {one.best:.4g}"
        f" ({one.best_member})"
        for figure, one in metrics.spread.items()
    ]
    return "\n".join(lines)


def _saved(engine: EngineMetrics) -> str:
    """Return what LMCache saved the engine, and where its other prompt tokens came from, as one line."""
    saved, computed, own = map(_percent, (engine.saved_share, engine.computed_share, engine.own_cache_share))
    told = f"computed {computed}, from the engine's own cache {own} ({_span(engine)})"
    if engine.doubt:
        return f"nothing says what LMCache saved: {engine.doubt}; {told}"
    return f"LMCache saved {saved} of the engine's prompt tokens; {told}"


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{share:.1%}"


def _span(engine: EngineMetrics) -> str:
    return f"{engine.seconds:.0f} s {'since the engine started' if engine.lifetime else 'observed'}"


def describe_engine(metrics: CacheMetrics) -> str:
    """Return what the serving engine in front of the cache measured, as one line."""
    engine = metrics.engine
    if engine is None or engine.ttft_ms is None:
        return "engine: no request has ended" if engine else f"engine: {metrics.unavailable.get('engine')}"
    return (
        f"engine, {_span(engine)}: time to first token {engine.ttft_ms}; {engine.requests} requests of {engine.prompt_tokens}"
        f" prompt tokens: {_sources(engine)}; {engine.running} running, {engine.waiting} waiting"
    )


def _sources(engine: EngineMetrics) -> str:
    """Return where the prompt tokens came from; of several engines also of each."""
    counts = (
        ("computed", engine.computed_tokens),
        ("loaded from LMCache", engine.lmcache_tokens),
        ("from its own prefix cache", engine.own_cache_tokens),
    )
    told = ", ".join(f"{source} {'unknown' if tokens is None else tokens}" for source, tokens in counts)
    if engine.missing:
        told += f" (its metrics lack {', '.join(engine.missing)})"
    return told + "".join(f"; {one.name}: {_sources(one)}" for one in engine.engines)


def describe_advice(advice: Advice) -> str:
    """Return the advice as a few lines of text."""
    lines = [
        f"{_simulated(advice.window)}window: {advice.window.span}",
        f"{advice.verdict.value} ({advice.rung.value}): {advice.why}",
    ]
    lines += [f"symptom {symptom.code.value} [{symptom.severity.value}]: {symptom.summary}" for symptom in advice.symptoms]
    for rank, one in enumerate(advice.recommendations, 1):
        settings = f"; update={names_cut(one.update.known())}" if one.update else ""
        allowed = "" if one.within_bounds else f"; NOT ALLOWED: {one.risk}"
        lines.append(
            f"{rank}. {one.title}: {one.expected_impact}; {one.implementation_effort}; cost {one.cost};"
            f" confidence {one.confidence.value}{_warned(one)}{settings}{allowed}"
        )
    if advice.spare is not None:
        lines.append(f"spare memory: {advice.spare}")
    return "\n".join(lines)


def _warned(one: OptimizationRecommendation) -> str:
    """Return the risk of a change that is allowed, if it has one."""
    return "" if not one.within_bounds or one.risk.startswith("none known") else f"; risk: {one.risk}"


def _simulated(window: Window) -> str:
    return "SIMULATED, no figure comes from a real cache; " if window.simulated else ""


OBSERVE = (
    ToolSpec(
        name="list_caches",
        title="Known caches",
        description="List the caches: name, kind (embedded: a private server that these tools run), and what the operator lets"
        " you change.",
        arguments=NoArguments,
        run=list_caches,
        hints=READ,
    ),
    ToolSpec(
        name="get_status",
        title="Cache status",
        description="Show the state of an LMCache KV cache: health, figures since it started, and symptoms. Start here.",
        arguments=CacheArguments,
        run=get_status,
        hints=READ,
    ),
    ToolSpec(
        name="get_metrics",
        title="Cache metrics",
        description="Show token hit rate by tier, evictions, failed stores and sizes of a cache over a window of time.",
        arguments=WindowArguments,
        run=get_metrics,
        hints=READ,
    ),
    ToolSpec(
        name="get_config",
        title="Cache configuration",
        description="Show the settings in force, and whether they can be changed live, by a restart, or not at all. Ask for"
        " all_settings for the reasons.",
        arguments=ConfigArguments,
        run=get_config,
        hints=READ,
    ),
    ToolSpec(
        name="recommend",
        title="Recommend cache settings",
        description="Find the change of settings that would improve a cache within the operator's bounds, with evidence and gain."
        " Often the answer is to do nothing. Changes nothing. To follow a recommendation, pass its `update` to"
        " lmcache_update_config.",
        arguments=WindowArguments,
        run=recommend,
        hints=READ,
    ),
)
