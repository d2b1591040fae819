"""Clocks that were set back while a log was written."""

import numpy as np
import numpy.typing as npt

SET_BACK_SECONDS = 5.0
"""Lines of several threads may be out of order by less than this. A larger step back means that the clock was set."""
CLOCK_SET_BACK = "the clock was set back {} times while the log was written: earlier lookups were moved back with it"


def without_jumps(times: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], int]:
    """Return the times, in the order of the lines, as one clock would have shown them, and how often the clock was set back."""
    steps = np.diff(times, prepend=times[:1])
    back = np.where(steps < -SET_BACK_SECONDS, steps, 0.0)
    later = np.cumsum(back[::-1])[::-1] - back  # for each line: by how much the clock was set back after it
    return times + later, int((back < 0).sum())
