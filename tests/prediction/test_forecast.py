"""The forecast says what the curve, the server model and the clairvoyant bound say, for sizes a person would ask for."""

from dataclasses import replace

import numpy as np
import pytest
from random_logs import log_of, trace

from agent_tools.errors import WorkloadError
from agent_tools.models import MB
from agent_tools.prediction.clairvoyant import clairvoyant_hits
from agent_tools.prediction.forecast import Forecast, by_model, chunks_of, forecast
from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

CHUNK_BYTES = 32 * MB


@pytest.fixture(scope="module")
def agents() -> AccessLog:
    return replace(AgentTraffic(requests=800, seed=3).generate(), chunk_bytes=CHUNK_BYTES)


@pytest.fixture(scope="module")
def forecast_of_agents(agents: AccessLog) -> Forecast:
    return forecast(agents, ServerSetting(1, 0.9, 0.1))


def test_each_row_is_what_curve_model_and_bound_say(agents: AccessLog, forecast_of_agents: Forecast) -> None:
    curve = hit_rate_curve(agents)
    for row in forecast_of_agents.rows[::4]:
        prediction = predict_server(agents, ServerSetting(row.capacity_chunks, 0.9, 0.1))
        assert row.lru == curve.hit_rate(row.capacity_chunks)
        assert (row.server, (row.server_lower, row.server_upper)) == (prediction.hit_rate, prediction.interval)
        assert row.failed_chunks == prediction.failed_chunks
        assert row.clairvoyant == clairvoyant_hits(agents, row.capacity_chunks).sum() / len(agents.chunk_ids)
        assert row.policy_gap == row.clairvoyant - row.lru


def test_no_row_is_above_the_best_possible_nor_that_above_the_ceiling(forecast_of_agents: Forecast) -> None:
    for row in forecast_of_agents.rows:
        assert max(row.lru, row.server) <= row.clairvoyant <= forecast_of_agents.ceiling
        assert row.server_lower <= row.server <= row.server_upper


def test_the_default_sizes_go_from_few_hits_to_all_of_them(forecast_of_agents: Forecast) -> None:
    first, last = forecast_of_agents.rows[0], forecast_of_agents.rows[-1]
    sizes = [row.capacity_chunks for row in forecast_of_agents.rows]
    assert sizes == sorted(set(sizes))
    assert 10 <= len(sizes) <= 14
    assert first.lru < 0.5 * forecast_of_agents.ceiling
    assert last.server == pytest.approx(forecast_of_agents.ceiling, abs=0.005)


@pytest.mark.parametrize(
    "name", ["mooncake_conversation", "mooncake_synthetic", "lmcache_agent_miniswe", "lmcache_agent_taubench"]
)
def test_the_default_sizes_of_recorded_workloads_reach_the_ceiling(name: str) -> None:
    found = forecast(trace(name))
    assert found.rows[0].lru < 0.6 * found.ceiling
    assert found.rows[-1].lru == pytest.approx(found.ceiling, abs=0.002)


def test_sizes_in_mb_are_two_digits_and_agree_with_the_chunks(forecast_of_agents: Forecast) -> None:
    for row in forecast_of_agents.rows:
        assert row.size_mb == pytest.approx(row.capacity_chunks * CHUNK_BYTES / MB)
        assert row.size_mb == pytest.approx(float(f"{row.size_mb:.2g}"))


def test_the_drawn_curve_is_the_exact_one_between_the_first_and_the_last_row(
    agents: AccessLog, forecast_of_agents: Forecast
) -> None:
    curve, drawn = hit_rate_curve(agents), forecast_of_agents.lru_curve
    assert all(rate == curve.hit_rate(size) for size, rate in drawn)
    assert drawn[0][0] == pytest.approx(forecast_of_agents.rows[0].capacity_chunks)
    assert drawn[-1][0] == pytest.approx(forecast_of_agents.rows[-1].capacity_chunks)


def test_asked_sizes_are_the_rows_smallest_first(agents: AccessLog) -> None:
    found = forecast(agents, capacities_chunks=[500, 20, 20, 90.5])
    assert [row.capacity_chunks for row in found.rows] == [20, 90.5, 500]


def test_a_size_of_interest_joins_the_default_ones(agents: AccessLog, forecast_of_agents: Forecast) -> None:
    found = forecast(agents, including=[77.7])
    assert 77.7 in [row.capacity_chunks for row in found.rows]
    assert len(found.rows) > 10


def test_a_policy_that_never_evicts_is_forecast_too(agents: AccessLog) -> None:
    found = forecast(agents, capacities_chunks=[50, 5000], under=ServerSetting(1, policy="noop"))
    small, large = found.rows
    assert small.failed_chunks > large.failed_chunks == 0
    assert small.server_upper - small.server_lower < 0.002  # nothing depends on when the eviction thread wakes
    assert large.server == pytest.approx(found.ceiling)
    assert large.lru == found.ceiling


def test_the_table_is_flat_and_has_the_policy_gap(forecast_of_agents: Forecast) -> None:
    row = forecast_of_agents.table()[0]
    assert row["policy_gap"] == forecast_of_agents.rows[0].policy_gap
    assert all(value is None or isinstance(value, float) for value in row.values())


