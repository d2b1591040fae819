"""Labels placed directly beside what they name, where they cover neither curves nor other labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

Points = npt.NDArray[np.float64]

MARGIN = 2.0
"""Free space around a label, in points (1/72 inch). The distances below are multiples of it."""
REACHES = (2.5, 5.0, 9.0, 15.0, 22.0)
"""The distances tried between a label and its anchor."""
STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)
BESIDE = tuple((x, y) for x in STEPS for y in STEPS if 1.0 in {abs(x), abs(y)})
COVERING = 48.0
"""Cost of covering one point of a curve."""
DENSE = 300
"""The number of points at which a curve is checked."""


@dataclass(frozen=True)
class Label:
    """One label and the curve or point that it names."""

    text: str
    colour: str
    curve: Points
    """(n, 2) points of the curve, or the one point, that the label names; data coordinates."""
    anchors: Points
    """(m, 2) points that the label may stand beside; data coordinates."""
    bold: bool = False


def place(axes: "Axes", labels: Sequence[Label], size: float) -> None:
    """Place the labels in the given order, each near what it names and where it covers least.

    Args:
        axes: The axes to draw on. Their limits must be final.
        labels: The labels, the most important first.
        size: Font size in points.
    """
    curves = [_dense(axes.transData.transform(label.curve)) for label in labels]
    taken: list[Bbox] = []
    for index, label in enumerate(labels):
        text = axes.text(0, 0, label.text, color=label.colour, size=size, parse_math=False, ha="center", va="center")
        text.set_fontweight("bold" if label.bold else "normal")
        others = np.concatenate([np.empty((0, 2)), *curves[:index], *curves[index + 1 :]])
        x, y = axes.transData.inverted().transform(_best_place(axes, text, label, (curves[index], others), taken))
        text.set_position((float(x), float(y)))
        taken.append(text.get_window_extent().padded(_margin(axes)))


def _best_place(axes: "Axes", text: "Text", label: Label, curves: tuple[Points, Points], taken: Sequence["Bbox"]) -> Points:
    """Return the centre, in pixels, of the best place for a text. ``curves`` are the label's own curve and all other curves."""
    box, margin = text.get_window_extent(), _margin(axes)
    half, inside = np.array([box.width, box.height]) / 2, axes.get_window_extent()
    anchors = axes.transData.transform(label.anchors)
    middles = np.concatenate([anchors + np.array(one) * (half + reach * margin) for reach in REACHES for one in BESIDE])
    costs = []
    for middle in middles:
        low, high = middle - half - margin, middle + half + margin
        costs.append(_covered(low, high, taken) + _outside(low, high, inside) + _far(low, high, curves, margin))
    best: Points = middles[int(np.argmin(costs))]
    return best


def _margin(axes: "Axes") -> float:
    return float(MARGIN * axes.figure.dpi / 72)


def _covered(low: Points, high: Points, taken: Sequence["Bbox"]) -> float:
    covered = [box.x0 < high[0] and box.x1 > low[0] and box.y0 < high[1] and box.y1 > low[1] for box in taken]
    return 5000.0 * sum(map(bool, covered))


def _outside(low: Points, high: Points, inside: "Bbox") -> float:
    over = max(inside.x0 - low[0], inside.y0 - low[1], high[0] - inside.x1, high[1] - inside.y1, 0.0)
    return 1000 * float(over)


def _far(low: Points, high: Points, curves: tuple[Points, Points], margin: float) -> float:
    """Return the cost of a box: its distance from its own curve.

    The cost rises if the box covers a curve or is nearer to another curve.
    """
    to_own, to_others = (_distances(low, high, curve) / margin for curve in curves)
    own, other = float(to_own.min(initial=np.inf)), float(to_others.min(initial=np.inf))
    covered = COVERING * (np.count_nonzero(to_own == 0) + np.count_nonzero(to_others == 0))
    mistaken = 20.0 * (2.0 + own - other) if other < own + 1.0 and len(to_own) > 1 else 0.0
    return own + covered + mistaken + 4.0 / (1.0 + other)


def _distances(low: Points, high: Points, points: Points) -> Points:
    """Return (n,) distances in pixels from a box to each point; 0 inside the box."""
    apart = np.maximum(np.maximum(low - points, points - high), 0.0)
    distance: Points = np.hypot(apart[:, 0], apart[:, 1])
    return distance


def _dense(curve: Points) -> Points:
    """Return points evenly spaced along a curve, in pixels."""
    if len(curve) < 2:
        return curve
    length = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))))
    along = np.linspace(0, length[-1], DENSE)
    return np.column_stack([np.interp(along, length, curve[:, axis]) for axis in (0, 1)])
