"""Claims about figures, windows and changes as values."""

from datetime import datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from agent_tools.models import (
    CacheMetrics,
    CacheOptimizationResult,
    CacheStatus,
    ConfigUpdate,
    Plan,
    SettingChange,
    SupportLevel,
    TokenCounts,
    Window,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


def test_a_window_cannot_end_before_it_starts() -> None:
    with pytest.raises(ValidationError, match=r"cannot end .* before it starts"):
        Window(start=NOON, end=NOON - timedelta(seconds=1))
    assert Window(start=NOON, end=NOON).seconds == 0


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        Window(start=NOON.replace(tzinfo=None), end=NOON)


def test_more_hits_than_requests_are_refused() -> None:
    with pytest.raises(ValidationError, match="5 tokens served of 4 requested: there cannot be more hits than requests"):
        CacheMetrics(
            status=CacheStatus.ENABLED,
            enabled=True,
            window=Window(start=NOON, end=NOON),
            tokens=TokenCounts(requested=4, hit_l1=2, hit_l2=3),
        )


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        TokenCounts(requested=-1)
    with pytest.raises(ValidationError, match="entries_before"):
        CacheOptimizationResult(
            success=True,
            message="",
            entries_before=-1,
            entries_after=0,
            entries_evicted=0,
            memory_freed_mb=0,
            optimization_time_ms=0,
        )


def test_the_hit_rate_is_of_both_tiers_and_unknown_without_requests() -> None:
    assert TokenCounts(requested=1024, hit_l1=256, hit_l2=256).hit_rate == 0.5
    assert TokenCounts().hit_rate is None


def test_use_above_the_capacity_is_allowed_since_a_draining_arena_shows_it(metrics: CacheMetrics) -> None:
    assert CacheMetrics.model_validate({**metrics.model_dump(), "utilization_percent": 149.0})


def test_a_plan_changes_something_and_reads_as_one_line() -> None:
    change = SettingChange(setting="max_size_mb", old=16.0, new=32.0, how=SupportLevel.LIVE)
    known = {
        "plan_id": "p",
        "cache": "c",
        "created_at": NOON,
        "reason": "",
        "fingerprint": "f",
        "update": ConfigUpdate(max_size_mb=32),
    }
    plan = Plan(**known, changes=(change, change.model_copy(update={"setting": "eviction_ratio", "old": None, "new": 0.2})))
    assert str(plan) == "max_size_mb 16 -> 32 (live); eviction_ratio unknown -> 0.2 (live)"
    assert not plan.needs_restart
    with pytest.raises(ValidationError, match="at least 1 item"):
        Plan(**known, changes=())


def _l2(size_gb: float, path: str = "/nvme/kv") -> dict[str, object]:
    eviction = {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2}
    return {"type": "fs_native", "settings": {"base_path": path, "max_capacity_gb": size_gb, "eviction": eviction}}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ([_l2(1)], [_l2(4)], "fs_native of 1,024 MB, LRU 0.8/0.2 -> fs_native of 4,096 MB, LRU 0.8/0.2"),
        ([], [{"type": "fs"}, _l2(1)], "none -> fs and fs_native of 1,024 MB, LRU 0.8/0.2"),
        (None, [_l2(1)], "unknown -> fs_native of 1,024 MB, LRU 0.8/0.2"),
        ([{"type": "mock", "settings": {"eviction": {"eviction_policy": "LRU"}}}], [], "mock, LRU ?/? -> none"),
        ("no adapter", [], "no adapter -> none"),
    ],
)
def test_a_change_of_l2_is_told_without_where_it_stores(old: object, new: object, said: str) -> None:
    change = SettingChange(setting="l2_adapters", old=old, new=new, how=SupportLevel.LIVE)
    assert str(change) == f"l2_adapters {said} (live)"


def test_a_change_of_where_l2_stores_alone_is_told_whole() -> None:
    change = SettingChange(setting="l2_adapters", old=[_l2(1)], new=[_l2(1, "/nvme/other")], how=SupportLevel.LIVE)
    assert "/nvme/kv" in str(change)
    assert "/nvme/other" in str(change)
