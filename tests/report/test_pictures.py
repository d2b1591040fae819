"""Pictures are true to the forecast, legible, and come out as PNG and SVG without a display."""

import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
import pytest
from example_advice import Example, agents, metrics_of, observed
from pydantic import ValidationError

from agent_tools.errors import UnsupportedError, WorkloadError
from agent_tools.models import Gain, TokenCounts
from agent_tools.prediction.forecast import Forecast, forecast
from agent_tools.report.canvas import COLOURS
from agent_tools.report.pictures import (
    Mark,
    before_after_picture,
    current_mark,
    hit_rate_picture,
    inline_svg,
    proposed_mark,
    write,
)
from agent_tools.workload.generate import AgentTraffic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

matplotlib = pytest.importorskip(
    "matplotlib", reason="no pictures can be drawn: matplotlib is not installed (pip install 'lmcache-agent-tools[plot]')"
)


@pytest.fixture(scope="module")
def example() -> Example:
    return observed(agents(600), 4096, largest_mb=16_384)


@pytest.fixture(scope="module")
def seen(example: Example) -> Forecast:
    return forecast(example.log)


@pytest.fixture(scope="module")
def picture(example: Example, seen: Forecast) -> "Figure":
    best = example.advice.best
    assert best is not None
    return hit_rate_picture(seen, current_mark(example.metrics, seen), proposed_mark(best, example.metrics, seen))


def texts(figure: "Figure") -> str:
    return " | ".join(text.get_text() for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)])


def test_the_current_point_is_what_was_measured(example: Example, seen: Forecast, picture: "Figure") -> None:
    now, rate = current_mark(example.metrics, seen), example.metrics.tokens.hit_rate
    assert now == Mark(capacity_chunks=4096 / 32, hit_rate=rate)
    assert f"now: {rate:.1%}\n4 GB" in texts(picture)


def test_the_proposed_point_is_the_measured_rate_and_the_predicted_gain(example: Example, seen: Forecast) -> None:
    best = example.advice.best
    assert best is not None
    assert best.gain is not None
    mark = proposed_mark(best, example.metrics, seen)
    assert mark is not None
    assert example.metrics.tokens.hit_rate is not None
    assert mark.capacity_chunks == 16_384 / 32
    assert mark.hit_rate == pytest.approx(example.metrics.tokens.hit_rate + best.gain.estimate)
    assert mark.lower is not None
    assert mark.upper is not None
    assert mark.lower <= mark.hit_rate <= mark.upper


def test_a_proposal_that_changes_no_size_stays_where_the_cache_is(example: Example, seen: Forecast) -> None:
    best = example.advice.best
    assert best is not None
    assert best.update is not None
    reshaped = best.model_copy(update={"update": best.update.model_copy(update={"max_size_mb": None, "eviction_ratio": 0.1})})
    mark = proposed_mark(reshaped, example.metrics, seen)
    assert mark is not None
    assert mark.capacity_chunks == 4096 / 32


def test_what_is_not_known_is_not_drawn(example: Example, seen: Forecast) -> None:
    best = example.advice.best
    assert best is not None
    quiet = example.metrics.model_copy(update={"tokens": TokenCounts()})
    sizeless = example.metrics.model_copy(update={"total_size_mb": None})
    in_chunks = seen.model_copy(update={"chunk_mb": None})
    assert current_mark(quiet, seen) is current_mark(sizeless, seen) is current_mark(example.metrics, in_chunks) is None
    assert proposed_mark(best, quiet, seen) is None
    assert proposed_mark(best.model_copy(update={"gain": None}), example.metrics, seen) is None


def test_the_picture_names_every_curve_beside_itself(seen: Forecast, picture: "Figure") -> None:
    for name in (f"unbounded cache {seen.ceiling:.1%}", "this server", "always-full LRU", "best possible", "proposed:"):
        assert name in texts(picture)


