"""Hit-rate curves as files: one picture for each model of a log."""

import re
from collections.abc import Mapping
from pathlib import Path

from agent_tools.plain import plain
from agent_tools.prediction.forecast import Forecast
from agent_tools.prediction.sizing import Sizing

from .canvas import write
from .pictures import Mark, hit_rate_picture


def write_hit_rate_pictures(forecasts: Mapping[str, Forecast], path: Path) -> None:
    """Write a picture for each model. The name of the model, if there is one, goes into the name of the file.

    Raises:
        UnsupportedError: matplotlib is not installed, the suffix is neither .png nor .svg, or the file cannot be written.
    """
    for model, forecast in forecasts.items():
        # A model's name usually has a slash.
        name = re.sub(r"[^\w.-]", "_", plain(model))
        write(hit_rate_picture(forecast), path.with_stem(f"{path.stem}-{name}") if model else path)


def write_sizing_picture(sizing: Sizing, path: Path) -> None:
    """Write the curve of L1 with the knee marked on what LMCache saves.

    Raises:
        UnsupportedError: matplotlib is not installed, the suffix is neither .png nor .svg, or the file cannot be written.
        WorkloadError: There are no sizes to draw.
    """
    chosen, chunk_mb = sizing.l1_knee, sizing.forecast.chunk_mb
    mark = None if chosen is None or chunk_mb is None else Mark(capacity_chunks=chosen.l1_mb / chunk_mb, hit_rate=chosen.saved)
    write(hit_rate_picture(sizing.forecast, knee=mark), path)
