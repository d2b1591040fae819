"""The search for better settings: the server model runs candidate settings on the observed requests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent_tools.models import MB, ConfigUpdate, EvictionPolicy, Gain, SupportLevel
from agent_tools.models.cost import Range, Saving
from agent_tools.models.engine import ExpectedTtft
from agent_tools.prediction.cost import HOUR, memory_price, saving, traffic_of
from agent_tools.prediction.eviction_clock import possible_clocks
from agent_tools.prediction.in_process_model import CODES
from agent_tools.prediction.server_prediction import ServerPrediction, predict_settings
from agent_tools.prediction.server_setting import ServerSetting

from .modelled import (
    MODEL_OFF,
    corrected,
    hits_of,
    model_error,
    predicted_gain,
    predicted_hits,
    predicted_rate,
    predicted_ttft,
    predicted_worth,
    server_setting,
)
from .observation import Observation

SHARES_OF_CEILING = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
"""L1 sizes to try, as shares of an unbounded cache's hits. Each size is what an always-full LRU needs for that share."""
WATERMARKS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Eviction watermarks to try."""
RATIOS = (0.05, 0.1, 0.2, 0.3)
"""Eviction ratios to try."""
L2_GROWTH = (2, 4, 8)
"""L2 sizes to try, as multiples of the present size."""
GOOD_ENOUGH = 0.004
"""Among settings within 0.4 points of the best, the search proposes the cheapest. With the model's error: half a point."""
PROPOSAL_CLOCKS = possible_clocks(5)
"""Eviction clocks to try for each setting. Future requests meet the eviction ticks at other moments than the observed requests
did. A setting that suits only the observed moments must not win."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A change of settings, and the gain that the model predicts for it."""

    update: ConfigUpdate
    level: SupportLevel
    """``live`` or ``restart``."""
    violation: str | None
    """Why the operator's bounds forbid the change. ``None`` if they allow it."""
    gain: Gain
    rate: float
    """Predicted token hit rate of the window's requests."""
    saved: float
    """Predicted share of the window's requested tokens that LMCache saves: `rate` without the hits that the engine's own cache
    has as well."""
    benefit: Range
    """The gain, with hits in L2 weighted by the time they save, minus the cost of memory. All as token hit rate."""
    saving: Saving | None
    """The gain in seconds and money. ``None`` without economics."""
    ttft: ExpectedTtft | None
    """Time to first token before and after the change. ``None`` if the engine's speed is unknown."""


@dataclass(frozen=True)
class _Candidate:
    setting: ServerSetting
    update: ConfigUpdate | None
    """The difference from the present settings. ``None`` for the present settings themselves."""
    added_mb: float = 0
    """Additional L1 memory, MB."""

    @property
    def without_shape(self) -> dict[str, object]:
        """The changed settings with their new values, which are left out for watermark and ratio: these cost nothing."""
        known = self.update.known() if self.update else {}
        return {name: None if name in ("eviction_watermark", "eviction_ratio") else value for name, value in known.items()}

    def changed(self, setting: ServerSetting, **settings: object) -> "_Candidate":
        """Return a candidate that also changes these settings."""
        so_far = self.update.model_dump(exclude_none=True) if self.update else {}
        return replace(self, setting=setting, update=ConfigUpdate.model_validate(so_far | settings))


def propose(seen: Observation) -> list[Proposal]:
    """Return at most seven proposals: for the policy, the L1 size, watermark and ratio, L2, and all of them together.

    Each proposal is the cheapest of the best of its kind, because the operator may allow one kind and not another. If the best
    of all together is not allowed, the best of the allowed kinds together is proposed too.
    Return an empty list without an access log.
    """
    current = server_setting(seen)
    if current is None or seen.log is None or seen.curve is None or seen.config.max_size_mb is None or not seen.savings_known:
        return []
    here = _Candidate(current, None)
    # An L1 that never evicts has no use for more size or another watermark before it evicts.
    evicting = _cheapest_of_best(seen, [here, *_evicting(seen, here)])
    sized, shaped, tiered, ordered = (
        _cheapest_of_best(seen, [evicting, *kind(seen, evicting)]) for kind in (_resized, _reshaped, _retiered, _reordered)
    )
    kinds = (sized, shaped, tiered, ordered)
    found = [evicting, *kinds, _together(seen, *kinds)]
    if not _allowed(seen, found[-1]):
        found.append(_together(seen, *(kind if _allowed(seen, kind) else evicting for kind in kinds)))
    chosen: list[_Candidate] = []
    for candidate in found:
        if candidate.update is not None and candidate not in chosen:
            chosen.append(candidate)
    return [_proposal(seen, here, candidate) for candidate in chosen]


def _together(seen: Observation, sized: _Candidate, shaped: _Candidate, tiered: _Candidate, ordered: _Candidate) -> _Candidate:
    """Return the cheapest of the best changes of several kinds at once, from the best change of each kind."""
    pairs = [*_resized(seen, tiered), *_reshaped(seen, tiered), *_resized(seen, ordered)]
    both = _cheapest_of_best(seen, [sized, shaped, tiered, ordered, *pairs])
    return _cheapest_of_best(seen, [both, *_resized(seen, both), *_reshaped(seen, both)])


