"""Claims about quotas: worth setting when a tenant scans, rarely otherwise, never wasted, never below a tenant's floor."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observed import CHUNK_BYTES, CHUNK_SIZE, CONFIG, LIVE, observation

from agent_tools.errors import LMCacheToolError, OutOfBoundsError, UnsupportedError, WorkloadError
from agent_tools.models import MB, CacheConfig, ConfigUpdate, L2Adapter, Support, SupportLevel, TokenCounts, Verdict
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.recommender.modelled import server_setting
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.quota_advice import TenantQuotas
from agent_tools.recommender.tenant_quotas import tenant_quotas
from agent_tools.workload.access_log import AccessLog, in_time_order, renumber
from agent_tools.workload.generate import AgentTraffic

NOT_ENFORCED = LIVE | {"tenant_quotas_mb": Support(level=SupportLevel.UNSUPPORTED, reason="no IsolatedLRU")}
ENFORCED = LIVE | {"tenant_quotas_mb": Support(level=SupportLevel.LIVE, reason="IsolatedLRU")}


def together(**tenants: AccessLog) -> AccessLog:
    """Logs of one tenant each as the log of one cache."""
    logs = list(tenants.values())
    counts = np.concatenate([log.chunks_per_request for log in logs])
    own = np.repeat(np.arange(len(logs)), [len(log.chunk_ids) for log in logs])
    return in_time_order(
        AccessLog(
            chunk_size=CHUNK_SIZE,
            chunk_ids=renumber(np.concatenate([log.chunk_ids for log in logs]) + own * 10**8)[0],
            offsets=np.concatenate(([0], np.cumsum(counts))),
            tokens=np.concatenate([log.tokens for log in logs]),
            timestamps=np.concatenate([log.timestamps for log in logs]),
            tenants=np.repeat(np.arange(len(logs)), [len(log) for log in logs]).astype(np.int16),
            models=np.zeros(len(counts), np.int16),
            tenant_names=tuple(tenants),
        )
    )


def agents(requests: int, seed: int, **more: int) -> AccessLog:
    return AgentTraffic(requests=requests, seed=seed, tenants=1, **more).generate()


def scan(requests: int, chunks: int, every: float) -> AccessLog:
    """Prompts that are all new."""
    return AccessLog(
        chunk_size=CHUNK_SIZE,
        chunk_ids=np.arange(requests * chunks, dtype=np.int32),
        offsets=np.arange(requests + 1) * chunks,
        tokens=np.full(requests, chunks * CHUNK_SIZE),
        timestamps=np.arange(requests) * every,
        tenants=np.zeros(requests, np.int16),
        models=np.zeros(requests, np.int16),
    )


NEIGHBOURS = together(one=agents(1500, 1, conversations=60), two=agents(800, 2, conversations=20), scan=scan(3000, 16, 0.4))
"""Two tenants whose agents reuse 210 MB, beside one that reads 1.5 GB once, all within 20 minutes."""
ALIKE = AgentTraffic(requests=3000, seed=5, tenants=3, conversations=40, context_tokens=12_000).generate()
"""Three tenants of the same kind, 214 MB in all."""


def with_l2(size_mb: float, quotas: dict[str, float] | None = None, *, l1_mb: float = 24) -> CacheConfig:
    policy = "LRU" if quotas is None else "IsolatedLRU"
    eviction = {"eviction_policy": policy, "trigger_watermark": 0.8, "eviction_ratio": 0.2}
    adapter = L2Adapter(type="fs_native", settings={"max_capacity_gb": size_mb / 1024, "eviction": eviction})
    return CONFIG.model_copy(update={"max_size_mb": l1_mb, "l2_adapters": (adapter,), "tenant_quotas_mb": quotas})


def seen(log: AccessLog, config: CacheConfig, **figures: object) -> Observation:
    isolated = any(adapter.by_tenant for adapter in config.l2_adapters or ())
    options = {"support": ENFORCED if isolated else NOT_ENFORCED} | figures
    return observation(log, config=config, **options)  # type: ignore[arg-type]


def quota_of(advice: TenantQuotas, tenant: str) -> float:
    return next(one.quota_mb for one in advice.tenants if one.tenant == tenant)


def test_quotas_are_worth_setting_when_a_neighbour_scans() -> None:
    advice = tenant_quotas(seen(NEIGHBOURS, with_l2(80)))
    assert advice.verdict is Verdict.ACT
    assert advice.gain.lower >= 0.01
    assert advice.hit_tokens_quotas > max(advice.hit_tokens_shared, advice.hit_tokens_equal)
    assert quota_of(advice, "scan") == pytest.approx(advice.floor_mb)
    assert sum(advice.quotas_mb.values()) == pytest.approx(80)
    assert any("IsolatedLRU" in note for note in advice.notes)  # nothing enforces them yet


def test_tenants_alike_are_best_left_in_one_shared_cache() -> None:
    for size in (20, 40, 80):
        advice = tenant_quotas(seen(ALIKE, with_l2(size)))
        assert advice.verdict is Verdict.DO_NOTHING
        assert advice.gain.lower < 0.01
        assert "too little to be worth a change" in advice.why


def test_quotas_in_force_that_suit_nobody_are_changed() -> None:
    advice = tenant_quotas(seen(NEIGHBOURS, with_l2(80, {"one": 5, "two": 5, "scan": 70})))
    assert (advice.budget_mb, advice.verdict) == (80, Verdict.ACT)
    assert "against the quotas in force" in advice.why
    assert advice.notes == () or not any("IsolatedLRU" in note for note in advice.notes)
    again = tenant_quotas(seen(NEIGHBOURS, with_l2(80, advice.quotas_mb)))
    assert again.verdict is Verdict.DO_NOTHING
    assert again.gain.estimate == pytest.approx(0, abs=0.001)
    assert {one.tenant: one.quota_now_mb for one in again.tenants} == pytest.approx(advice.quotas_mb)


@pytest.mark.parametrize("log", [NEIGHBOURS, ALIKE], ids=["scan", "alike"])
@pytest.mark.parametrize("size", [80, 120, 160])
def test_predicted_hits_are_what_the_server_model_with_isolated_lru_gives(log: AccessLog, size: float) -> None:
    """Within the stated 1.5 points of token hit rate, of all and of each tenant's own."""
    advice = tenant_quotas(seen(log, with_l2(size)))
    setting = server_setting(seen(log, with_l2(size, advice.quotas_mb)))
    assert setting is not None
    assert setting.tenant_quotas is not None
    hits = predict_server(log, setting).hit_chunks * CHUNK_SIZE
    assert advice.hit_tokens_quotas / advice.requested_tokens == pytest.approx(hits.sum() / advice.requested_tokens, abs=0.015)
    for one in advice.tenants:
        served = hits[log.tenants == log.tenant_names.index(one.tenant)].sum()
        assert one.hit_tokens_quota / one.requested_tokens == pytest.approx(served / one.requested_tokens, abs=0.03)


