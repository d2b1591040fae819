"""Claims about advice for caches with an L2, or that may get one, and about what hits and memory are worth."""

from dataclasses import replace

import pytest
from observed import CHUNK_BYTES, CONFIG, as_served
from real_logs import conversations, log_of

from agent_tools.models import MB, Bounds, CacheConfig, L2Adapter, SymptomCode, Verdict
from agent_tools.models.cost import Economics, Prefill, Prices
from agent_tools.prediction.server_model import simulate_server
from agent_tools.prediction.server_prediction import predict_settings
from agent_tools.recommender.modelled import predicted_gain, server_setting
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.proposals import PROPOSAL_CLOCKS, RATIOS, WATERMARKS, propose
from agent_tools.recommender.recommend import WORTH_ACTING, recommend
from agent_tools.workload.generate import AgentTraffic

AGENTS = AgentTraffic(requests=900, seed=11, tenants=1).generate()
"""Multi-turn agents whose chunks take some 45 MB."""
EVICTION = {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2}
DISK = L2Adapter(type="fs_native", settings={"base_path": "/kv", "max_capacity_gb": 20 / 1024, "eviction": EVICTION})
FIXED = Bounds(max_size_mb=16, allow_restart=True, min_watermark=0.8, max_watermark=0.8, min_ratio=0.2, max_ratio=0.2)
"""Of what the recommender may change, only L2 is left."""
ENGINE = Prefill(tokens_per_second=10_000)


def with_l2(adapter: L2Adapter, prefetch: str = "default") -> CacheConfig:
    return CONFIG.model_copy(update={"l2_adapters": (adapter,), "l2_prefetch_policy": prefetch})


def best_update(seen: Observation) -> dict[str, object]:
    best = recommend(seen).best
    assert best is not None
    assert best.update is not None
    return best.update.known()


def test_an_l2_that_evicts_what_is_needed_again_is_made_larger_within_the_bound() -> None:
    seen = as_served(AGENTS, config=with_l2(DISK), bounds=FIXED.model_copy(update={"max_l2_size_mb": 64}))
    advice = recommend(seen)
    assert advice.best is not None
    assert advice.best.category is SymptomCode.L2_TOO_SMALL
    assert advice.best.update is not None
    (larger,) = advice.best.update.l2_adapters or ()
    assert larger.same_store(DISK)
    assert 20 < (larger.size_mb or 0) <= 64
    assert "MB more L2" in advice.best.cost
    wanted = server_setting(seen, advice.best.update.known())
    assert wanted is not None
    assert advice.best.gain is not None
    served = simulate_server(AGENTS, wanted)
    assert (advice.token_hit_rate or 0) + advice.best.gain.estimate == pytest.approx(served.hit_rate, abs=0.02)


def test_without_a_bound_an_l2_is_never_made_larger() -> None:
    advice = recommend(as_served(AGENTS, config=with_l2(DISK), bounds=FIXED))
    assert advice.verdict is Verdict.DO_NOTHING
    assert not any(one.within_bounds and one.update and one.update.l2_adapters for one in advice.recommendations)


def test_an_l2_the_operator_offers_is_added_and_no_other() -> None:
    offered = DISK.resized(64)
    assert best_update(as_served(AGENTS, bounds=FIXED.model_copy(update={"l2_adapter": offered})))["l2_adapters"] == [
        offered.model_dump(mode="json")
    ]
    assert recommend(as_served(AGENTS, bounds=FIXED)).verdict is Verdict.DO_NOTHING


def test_a_capacity_without_eviction_and_one_without_end_are_modelled_as_what_they_are() -> None:
    endless = server_setting(as_served(AGENTS, config=with_l2(L2Adapter(type="fs", settings={"base_path": "/kv"}))))
    full = server_setting(as_served(AGENTS, config=with_l2(L2Adapter(type="mock", settings={"max_size_gb": 20 / 1024}))))
    assert endless is not None
    assert (endless.l2_capacity_chunks, endless.l2_evicts) == (float("inf"), False)
    assert full is not None
    assert (full.l2_capacity_chunks, full.l2_evicts, full.l2_hard_limit) == (20 * MB / CHUNK_BYTES, False, True)


@pytest.mark.parametrize(
    "unknown",
    [
        {"l2_adapters": (L2Adapter(type="nixl_store"),)},
        {"l2_adapters": (DISK, DISK)},
        {"l2_adapters": (DISK.model_copy(update={"settings": {**DISK.settings, "serde": {"type": "fp8"}}}),)},
        {"l2_adapters": (DISK,), "l2_store_policy": "skip_l1"},
    ],
)
def test_an_l2_that_the_model_does_not_cover_is_told_no_gain(unknown: dict[str, object]) -> None:
    seen = as_served(AGENTS, config=with_l2(DISK))
    advice = recommend(replace(seen, config=seen.config.model_copy(update=unknown), predicted={}))
    assert advice.verdict is Verdict.DO_NOTHING
    assert all(one.gain is None for one in advice.recommendations)