def _allowed(seen: Observation, candidate: _Candidate) -> bool:
    """Return whether the operator's bounds allow a candidate."""
    return candidate.update is None or _level_and_violation(seen, candidate.update)[1] is None


def _evicting(seen: Observation, base: _Candidate) -> Iterator[_Candidate]:
    """Yield candidates with an eviction policy for an L1 that has none and is no buffer.

    LRU comes first: the model gives ARC the same hits, as LMCache 0.5.6 does (see `ServerSetting.policy`).
    """
    if base.setting.policy != "noop" or seen.l1_is_buffer:
        return
    if seen.support["eviction_policy"].level is SupportLevel.UNSUPPORTED:
        return
    for policy in (EvictionPolicy.LRU, EvictionPolicy.ARC):
        setting = server_setting(seen, {"eviction_policy": policy, "auto_eviction": True})
        if setting is not None:
            yield base.changed(setting, eviction_policy=policy)


def _reordered(seen: Observation, base: _Candidate) -> Iterator[_Candidate]:
    """Yield candidates with the other eviction policies of in-process LMCache. A server's policies give the same hits."""
    if not seen.in_process:
        return
    for policy in map(EvictionPolicy, map(str.lower, CODES)):
        setting = server_setting(seen, {"eviction_policy": policy})
        if setting is not None and policy is not seen.config.eviction_policy:
            yield base.changed(setting, eviction_policy=policy)


def beyond_the_bound(seen: Observation) -> tuple[float, float] | None:
    """Return the L1 size that would be proposed without the operator's bound, MB, and the token hit rate it would give.

    Return ``None`` if there is no such bound, if the size lies within it, or if nothing can be predicted.
    """
    current, bound = server_setting(seen), seen.bounds.max_size_mb
    if current is None or seen.log is None or seen.curve is None or bound is None or not seen.savings_known:
        return None
    free, here = replace(seen, bounds=seen.bounds.model_copy(update={"max_size_mb": None})), _Candidate(current, None)
    best = _cheapest_of_best(free, [here, *_resized(free, here)])
    size = None if best.update is None else best.update.max_size_mb
    return None if size is None or size <= bound else (size, predicted_rate(seen, best.setting))


def _resized(seen: Observation, base: _Candidate) -> Iterator[_Candidate]:
    """Yield candidates with a larger L1, up to the operator's bound if there is one."""
    assert seen.curve is not None  # noqa: S101
    assert seen.chunk_bytes is not None  # noqa: S101
    now, bound = seen.config.max_size_mb or 0.0, seen.bounds.max_size_mb
    # Right after an eviction pass, only watermark x (1 - ratio) of L1 is in use.
    worst_share = base.setting.watermark * (1 - base.setting.ratio) or 1.0
    wanted = {seen.curve.capacity_for(share) / worst_share for share in SHARES_OF_CEILING}
    wanted.add(seen.curve.footprint / base.setting.watermark + 1)
    sizes = {float(np.ceil(chunks * seen.chunk_bytes / MB)) for chunks in wanted}
    for size in sorted({size if bound is None else min(size, bound) for size in sizes}):
        if size > now:
            larger = base.changed(replace(base.setting, capacity_chunks=size * MB / seen.chunk_bytes), max_size_mb=size)
            yield replace(larger, added_mb=size - now)


def _reshaped(seen: Observation, base: _Candidate) -> Iterator[_Candidate]:
    """Yield candidates of the same size with every watermark and ratio within the operator's bounds."""
    if seen.support["eviction_watermark"].level is SupportLevel.UNSUPPORTED or not base.setting.evicts:
        return
    if seen.config.l2_adapters and seen.l2_weight < 0:
        # If loading from L2 costs time, the model prefers settings that make these loads fail. That cures nothing.
        return
    bounds = seen.bounds
    for watermark in WATERMARKS:
        for ratio in RATIOS:
            inside = bounds.min_watermark <= watermark <= bounds.max_watermark and bounds.min_ratio <= ratio <= bounds.max_ratio
            if inside and (watermark, ratio) != (seen.config.eviction_watermark, seen.config.eviction_ratio):
                setting = replace(base.setting, watermark=watermark, ratio=ratio)
                yield base.changed(setting, eviction_watermark=watermark, eviction_ratio=ratio)


