"""Claims about what is read of a vLLM, on a page that a real vLLM 0.32.0 gave: three requests for one prompt of 2,005 tokens."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from agent_tools.serving.engine_reading import EngineCounters, EngineReading
from agent_tools.serving.engine_window import engine_between
from agent_tools.serving.vllm_metrics import parse_vllm_metrics

PAGE = (Path(__file__).parent / "vllm_0_32_0.txt").read_text()
STARTED = 1795633640.04
READING = parse_vllm_metrics(PAGE, STARTED + 360)


def test_a_real_page_is_understood() -> None:
    window = engine_between(None, READING)
    assert (window.seconds, window.lifetime, window.requests) == (pytest.approx(360), True, 3)
    assert (window.prompt_tokens, window.computed_tokens, window.own_cache_tokens, window.lmcache_tokens) == (6015, 2175, 3840, 0)
    assert window.ttft_ms is not None
    assert window.ttft_ms.mean == pytest.approx(737.5, abs=0.1)
    # 1 of 3 came within 60 ms, 2 within 100, all within 2.5 s.
    assert 80 < window.ttft_ms.p50 <= 100
    assert 1000 < window.ttft_ms.p95 < window.ttft_ms.p99 <= 2500
    assert window.own_cache_share == pytest.approx(3840 / 6015)


def test_a_window_counts_what_came_between_two_readings() -> None:
    more = EngineCounters(requests=5, prompt_tokens=10_015, first_tokens=5, ttft_seconds=READING.counters.ttft_seconds + 0.3)
    later = after(
        READING, 10, replace(READING.counters, **{k: v for k, v in vars(more).items() if v}), {1.0: 4, 2.5: 5, math.inf: 5}
    )
    window = engine_between(replace(READING, ttft_buckets={1.0: 2, 2.5: 3, math.inf: 3}), later)
    assert (window.seconds, window.lifetime, window.requests, window.prompt_tokens) == (pytest.approx(10), False, 2, 4000)
    assert window.ttft_ms is not None
    assert window.ttft_ms.mean == pytest.approx(150)
    assert window.ttft_ms.p99 <= 1000


@pytest.mark.parametrize("changed", [{"process_start": STARTED + 99}, {"counters": EngineCounters(requests=1)}])
def test_an_engine_that_was_restarted_is_counted_from_its_start(changed: dict[str, object]) -> None:
    later = replace(READING, taken_at=READING.taken_at + 60, **changed)  # type: ignore[arg-type]
    window = engine_between(READING, later)
    assert window.lifetime
    assert window.requests == later.counters.requests


def test_without_requests_there_are_no_times() -> None:
    window = engine_between(READING, after(READING, 10, READING.counters, READING.ttft_buckets))
    assert (window.requests, window.ttft_ms, window.queue_ms, window.decode_ms) == (0, None, None, None)


def test_ranks_are_added_up() -> None:
    both = PAGE + "".join(line.replace('engine="0"', 'engine="1"') + "\n" for line in PAGE.splitlines() if 'engine="0"' in line)
    assert parse_vllm_metrics(both, STARTED).counters.prompt_tokens == 2 * READING.counters.prompt_tokens


def test_who_waits_for_a_load_does_not_wait_for_room() -> None:
    waiting = PAGE
    for reason, count in (("deferred", 4), ("capacity", 3)):
        waiting = waiting.replace(f'reason="{reason}"}} 0.0', f'reason="{reason}"}} {count}.0')
    assert waiting != PAGE
    assert parse_vllm_metrics(waiting, STARTED).waiting == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "none of the metrics of vLLM"),
        ("sglang:num_running_reqs 3.0\n", "none of the metrics of vLLM"),
        ("<html>", "none of the metrics of vLLM"),
        (PAGE.replace("vllm:request_prompt_tokens_sum", "vllm:was_renamed_sum"), "missing: vllm:request_prompt_tokens_sum"),
        (PAGE.replace("} 6015.0", "} NaN"), "which is not a count"),
        (PAGE.replace("} 6015.0", "} -1.0"), "which is not a count"),
    ],
)
def test_what_is_no_vllm_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_vllm_metrics(text, STARTED)


def after(earlier: EngineReading, seconds: float, counters: EngineCounters, buckets: object) -> EngineReading:
    return replace(earlier, taken_at=earlier.taken_at + seconds, counters=counters, ttft_buckets=buckets)  # type: ignore[arg-type]


CACHE = (
    'vllm:cache_config_info{block_size="128",cache_dtype="auto",enable_prefix_caching="True",engine="0",'
    'kv_cache_size_tokens="21376",num_gpu_blocks="167",num_gpu_blocks_override="167"} 1.0\n'
)
"""The line of a real vLLM 0.32.0 (CPU), without the labels that nobody reads."""


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        (CACHE, 128 * 167),
        (CACHE.replace('caching="True"', 'caching="False"'), 0),
        (CACHE.replace('kv_cache_size_tokens="21376"', 'kv_cache_size_tokens="5344"'), 5_344),  # four kinds of layers
        (CACHE.replace('kv_cache_size_tokens="21376",', ""), 128 * 167),
        (CACHE.replace('kv_cache_size_tokens="21376",', "").replace('num_gpu_blocks="167"', 'num_gpu_blocks="None"'), None),
        ("", None),
    ],
)
def test_the_size_of_the_engines_own_cache_is_read_or_unknown(lines: str, size: int | None) -> None:
    page = "\n".join(line for line in PAGE.split("\n") if not line.startswith("vllm:cache_config_info"))
    window = engine_between(None, parse_vllm_metrics(f"{page}\n{lines}", STARTED + 360))
    assert window.own_cache_size_tokens == size
