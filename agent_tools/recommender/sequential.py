"""A test that stays valid however often one looks: a confidence sequence for the mean of a stream of differences.

Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences",
Annals of Statistics 2024, eq. 6. It is asymptotic, so `LEAST` blocks are needed before it decides.
"""

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEAST = 8
"""Fewest blocks from which a mean and its variance are taken."""
TIGHTEST = 30
"""Number of blocks at which the sequence is tightest."""


def radius(values: Floats, alpha: float) -> float:
    """Return the half width of the confidence sequence of the values' mean; infinite with fewer than `LEAST` values.

    The mean lies within it at all looks together with probability 1 - alpha.
    """
    count = len(values)
    if count < LEAST:
        return math.inf
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / TIGHTEST
    inner = count * rho2 + 1
    return _few(count) * _deviation(values) * math.sqrt(2 * inner / (count**2 * rho2) * math.log(math.sqrt(inner) / alpha))


def half_width(values: Floats, alpha: float) -> float:
    """Return the half width of an ordinary interval of the values' mean, for values that are looked at once."""
    count = len(values)
    if count < LEAST:
        return math.inf
    return NormalDist().inv_cdf(1 - alpha / 2) * _deviation(values) / math.sqrt(count) * _few(count)


def _few(count: int) -> float:
    """Return the factor by which few values widen an interval, since their deviation is uncertain too."""
    return 1 + 1 / (count - 1)


def _deviation(values: Floats) -> float:
    """Return the standard deviation of independent values that would make the mean vary as much as these do.

    Neighbours are alike, because the state of a cache lasts: the first autocorrelation widens the deviation.
    """
    centred = values - values.mean()
    variance = float(np.mean(centred**2)) * len(values) / (len(values) - 1)
    if variance == 0:
        return 0.0
    alike = float(np.mean(centred[1:] * centred[:-1])) / variance
    alike = min(max(alike, 0.0), 0.8)
    return math.sqrt(variance * (1 + alike) / (1 - alike))