def _retiered(seen: Observation, base: _Candidate) -> Iterator[_Candidate]:
    """Yield candidates with the other prefetch policy and larger sizes of the present L2.

    Without an L2, yield the L2 that the operator's bounds offer.
    """
    adapters, offered = seen.config.l2_adapters or (), seen.bounds.l2_adapter
    updates: list[dict[str, object]] = []
    if adapters and seen.in_process:
        return  # path and size of its disk are fixed while it is attached
    if adapters:
        other = "default" if seen.config.l2_prefetch_policy == "retain" else "retain"
        larger: list[dict[str, object]] = [{"l2_adapters": (adapters[0].resized(size),)} for size in _larger_l2(seen)]
        updates = [{"l2_prefetch_policy": other}, *larger, *(one | {"l2_prefetch_policy": other} for one in larger)]
    elif offered is not None:
        updates = [{"l2_adapters": (offered,)}, {"l2_adapters": (offered,), "l2_prefetch_policy": "retain"}]
    for update in updates:
        if all(seen.support[setting].level is not SupportLevel.UNSUPPORTED for setting in update):
            setting = server_setting(seen, (base.update.known() if base.update else {}) | update)
            if setting is not None:
                yield base.changed(setting, **update)


def _larger_l2(seen: Observation) -> list[float]:
    """Return the L2 sizes to try in MB, up to the operator's bound. Return none for an L2 without a declared size."""
    now, bound = (seen.config.l2_adapters or ())[0].size_mb, seen.bounds.max_l2_size_mb
    if now is None:
        return []
    wanted = {now * times for times in L2_GROWTH}
    return sorted(size for size in {size if bound is None else min(size, bound) for size in wanted} if size > now)


def _cheapest_of_best(seen: Observation, candidates: Sequence[_Candidate]) -> _Candidate:
    """Return the first candidate within `GOOD_ENOUGH` of the best. Candidates come in order of size and number of changes.

    If others differ from it in watermark and ratio alone, return the best of these: they cost the same.
    """
    assert seen.log is not None  # noqa: S101
    settings = list(dict.fromkeys(candidate.setting for candidate in candidates))
    predictions = predict_settings(seen.log, settings, clocks=PROPOSAL_CLOCKS, delay=seen.store_delay)
    worth_of = {setting: _worth(prediction, seen) for setting, prediction in zip(settings, predictions, strict=True)}
    worths = [worth_of[candidate.setting] - _price(seen, candidate.added_mb) for candidate in candidates]
    good = [(c, worth) for c, worth in zip(candidates, worths, strict=True) if worth >= max(worths) - GOOD_ENOUGH]
    first = good[0][0].without_shape
    return max((pair for pair in good if pair[0].without_shape == first), key=lambda pair: pair[1])[0]


def _worth(prediction: ServerPrediction, seen: Observation) -> float:
    """Return the share of the window's requested tokens that LMCache saves, as the mean over the clocks.

    Hits in L2 are weighted by the time they save.
    """
    hits = hits_of(seen, prediction)
    asked = hits.asked.sum()
    return float((hits.saved_l1 + seen.l2_weight * hits.saved_l2).sum(axis=1).mean() / asked) if asked else 0.0


def _price(seen: Observation, added_mb: float) -> float:
    """Return the cost of added L1 memory, as the token hit rate whose saved GPU time would just pay for it."""
    economics, traffic = seen.economics, traffic_of(seen.metrics)
    if economics is None or economics.prices is None or traffic is None or not traffic.tokens_per_hour:
        return 0.0
    prefill, prices = economics.prefill, economics.prices
    gpu_hours = traffic.tokens_per_hour * prefill.gpus / prefill.tokens_per_second / HOUR * prices.horizon_hours
    return memory_price(added_mb * seen.workers, prices) / (gpu_hours * prices.gpu_hour)


def _level_and_violation(seen: Observation, update: ConfigUpdate) -> tuple[SupportLevel, str | None]:
    """Return how a change is made, and why the operator's bounds forbid it, if they do."""
    levels = {seen.support[setting].level for setting in update.known()}
    level = SupportLevel.LIVE if levels == {SupportLevel.LIVE} else SupportLevel.RESTART
    violation = seen.bounds.violation(update, seen.config)
    if violation is None and level is SupportLevel.RESTART and not seen.bounds.allow_restart:
        violation = "the change needs a restart, which the operator's bounds do not allow"
    return level, violation


def _proposal(seen: Observation, here: _Candidate, candidate: _Candidate) -> Proposal:
    assert candidate.update is not None  # noqa: S101  the present settings are no proposal
    update, old, new = candidate.update, here.setting, candidate.setting
    level, violation = _level_and_violation(seen, update)
    error = _error_of_model(seen, old)
    gain = corrected(predicted_gain(seen, old, new), error)
    worth = predicted_worth(seen, old, new).shifted(error)
    return Proposal(
        update=update,
        level=level,
        violation=violation,
        gain=gain,
        rate=predicted_rate(seen, new),
        saved=predicted_hits(seen, new).saved_rate,
        benefit=worth.shifted(-_price(seen, candidate.added_mb)).widened(abs(error)),
        saving=_saving(seen, gain, worth, candidate.added_mb),
        ttft=_ttft(seen, old, new),
    )


def _error_of_model(seen: Observation, old: ServerSetting) -> float:
    """Return the model's error with the settings in force.

    Return 0 if it exceeds `MODEL_OFF`, since the model is then not believed at all.
    """
    error = model_error(seen, predicted_hits(seen, old)) or 0.0
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
    return saving(gain, traffic, economics, worth=worth, kv=seen.kv, added_mb=added_mb * seen.workers)
