"""Claims about what-if questions: one observed cache, other settings, the same requests."""

from dataclasses import replace

import numpy as np
import pytest
from observed import CHUNK_BYTES, CONFIG, as_served, observation

from agent_tools.errors import WorkloadError
from agent_tools.models import MB, ConfigUpdate, EvictionPolicy, L2Adapter, Window
from agent_tools.models.engine import EngineSpeed
from agent_tools.models.metrics import utc
from agent_tools.prediction.chunk_size import with_larger_chunks
from agent_tools.prediction.eviction_clock import StoreDelay
from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.prediction.server_model import simulate_server
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.recommender.modelled import forecast_of, hits_since_change, predicted_hits
from agent_tools.recommender.observation import Observation
from agent_tools.workload.generate import AgentTraffic

AGENTS = AgentTraffic(requests=500, seed=5, tenants=1).generate()
SEEN = as_served(AGENTS)
DISK = L2Adapter(type="mock", settings={"max_size_gb": 24 / 1024})


def test_without_a_change_the_present_settings_are_forecast_at_every_size() -> None:
    found = forecast_of(SEEN)
    assert 16 in [round(row.size_mb or 0, 6) for row in found.rows]
    assert (found.watermark, found.ratio, found.policy, found.second_tier) == (0.8, 0.2, "LRU", None)


def test_other_settings_are_what_the_model_says_of_them() -> None:
    instead = ConfigUpdate(eviction_watermark=0.6, eviction_ratio=0.1, max_size_mb=24)
    found = forecast_of(SEEN, instead)
    (row,) = [row for row in found.rows if row.size_mb == pytest.approx(24)]
    assert SEEN.log is not None
    assert row.server == predict_server(SEEN.log, ServerSetting(24 * MB / CHUNK_BYTES, 0.6, 0.1)).hit_rate
    assert forecast_of(SEEN, ConfigUpdate(eviction_policy=EvictionPolicy.NOOP)).policy == "noop"


def test_where_an_engine_showed_its_speed_its_stores_are_as_late_as_it_computes() -> None:
    speed = EngineSpeed(per_request=0.1, per_computed_token=1e-3, per_loaded_token=1e-4, requests=20, intervals=9)
    seen, setting = replace(SEEN, engine_speed=speed, predicted={}), ServerSetting(16 * MB / CHUNK_BYTES)
    late = predict_server(AGENTS, setting, clocks=SEEN.clocks, delay=StoreDelay(0.1, 0.256))
    expected = np.array([run.l1_hit_chunks[seen.in_window] for run in late.runs])
    assert (predicted_hits(seen, setting).l1 == expected).all()
    assert (predicted_hits(SEEN, setting).l1 != expected).any()
    (row,) = forecast_of(seen, sizes_mb=[16]).rows
    assert row.server == predict_server(AGENTS, setting, delay=StoreDelay(0.1, 0.256)).hit_rate


def since(request: int) -> Observation:
    """The same traffic, seen from one of its requests on."""
    log = observation(AGENTS).log
    assert log is not None
    times = log.timestamps
    window = Window(start=utc(float(times[request])), end=utc(float(times[-1]) + 1))
    return observation(AGENTS, window=window)


@pytest.mark.parametrize("setting", [ServerSetting(300), ServerSetting(300, l2_capacity_chunks=500, l2_prefetch_policy="retain")])
@pytest.mark.parametrize("first", [0, 250])
def test_a_change_to_the_same_setting_changes_no_prediction(setting: ServerSetting, first: int) -> None:
    seen = since(first)
    changed, always = hits_since_change(seen, setting, setting), predicted_hits(seen, setting)
    assert (changed.l1 == always.l1).all()
    assert (changed.l2 == always.l2).all()
    assert (changed.asked == always.asked).all()


def test_what_was_there_at_a_change_is_what_the_old_setting_had_left() -> None:
    seen, small, large = since(250), ServerSetting(200), ServerSetting(500)
    changed = hits_since_change(seen, small, large)
    assert predicted_hits(seen, small).rate < changed.rate < 1
    assert changed.rate != predicted_hits(seen, large).rate
    assert (changed.l1[:, 0] == predicted_hits(seen, small).l1[:, 0]).all(), "the first request finds what was there"


