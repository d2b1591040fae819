"""The canvas under the pictures: fonts, colours, and the ways out (PNG, SVG, inline SVG); no display and no pyplot needed.

Colours are those of Okabe and Ito, darkened where they carry text; they are told apart also by the colour-blind.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from agent_tools.errors import UnsupportedError

from .markup import inert

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "card": "#ffffff",
    "ink": "#1f2328",
    "quiet": "#656d76",
    "rule": "#dfe4e9",
    "server": "#0072b2",
    "bound": "#008060",
    "mark": "#c44e00",
    "second": "#b07a00",
}
"""What each colour is for; `inline_svg` turns them into CSS variables ``--picture-<name>``."""
WIDTH = 4.9
"""Inches. At the 330 CSS pixels that a phone has for it, the small print is above 9 pixels."""
DPI = 200
_FONT = {"font.family": "DejaVu Sans", "font.size": 11.5, "svg.fonttype": "none", "svg.hashsalt": "lmcache-agent-tools"}
_STYLE = threading.Lock()


def write(figure: "Figure", path: Path | str) -> None:
    """Write a picture as PNG or SVG, by the suffix of the path, on a white card.

    Raises:
        UnsupportedError: Another suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in {".png", ".svg"}:
        raise UnsupportedError(f"pictures are written as .png or .svg, not as {path.name!r}: choose one of the two")
    try:
        with _style():
            metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
            figure.savefig(path, dpi=DPI, facecolor=COLOURS["card"], metadata=metadata)
    except OSError as error:
        raise UnsupportedError(f"{path} cannot be written: {error.strerror}; name a file in a folder that can be") from error


def inline_svg(figure: "Figure", name: str, description: str) -> str:
    """A picture as an ``<svg>`` element for a web page, without background, its colours taken from CSS variables where set.

    Args:
        figure: The picture.
        name: Unique in the page; prefixed to the ids inside.
        description: For people who do not see it.
    """
    text = StringIO()
    with _style():
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    box = re.search(r'viewBox="[\d. ]*"', drawn)
    inside = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index(">", drawn.index("<svg")) + 1 :], flags=re.DOTALL)
    inside = re.sub(r'\bid="', f'id="{name}-', inside).replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for use, colour in COLOURS.items():
        inside = re.sub(rf"(?<=: ){colour}\b", f"var(--picture-{use}, {colour})", inside)
    return f'<svg {box[0] if box else ""} role="img" aria-label="{inert(description)}">{inside}'


@contextmanager
def _style() -> Iterator[None]:
    """The fonts of the pictures; matplotlib keeps them in a global, so one picture is drawn at a time."""
    try:
        import matplotlib as mpl  # noqa: PLC0415  an extra, imported when a picture is wanted
    except ImportError as error:
        raise UnsupportedError("pictures need matplotlib: pip install 'lmcache-agent-tools[plot]'") from error
    with _STYLE, mpl.rc_context(_FONT):  # type: ignore[arg-type]
        yield


@contextmanager
def drawing(height: float) -> Iterator["Figure"]:
    """An empty figure, in the style of the pictures while it is drawn on; `height` in inches.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    with _style():
        from matplotlib.figure import Figure  # noqa: PLC0415

        yield Figure(figsize=(WIDTH, height), dpi=DPI)


def title(figure: "Figure", heading: str, below: str) -> None:
    """What a picture shows, and on what it rests."""
    height = figure.get_size_inches()[1]
    figure.text(0.02, 1 - 0.34 / height, heading, size=14, weight="bold", color=COLOURS["ink"])
    figure.text(0.02, 1 - 0.62 / height, below, size=10.5, color=COLOURS["quiet"], parse_math=False)