def test_a_forecast_is_the_same_after_a_trip_through_json(forecast_of_agents: Forecast) -> None:
    assert Forecast.model_validate_json(forecast_of_agents.model_dump_json()) == forecast_of_agents


def test_every_field_is_described_in_the_json_schema() -> None:
    schema = Forecast.model_json_schema()
    assert schema["additionalProperties"] is False
    for part in (schema, *schema["$defs"].values()):
        assert all(field.get("description", "").strip() for field in part["properties"].values()), part


def test_an_empty_log_is_refused() -> None:
    with pytest.raises(WorkloadError, match="the log holds no requests"):
        forecast(log_of([]))


def test_prompts_that_are_all_shorter_than_a_chunk_have_a_ceiling_of_nothing_and_no_sizes() -> None:
    found = forecast(log_of([[], [], []], chunk_size=256, tails=[10, 200, 255]))
    assert (found.requests, found.short_requests, found.chunks, found.ceiling, found.rows) == (3, 3, 0, 0, ())
    assert found.notes[0] == "all 3 requests are shorter than one chunk (256 tokens): no size helps, but smaller chunks may"


def test_prompts_that_are_all_shorter_than_a_chunk_hit_nothing_at_any_asked_size() -> None:
    found = forecast(log_of([[], []], tails=[1, 2]), capacities_chunks=[10])
    row = found.rows[0]
    assert (row.lru, row.server, row.clairvoyant, row.failed_chunks) == (0, 0, 0, 0)


def test_mostly_short_prompts_are_said_so() -> None:
    found = forecast(log_of([[1], [1], [], [], []], chunk_size=4, tails=[0, 0, 1, 2, 3]))
    assert "3 of 5 requests are shorter than one chunk (4 tokens) and can never be cached" in found.notes


def test_one_request_reuses_nothing_and_is_said_so() -> None:
    found = forecast(log_of([[1, 2, 3]]))
    assert found.ceiling == 0
    assert all(row.server == row.lru == row.clairvoyant == 0 for row in found.rows)
    assert "the log holds one request: nothing could be reused yet" in found.notes


def test_requests_that_share_nothing_are_said_so() -> None:
    found = forecast(log_of([[1, 2], [3], [4, 5]]))
    assert (found.ceiling, found.useful_chunks) == (0, 0)
    assert "no request repeats the prefix of an earlier one: no size helps" in found.notes


def test_models_are_split_and_never_mixed() -> None:
    log = log_of(
        [[1, 2], [1, 2], [1, 2], [1, 2]],
        models=np.array([0, 1, 1, 0], np.int16),
        model_names=("llama", "qwen"),
        times=[0, 1, 2, 3],
    )
    with pytest.raises(WorkloadError, match=r"mixes 2 models \(llama, qwen\)"):
        forecast(log)
    parts = by_model(log)
    assert {name: forecast(part).ceiling for name, part in parts.items()} == {"llama": 0.5, "qwen": 0.5}
    assert {name: part.timestamps.tolist() for name, part in parts.items()} == {"llama": [0, 3], "qwen": [1, 2]}
    assert by_model(parts["qwen"]) == {"qwen": parts["qwen"]}


def test_tenants_do_not_share() -> None:
    apart = log_of([[1, 2], [1, 2]], tenants=np.array([0, 1], np.int16), tenant_names=("a", "b"))
    assert forecast(apart).ceiling == 0


@pytest.mark.parametrize(("times", "why"), [([0.0, np.nan], "not numbers"), ([5.0, 1.0], "not in time order")])
def test_times_that_make_no_sense_are_refused(times: list[float], why: str) -> None:
    with pytest.raises(WorkloadError, match=why):
        forecast(log_of([[1], [1]], times=times))


def test_requests_all_at_one_time_are_said_to_tell_nothing_of_eviction() -> None:
    assert any("the model never evicts between them" in note for note in forecast(log_of([[1], [1]], times=[3.0, 3.0])).notes)


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan, np.inf])
def test_a_size_that_is_none_is_refused(size: float) -> None:
    with pytest.raises(WorkloadError, match="sizes must be positive numbers"):
        forecast(log_of([[1], [1]]), capacities_chunks=[size])


def test_no_sizes_at_all_are_refused() -> None:
    with pytest.raises(WorkloadError, match="give at least one size"):
        forecast(log_of([[1], [1]]), capacities_chunks=[])


def test_sizes_in_mb_need_the_bytes_of_a_chunk() -> None:
    silent, stated = log_of([[1]], chunk_size=4), log_of([[1]], chunk_size=4, chunk_bytes=MB // 2)
    assert chunks_of([3], stated) == [6]
    assert chunks_of([3], silent, kv_bytes_per_token=MB) == [0.75]
    with pytest.raises(WorkloadError, match="sizes in MB need the KV bytes of a token"):
        chunks_of([3], silent)
    assert forecast(silent).chunk_mb is None
    assert forecast(silent, chunk_bytes=2 * MB).chunk_mb == 2
