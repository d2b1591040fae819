"""The tools that diagnose a cache and predict hit rates. They only read."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agent_tools.models import ConfigUpdate, Symptom, Window

from .observe import WindowArguments
from .schema import Compact
from .spec import READ, CacheArguments, Operations, ToolSpec

if TYPE_CHECKING:
    from agent_tools.prediction.forecast import Forecast, ForecastRow
    from agent_tools.prediction.sampled_curve import SampledCurve
    from agent_tools.workload.access_log import AccessLog


async def diagnose(operations: Operations, arguments: WindowArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_diagnose`. The artifact is ``{"symptoms": [Symptom, ...], "window": Window}``."""
    symptoms, window = await operations.diagnosis(arguments.cache, arguments.window_seconds)
    listed = [symptom.model_dump(mode="json") for symptom in symptoms]
    return describe_symptoms(symptoms, window), {"symptoms": listed, "window": window.model_dump(mode="json")}


class PredictArguments(CacheArguments):
    """A cache, and the settings or sizes to predict for."""

    instead: Annotated[ConfigUpdate, Compact()] | None = None
    """Settings that replace the settings in force, e.g. {"eviction_watermark": 0.6} or {"l2_prefetch_policy": "retain"}. A new
    chunk_size must be a multiple of the present one. Leave out to keep all settings."""
    sizes_mb: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=30)] | None = None
    """L1 sizes to predict for, MB. Leave out to cover the sizes from few hits to all possible hits."""