def test_nothing_is_predicted_of_no_requests_and_all_is_old_before_a_change_that_comes_after_all_requests() -> None:
    seen, small, large = since(250), ServerSetting(200), ServerSetting(500)
    assert seen.log is not None
    late = hits_since_change(seen, small, large, float(seen.log.timestamps[-1]) + 5)
    assert (late.l1 == predicted_hits(seen, small).l1).all()
    empty = replace(seen, log=seen.log.select(slice(0, 0)), predicted={})
    assert hits_since_change(empty, small, large).rate == 0


def test_an_l2_that_was_replaced_is_empty_at_first() -> None:
    seen, old = since(250), ServerSetting(60, l2_capacity_chunks=5000)
    grown = hits_since_change(seen, old, replace(old, l2_capacity_chunks=6000))
    assert 0 < grown.l2.sum() < hits_since_change(seen, old, old).l2.sum()


def test_asked_sizes_are_the_only_rows() -> None:
    assert [row.size_mb for row in forecast_of(SEEN, sizes_mb=[8, 32]).rows] == pytest.approx([8, 32])


def test_an_l2_that_is_not_there_yet_is_forecast() -> None:
    found = forecast_of(SEEN, ConfigUpdate(l2_adapters=(DISK,), l2_prefetch_policy="retain"), [16])
    assert found.second_tier == f"an L2 of {24 * MB // CHUNK_BYTES} chunks, prefetch policy retain"
    (row,) = found.rows
    setting = ServerSetting(
        16 * MB / CHUNK_BYTES, l2_capacity_chunks=24 * MB / CHUNK_BYTES, l2_prefetch_policy="retain", l2_evicts=False,
        l2_hard_limit=True,
    )  # fmt: skip
    runs = predict_server(AGENTS, setting).runs
    assert row.from_l2 == pytest.approx(np.mean([run.l2_hit_rate for run in runs]), abs=0.01)
    assert row.from_l2 > 0.05
    assert row.lru <= row.server <= row.clairvoyant


def test_larger_chunks_are_forecast_from_the_same_log() -> None:
    found = forecast_of(SEEN, ConfigUpdate(chunk_size=1024))
    assert (found.chunk_size, found.chunk_mb) == (1024, 4 * CHUNK_BYTES / MB)
    assert found.ceiling == hit_rate_curve(with_larger_chunks(AGENTS, 4)).ceiling()


@pytest.mark.parametrize("tokens", [64, 300])
def test_chunks_that_are_no_multiple_cannot_be_forecast(tokens: int) -> None:
    with pytest.raises(WorkloadError, match=f"cannot predict chunks of {tokens} tokens from a log with chunks of 256 tokens"):
        forecast_of(SEEN, ConfigUpdate(chunk_size=tokens))


def test_what_the_model_does_not_cover_is_said_so() -> None:
    with pytest.raises(WorkloadError, match="the model does not cover these values of l2_adapters on test"):
        forecast_of(SEEN, ConfigUpdate(l2_adapters=(L2Adapter(type="nixl_store"),)))


def test_models_that_share_a_server_are_forecast_together_and_never_share_a_chunk() -> None:
    half = len(AGENTS) // 2
    twice = replace(
        AGENTS.select(np.tile(np.arange(half), 2)),
        timestamps=np.arange(2 * half, dtype=np.float64),
        models=np.repeat(np.array([0, 1], np.int16), half),
        model_names=("llama", "qwen"),
    )
    found = forecast_of(observation(twice, config=CONFIG))
    one = hit_rate_curve(AGENTS.select(np.arange(half)))
    assert found.footprint_chunks == 2 * one.footprint
    assert found.ceiling == one.ceiling()
    assert any("the models share L1" in note for note in found.notes)


def test_tenants_with_quotas_are_modelled_each_with_its_own() -> None:
    by_tenant = DISK.model_copy(update={"settings": {**DISK.settings, "eviction": {"eviction_policy": "IsolatedLRU"}}})
    config = CONFIG.model_copy(update={"l2_adapters": (by_tenant,), "tenant_quotas_mb": {"_default": 8.0}})
    two = AgentTraffic(requests=300, seed=5, tenants=1).generate()
    found = forecast_of(observation(two, config=config), sizes_mb=[4])
    chunks = MB / CHUNK_BYTES
    quota = ServerSetting(4 * chunks, l2_capacity_chunks=24 * chunks, l2_hard_limit=True, tenant_quotas={"": 8 * chunks})
    assert found.rows[0].server == pytest.approx(simulate_server(two, quota).hit_rate, abs=0.02)
    assert found.rows[0].from_l2 > 0