def test_the_curves_are_the_forecast(seen: Forecast, picture: "Figure") -> None:
    drawn = {line.get_color(): line for line in picture.axes[0].lines if np.size(line.get_xdata()) > 2}
    sizes = [row.size_mb for row in seen.rows]
    assert drawn[COLOURS["server"]].get_xdata() == pytest.approx(sizes)
    assert drawn[COLOURS["server"]].get_ydata() == pytest.approx([row.server for row in seen.rows])
    assert drawn[COLOURS["bound"]].get_ydata() == pytest.approx([row.clairvoyant for row in seen.rows])
    assert drawn[COLOURS["quiet"]].get_ydata() == pytest.approx([rate for _, rate in seen.lru_curve])


@pytest.mark.parametrize("share", [0.1, 0.4, 1.5])
def test_what_lmcache_saves_beyond_the_engines_own_cache_is_a_curve_of_its_own(example: Example, share: float) -> None:
    tokens = int(share * example.log.unique_chunks * example.log.chunk_size)
    found = forecast(example.log, engine_cache_tokens=[tokens])
    drawn = hit_rate_picture(found)
    (curve,) = (line for line in drawn.axes[0].lines if line.get_color() == COLOURS["second"])
    assert curve.get_ydata() == pytest.approx([row.saved[0] for row in found.rows])
    assert "saved beyond" in texts(drawn)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("row", [0, 5, 12])
def test_no_label_covers_another_or_leaves_the_picture(seed: int, row: int) -> None:
    log = AgentTraffic(requests=300, seed=seed, conversations=4 + 8 * seed, turns=2 + 3 * seed).generate()
    found = forecast(log)
    here, there = found.rows[row], found.rows[-1]
    figure = hit_rate_picture(
        found,
        Mark(capacity_chunks=here.capacity_chunks, hit_rate=here.server),
        Mark(capacity_chunks=there.capacity_chunks, hit_rate=there.server, lower=there.server_lower, upper=there.server_upper),
    )
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not [True for one, other in combinations(boxes, 2) if apart(one, other) < 0]
    assert all(figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1) for box in boxes)
    assert all(figure.axes[0].bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)


def apart(one: "Bbox", other: "Bbox") -> float:
    """Pixels between two boxes; negative when they overlap."""
    return float(max(one.x0 - other.x1, other.x0 - one.x1, one.y0 - other.y1, other.y0 - one.y1))


def test_sizes_are_in_chunks_where_their_bytes_are_not_known(seen: Forecast) -> None:
    figure = hit_rate_picture(seen.model_copy(update={"chunk_mb": None}), Mark(capacity_chunks=1200, hit_rate=0.5))
    assert "now: 50.0%\n1,200 chunks" in texts(figure)
    assert figure.axes[0].get_xlabel() == "L1 size, chunks"


def test_a_forecast_of_one_size_can_be_drawn(example: Example) -> None:
    figure = hit_rate_picture(forecast(example.log, capacities_chunks=[100]))
    assert "this server" in texts(figure)


def test_nothing_to_draw_is_said_with_the_reason(example: Example) -> None:
    short = forecast(AgentTraffic(requests=30, chunk_size=65_536).generate())
    with pytest.raises(WorkloadError, match="nothing to draw: all 30 requests are shorter than one chunk"):
        hit_rate_picture(short)
    quiet = example.metrics.model_copy(update={"tokens": TokenCounts()})
    with pytest.raises(WorkloadError, match="no tokens were requested in the window after the change"):
        before_after_picture(example.metrics, quiet)


def test_before_and_after_are_shares_of_the_requested_tokens_by_tier(example: Example) -> None:
    after = example.metrics.model_copy(update={"tokens": TokenCounts(requested=1000, hit_l1=600, hit_l2=250)})
    figure = before_after_picture(example.metrics, after, Gain(lower=0.1, estimate=0.25, upper=0.3, method=""))
    shown = texts(figure)
    assert "60.0% | 25.0% | 15.0%" in shown
    assert "from L2" in shown
    assert "gain +25.0 points, 90% interval +10.0 to +30.0 points" in shown
    assert "from L2" not in texts(before_after_picture(example.metrics, example.metrics))
    assert "the gain is unknown" in texts(before_after_picture(example.metrics, example.metrics))


