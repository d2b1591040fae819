"""The picture of the engine demo: the time to first token of every request, before, during and after the change."""

from typing import TYPE_CHECKING

from agent_tools.errors import WorkloadError
from agent_tools.report.canvas import COLOURS, drawing, title

from .demo import EngineDemoResult, Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALL = 10.5
"""Font size of labels, in points (1/72 inch)."""
MARKS = {"before": ("mark", "o"), "during": ("quiet", "s"), "after": ("server", "D")}
"""Phase -> colour and shape of its points."""


def ttft_picture(result: EngineDemoResult) -> "Figure":
    """Draw seconds to the first token by time of sending, with the medians of before and after as lines.

    Raises:
        UnsupportedError: matplotlib is not installed.
        WorkloadError: No request of a phase was answered.
    """
    phases = [phase for phase in (result.before, result.during, result.after) if phase is not None and phase.answers]
    if not all(any(one.ttft is not None for one in phase.answers) for phase in phases):
        raise WorkloadError("there is nothing to draw: no request was answered; see the log of vLLM")
    start = result.before.answers[0].started
    with drawing(height=3.6) as figure:
        axes = figure.add_axes((0.11, 0.145, 0.86, 0.6))
        _frame(axes)
        for phase in phases:
            _points(axes, phase, start)
        if result.changed_at is not None:
            axes.axvline(result.changed_at - start, color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (1, 2.2)))
        change = result.report.change
        changes = ", ".join(map(str, change.plan.changes)) if change else "nothing was changed"
        title(figure, "Time to first token", f"seconds, each request; dotted: {changes}")
    return figure


def _frame(axes: "Axes") -> None:
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["quiet"])
    axes.tick_params(length=0, colors=COLOURS["quiet"], labelsize=SMALL, pad=5)
    axes.set_xlabel("seconds since the first request", color=COLOURS["quiet"], size=SMALL)


def _points(axes: "Axes", phase: Phase, start: float) -> None:
    """Draw the requests of a phase with their median as a line and its label above. The phase `during` has no median."""
    colour, shape = MARKS[phase.name]
    answered = [one for one in phase.answers if one.ttft is not None]
    sent = [one.started - start for one in answered]
    axes.plot(
        sent, [one.ttft for one in answered if one.ttft is not None], shape, color=COLOURS[colour], markersize=4, alpha=0.75
    )
    axes.set_ylim(bottom=0)
    if phase.name == "during":
        return
    median = phase.ttft.p50 / 1e3
    axes.plot([sent[0], sent[-1]], [median] * 2, color=COLOURS[colour], linewidth=2)
    axes.text(
        (sent[0] + sent[-1]) / 2,
        1.02,
        f"{phase.name}: p50 {median:.2f} s",
        transform=axes.get_xaxis_transform(),
        color=COLOURS[colour],
        size=SMALL,
        weight="bold",
        ha="center",
        va="bottom",
    )