def test_reading_from_l2_again_and_again_matters_as_much_as_l2_is_slow() -> None:
    roomy = with_l2(L2Adapter(type="fs", settings={"base_path": "/kv"})).model_copy(update={"max_size_mb": 20})
    bounds = FIXED.model_copy(update={"max_size_mb": 20})
    alike = recommend(as_served(AGENTS, config=roomy, bounds=bounds))
    assert alike.verdict is Verdict.DO_NOTHING
    slow = Economics(prefill=ENGINE, l2_load_gb_per_second=0.0015)  # computing: 10,000 tokens of 128 bytes a second
    seen = as_served(AGENTS, config=roomy, bounds=bounds, economics=slow)
    assert 0 < seen.l2_weight < 0.3
    assert best_update(seen) == {"l2_prefetch_policy": "retain"}
    best = recommend(seen).best
    assert best is not None
    assert best.benefit is not None
    assert best.gain is not None
    assert best.benefit.lower >= WORTH_ACTING > best.gain.lower


def test_an_l2_slower_than_computing_counts_against_its_hits() -> None:
    slower = Economics(prefill=ENGINE, l2_load_gb_per_second=0.0001)
    seen = as_served(AGENTS, bounds=FIXED.model_copy(update={"l2_adapter": DISK}), economics=slower)
    assert seen.l2_weight < 0
    assert recommend(seen).verdict is Verdict.DO_NOTHING


def test_no_watermark_is_proposed_that_only_keeps_a_slow_l2_from_being_read() -> None:
    """40 prompts in turn, for an L1 with room for 25: with little free, loads fail, which is quicker than a slow L2."""
    in_turn = log_of(*conversations(40, 20) * 8)
    slow = Economics(prefill=Prefill(tokens_per_second=90_000), l2_load_gb_per_second=0.002)
    roomy = with_l2(L2Adapter(type="mock", settings={"max_size_gb": 0.5, "eviction": EVICTION}), "retain")
    seen = as_served(in_turn, config=roomy, bounds=Bounds(), economics=slow)
    assert seen.l2_weight < 0
    advice = recommend(seen)
    assert SymptomCode.L2_SLOW in {symptom.code for symptom in advice.symptoms}
    assert not any(one.update and one.update.eviction_watermark for one in advice.recommendations)


@pytest.mark.parametrize(("memory_gb", "verdict"), [(1.0, Verdict.ACT), (1e6, Verdict.DO_NOTHING)])
def test_memory_is_added_only_if_it_pays_for_itself(memory_gb: float, verdict: Verdict) -> None:
    prices = Prices(memory_gb=memory_gb, gpu_hour=2, horizon_hours=1000)
    sizes_only = FIXED.model_copy(update={"max_size_mb": 64})
    advice = recommend(as_served(AGENTS, bounds=sizes_only, economics=Economics(prefill=ENGINE, prices=prices)))
    assert advice.verdict is verdict
    assert ("by enough to pay for its memory" in advice.why) == (verdict is Verdict.DO_NOTHING)
    for one in advice.recommendations:
        assert one.saving is not None
        assert one.saving.net_benefit is not None
        assert "ms of time to first token per request" in one.expected_impact
    if advice.best is not None:
        assert advice.best.saving is not None
        assert advice.best.saving.net_benefit is not None
        assert advice.best.saving.net_benefit.lower > 0
        assert "pays it back in" in advice.best.cost


def test_the_dearer_the_memory_the_smaller_the_size() -> None:
    sizes_only = FIXED.model_copy(update={"max_size_mb": 64})

    def size(memory_gb: float) -> object:
        prices = Prices(memory_gb=memory_gb, gpu_hour=2, horizon_hours=1000)
        seen = as_served(AGENTS, bounds=sizes_only, economics=Economics(prefill=ENGINE, prices=prices))
        return best_update(seen)["max_size_mb"]

    assert size(1.0) > size(400.0)  # type: ignore[operator]


@pytest.mark.parametrize("most_mb", [18, 24])
@pytest.mark.parametrize("l2_mb", [None, 8, 20])
def test_size_watermark_and_ratio_are_found_together_also_where_the_best_l2_is_not_allowed(
    l2_mb: float | None, most_mb: float
) -> None:
    config = CONFIG if l2_mb is None else with_l2(DISK.resized(l2_mb))
    seen = as_served(AGENTS, config=config, bounds=Bounds(max_size_mb=most_mb, allow_restart=True))
    here = server_setting(seen)
    assert here is not None
    capacities = {here.capacity_chunks, most_mb * MB / CHUNK_BYTES}
    shapes = [(watermark, ratio) for watermark in WATERMARKS for ratio in RATIOS]
    every = [replace(here, capacity_chunks=c, watermark=w, ratio=r) for c in capacities for w, r in shapes]
    best = max(predicted_gain(seen, here, setting).estimate for setting in every)
    allowed = [one.gain.estimate for one in propose(seen) if one.violation is None]
    assert max(allowed) > best - 0.015  # each of three steps may give up 0.4 points for a cheaper setting


@pytest.mark.parametrize("most_mb", [16, 24, 28, 36])
def test_of_watermarks_and_ratios_that_cost_the_same_the_best_is_proposed(most_mb: float) -> None:
    seen = as_served(AGENTS, config=CONFIG, bounds=Bounds(max_size_mb=most_mb, allow_restart=True))
    here = server_setting(seen)
    assert here is not None
    shaped = [one.update for one in propose(seen) if one.update.eviction_watermark is not None]
    assert shaped
    for update in shaped:
        chosen = server_setting(seen, update.known())
        assert chosen is not None
        every = [replace(chosen, watermark=watermark, ratio=ratio) for watermark in WATERMARKS for ratio in RATIOS]
        found = {one.setting: one.hit_rate for one in predict_settings(AGENTS, every, clocks=PROPOSAL_CLOCKS)}
        assert found[chosen] == max(found.values())
