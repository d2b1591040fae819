"""The tools that say what is wrong and what other sizes would give; they only read."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agent_tools.models import ConfigUpdate, Symptom

from .observe import WindowArguments
from .spec import READ, CacheArguments, Operations, ToolSpec

if TYPE_CHECKING:
    from agent_tools.prediction.forecast import Forecast


async def diagnose(operations: Operations, arguments: WindowArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_diagnose`: artifact ``{"symptoms": [Symptom, ...]}``."""
    symptoms = await operations.diagnose(arguments.cache, arguments.window_seconds)
    return describe_symptoms(symptoms), {"symptoms": [symptom.model_dump(mode="json") for symptom in symptoms]}


class PredictArguments(CacheArguments):
    """A cache, and what is to be different."""

    instead: ConfigUpdate | None = None
    """Settings to take in place of those in force, e.g. {"eviction_watermark": 0.6} or {"l2_prefetch_policy": "retain"};
    chunk_size must be a multiple of the present one. Leave out to keep them all."""
    sizes_mb: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=30)] | None = None
    """L1 sizes to predict for, MB. Leave out for sizes from few hits to all of them."""


async def predict_hit_rate(operations: Operations, arguments: PredictArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_predict_hit_rate`: artifact a `Forecast`."""
    forecast, _ = await operations.forecast(arguments.cache, arguments.instead, arguments.sizes_mb)
    return describe_forecast(forecast), forecast.model_dump(mode="json")


async def plot_hit_rate_curve(operations: Operations, arguments: CacheArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_plot_hit_rate_curve`: artifact ``{"svg": text, "forecast": Forecast}``."""
    from agent_tools.report.canvas import inline_svg  # noqa: PLC0415  as `Operations`, when it is called
    from agent_tools.report.pictures import current_mark, hit_rate_picture  # noqa: PLC0415

    forecast, metrics = await operations.forecast(arguments.cache)
    figure = hit_rate_picture(forecast, current_mark(metrics, forecast))
    described = describe_forecast(forecast)
    svg = inline_svg(figure, "hit-rate", described.splitlines()[0])
    return f"The picture is in the artifact, as SVG.\n{described}", {"svg": svg, "forecast": forecast.model_dump(mode="json")}


def describe_symptoms(symptoms: tuple[Symptom, ...]) -> str:
    """Symptoms with their figures, a line each."""
    lines = []
    for one in symptoms:
        figures = "; ".join(f"{figure.metric} = {figure.value:g} {figure.unit}" for figure in one.evidence)
        lines.append(
            f"{one.code.value} [{one.severity.value}, {one.rung.value}]: {one.summary}{f' ({figures})' if figures else ''}"
        )
    return "\n".join(lines)


def describe_forecast(forecast: "Forecast") -> str:
    """A forecast as a table in text: one line per size."""
    lines = [
        f"{forecast.requests} requests, {forecast.footprint_chunks} distinct chunks; ceiling {forecast.ceiling:.1%}; server with"
        f" watermark {forecast.watermark:g}, ratio {forecast.ratio:g}, {forecast.policy}"
        + (f", and {forecast.second_tier}" if forecast.second_tier else "")
    ]
    for row in forecast.rows:
        size = f"{row.capacity_chunks:.0f} chunks" + ("" if row.size_mb is None else f" = {row.size_mb:.1f} MB")
        lines.append(
            f"{size}: {row.server:.1%} ({row.server_lower:.1%} to {row.server_upper:.1%})"
            + (f", of these {row.from_l2:.1%} from L2" if forecast.second_tier else "")
            + f", always-full LRU {row.lru:.1%}, best possible {row.clairvoyant:.1%}, {row.failed_chunks:.0f} chunks not stored"
        )
    return "\n".join([*lines, *forecast.notes])


PREDICT = (
    ToolSpec(
        name="diagnose",
        title="Diagnose the cache",
        description="What is wrong with a cache, worst first, each with the figures it rests on. Proposes nothing.",
        arguments=WindowArguments,
        run=diagnose,
        hints=READ,
    ),
    ToolSpec(
        name="predict_hit_rate",
        title="Predict hit rates",
        description="The token hit rate that other L1 sizes, and other settings, would have given on the cache's own requests,"
        " with a 90 % interval, the ceiling and the best any policy could do. Needs an access log.",
        arguments=PredictArguments,
        run=predict_hit_rate,
        hints=READ,
    ),
    ToolSpec(
        name="plot_hit_rate_curve",
        title="Picture of hit rate against size",
        description="lmcache_predict_hit_rate as a picture (SVG in the artifact), with the cache's present point.",
        arguments=CacheArguments,
        run=plot_hit_rate_curve,
        hints=READ,
    ),
)
