"""What could help: settings searched with the server model over the observed requests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent_tools.models import MB, ConfigUpdate, Gain, SupportLevel
from agent_tools.models.cost import Range, Saving
from agent_tools.models.engine import ExpectedTtft
from agent_tools.prediction.cost import HOUR, memory_price, saving, traffic_of
from agent_tools.prediction.eviction_clock import possible_clocks
from agent_tools.prediction.server_prediction import ServerPrediction, predict_settings
from agent_tools.prediction.server_setting import ServerSetting

from .modelled import MODEL_OFF, corrected, predicted_gain, predicted_rate, predicted_ttft, predicted_worth, server_setting
from .observation import Observation

SHARES_OF_CEILING = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
"""Sizes tried: those that an always-full LRU would need for so much of the unbounded cache's hits."""
WATERMARKS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RATIOS = (0.05, 0.1, 0.2, 0.3)
L2_GROWTH = (2, 4, 8)
"""Sizes of L2 tried, as multiples of the present one."""
GOOD_ENOUGH = 0.004
"""Of settings within so much of the best, the cheapest is proposed: with the model's error, half a point."""
CLOCKS = possible_clocks(5)
"""The search tries each setting with several clocks: traffic to come meets the eviction ticks at other moments than the observed
did, and a setting that suits just those moments must not win."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A setting, what it would change, and what the model says it would give."""

    update: ConfigUpdate
    level: SupportLevel
    """``live`` or ``restart``."""
    violation: str | None
    """Why the operator's bounds forbid it; ``None`` when they allow it."""
    gain: Gain
    rate: float
    """Predicted token hit rate of the window's requests."""
    benefit: Range
    """The gain with hits of L2 counted by the time they save, less what the memory costs, as token hit rate."""
    saving: Saving | None
    """In seconds and money; ``None`` without economics."""
    ttft: ExpectedTtft | None
    """Time to first token now and then; ``None`` without an engine that has shown its speed."""


@dataclass(frozen=True)
class _Candidate:
    setting: ServerSetting
    update: ConfigUpdate | None
    """What differs from the present settings; ``None`` for these."""
    added_mb: float = 0
    """L1 memory it takes more than now."""

    def changed(self, setting: ServerSetting, **settings: object) -> "_Candidate":
        """Another setting that also changes these."""
        so_far = self.update.model_dump(exclude_none=True) if self.update else {}
        return replace(self, setting=setting, update=ConfigUpdate.model_validate(so_far | settings))


def propose(seen: Observation) -> list[Proposal]:
    """At most one proposal for the L1 size, one for watermark and ratio, one for L2, one for all of them; none without a log.

    Each is the cheapest of the best of its kind, since the operator may allow one kind and not another.
    """
    current = server_setting(seen)
    if current is None or seen.log is None or seen.curve is None or seen.config.max_size_mb is None:
        return []
    here = _Candidate(current, None)
    sized, shaped, tiered = (_cheapest_of_best(seen, [here, *kind(seen, here)]) for kind in (_resized, _reshaped, _retiered))
    both = _cheapest_of_best(seen, [sized, shaped, tiered, *_resized(seen, tiered), *_reshaped(seen, tiered)])
    best = _cheapest_of_best(seen, [both, *_reshaped(seen, both)])
    chosen: list[_Candidate] = []
    for candidate in (sized, shaped, tiered, best):
        if candidate.update is not None and candidate not in chosen:
            chosen.append(candidate)
    return [_proposal(seen, here, candidate) for candidate in chosen]


def _resized(seen: Observation, base: _Candidate) -> Iterator[_Candidate]:
    """Larger L1 sizes, up to the operator's bound if there is one."""
    assert seen.curve is not None  # noqa: S101
    assert seen.chunk_bytes is not None  # noqa: S101
    now, bound = seen.config.max_size_mb or 0.0, seen.bounds.max_size_mb
    # Between eviction passes L1 works down to watermark x (1 - ratio) of its size.
    worst_share = base.setting.watermark * (1 - base.setting.ratio) or 1.0
    wanted = {seen.curve.capacity_for(share) / worst_share for share in SHARES_OF_CEILING}
    wanted.add(seen.curve.footprint / base.setting.watermark + 1)
    sizes = {float(np.ceil(chunks * seen.chunk_bytes / MB)) for chunks in wanted}
    for size in sorted({size if bound is None else min(size, bound) for size in sizes}):
        if size > now:
            larger = base.changed(replace(base.setting, capacity_chunks=size * MB / seen.chunk_bytes), max_size_mb=size)
            yield replace(larger, added_mb=size - now)


def _reshaped(seen: Observation, base: _Candidate) -> Iterator[_Candidate]:
    """The same sizes with every watermark and ratio within the bounds."""
    if seen.support["eviction_watermark"].level is SupportLevel.UNSUPPORTED or not base.setting.evicts:
        return
    if seen.config.l2_adapters and seen.l2_weight < 0:  # what looks best then makes loads from L2 fail, which is no cure of it
        return
    bounds = seen.bounds
    for watermark in WATERMARKS:
        for ratio in RATIOS:
            inside = bounds.min_watermark <= watermark <= bounds.max_watermark and bounds.min_ratio <= ratio <= bounds.max_ratio
            if inside and (watermark, ratio) != (seen.config.eviction_watermark, seen.config.eviction_ratio):
                setting = replace(base.setting, watermark=watermark, ratio=ratio)
                yield base.changed(setting, eviction_watermark=watermark, eviction_ratio=ratio)


