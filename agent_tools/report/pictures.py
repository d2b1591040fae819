"""Pictures for people: hit rate by L1 size, and the tokens before and after a change.

Curves differ by dash as well as by colour, and their labels stand beside them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agent_tools.errors import WorkloadError
from agent_tools.models import CacheMetrics, Gain, OptimizationRecommendation
from agent_tools.models.config import Frozen
from agent_tools.plain import points
from agent_tools.prediction.forecast import Forecast

from .canvas import COLOURS, drawing, inline_svg, title, write
from .labels import Label, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["Mark", "before_after_picture", "current_mark", "hit_rate_picture", "inline_svg", "proposed_mark", "write"]

Points = npt.NDArray[np.float64]

SMALL = 10.5
"""Font size of labels, in points (1/72 inch)."""
NO_GAP = 0.005
"""A policy gap too small to see."""


class Mark(Frozen):
    """One point of a picture: an L1 size and its token hit rate."""

    capacity_chunks: Annotated[float, Field(gt=0)]
    """L1 size in chunks."""
    hit_rate: Annotated[float, Field(ge=0, le=1)]
    """Token hit rate, measured or predicted."""
    lower: Annotated[float, Field(ge=0, le=1)] | None = None
    """Lower end of the 90 % interval; ``None`` for a measured point."""
    upper: Annotated[float, Field(ge=0, le=1)] | None = None
    """Upper end of the 90 % interval; ``None`` for a measured point."""


def current_mark(metrics: CacheMetrics, forecast: Forecast) -> Mark | None:
    """Return the cache's measured point; ``None`` if its size in chunks or its hit rate is unknown."""
    rate = metrics.tokens.hit_rate
    if rate is None or not metrics.total_size_mb or forecast.chunk_mb is None:
        return None
    return Mark(capacity_chunks=metrics.total_size_mb / forecast.chunk_mb, hit_rate=rate)


def proposed_mark(recommendation: OptimizationRecommendation, metrics: CacheMetrics, forecast: Forecast) -> Mark | None:
    """Return the point that a recommendation would reach: measured hit rate plus predicted gain.

    Return ``None`` if the recommendation predicts no gain.
    """
    here, gain, update = current_mark(metrics, forecast), recommendation.gain, recommendation.update
    if here is None or gain is None or update is None or forecast.chunk_mb is None:
        return None
    capacity = update.max_size_mb / forecast.chunk_mb if update.max_size_mb else here.capacity_chunks
    lower, rate, upper = (min(max(here.hit_rate + part, 0.0), 1.0) for part in (gain.lower, gain.estimate, gain.upper))
    return Mark(capacity_chunks=capacity, hit_rate=rate, lower=lower, upper=upper)


def hit_rate_picture(
    forecast: Forecast, current: Mark | None = None, proposed: Mark | None = None, knee: Mark | None = None
) -> "Figure":
    """Draw token hit rate by L1 size: the server with its interval, the always-full LRU, the ceiling, the best possible policy.

    Raises:
        UnsupportedError: matplotlib is not installed.
        WorkloadError: The forecast has no sizes to draw.
    """
    if not forecast.rows:
        raise WorkloadError("there is nothing to draw: " + ("; ".join(forecast.notes) or "the forecast has no sizes"))
    marks = {name: mark for name, mark in (("now", current), ("proposed", proposed), ("knee", knee)) if mark is not None}
    with drawing(height=4.8) as figure:
        axes = figure.add_axes((0.125, 0.125, 0.835, 0.7))
        unit = forecast.chunk_mb or 1.0
        _frame(axes, forecast, marks, unit)
        curves = _curves(axes, forecast, unit)
        place(axes, [*_marks(axes, marks, forecast), *_curve_labels(forecast, curves)], SMALL)
        title(
            figure,
            "Token hit rate by L1 size" + (" and what it saves" if forecast.engine_caches else ""),
            f"{forecast.requests:,} requests; watermark {forecast.watermark:g}, ratio {forecast.ratio:g}, {forecast.policy}",
        )
    return figure


def before_after_picture(before: CacheMetrics, after: CacheMetrics, gain: Gain | None = None) -> "Figure":
    """Draw the sources of the requested tokens before and after a change (L1, L2, computed), and the gain.

    Raises:
        UnsupportedError: matplotlib is not installed.
        WorkloadError: One of the windows saw no tokens.
    """
    windows = {"before": before, "after": after}
    for name, metrics in windows.items():
        if metrics.tokens.hit_rate is None:
            raise WorkloadError(f"there is nothing to draw: no tokens were requested in the window {name} the change")
    with drawing(height=2.35) as figure:
        axes = figure.add_axes((0.15, 0.04, 0.82, 0.53))
        for row, metrics in enumerate(windows.values()):
            _bar(axes, row, metrics)
        axes.set(xlim=(0, 1), ylim=(1.5, -0.5), xticks=(), yticks=range(2), yticklabels=windows)
        axes.tick_params(length=0, labelcolor=COLOURS["ink"], labelsize=SMALL + 1)
        axes.spines[:].set_visible(False)
        _key(axes, windows)
        title(figure, "Where the requested tokens came from", _gained(gain))
    return figure