def test_where_l1_is_in_the_way_the_model_of_the_server_has_the_last_word() -> None:
    advice = tenant_quotas(seen(NEIGHBOURS, with_l2(80, l1_mb=8)))
    assert "our model of LMCache" in advice.gain.method
    assert any("the curves" in note for note in advice.notes)


def test_the_gain_is_by_curves_where_the_model_does_not_cover_the_cache() -> None:
    several = with_l2(80).model_copy(update={"l2_adapters": (with_l2(40).l2_adapters or ()) * 2})
    advice = tenant_quotas(seen(NEIGHBOURS, several))
    assert (advice.budget_mb, advice.gain) == (80, advice.gain_over_shared)
    assert "curves" in advice.gain.method


def test_the_coordinator_exempts_a_tenant_without_a_quota_where_a_server_wipes_it() -> None:
    config = with_l2(80).model_copy(update={"tenant_quotas_mb": {"one": 20.0, "two": 20.0}})
    fleet = tenant_quotas(seen(NEIGHBOURS, config, support=ENFORCED), budget_mb=80)
    wiped = tenant_quotas(seen(NEIGHBOURS, with_l2(80, {"one": 20.0, "two": 20.0})), budget_mb=80)
    for advice in (fleet, wiped):
        assert {one.tenant: one.quota_now_mb for one in advice.tenants} == {"one": 20, "two": 20, "scan": None}
    by_loop = together(one=agents(300, 1), loop=agents(300, 2))
    only_one = {"one": 5.0}
    exempt = tenant_quotas(
        seen(by_loop, config.model_copy(update={"tenant_quotas_mb": only_one}), support=ENFORCED), budget_mb=10
    )
    strict = tenant_quotas(seen(by_loop, with_l2(80, only_one)), budget_mb=10)
    now = [next(one for one in advice.tenants if one.tenant == "loop") for advice in (exempt, strict)]
    assert [one.hit_tokens_now for one in now] == [now[0].hit_tokens_most, 0]


@settings(max_examples=25, deadline=None)
@given(
    budget=st.floats(1, 3000),
    share=st.floats(0, 1),
    tenants=st.lists(st.sampled_from(["idle", "", "another"]), unique=True, max_size=3),
)
def test_a_budget_is_never_exceeded_and_wasted_only_when_all_that_reuse_have_all(
    budget: float, share: float, tenants: list[str]
) -> None:
    log = NEIGHBOURS.select(slice(0, 800))
    count = len(log.tenant_names) + len(tenants)
    floor = share * budget / count
    figures = {tenant: TokenCounts(requested=1) for tenant in tenants}
    advice = tenant_quotas(seen(log, with_l2(80), by_tenant=figures), budget_mb=budget, floor_mb=floor)
    given_out = sum(one.quota_mb for one in advice.tenants)
    assert len(advice.tenants) == count
    assert given_out <= budget * (1 + 1e-9)
    assert given_out + advice.spare_mb == pytest.approx(budget, abs=1e-5)
    for one in advice.tenants:
        assert one.quota_mb >= floor * (1 - 1e-9)
        assert one.hit_tokens_quota <= one.hit_tokens_most
        if not one.hit_tokens_most:
            assert one.quota_mb == pytest.approx(floor)
        if advice.spare_mb > 0 and one.hit_tokens_most:
            assert one.hit_tokens_quota == one.hit_tokens_most
            assert 0.8 * one.quota_mb >= one.footprint_mb * (1 - 1e-9)
        assert one.quota_mb <= max(floor, (one.footprint_mb + 2 * CHUNK_BYTES / MB) / 0.8) * (1 + 1e-9)


