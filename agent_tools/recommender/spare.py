"""Spare memory: the smallest L1 that keeps what the cache saves, with all its other settings as they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from agent_tools.models import MB, OptimizationRecommendation, SpareMemory
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.prediction.server_setting import ServerSetting

from .modelled import MODEL_OFF, gain_between, hits_of, model_error, predicted_gain, predicted_hits, server_setting
from .observation import Observation, PredictedHits
from .proposals import PROPOSAL_CLOCKS

KEPT = 0.005
"""A smaller L1 keeps the hit rate if it loses less than this, as a share of the requested tokens: half a point."""
AT_MOST = 0.01
"""Within the 90 % interval it loses less than this: what would be worth a change is not given away."""
WORTH_TELLING = 0.1
"""Smallest share of L1 that is called spare."""
SMALLEST = 1 / 64
"""Smallest L1 to try, as a share of the present one."""
SIZES = 24
"""Sizes of the first search; neighbours differ by a fifth."""
FINER = 8
"""Sizes between the last that keeps the hit rate and the first that does not."""


@dataclass(frozen=True, eq=False)
class _Yardstick:
    """The most that the cache could save within its bounds."""

    best: PredictedHits
    """The better of the present size and the largest useful one."""
    saved: float
    """What that or the best recommendation saves, as a share of the requested tokens."""
    in_l1: float
    """The part that L1 serves."""

    def kept_by(self, hits: PredictedHits) -> bool:
        """Return whether these hits are about as many."""
        return hits.saved_rate > self.saved - KEPT and hits.saved_l1_rate > self.in_l1 - KEPT

    def surely_kept_by(self, hits: PredictedHits) -> bool:
        """Return whether these hits are about as many, and the interval of the loss is narrow."""
        return self.kept_by(hits) and gain_between(self.best, hits).lower > -AT_MOST


def spare_memory(seen: Observation, ranked: Sequence[OptimizationRecommendation]) -> SpareMemory | None:
    """Return the smallest L1 within the bounds that keeps what is saved, or ``None`` if none is noticeably smaller.

    What is saved are the tokens of hits; where an engine is read, those that its own cache does not hold. L1 must keep its own
    part too, since a hit in L2 takes longer. The yardstick is the most that the largest useful size within the bounds, or any
    recommendation, would save. A cache that followed this therefore gets no advice to grow again, and however often it follows,
    it loses less than half a point.

    Return ``None`` too if nothing can be predicted, or if the model does not explain what was measured.

    Args:
        seen: An observation.
        ranked: The recommendations for it.
    """
    here, size = server_setting(seen), seen.config.max_size_mb
    if here is None or size is None or seen.curve is None or not seen.savings_known or not _explains(seen, here):
        return None
    now, yardstick = predicted_hits(seen, here), _yardstick(seen, here, size, ranked)
    sizes = _enough(seen, here, size, yardstick)
    smaller = next((each for each in sizes if yardstick.surely_kept_by(predicted_hits(seen, _sized(seen, here, each)))), None)
    if smaller is None:
        return None
    setting = _sized(seen, here, smaller)
    assert seen.log is not None  # noqa: S101  there is a curve
    return SpareMemory(
        size_mb=size,
        enough_mb=smaller,
        saved_now=now.saved_rate,
        saved_then=predicted_hits(seen, setting).saved_rate,
        gain=predicted_gain(seen, here, setting),
        beyond_own=seen.own_cache is not None,
        observed_seconds=max(seen.log.duration, 0.0),
    )


def _explains(seen: Observation, here: ServerSetting) -> bool:
    """Return whether the model agrees with what was measured under the settings in force."""
    error = model_error(seen, predicted_hits(seen, here))
    return error is not None and abs(error) <= MODEL_OFF


def _yardstick(seen: Observation, here: ServerSetting, size: float, ranked: Sequence[OptimizationRecommendation]) -> _Yardstick:
    now, most = (predicted_hits(seen, _sized(seen, here, each)) for each in (size, _largest(seen, here, size)))
    best = max(now, most, key=lambda hits: hits.saved_rate)
    gains = [one.gain.estimate for one in ranked if one.gain is not None]
    saved = max(best.saved_rate, now.saved_rate + max(gains, default=0.0))
    return _Yardstick(best, saved, max(now.saved_l1_rate, most.saved_l1_rate))


def _largest(seen: Observation, here: ServerSetting, size: float) -> float:
    """Return the largest useful L1 that the operator's bound allows, MB: at this size nothing is evicted."""
    assert seen.curve is not None  # noqa: S101  callers asked
    assert seen.chunk_bytes is not None  # noqa: S101  else there is no setting
    everything = (seen.curve.footprint / max(here.watermark, 0.05) + 1) * seen.chunk_bytes / MB
    bound = seen.bounds.max_size_mb
    return max(size, everything if bound is None else min(everything, bound))


def _enough(seen: Observation, here: ServerSetting, size: float, yardstick: _Yardstick) -> list[float]:
    """Return the sizes, MB, that keep what is saved by a quick prediction, smallest first.

    Sizes below one that does not keep it are left out: whether one of them does is chance.
    """
    least = max(seen.bounds.min_size_mb or 0.0, SMALLEST * size)
    most = (1 - WORTH_TELLING) * size
    if least > most:
        return []
    sizes = np.geomspace(most, least, SIZES)
    kept = _kept(seen, here, sizes, yardstick)
    if not kept:
        return []
    last = kept[0]
    below: float = max(sizes[np.ceil(sizes) < last], default=last)
    return [*_kept(seen, here, np.linspace(last, below, FINER + 2)[1:-1], yardstick), *kept]


def _kept(seen: Observation, here: ServerSetting, sizes: npt.NDArray[np.floating[Any]], yardstick: _Yardstick) -> list[float]:
    """Return these sizes in whole MB, from the largest, which comes first, down to the last that keeps what is saved.

    The smallest is first in the answer.
    """
    whole = dict.fromkeys(mb for mb in map(float, np.ceil(sizes)) if mb <= sizes[0])
    return list(takewhile(lambda size: yardstick.kept_by(_quickly_predicted(seen, _sized(seen, here, size))), whole))[::-1]


def _quickly_predicted(seen: Observation, setting: ServerSetting) -> PredictedHits:
    assert seen.log is not None  # noqa: S101  callers asked
    return hits_of(seen, predict_server(seen.log, setting, clocks=PROPOSAL_CLOCKS, delay=seen.store_delay))


def _sized(seen: Observation, here: ServerSetting, size: float) -> ServerSetting:
    assert seen.chunk_bytes is not None  # noqa: S101  else there is no setting
    return replace(here, capacity_chunks=size * MB / seen.chunk_bytes)