def _retiered(seen: Observation, base: _Candidate) -> Iterator[_Candidate]:
    """The other prefetch policy and larger sizes of the L2 there is, else the L2 that the operator's bounds offer."""
    adapters, offered = seen.config.l2_adapters or (), seen.bounds.l2_adapter
    updates: list[dict[str, object]] = []
    if adapters:
        other = "default" if seen.config.l2_prefetch_policy == "retain" else "retain"
        larger: list[dict[str, object]] = [{"l2_adapters": (adapters[0].resized(size),)} for size in _larger_l2(seen)]
        updates = [{"l2_prefetch_policy": other}, *larger, *(one | {"l2_prefetch_policy": other} for one in larger)]
    elif offered is not None:
        updates = [{"l2_adapters": (offered,)}, {"l2_adapters": (offered,), "l2_prefetch_policy": "retain"}]
    for update in updates:
        if all(seen.support[setting].level is not SupportLevel.UNSUPPORTED for setting in update):
            setting = server_setting(seen, update)
            if setting is not None:
                yield base.changed(setting, **update)


def _larger_l2(seen: Observation) -> list[float]:
    """Sizes of L2 to try, MB, up to the operator's bound; none for an L2 without a declared size."""
    now, bound = (seen.config.l2_adapters or ())[0].size_mb, seen.bounds.max_l2_size_mb
    if now is None:
        return []
    wanted = {now * times for times in L2_GROWTH}
    return sorted(size for size in {size if bound is None else min(size, bound) for size in wanted} if size > now)


def _cheapest_of_best(seen: Observation, candidates: Sequence[_Candidate]) -> _Candidate:
    """The first (smallest, least changed) of those within `GOOD_ENOUGH` of the best."""
    assert seen.log is not None  # noqa: S101
    settings = [candidate.setting for candidate in candidates]
    predictions = predict_settings(seen.log, settings, clocks=CLOCKS, delay=seen.store_delay)
    worths = [
        _worth(prediction, seen) - _price(seen, candidate.added_mb)
        for prediction, candidate in zip(predictions, candidates, strict=True)
    ]
    return next(c for c, worth in zip(candidates, worths, strict=True) if worth >= max(worths) - GOOD_ENOUGH)


def _worth(prediction: ServerPrediction, seen: Observation) -> float:
    """Token hit rate of the window's requests with hits of L2 counted by the time they save, mean over the clocks."""
    asked = prediction.runs[0].asked_chunks[seen.in_window].sum()
    hits = [
        run.l1_hit_chunks[seen.in_window].sum() + seen.l2_weight * run.l2_hit_chunks[seen.in_window].sum()
        for run in prediction.runs
    ]
    return float(np.mean(hits) / asked) if asked else 0.0


def _price(seen: Observation, added_mb: float) -> float:
    """What added L1 memory costs, as the token hit rate whose saved GPU time would just pay for it."""
    economics, traffic = seen.economics, traffic_of(seen.metrics)
    if economics is None or economics.prices is None or traffic is None or not traffic.tokens_per_hour:
        return 0.0
    prefill, prices = economics.prefill, economics.prices
    gpu_hours = traffic.tokens_per_hour * prefill.gpus / prefill.tokens_per_second / HOUR * prices.horizon_hours
    return memory_price(added_mb, prices) / (gpu_hours * prices.gpu_hour)


def _proposal(seen: Observation, here: _Candidate, candidate: _Candidate) -> Proposal:
    assert candidate.update is not None  # noqa: S101  the present settings are no proposal
    update, old, new = candidate.update, here.setting, candidate.setting
    levels = {seen.support[setting].level for setting in update.known()}
    level = SupportLevel.LIVE if levels == {SupportLevel.LIVE} else SupportLevel.RESTART
    violation = seen.bounds.violation(update, seen.config)
    if violation is None and level is SupportLevel.RESTART and not seen.bounds.allow_restart:
        violation = "it needs a restart, which the operator's bounds do not allow"
    error = _error_of_model(seen, old)
    gain = corrected(predicted_gain(seen, old, new), error)
    worth = predicted_worth(seen, old, new).shifted(error)
    return Proposal(
        update=update,
        level=level,
        violation=violation,
        gain=gain,
        rate=predicted_rate(seen, new),
        benefit=worth.shifted(-_price(seen, candidate.added_mb) - abs(error)),
        saving=_saving(seen, gain, worth, candidate.added_mb),
        ttft=_ttft(seen, old, new),
    )


def _error_of_model(seen: Observation, old: ServerSetting) -> float:
    """How much more the model says of the settings in force than was measured; 0 where it is not to be believed anyway."""
    measured = seen.metrics.tokens.hit_rate
    error = 0.0 if measured is None else predicted_rate(seen, old) - measured
    return error if abs(error) <= MODEL_OFF else 0.0


def _ttft(seen: Observation, old: ServerSetting, new: ServerSetting) -> ExpectedTtft | None:
    now, then = predicted_ttft(seen, old), predicted_ttft(seen, new)
    if now is None or then is None or seen.engine_speed is None:
        return None
    return ExpectedTtft(now=now, then=then, speed=seen.engine_speed)


def _saving(seen: Observation, gain: Gain, worth: Range, added_mb: float) -> Saving | None:
    economics, traffic = seen.economics, traffic_of(seen.metrics)
    if economics is None or traffic is None:
        return None
    return saving(gain, traffic, economics, worth=worth, kv=seen.kv, added_mb=added_mb)
