"""Claims about settings and bounds: what makes no sense is refused with a sentence that says why."""

import pytest
from pydantic import ValidationError

from agent_tools.errors import OutOfBoundsError
from agent_tools.models import SETTINGS, Bounds, CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter

NOW = CacheConfig(max_size_mb=16, eviction_watermark=0.8, eviction_ratio=0.2)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("max_size_mb", 0, "greater than 0"),
        ("max_size_mb", -1, "greater than 0"),
        ("max_size_mb", float("inf"), "finite"),
        ("max_size_mb", float("nan"), "finite"),
        ("chunk_size", 0, "greater than 0"),
        ("max_concurrent_users", 0, "greater than 0"),
        ("eviction_watermark", 0, "greater than 0"),
        ("eviction_watermark", 1.0001, "less than or equal to 1"),
        ("eviction_ratio", -0.1, "greater than 0"),
        ("eviction_policy", "belady", "'lru', 'lfu'"),
        ("l2_store_policy", "never", "default|skip_l1"),
        ("l2_adapters", [{"type": ""}], "at least 1 character"),
        ("tenant_quotas_mb", {"a": -1}, "greater than or equal to 0"),
        ("max_sise_mb", 32, "Extra inputs"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: str, value: object, said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ConfigUpdate.model_validate({setting: value})
    assert setting in str(refused.value)
    assert said in str(refused.value)


def test_the_ends_of_a_range_are_allowed() -> None:
    assert ConfigUpdate(eviction_watermark=1, eviction_ratio=1, max_size_mb=0.001, chunk_size=1).known()


def test_an_update_asks_for_something() -> None:
    with pytest.raises(ValidationError, match="at least one setting to change; there are: enabled, max_size_mb"):
        ConfigUpdate()


def test_an_update_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match="auto_eviction=False contradicts eviction_policy=lru"):
        ConfigUpdate(auto_eviction=False, eviction_policy=EvictionPolicy.LRU)
    with pytest.raises(ValidationError, match="auto_eviction=True contradicts eviction_policy=noop"):
        ConfigUpdate(auto_eviction=True, eviction_policy=EvictionPolicy.NOOP)


def test_no_automatic_eviction_is_policy_noop() -> None:
    assert ConfigUpdate(auto_eviction=False).eviction_policy is EvictionPolicy.NOOP
    assert ConfigUpdate(auto_eviction=True).eviction_policy is None


def test_what_is_not_known_is_left_out_of_the_plain_settings() -> None:
    known = CacheConfig(max_size_mb=16, l2_adapters=(L2Adapter(type="fs", settings={"base_path": "/x"}),)).known()
    assert known == {"max_size_mb": 16, "l2_adapters": [{"type": "fs", "settings": {"base_path": "/x"}}]}
    assert set(known) < set(SETTINGS)


@pytest.mark.parametrize(
    ("low", "high"), [("min_size_mb", "max_size_mb"), ("min_watermark", "max_watermark"), ("min_ratio", "max_ratio")]
)
def test_bounds_are_ordered(low: str, high: str) -> None:
    with pytest.raises(ValidationError, match=rf"{low} \(0.9\) is larger than {high} \(0.5\)"):
        Bounds.model_validate({low: 0.9, high: 0.5})
    assert Bounds.model_validate({low: 0.5, high: 0.5})


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"max_size_mb": 33}, "max_size_mb=33 is above the operator's bound of 32"),
        ({"max_size_mb": 7}, "max_size_mb=7 is below the operator's bound of 8"),
        ({"eviction_watermark": 0.99}, "eviction_watermark=0.99 is above the operator's bound of 0.95"),
        ({"eviction_ratio": 0.01}, "eviction_ratio=0.01 is below the operator's bound of 0.02"),
    ],
)
def test_a_violation_names_the_setting_and_the_bound(update: dict[str, float], said: str) -> None:
    assert Bounds(min_size_mb=8, max_size_mb=32).violation(ConfigUpdate.model_validate(update), NOW) == said


def test_without_a_largest_size_l1_may_shrink_and_not_grow() -> None:
    bounds = Bounds()
    assert bounds.violation(ConfigUpdate(max_size_mb=8), NOW) is None
    assert bounds.violation(ConfigUpdate(max_size_mb=16), NOW) is None
    assert "name no max_size_mb" in str(bounds.violation(ConfigUpdate(max_size_mb=17), NOW))


def test_a_run_cannot_widen_the_operators_bounds() -> None:
    narrowed = Bounds(max_size_mb=32).narrowed(Bounds(max_size_mb=1000, max_watermark=1, allow_restart=True))
    assert narrowed == Bounds(max_size_mb=32)
    assert Bounds().narrowed(Bounds(max_size_mb=1000)).max_size_mb is None
    assert Bounds(max_size_mb=32).narrowed(Bounds(max_size_mb=20)).max_size_mb == 20
    assert Bounds(max_size_mb=32).narrowed(None) == Bounds(max_size_mb=32)


def test_bounds_that_exclude_each_other_are_an_error_one_can_act_on() -> None:
    with pytest.raises(
        OutOfBoundsError, match=r"outside the operator's: min_watermark \(0.97\) is larger than max_watermark \(0.95\)"
    ):
        Bounds().narrowed(Bounds(min_watermark=0.97, max_watermark=0.99))


HERE = L2Adapter(type="fs_native", settings={"base_path": "/kv", "max_capacity_gb": 1})
WITH_L2 = CacheConfig(max_size_mb=16, l2_adapters=(HERE,))