def test_tenants_without_requests_get_their_floor() -> None:
    config = with_l2(80, {"one": 20.0, "two": 20.0, "gone": 40.0, "_default": 10.0})
    advice = tenant_quotas(seen(NEIGHBOURS, config))
    assert advice.budget_mb == 90
    assert {one.tenant for one in advice.tenants} == {"one", "two", "scan", "gone", ""}
    assert set(advice.quotas_mb) == {"one", "two", "scan", "gone", "_default"}
    assert quota_of(advice, "gone") == quota_of(advice, "") == pytest.approx(advice.floor_mb)
    ConfigUpdate(tenant_quotas_mb=advice.quotas_mb)


def test_one_tenant_has_nothing_to_divide() -> None:
    advice = tenant_quotas(seen(agents(400, 3), with_l2(20)))
    assert advice.verdict is Verdict.DO_NOTHING
    assert "only one tenant" in advice.why
    assert advice.gain_over_shared.estimate == 0


def test_hits_of_now_are_lmcaches_own_count_where_there_is_one() -> None:
    counts = {"one": TokenCounts(requested=9000, hit_l1=512, hit_l2=256), "two": TokenCounts(requested=100)}
    measured = tenant_quotas(seen(NEIGHBOURS, with_l2(80), by_tenant=counts))
    assert measured.measured
    assert {one.tenant: one.hit_tokens_now for one in measured.tenants} == {"one": 768, "two": 0, "scan": 0}
    modelled = tenant_quotas(seen(NEIGHBOURS, with_l2(80)))
    assert not modelled.measured
    assert sum(one.hit_tokens_now for one in modelled.tenants) == modelled.hit_tokens_shared


def test_tokens_of_a_sampled_log_are_those_of_the_whole() -> None:
    """Where half of the chunks were recorded, each stands for two."""
    whole = tenant_quotas(seen(ALIKE, with_l2(60)))
    sampled = replace(ALIKE, sampling_rate=0.5, remarks=("sampled",))
    half = tenant_quotas(seen(sampled, with_l2(120)))
    assert half.requested_tokens == 2 * whole.requested_tokens
    assert half.hit_tokens_quotas == 2 * whole.hit_tokens_quotas
    assert [one.quota_mb for one in half.tenants] == pytest.approx([2 * one.quota_mb for one in whole.tenants])
    assert half.notes[-1] == "sampled"


def test_requests_before_the_window_only_warm_the_cache() -> None:
    log = ALIKE
    whole = seen(log, with_l2(60))
    window = whole.metrics.window
    start = window.start + (window.end - window.start) * (float(log.duration) / 2 / window.seconds)
    later = tenant_quotas(seen(log, with_l2(60), window=window.model_copy(update={"start": start})))
    assert 0 < later.requested_tokens < tenant_quotas(whole).requested_tokens
    assert sum(one.requests for one in later.tenants) == int((log.timestamps - log.timestamps[0] + 1 >= log.duration / 2).sum())


def _refused(wanted: type[LMCacheToolError], observed: Observation, words: str, **asked: float) -> None:
    with pytest.raises(wanted, match=words):
        tenant_quotas(observed, **asked)  # type: ignore[arg-type]


def test_what_makes_no_sense_is_refused_with_a_reason() -> None:
    fine = seen(NEIGHBOURS, with_l2(80))
    _refused(OutOfBoundsError, fine, r"80 MB do not cover 30 MB for each of the 3 tenants of test.*from 0 to 26\.6", floor_mb=30)
    for budget in (0, -1, float("nan"), float("inf")):
        _refused(OutOfBoundsError, fine, "cannot divide", budget_mb=budget)
    _refused(OutOfBoundsError, fine, "floor_mb from 0", floor_mb=float("nan"))
    _refused(UnsupportedError, seen(NEIGHBOURS, CONFIG), "give budget_mb")
    _refused(WorkloadError, observation(None, config=with_l2(80)), "no request in the window")
    _refused(WorkloadError, seen(NEIGHBOURS, with_l2(80), kv_bytes_per_token=None), "the size of a chunk is unknown")
    counts = {"a": TokenCounts(requested=1), "b": TokenCounts(requested=1)}
    _refused(UnsupportedError, seen(agents(50, 1), with_l2(80), by_tenant=counts), "does not name its 2 tenants")


def test_prompts_shorter_than_a_chunk_give_no_data() -> None:
    short = replace(
        scan(10, 0, 1.0), tokens=np.full(10, 9), tenants=(np.arange(10) % 2).astype(np.int16), tenant_names=("a", "b")
    )
    advice = tenant_quotas(seen(short, with_l2(80)))
    assert advice.verdict is Verdict.NO_DATA
    assert advice.requested_tokens == 0
