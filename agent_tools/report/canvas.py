"""The canvas of the pictures: fonts, colours, and output as PNG, SVG or inline SVG. It needs no display and no pyplot.

The colours are Okabe and Ito's, which colour-blind readers can tell apart. Colours that carry text are darker.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from agent_tools.errors import UnsupportedError
from agent_tools.extras import installing

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
"""The colour of each part of a picture. `inline_svg` turns them into CSS variables ``--picture-<name>``."""
WIDTH = 4.9
"""Width in inches. On a phone, where a picture is 330 CSS pixels wide, the small print is then larger than 9 pixels."""
DPI = 200
_FONT = {"font.family": "DejaVu Sans", "font.size": 11.5, "svg.fonttype": "none", "svg.hashsalt": "lmcache-agent-tools"}
_STYLE = threading.Lock()


def write(figure: "Figure", path: Path | str) -> None:
    """Write a picture as PNG or SVG, depending on the suffix of the path, on a white background.

    Raises:
        UnsupportedError: The path has another suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in {".png", ".svg"}:
        raise UnsupportedError(f"pictures are written as .png or .svg, not as {path.name!r}: choose one of the two")
    try:
        with _style():
            metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
            figure.savefig(path, dpi=DPI, facecolor=COLOURS["card"], metadata=metadata)
    except OSError as error:
        raise UnsupportedError(f"{path} cannot be written: {error.strerror}; name a file in a writable folder") from error


def inline_svg(figure: "Figure", name: str, description: str) -> str:
    """Return a picture as an ``<svg>`` element for a web page.

    The element has no background. Its colours follow the page's CSS variables if these are set.

    Args:
        figure: The picture.
        name: Name of the picture, unique in the page. It becomes the prefix of the ids inside.
        description: Text for people who do not see the picture.
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
    """Apply the fonts of the pictures. Matplotlib keeps them in a global, so only one picture is drawn at a time."""
    try:
        import matplotlib as mpl  # noqa: PLC0415  an extra, imported when a picture is requested
    except ImportError as error:
        raise UnsupportedError(f"pictures need matplotlib; {installing('plot')}") from error
    with _STYLE, mpl.rc_context(_FONT):  # type: ignore[arg-type]
        yield


@contextmanager
def drawing(height: float) -> Iterator["Figure"]:
    """Provide an empty figure, `height` inches high, and keep the style of the pictures while it is drawn.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    with _style():
        from matplotlib.figure import Figure  # noqa: PLC0415

        yield Figure(figsize=(WIDTH, height), dpi=DPI)


def title(figure: "Figure", heading: str, below: str) -> None:
    """Write the heading of a picture and the line below it."""
    height = figure.get_size_inches()[1]
    figure.text(0.02, 1 - 0.34 / height, heading, size=14, weight="bold", color=COLOURS["ink"])
    figure.text(0.02, 1 - 0.62 / height, below, size=10.5, color=COLOURS["quiet"], parse_math=False)
