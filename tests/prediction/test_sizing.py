"""Sizes of L0, L1 and L2 for a model: shares agree with the models of each tier, and nothing unknown is made up."""

from pathlib import Path

import numpy as np
import pytest

from agent_tools.errors import WorkloadError
from agent_tools.models import MB
from agent_tools.prediction.engine_cache import engine_caches
from agent_tools.prediction.model_kv import ModelKv, model_kv, read_model
from agent_tools.prediction.server_prediction import predict_settings
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.prediction.size_pricing import SizeRow, Terms
from agent_tools.prediction.sizing import knee, l0_tokens_of, size_for
from agent_tools.tools.size import describe_sizing
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

FILES = Path(__file__).with_name("model_files")
ALL = Terms(
    prefill_tokens_per_second=10_000,
    l1_load_gb_per_second=20,
    l2_load_gb_per_second=2,
    l1_gb_month=2,
    l2_gb_month=0.1,
    gpu_hour=3,
)


@pytest.fixture(scope="module")
def log() -> AccessLog:
    return AgentTraffic(requests=400, conversations=60, turns=6, tool_tokens=1500, seed=3).generate()


@pytest.fixture(scope="module")
def llama() -> ModelKv:
    return model_kv(read_model(FILES / "llama-3-8b.json"))


def test_the_engine_holds_whole_blocks_of_what_a_rank_keeps(llama: ModelKv) -> None:
    assert l0_tokens_of(llama, 40) == 40 * 2**30 // 131_072 // 16 * 16 == 327_680
    eight = model_kv(read_model(FILES / "llama-3-8b.json"), ranks=8)
    assert l0_tokens_of(eight, 40) == 8 * 327_680
    latent = model_kv(read_model(FILES / "deepseek-v3.json"), ranks=8)
    assert l0_tokens_of(latent, 40) == 40 * 2**30 // 70_272 // 16 * 16  # every rank holds all of it


def test_rows_say_what_the_models_of_the_tiers_say(log: AccessLog, llama: ModelKv) -> None:
    found = size_for(log, llama, gpu_free_gb=2, l1_sizes_mb=[2048, 8192])
    assert [row.tier for row in found.rows].count("L0") == 5
    small, large = (row for row in found.rows if row.tier == "L1")
    chunk = 131_072 * log.chunk_size
    (own,) = engine_caches(log, [l0_tokens_of(llama, 2)])
    for row in (small, large):
        (run,) = predict_settings(log, [ServerSetting(row.l1_mb * MB / chunk)])
        assert row.hit_rate == pytest.approx(run.hit_rate)
        assert row.saved == pytest.approx(own.saved(run))
        assert row.engine_share == pytest.approx(own.share)
    assert large.saved >= small.saved
    for row in found.rows:
        if row.tier == "L2":
            assert (row.l1_mb, row.saved >= small.saved - 0.01) == (small.l1_mb, True)


def test_nothing_is_made_up(log: AccessLog, llama: ModelKv) -> None:
    found = size_for(log, llama, gpu_free_gb=2)
    for row in found.rows:
        assert (row.ttft_ms, row.price_month, row.gpu_hours_month, row.net_month) == (None,) * 4
    assert set(found.unknown) == {"ttft_ms", "gpu_hours_month", "price_month", "net_month"}
    text = describe_sizing(found)
    assert "ttft_ms is unknown: it needs the prefill speed" in text
    assert "knee of L1" in text
    without = size_for(log, llama)
    assert without.l0_tokens is None
    assert any("upper bound" in note for note in without.notes)


def test_time_and_money_follow_from_what_is_stated(log: AccessLog, llama: ModelKv) -> None:
    found = size_for(log, llama, gpu_free_gb=2, terms=ALL)
    assert found.unknown == {}
    whole = int(log.chunks_per_request.sum()) * log.chunk_size
    for row in found.rows:
        computed = int(log.tokens.sum()) - (row.engine_share + row.saved) * whole
        assert row.ttft_ms is not None
        least = 1000 * computed / 10_000 / len(log)
        loading = 1000 * row.saved * whole * 131_072 / 2e9 / len(log)
        assert least - 1e-6 <= row.ttft_ms <= least + loading + 1e-6
        if row.tier == "L1":
            assert row.price_month == pytest.approx(row.l1_mb / 1024 * 2)
            rate = (len(log) - 1) / log.duration
            assert row.gpu_hours_month == pytest.approx(row.saved * whole / len(log) * rate / 10_000 * 730)
            assert row.net_month == pytest.approx(3 * row.gpu_hours_month - row.price_month)  # type: ignore[operator]
    priced = [row for row in found.rows if row.tier == "L1"]
    assert found.l1_knee == max(priced, key=lambda row: row.net_month or 0)


def _row(size_mb: float, saved: float, net: float | None = None) -> SizeRow:
    return SizeRow(
        tier="L1", l0_tokens=None, l1_mb=size_mb, l2_mb=0, engine_share=0, hit_rate=saved, saved=saved, ttft_ms=None,
        price_month=None, gpu_hours_month=None, net_month=net,
    )  # fmt: skip


def test_the_knee() -> None:
    sizes = np.linspace(10, 100, 10)
    bent = [_row(size, min(size / 40, 1) * 0.5) for size in sizes]
    assert knee(bent) == bent[3]
    assert knee([_row(10, 0.001), _row(20, 0.002)]) is None
    assert knee([_row(10, 0.1, -5.0), _row(20, 0.2, -1.0)]) is None
    assert knee([]) is None


def test_a_log_of_another_model_is_noticed(llama: ModelKv, log: AccessLog) -> None:
    with pytest.raises(WorkloadError, match="hold no block"):
        size_for(log, llama, gpu_free_gb=0.001)
