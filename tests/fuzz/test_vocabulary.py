"""Claims about the models: what is dumped reads back the same, bounds hold whatever is asked, and secrets are in no dump."""

import json
import math
from typing import Any

from effort import tried
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent_tools.errors import OutOfBoundsError
from agent_tools.models import Bounds, CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter
from agent_tools.models.config import SETTINGS

numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-10, 10**6) | st.floats(0, 1)
adapters = st.builds(
    L2Adapter,
    type=st.sampled_from(["fs", "mock", "dax"]),
    settings=st.dictionaries(
        st.sampled_from(["max_capacity_gb", "max_size_gb", "base_path"]), st.floats(0, 100) | st.text(max_size=3), max_size=3
    ),
)
updates: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "max_size_mb": numbers,
        "eviction_watermark": numbers,
        "eviction_ratio": numbers,
        "chunk_size": st.integers(-1, 1000) | numbers,
        "eviction_policy": st.sampled_from([*EvictionPolicy, "x"]),
        "auto_eviction": st.booleans(),
        "l2_adapters": st.lists(adapters, max_size=2),
        "tenant_quotas_mb": st.dictionaries(st.text(max_size=3), numbers, max_size=3),
    },
)
limits = st.builds(
    lambda pairs, rest: {**{k: v for low, high, a, b in pairs for k, v in ((low, min(a, b)), (high, max(a, b)))}, **rest},
    st.tuples(
        st.tuples(st.just("min_size_mb"), st.just("max_size_mb"), st.floats(1, 1e6), st.floats(1, 1e6)),
        st.tuples(st.just("min_watermark"), st.just("max_watermark"), st.floats(0.01, 1), st.floats(0.01, 1)),
        st.tuples(st.just("min_ratio"), st.just("max_ratio"), st.floats(0.01, 1), st.floats(0.01, 1)),
    ),
    st.fixed_dictionaries(
        {}, optional={"max_quotas_mb": st.floats(1, 1e6), "max_l2_size_mb": st.floats(1, 1e6), "allow_restart": st.booleans()}
    ),
).map(Bounds.model_validate)


@tried(150, 5000)
@given(updates)
def test_an_update_reads_back_as_it_was_or_is_none(given_: dict[str, Any]) -> None:
    try:
        update = ConfigUpdate.model_validate(given_)
    except ValidationError:
        return
    assert ConfigUpdate.model_validate_json(update.model_dump_json()) == update
    assert ConfigUpdate.model_validate(update.known()) == update
    assert set(update.known()) <= set(SETTINGS)
    for value in (update.max_size_mb, update.eviction_watermark, update.eviction_ratio):
        assert value is None or (math.isfinite(value) and value > 0)
    assert json.loads(json.dumps(update.known(), allow_nan=False)) == update.known()


@tried(150, 5000)
@given(updates, limits, st.floats(1, 1e6))
def test_no_update_within_bounds_lies_outside_them(given_: dict[str, Any], bounds: Bounds, size: float) -> None:
    try:
        update = ConfigUpdate.model_validate(given_)
    except ValidationError:
        assume(False)
    now = CacheConfig(
        max_size_mb=size, l2_adapters=(L2Adapter(type="fs", settings={"base_path": "/kv", "max_capacity_gb": 1.0}),)
    )
    if bounds.violation(update, now) is not None:
        return
    assert (
        update.max_size_mb is None
        or bounds.min_size_mb is None
        or bounds.min_size_mb <= update.max_size_mb <= (bounds.max_size_mb or size)
    )
    assert update.eviction_watermark is None or bounds.min_watermark <= update.eviction_watermark <= bounds.max_watermark
    assert update.eviction_ratio is None or bounds.min_ratio <= update.eviction_ratio <= bounds.max_ratio
    if update.tenant_quotas_mb is not None:
        assert sum(update.tenant_quotas_mb.values()) <= (bounds.max_quotas_mb or 0)
    for adapter in update.l2_adapters or ():
        assert adapter.settings.get("base_path") == "/kv"
        assert adapter.size_mb is not None
        assert adapter.size_mb <= max(bounds.max_l2_size_mb or 0, 1024)


@tried(150, 5000)
@given(updates, limits, limits)
def test_what_two_bounds_allow_both_allow(given_: dict[str, Any], operators: Bounds, runs: Bounds) -> None:
    try:
        update = ConfigUpdate.model_validate(given_)
        narrowed = operators.narrowed(runs)
    except (ValidationError, OutOfBoundsError):
        return
    now = CacheConfig(max_size_mb=64)
    if narrowed.violation(update, now) is None:
        assert operators.violation(update, now) is None
        stated = {name: value for name, value in runs if value is not None}  # else what the operator says holds
        assert operators.model_copy(update=stated).violation(update, now) is None
    assert not narrowed.allow_restart or (operators.allow_restart and runs.allow_restart)


@tried(150, 5000)
@given(
    st.sampled_from(["password", "api_key", "x-auth-token"]),
    st.text(min_size=8),
    st.lists(st.sampled_from(["a", "b"]), max_size=3),
)
def test_a_secret_is_in_no_dump_of_an_adapter_however_deep(name: str, secret: str, path: list[str]) -> None:
    settings: Any = {name: secret}
    for one in path:
        settings = {one: [settings]}
    update = ConfigUpdate(l2_adapters=(L2Adapter(type="resp", settings=settings),))
    shown = L2Adapter(type="resp", settings=settings).masked
    assert update.known() == ConfigUpdate(l2_adapters=(shown,)).known()
    assert repr(update) == repr(ConfigUpdate(l2_adapters=(shown,)))
    assert Bounds(l2_adapter=L2Adapter(type="resp", settings=settings)).revealed(ConfigUpdate(l2_adapters=(shown,))) == update