def test_png_and_svg_are_written_by_suffix(picture: "Figure", tmp_path: Path) -> None:
    write(picture, tmp_path / "curve.PNG")
    write(picture, str(tmp_path / "curve.svg"))
    png, svg = (tmp_path / "curve.PNG").read_bytes(), (tmp_path / "curve.svg").read_text(encoding="utf-8")
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") >= 900  # pixels wide
    assert svg.startswith("<?xml")
    assert ">always-full LRU<" in svg  # text, so that it can be searched and read aloud
    assert f"fill: {COLOURS['card']}" in svg  # a white card, whatever page it is put into


@pytest.mark.parametrize("name", ["curve.pdf", "curve", "curve.jpg"])
def test_other_kinds_of_files_are_refused(name: str, picture: "Figure", tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=rf"written as \.png or \.svg, not as '{name}'"):
        write(picture, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_told(picture: "Figure", tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot be written: No such file or directory"):
        write(picture, tmp_path / "none" / "curve.svg")


def test_an_inline_svg_takes_its_colours_from_the_page_and_keeps_its_ids_to_itself(picture: "Figure") -> None:
    drawn = inline_svg(picture, "curve", 'what it "shows"')
    assert drawn.startswith("<svg viewBox=")
    assert 'role="img" aria-label="what it &quot;shows&quot;"' in drawn
    assert not re.findall(r"(?:fill|stroke): #\w+", drawn)
    assert "var(--picture-server, #0072b2)" in drawn
    ids, uses = set(re.findall(r'\bid="([^"]+)"', drawn)), set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawn))
    assert uses <= ids
    assert all(one.startswith("curve-") for one in ids)
    assert not re.search(r"<script|<image|<foreignObject|\bon\w+=|https?://(?!www\.w3\.org/)", drawn)


def test_the_same_forecast_gives_the_same_picture_from_any_thread(seen: Forecast, tmp_path: Path) -> None:
    def draw(number: int) -> None:
        write(hit_rate_picture(seen), tmp_path / f"{number}.svg")

    threads = [Thread(target=draw, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert len(list(tmp_path.iterdir())) == 4


def test_drawing_leaves_the_settings_of_matplotlib_alone(seen: Forecast, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    write(hit_rate_picture(seen), tmp_path / "curve.png")
    assert dict(matplotlib.rcParams) == before


DRAW = """
import sys
{before}
from example_advice import agents
from agent_tools.report.pictures import hit_rate_picture, write
from agent_tools.prediction.forecast import forecast
assert "matplotlib" not in [name for name in sys.modules if sys.modules[name]]
found = forecast(agents(60))
{then}
"""


def run(before: str, then: str) -> str:
    code = DRAW.format(before=before, then=then)
    paths = os.pathsep.join(str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pyplot_is_never_imported() -> None:
    out = run("", "hit_rate_picture(found)\nprint('matplotlib.pyplot' in sys.modules)")
    assert out == "False\n"


def test_without_matplotlib_the_error_says_how_to_get_it() -> None:
    then = "try:\n    hit_rate_picture(found)\nexcept Exception as error:\n    print(type(error).__name__, error)"
    out = run("sys.modules['matplotlib'] = None", then)
    assert out.startswith("UnsupportedError pictures need matplotlib; install the extra `plot`: pip install -e '.[plot]'")


def test_a_mark_is_a_share_at_a_size() -> None:
    for wrong in ({"hit_rate": 1.1}, {"capacity_chunks": 0}, {"lower": -0.1}):
        with pytest.raises(ValidationError):
            Mark.model_validate({"capacity_chunks": 1, "hit_rate": 0.5} | wrong)


def test_the_model_of_a_larger_cache_is_drawn_where_the_server_is(example: Example, seen: Forecast) -> None:
    row = seen.rows[9]
    assert row.size_mb is not None
    measured = metrics_of(example.log, row.size_mb).tokens.hit_rate
    assert measured is not None
    assert row.server_lower <= measured <= row.server_upper