async def predict_hit_rate(operations: Operations, arguments: PredictArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_predict_hit_rate`. The artifact is a `Forecast`."""
    forecast, _ = await operations.forecast(arguments.cache, arguments.instead, arguments.sizes_mb)
    return describe_forecast(forecast), forecast.model_dump(mode="json")


async def plot_hit_rate_curve(operations: Operations, arguments: CacheArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_plot_hit_rate_curve`. The artifact is ``{"svg": text, "forecast": Forecast}``."""
    from agent_tools.report.canvas import inline_svg  # noqa: PLC0415  imported when called, like `Operations`
    from agent_tools.report.pictures import current_mark, hit_rate_picture  # noqa: PLC0415

    forecast, metrics = await operations.forecast(arguments.cache)
    figure = hit_rate_picture(forecast, current_mark(metrics, forecast))
    described = describe_forecast(forecast)
    svg = inline_svg(figure, "hit-rate", described.splitlines()[0])
    return f"The picture is in the artifact, as SVG.\n{described}", {"svg": svg, "forecast": forecast.model_dump(mode="json")}


def describe_symptoms(symptoms: tuple[Symptom, ...], window: Window) -> str:
    """Return the window and the symptoms with their figures, one line for each."""
    lines = [f"window: {window.span}"]
    for one in symptoms:
        figures = "; ".join(f"{figure.metric} = {figure.value:g} {figure.unit}" for figure in one.evidence)
        lines.append(
            f"{one.code.value} [{one.severity.value}, {one.rung.value}]: {one.summary}{f' ({figures})' if figures else ''}"
        )
    return "\n".join(lines)


def describe_forecast(forecast: "Forecast") -> str:
    """Return a forecast as a table in text, one line for each size."""
    lines = [
        *described_log(forecast),
        f"{forecast.requests} requests, {forecast.footprint_chunks} distinct chunks; ceiling {forecast.ceiling:.1%}; "
        + (
            f"in-process LMCache with {forecast.policy}, sizes per worker"
            if forecast.in_process
            else f"server with watermark {forecast.watermark:g}, ratio {forecast.ratio:g}, {forecast.policy}"
        )
        + (f", and {forecast.second_tier}" if forecast.second_tier else ""),
    ]
    for row in forecast.rows:
        size = f"{row.capacity_chunks:.0f} chunks" + ("" if row.size_mb is None else f" = {row.size_mb:.1f} MB")
        lines.append(
            f"{size}: {row.server:.1%} ({row.server_lower:.1%} to {row.server_upper:.1%})"
            + (f", {row.from_l2:.1%} of the tokens from L2" if forecast.second_tier else "")
            + _saved(forecast, row)
            + f", always-full LRU {row.lru:.1%}, best possible {row.clairvoyant:.1%}, {row.failed_chunks:.0f} stores dropped"
        )
    meaning = "always-full LRU: an LRU of this size that never evicts early; a server evicts at its watermark, so it holds less"
    return "\n".join([*lines, *([meaning] if forecast.rows else []), *forecast.notes])


def describe_sampled(curve: "SampledCurve", kv_bytes_per_token: float | None = None) -> str:
    """Return a sampled curve as a table in text, one line for each capacity."""
    chunk_mb = None if kv_bytes_per_token is None else kv_bytes_per_token * curve.chunk_size / 2**20
    lines = [
        f"LMCache lookup log: {curve.requests:,} requests, {curve.chunks:,} chunks of {curve.chunk_size} tokens, about"
        f" {curve.footprint_chunks:,.0f} of them distinct; ceiling {curve.ceiling:.1%}",
        f"{curve.sampled_chunks:,} chunks followed; the range holds the truth in at least"
        f" 90 of 100 samples, and is at most {100 * max(point.error for point in curve.points):.2f} points",
    ]
    for point in curve.points:
        size = "" if chunk_mb is None else f" = {point.capacity_chunks * chunk_mb:,.0f} MB"
        lines.append(f"{point.capacity_chunks:,.0f} chunks{size}: {point.hit_rate:.1%} (± {100 * point.error:.2f} points)")
    return "\n".join([*lines, "always-full LRU: a server with default eviction holds about 0.72 of its size, if no store fails"])


def described_log(forecast: "Forecast") -> list[str]:
    """Return what was read and what was assumed, so that a wrong unit or chunk size is seen; empty for a live cache."""
    if not forecast.source:
        return []
    rate = forecast.requests_per_second
    read = (
        f"{forecast.source}: {forecast.requests:,} requests in {forecast.duration_seconds:,.0f} s"
        + ("" if rate is None else f" ({rate:.3g} a second)")
        + f", {forecast.chunk_size} tokens per chunk, "
        + (f"models: {', '.join(forecast.models[:5])}" if forecast.models else "no model named")
    )
    return [read, *([f"assumed: {'; '.join(forecast.assumed)}"] if forecast.assumed else [])]


def described_requests(log: "AccessLog") -> str:
    """Return in a line what was read."""
    rate = f" ({(len(log) - 1) / log.duration:.3g} a second)" if log.duration else ""
    return f"{log.source}: {len(log):,} requests in {log.duration:,.0f} s{rate}, {log.chunk_size} tokens per chunk"


def _saved(forecast: "Forecast", row: "ForecastRow") -> str:
    """What LMCache saves at one L1 size, for each size of the engine's own cache."""
    pairs = zip(forecast.engine_caches, row.saved, strict=True)
    return "".join(f", saves {saved:.1%} beyond an engine cache of {own.tokens:,} tokens" for own, saved in pairs)


PREDICT = (
    ToolSpec(
        name="diagnose",
        title="Diagnose the cache",
        description="Find what is wrong with a cache, worst first, with the figures behind each symptom. Proposes no change.",
        arguments=WindowArguments,
        run=diagnose,
        hints=READ,
    ),
    ToolSpec(
        name="predict_hit_rate",
        title="Predict hit rates",
        description="Predict the token hit rate that other L1 sizes, or other settings, would have given on the cache's own"
        " requests, with a 90 % interval, the ceiling, and the best that any eviction policy could do. Needs an access log.",
        arguments=PredictArguments,
        run=predict_hit_rate,
        hints=READ,
    ),
    ToolSpec(
        name="plot_hit_rate_curve",
        title="Picture of hit rate against size",
        description="Draw lmcache_predict_hit_rate as a picture (SVG in the artifact) and mark the cache's present size.",
        arguments=CacheArguments,
        run=plot_hit_rate_curve,
        hints=READ,
    ),
)