def size_text(capacity_chunks: float, forecast: Forecast) -> str:
    """Return an L1 size as text: MB or GB (2**20 and 2**30 bytes), or chunks if the bytes of a chunk are unknown."""
    if forecast.chunk_mb is None:
        return f"{capacity_chunks:,.0f} chunks"
    return _memory(capacity_chunks * forecast.chunk_mb)


def _memory(size_mb: float) -> str:
    if size_mb < 1024:
        return f"{size_mb:.3g} MB"
    return f"{size_mb / 1024:.3g} GB" if size_mb < 1024**2 else f"{size_mb / 1024**2:.3g} TB"


def _frame(axes: "Axes", forecast: Forecast, marks: Mapping[str, Mark], unit: float) -> None:
    """Draw axes, ticks and rules."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator  # noqa: PLC0415

    sizes = [row.capacity_chunks * unit for row in forecast.rows] + [mark.capacity_chunks * unit for mark in marks.values()]
    low, high = min(sizes), max(sizes)
    if low == high:
        low, high = low / 2, high * 2
    top = max([forecast.ceiling, *(mark.upper or mark.hit_rate for mark in marks.values()), 0.01])
    axes.set_xscale("log")
    axes.set(xlim=(low / (high / low) ** 0.06, high), ylim=(0, min(top * 1.18, 1.13)))
    axes.xaxis.set_major_locator(FixedLocator(_ticks(low, high, 2.0 if forecast.chunk_mb else 10**0.5)))
    axes.xaxis.set_minor_locator(NullLocator())
    as_text = _memory if forecast.chunk_mb else _count
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: as_text(value)))
    _percent(axes.yaxis)
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["quiet"])
    axes.tick_params(length=0, colors=COLOURS["quiet"], labelsize=SMALL, pad=5)
    axes.tick_params(axis="x", length=4)
    axes.set_xlabel("L1 size" if forecast.chunk_mb else "L1 size, chunks", color=COLOURS["quiet"], size=SMALL)


def _ticks(low: float, high: float, base: float) -> list[float]:
    """Return at most six round sizes."""
    first, last = np.ceil(np.log(low) / np.log(base)), np.floor(np.log(high) / np.log(base))
    step = max(int(np.ceil((last - first + 1) / 6)), 1)
    return [float(f"{base**power:.2g}") if base != 2 else base**power for power in np.arange(first, last + 1, step)]


def _count(chunks: float) -> str:
    return f"{chunks / 1000:.3g} k" if chunks >= 1000 else f"{chunks:.3g}"


def _percent(axis: "Axis") -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter  # noqa: PLC0415

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1, decimals=0 if axis.get_view_interval()[1] > 0.1 else 1))


def _curves(axes: "Axes", forecast: Forecast, unit: float) -> dict[str, Points]:
    """Draw the curves and return them by name, (n, 2) each."""
    sizes = np.array([row.capacity_chunks for row in forecast.rows]) * unit
    fields = ("server", "server_lower", "server_upper", "clairvoyant")
    server, lower, upper, best = (np.array([getattr(row, field) for row in forecast.rows]) for field in fields)
    lru = np.array(forecast.lru_curve) * (unit, 1)
    widest = axes.get_xlim()
    axes.fill_between(
        lru[:, 0], lru[:, 1], np.interp(np.log(lru[:, 0]), np.log(sizes), best), color=COLOURS["bound"], alpha=0.1, linewidth=0
    )
    axes.fill_between(sizes, lower, upper, color=COLOURS["server"], alpha=0.22, linewidth=0)
    axes.plot(widest, [forecast.ceiling] * 2, color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (1, 2.2)))
    axes.plot(sizes, best, color=COLOURS["bound"], linewidth=1.6, linestyle=(0, (5, 2)))
    axes.plot(lru[:, 0], lru[:, 1], color=COLOURS["quiet"], linewidth=1.4)
    axes.plot(sizes, server, color=COLOURS["server"], linewidth=2.6)
    saved = {f"saved {number}": np.array([row.saved[number] for row in forecast.rows]) for number in _drawn_caches(forecast)}
    for dash, beyond in zip(DASHES, saved.values(), strict=False):
        axes.plot(sizes, beyond, color=COLOURS["second"], linewidth=2.2, linestyle=dash)
    axes.set_xlim(widest)
    return {name: np.column_stack((sizes, beyond)) for name, beyond in saved.items()} | {
        "ceiling": np.column_stack((widest, [forecast.ceiling] * 2)),
        "clairvoyant": np.column_stack((sizes, best)),
        "lru": lru,
        "server": np.column_stack((sizes, server)),
    }


DASHES: tuple[tuple[int, tuple[int, ...]], ...] = ((0, ()), (0, (4, 2)), (0, (1, 1)))
"""Dashes of the curves of what is saved, one for each engine cache that is drawn."""


def _drawn_caches(forecast: Forecast) -> range:
    """The engine caches whose savings are drawn; more curves could not be read."""
    return range(min(len(forecast.engine_caches), len(DASHES)))


def _curve_labels(forecast: Forecast, curves: Mapping[str, Points]) -> list[Label]:
    """Return a label for each curve, the one with the least room first. One label states the largest policy gap."""
    left, right = curves["ceiling"][:, 0]
    along = np.geomspace(left, right, 30)[1:-1]
    ceiling = np.column_stack((along, np.full(len(along), forecast.ceiling)))
    labels = [
        Label("this server\n(90% interval)", COLOURS["server"], curves["server"], _middle(curves["server"]), bold=True),
        Label(f"unbounded cache {forecast.ceiling:.1%}", COLOURS["ink"], curves["ceiling"], ceiling),
        Label("always-full LRU", COLOURS["quiet"], curves["lru"], _middle(curves["lru"])),
    ]
    saved = [_saved_label(forecast, number, curves[f"saved {number}"]) for number in _drawn_caches(forecast)]
    gap = max(row.policy_gap for row in forecast.rows)
    if gap < NO_GAP:
        return [*saved, *labels[:2], replace(labels[2], text="always-full LRU\nis the best possible")]
    best = f"best possible\n(gap ≤ {100 * gap:.0f} points)"
    return [Label(best, COLOURS["bound"], curves["clairvoyant"], _middle(curves["clairvoyant"])), *saved, *labels]


def _saved_label(forecast: Forecast, number: int, curve: Points) -> Label:
    tokens = _count(forecast.engine_caches[number].tokens)
    return Label(f"saved beyond {tokens} in the engine", COLOURS["second"], curve, curve[len(curve) // 3 :], bold=True)


def _middle(curve: Points) -> Points:
    """Return the points of a curve before it flattens at its top: there it stands alone."""
    along = np.geomspace(curve[0, 0], curve[-1, 0], 40)
    dense = np.column_stack((along, np.interp(np.log(along), np.log(curve[:, 0]), curve[:, 1])))
    low, high = curve[:, 1].min(), curve[:, 1].max()
    return dense[dense[:, 1] <= low + 0.85 * (high - low)] if high > low else dense


def _marks(axes: "Axes", marks: Mapping[str, Mark], forecast: Forecast) -> list[Label]:
    """Draw the points and return their labels."""
    unit = forecast.chunk_mb or 1.0
    labels = []
    for name, mark in marks.items():
        at, filled = mark.capacity_chunks * unit, name != "now"
        if mark.lower is not None and mark.upper is not None:
            axes.plot([at, at], [mark.lower, mark.upper], color=COLOURS["mark"], linewidth=2, solid_capstyle="butt")
        axes.plot(
            [at],
            [mark.hit_rate],
            color=COLOURS["mark"],
            marker="D" if filled else "o",
            markersize=8 if filled else 9,
            markerfacecolor=COLOURS["mark"] if filled else COLOURS["card"],
            markeredgecolor=COLOURS["mark"],
            markeredgewidth=2.2,
            zorder=5,
            clip_on=False,
        )
        text = f"{name}: {mark.hit_rate:.1%}\n{size_text(mark.capacity_chunks, forecast)}"
        point = np.array([[at, mark.hit_rate]])
        labels.append(Label(text, COLOURS["mark"], point, point, bold=True))
    return labels


PARTS = (("from L1", "server", "hit_l1"), ("from L2", "second", "hit_l2"))


def _bar(axes: "Axes", row: int, metrics: CacheMetrics) -> None:
    """Draw one window: its tokens by source, as shares of all requested tokens."""
    start, tokens = 0.0, metrics.tokens
    for _, colour, field in PARTS:
        share = getattr(tokens, field) / tokens.requested
        axes.barh(row, share, left=start, height=0.62, color=COLOURS[colour])
        if share > 0.09:
            axes.text(start + 0.012, row, f"{share:.1%}", color=COLOURS["card"], size=SMALL, weight="bold", va="center")
        start += share
    axes.barh(row, 1 - start, left=start, height=0.62, color=COLOURS["rule"])
    if start < 0.89:
        axes.text(start + 0.012, row, f"{1 - start:.1%}", color=COLOURS["ink"], size=SMALL, va="center")


def _key(axes: "Axes", windows: Mapping[str, CacheMetrics]) -> None:
    """Name the sources that occur above the bars, in their colours."""
    at = 0.0
    for name, colour, field in PARTS:
        if any(getattr(metrics.tokens, field) for metrics in windows.values()):
            axes.text(at, -0.52, name, color=COLOURS[colour], size=SMALL, weight="bold")
            at += 0.2
    axes.text(at, -0.52, "computed", color=COLOURS["quiet"], size=SMALL)


def _gained(gain: Gain | None) -> str:
    if gain is None:
        return "the gain is unknown"
    return f"gain {points(gain.estimate)}, 90% interval {100 * gain.lower:+.1f} to {points(gain.upper)}"
