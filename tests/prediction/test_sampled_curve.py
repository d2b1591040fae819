"""The sampled curve is the exact one where everything is followed, and near it where little is; its memory has a bound."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_logs import log_of, logs, trace
from typer.testing import CliRunner

from agent_tools.doors.cli import app
from agent_tools.errors import WorkloadError
from agent_tools.prediction import sampled_curve as module
from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.prediction.sampled_curve import SampledCurve, curve_of_blocks, sampled_curve
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.lookup_log import KeyBlock
from agent_tools.workload.readers import read_trace


def blocks_of(log: AccessLog, part: int) -> Iterator[KeyBlock]:
    names = np.random.default_rng(5).integers(0, 2**64, log.unique_chunks, dtype=np.uint64)
    for first in range(0, len(log), part):
        last = min(first + part, len(log))
        ids = log.chunk_ids[log.offsets[first] : log.offsets[last]]
        yield KeyBlock(names[ids], log.chunks_per_request[first:last], int(log.tokens[first:last].sum()), log.chunk_size)


def errors(found: SampledCurve, log: AccessLog) -> np.ndarray:
    exact = hit_rate_curve(log)
    return np.array([abs(point.hit_rate - exact.hit_rate(point.capacity_chunks)) for point in found.points])


@settings(deadline=None, max_examples=40)
@example(log_of([[0, 1, 2], [3, 4, 5], [0, 6, 7]]), 1)  # the curve has a step at 4 chunks, which comes out as 3.999999999999999
@given(logs(), st.integers(1, 40))
def test_a_small_log_is_counted_exactly(log: AccessLog, part: int) -> None:
    if not len(log.chunk_ids):
        return
    found = curve_of_blocks(lambda: blocks_of(log, part), 73 * len(log.chunk_ids), 0.01)
    assert found.sampled_chunks == log.unique_chunks
    assert found.footprint_chunks == log.unique_chunks
    assert errors(found, log).max() == pytest.approx(0, abs=1e-9)
    assert all(point.error == 0 for point in found.points)


def test_a_sample_is_near_the_exact_curve_and_says_how_near() -> None:
    log = AgentTraffic(requests=6000, conversations=900, turns=8, tool_tokens=2500, seed=2).generate()
    size = 73 * len(log.chunk_ids)
    samples = [curve_of_blocks(lambda: blocks_of(log, 500), size, 0.05, start=start, fewest=1) for start in (0.1, 0.4, 0.7)]
    for found in samples:
        assert found.footprint_chunks == pytest.approx(log.unique_chunks, rel=0.01)
        assert found.sampled_chunks <= 0.06 * log.unique_chunks
        assert errors(found, log).mean() < 0.004
        assert found.ceiling == pytest.approx(hit_rate_curve(log).ceiling(), abs=0.005)
    assert np.mean([errors(found, log) <= [point.error for point in found.points] for found in samples]) > 0.9


def test_positions_are_numbered_anew_when_they_are_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    log = AgentTraffic(requests=7000, conversations=900, turns=8, tool_tokens=1500, seed=4).generate()
    compacted: list[int] = []
    original = module._Sample._compact
    monkeypatch.setattr(module._Sample, "_compact", lambda one: (compacted.append(1), original(one))[1])
    found = curve_of_blocks(lambda: blocks_of(log, 700), 73 * len(log.chunk_ids), 0.1, fewest=1)
    assert compacted
    assert errors(found, log).mean() < 0.004


@pytest.mark.parametrize("name", ["mooncake_conversation", "mooncake_synthetic"])
def test_one_percent_of_a_recorded_trace_errs_by_less_than_half_a_point(name: str) -> None:
    log = trace(name)
    found = curve_of_blocks(lambda: blocks_of(log, 1000), 73 * len(log.chunk_ids), 0.01, fewest=1)
    assert found.sampled_chunks <= 0.011 * log.unique_chunks
    assert errors(found, log).mean() < 0.005


@pytest.mark.parametrize("name", ["mooncake_conversation", "mooncake_synthetic"])
def test_the_stated_range_holds_the_truth_as_often_as_it_says(name: str) -> None:
    log = trace(name)
    size = 73 * len(log.chunk_ids)
    samples = [curve_of_blocks(lambda: blocks_of(log, 1000), size, 0.01, start=start, fewest=1) for start in (0.2, 0.5, 0.8)]
    inside = [errors(found, log) <= [point.error for point in found.points] for found in samples]
    assert np.mean(inside) > 0.9


def _written(folder: Path, requests: int = 300) -> Path:
    lines = []
    for number in range(requests):
        names = [f"0x{(number % 60) * 100 + place:064x}" for place in range(8)]
        lines.append(
            json.dumps({
                "timestamp": 1.76e9 + number, "request_id": f"r{number}", "model_name": "m", "chunk_size": 256, "seq_len": 2100,
                "dtypes": ["torch.bfloat16"], "shapes": [[2, 2, 256, 64]], "chunk_hashes": names,
            })
        )  # fmt: skip
    path = folder / "lookup_hashes_20260101_000000_000000.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_lookup_log_on_disk(tmp_path: Path) -> None:
    path = _written(tmp_path)
    found = sampled_curve(tmp_path)
    assert (found.requests, found.chunks, found.footprint_chunks, found.chunk_size) == (300, 2400, 480, 256)
    assert errors(found, read_trace(path)).max() == pytest.approx(0, abs=1e-9)
    result = CliRunner().invoke(app, ["predict", str(tmp_path), "--sample", "0.01", "--kv-bytes-per-token", "1024"])
    assert result.exit_code == 0, result.output
    assert "ceiling 80.0%" in result.stdout
    assert "480 chunks = 120 MB: 80.0% (± 0.00 points)" in result.stdout


def test_what_cannot_be_sampled_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text('{"timestamp": 1, "input_length": 10, "hash_ids": [1]}\n', encoding="utf-8")
    with pytest.raises(WorkloadError, match="line 1"):
        sampled_curve(tmp_path / "trace.jsonl")
    path = _written(tmp_path, 3)
    with pytest.raises(WorkloadError, match="sampled share"):
        sampled_curve(path, 0)
    path.write_text("", encoding="utf-8")
    with pytest.raises(WorkloadError, match="no whole chunk"):
        sampled_curve(path)