@pytest.mark.parametrize(
    ("bounds", "adapter", "said"),
    [
        (Bounds(), HERE, None),
        (Bounds(), HERE.resized(512), None),
        (Bounds(), HERE.resized(2048), "L2 may not grow beyond 1024 MB"),
        (Bounds(max_l2_size_mb=2048), HERE.resized(2048), None),
        (Bounds(max_l2_size_mb=2048), HERE.resized(2049), "L2 may not grow beyond 2048 MB"),
        (Bounds(max_l2_size_mb=2048), L2Adapter(type="fs_native", settings={"base_path": "/kv"}), "L2 may not grow"),
        (Bounds(), L2Adapter(type="fs", settings={"base_path": "/etc"}), "fs may not be added: the operator's bounds name none"),
        (Bounds(l2_adapter=HERE), HERE.model_copy(update={"settings": {"base_path": "/etc"}}), "with its own settings"),
        (Bounds(l2_adapter=L2Adapter(type="mock")), L2Adapter(type="mock"), None),
    ],
)
def test_only_the_l2_there_is_or_the_operators_own_may_be_set(bounds: Bounds, adapter: L2Adapter, said: str | None) -> None:
    told = bounds.violation(ConfigUpdate(l2_adapters=(adapter,)), WITH_L2)
    assert (told is None) == (said is None)
    assert (said or "") in (told or "")


TWICE = CacheConfig(max_size_mb=16, l2_adapters=(HERE, HERE))
OWN = L2Adapter(type="fs", settings={"base_path": "/own", "max_capacity_gb": 1})


@pytest.mark.parametrize(
    ("bounds", "current", "adapters", "said"),
    [
        (Bounds(), WITH_L2, (HERE,) * 4, "the same L2 adapter fs_native may not be set more often than it is there"),
        (Bounds(max_l2_size_mb=9999), WITH_L2, (HERE, HERE), "more often than it is there"),
        (Bounds(), TWICE, (HERE, HERE), None),
        (Bounds(), TWICE, (HERE,), None),
        (Bounds(), TWICE, (HERE.resized(512), HERE), None),
        (Bounds(), TWICE, (HERE.resized(1536), HERE.resized(512)), "L2 may not grow beyond 2048 MB in all"),
        (Bounds(max_l2_size_mb=2048), TWICE, (HERE.resized(1536), HERE.resized(512)), None),
        (Bounds(max_l2_size_mb=2048), TWICE, (HERE.resized(1536), HERE), "L2 may not grow beyond 2048 MB in all"),
        (Bounds(l2_adapter=OWN), WITH_L2, (HERE, OWN), None),
        (Bounds(l2_adapter=OWN), WITH_L2, (HERE, OWN, OWN), "more often than it is there"),
        (Bounds(l2_adapter=HERE), WITH_L2, (HERE, HERE), "more often than it is there"),
    ],
)
def test_each_l2_counts_once_and_what_they_add_up_to_is_bounded(
    bounds: Bounds, current: CacheConfig, adapters: tuple[L2Adapter, ...], said: str | None
) -> None:
    told = bounds.violation(ConfigUpdate(l2_adapters=adapters), current)
    assert (told is None) == (said is None), told
    assert (said or "") in (told or "")


SHOWN = {"url": "redis://***@good:6379/0", "password": "***", "connection_string": "***", "hosts": [{"token_url": "***"}]}


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({}, True),
        ({"url": "redis://user:pass@good:6379/0", "password": "pass"}, True),
        ({"url": "redis://user:pass@elsewhere:6379/0"}, False),
        ({"url": "redis://elsewhere:6379/x@good:6379/0"}, False),
        ({"url": "redis://elsewhere:6379#@good:6379/0"}, False),
        ({"url": "redis://elsewhere:6379\\@good:6379/0"}, False),
        ({"url": "redis://user:p@elsewhere:6379,@good:6379/0"}, False),
        ({"url": "redis://user:pass@good:6379/1"}, False),
        ({"connection_string": "AccountName=elsewhere;AccountKey=key"}, False),
        ({"hosts": [{"token_url": "http://elsewhere"}]}, False),
        ({"password": {"host": "elsewhere"}}, False),
        ({"host": "elsewhere"}, False),
    ],
    ids=str,
)
def test_another_host_does_not_pass_for_the_l2_there_is(given: dict[str, object], same: bool) -> None:
    here = L2Adapter(type="resp", settings=SHOWN)
    adapter = L2Adapter(type="resp", settings=SHOWN | given)
    assert here.same_store(adapter) is same
    told = Bounds().violation(ConfigUpdate(l2_adapters=(adapter,)), CacheConfig(l2_adapters=(here,)))
    assert (told is None) is same


def test_an_l2_whose_secrets_are_known_is_the_one_that_is_shown() -> None:
    known = L2Adapter(type="resp", settings={"url": "redis://user:pass@good", "connection_string": "AccountName=good"})
    assert known.same_store(known.masked)
    assert not known.masked.same_store(known), "a hidden connection string may lead anywhere"


def test_a_capacity_stands_under_the_name_that_its_adapter_gives_it() -> None:
    assert L2Adapter(type="mock", settings={"max_size_gb": 2}).size_mb == 2048
    assert L2Adapter(type="dax").resized(512).settings == {"max_dax_size_gb": 0.5}
    assert L2Adapter(type="fs", settings={"base_path": "/kv"}).size_mb is None
