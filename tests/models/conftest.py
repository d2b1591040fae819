"""One full reading of a cache, as a value."""

from datetime import datetime, timedelta, timezone

import pytest

from agent_tools.models import CacheMetrics, CacheStatus, TokenCounts, Window

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def metrics() -> CacheMetrics:
    counts = TokenCounts(requested=1024, hit_l1=512, hit_l2=256)
    return CacheMetrics(
        status=CacheStatus.ENABLED,
        enabled=True,
        window=Window(start=NOON, end=NOON + timedelta(minutes=1)),
        total_size_mb=16,
        used_size_mb=4,
        tokens=counts,
        by_model={"llama": counts},
        by_tenant={"": counts},
        unavailable={"cache_hits": "not counted"},
    )
