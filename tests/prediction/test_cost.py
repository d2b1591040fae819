"""From hit rate to seconds and money: by hand, against published anchors, and with every assumption named."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from random_logs import log_of

from agent_tools.models import CacheMetrics, CacheStatus, Gain, TokenCounts, Window
from agent_tools.models import cost as models_cost
from agent_tools.models.cost import Economics, KvSize, Prefill, Prices, Range, Saving, Traffic
from agent_tools.prediction import cost
from agent_tools.prediction.cost import ComputeBound, break_even_bandwidth, kv_size, payback_hours, saving, traffic_of

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
LLAMA3_70B_KV = KvSize(bytes_per_token=327_680, source="80 layers x 8 KV heads x 128 x 2 (K and V) x 2 bytes, as published")
GAIN = Gain(lower=0.1, estimate=0.2, upper=0.4, method="by the model")
TRAFFIC = Traffic(tokens_per_hour=36e6, requests_per_hour=3600, source="as observed")
PREFILL = Prefill(tokens_per_second=10_000, gpus=4, source="measured at the engine")
ENGINE = Economics(prefill=PREFILL)
PRICED = Economics(prefill=PREFILL, prices=Prices(memory_gb=5, gpu_hour=2, horizon_hours=1000))


def loading_at(bytes_per_second: float) -> Economics:
    return Economics(prefill=PREFILL, l1_load_gb_per_second=bytes_per_second / 1e9)


def metrics_over(seconds: float, **given: object) -> CacheMetrics:
    window = Window(start=START, end=START + timedelta(seconds=seconds))
    return CacheMetrics(status=CacheStatus.ENABLED, enabled=True, window=window, **given)


@pytest.mark.parametrize(("peak_flops", "gigabytes"), [(312e12, 5.86), (989e12, 18.57)], ids=["8xA800", "8xH800"])
def test_the_break_even_bandwidth_of_mooncake_is_reproduced(peak_flops: float, gigabytes: float) -> None:
    assumed = ComputeBound(
        layers=80, width=8192, attention=4, linear=22, prefix_tokens=8192, gpus=8, peak_flops=peak_flops, utilization=1
    )
    assert break_even_bandwidth(LLAMA3_70B_KV, assumed.prefill()) / 1e9 == pytest.approx(gigabytes, abs=0.005)


def test_a_compute_bound_prefill_says_what_it_assumes() -> None:
    bound = ComputeBound(
        layers=80, width=8192, attention=4, linear=22, prefix_tokens=8192, gpus=8, peak_flops=989e12, utilization=0.5
    )
    assert bound.prefill().gpus == 8
    assert bound.prefill().source == "assumed to be compute-bound at 50% of 8 x 989 TFLOP/s, prefix of 8192 tokens"
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        ComputeBound(layers=1, width=1, attention=1, linear=1, prefix_tokens=0, gpus=1, peak_flops=1, utilization=1.01)


def test_kv_bytes_per_token_are_those_measured_in_l1_then_those_the_log_states() -> None:
    log = log_of([[1]], chunk_size=256, chunk_bytes=256 * 1000)
    measured = kv_size(metrics_over(60, kv_bytes_per_token=1100.0), log)
    stated = kv_size(metrics_over(60), log)
    assert measured is not None
    assert stated is not None
    assert (measured.bytes_per_token, stated.bytes_per_token) == (1100, 1000)
    assert measured.source != stated.source


def test_kv_bytes_per_token_that_nobody_measured_are_not_made_up() -> None:
    assert kv_size(metrics_over(60), log_of([[1]])) is None
    assert kv_size() is None


def test_traffic_is_that_of_the_window_an_hour() -> None:
    traffic = traffic_of(metrics_over(60, total_requests=7, tokens=TokenCounts(requested=512_000)))
    assert traffic is not None
    assert traffic.tokens_per_hour == pytest.approx(30_720_000)
    assert traffic.requests_per_hour == pytest.approx(420)
    assert traffic_of(metrics_over(0)) is None


def test_a_saving_is_what_one_gets_by_hand() -> None:
    found = saving(GAIN, TRAFFIC, ENGINE)
    assert found.tokens_per_hour.estimate == pytest.approx(7.2e6)
    assert found.ttft_seconds_per_hour.estimate == pytest.approx(720)
    assert found.gpu_seconds_per_hour.estimate == pytest.approx(4 * 720)
    assert found.ttft_ms_per_request is not None
    assert found.ttft_ms_per_request.estimate == pytest.approx(200)
    assert found.gpu_seconds_per_hour.lower == pytest.approx(1440)
    assert found.gpu_seconds_per_hour.upper == pytest.approx(5760)


def test_at_the_break_even_bandwidth_a_hit_saves_gpu_time_but_no_latency() -> None:
    even = break_even_bandwidth(LLAMA3_70B_KV, PREFILL)
    found = saving(GAIN, TRAFFIC, loading_at(even), kv=LLAMA3_70B_KV)
    assert found.break_even_gb_per_second == pytest.approx(even / 1e9)
    assert found.ttft_seconds_per_hour.estimate == pytest.approx(0, abs=1e-6)
    assert found.gpu_seconds_per_hour.estimate > 0


def test_loading_slower_than_computing_costs_latency_and_the_interval_still_holds_its_estimate() -> None:
    even = break_even_bandwidth(LLAMA3_70B_KV, PREFILL)
    ttft = saving(GAIN, TRAFFIC, loading_at(even / 3), kv=LLAMA3_70B_KV).ttft_seconds_per_hour
    assert ttft.estimate == pytest.approx(-2 * 720)
    assert ttft.lower < ttft.estimate < ttft.upper < 0


shares = st.floats(-1, 1)


@given(st.tuples(shares, shares, shares).map(sorted), st.floats(1e6, 1e12))
def test_every_range_holds_its_estimate(ends: list[float], load: float) -> None:
    gain = Gain(lower=ends[0], estimate=ends[1], upper=ends[2], method="")
    found = saving(gain, TRAFFIC, loading_at(load), kv=LLAMA3_70B_KV)
    for one in (found.tokens_per_hour, found.gpu_seconds_per_hour, found.ttft_seconds_per_hour, found.ttft_ms_per_request):
        assert one is not None
        assert one.lower <= one.estimate <= one.upper


def test_memory_pays_back_in_the_gpu_hours_it_saves() -> None:
    prices = Prices(memory_gb=5, gpu_hour=2)
    # 16 GB for 80; 2,880 GPU-seconds an hour at 2 an hour save 1.60 an hour
    found = saving(GAIN, TRAFFIC, PRICED, added_mb=16 * 1024)
    assert found.payback_hours == pytest.approx(50)
    assert payback_hours(0, 10, prices) == 0


def test_without_prices_or_without_a_saving_there_is_no_pay_back() -> None:
    prices = Prices(memory_gb=5, gpu_hour=2)
    assert saving(GAIN, TRAFFIC, ENGINE, added_mb=1024).payback_hours is None
    assert payback_hours(1024, 0, prices) is None
    assert payback_hours(1024, -3, prices) is None


def test_everything_a_saving_rests_on_is_named_in_it() -> None:
    free = " | ".join(saving(GAIN, TRAFFIC, ENGINE).assumptions)
    assert "loading a hit takes no time, because no load bandwidth" in free
    loaded = saving(GAIN, TRAFFIC, loading_at(25e9), kv=LLAMA3_70B_KV)
    for source in (GAIN.method, TRAFFIC.source, PREFILL.source, LLAMA3_70B_KV.source, "25 GB/s", "excludes queueing"):
        assert any(source in assumption for assumption in loaded.assumptions), source


def test_without_kv_bytes_loading_is_free_and_said_so() -> None:
    found = saving(GAIN, TRAFFIC, loading_at(1e6))
    assert found.ttft_seconds_per_hour == saving(GAIN, TRAFFIC, ENGINE).ttft_seconds_per_hour
    assert any("no KV size" in assumption for assumption in found.assumptions)
    with pytest.raises(ValidationError, match="greater than 0"):
        loading_at(0)


def test_the_net_benefit_is_saved_gpu_time_over_the_horizon_less_the_memory() -> None:
    found = saving(GAIN, TRAFFIC, PRICED, added_mb=16 * 1024).net_benefit
    assert found is not None
    assert (found.lower, found.estimate, found.upper) == pytest.approx((800 - 80, 1600 - 80, 3200 - 80))
    assert saving(GAIN, TRAFFIC, ENGINE).net_benefit is None


def test_hits_of_a_slower_tier_save_the_same_gpu_time_and_less_latency() -> None:
    half = Range(lower=0.05, estimate=0.1, upper=0.2)
    found = saving(GAIN, TRAFFIC, ENGINE, worth=half)
    assert found.gpu_seconds_per_hour == saving(GAIN, TRAFFIC, ENGINE).gpu_seconds_per_hour
    assert found.ttft_seconds_per_hour.estimate == pytest.approx(360)


def test_requests_that_were_not_counted_give_no_figure_for_one() -> None:
    unknown = TRAFFIC.model_copy(update={"requests_per_hour": None})
    assert saving(GAIN, unknown, ENGINE).ttft_ms_per_request is None


def test_a_saving_is_the_same_after_a_trip_through_json() -> None:
    found = saving(GAIN, TRAFFIC, PRICED, kv=LLAMA3_70B_KV, added_mb=10)
    assert Saving.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("name", ["ComputeBound", "Economics", "KvSize", "Prefill", "Prices", "Range", "Saving", "Traffic"])
def test_every_field_is_described_in_the_json_schema(name: str) -> None:
    model: type[BaseModel] = getattr(models_cost if hasattr(models_cost, name) else cost, name)
    schema = model.model_json_schema()
    assert schema["additionalProperties"] is False
    for part in (schema, *schema.get("$defs", {}).values()):
        assert all(field.get("description", "").strip() for field in part["properties"].values()), part
