"""Claims about the metrics of SGLang. The page was written after SGLang's documentation: no SGLang was run."""

from pathlib import Path

import pytest

from agent_tools.serving.engine_window import engine_between
from agent_tools.serving.sglang_metrics import parse_sglang_metrics

PAGE = (Path(__file__).parent / "sglang.txt").read_text()
READING = parse_sglang_metrics(PAGE, 1795633700.0, "http://sglang")


def test_time_to_first_token_and_the_size_of_the_radix_cache_are_read() -> None:
    window = engine_between(None, READING)
    assert window.ttft_ms is not None
    assert window.ttft_ms.mean == pytest.approx(500)
    assert (window.requests, window.prompt_tokens, window.computed_tokens) == (20, 40_000, 16_000)
    assert (window.running, window.waiting, window.preemptions, window.kv_usage_percent) == (2, 3, 1, 25)
    assert window.own_cache_size_tokens == 65_536  # each rank shows it, and it is one cache


def test_what_lmcache_loaded_is_not_told_from_what_the_radix_cache_had() -> None:
    window = engine_between(None, READING)
    assert (window.own_cache_tokens, window.lmcache_tokens, window.saved_share, window.own_cache_share) == (None,) * 4
    assert any("apart for the radix cache and LMCache" in lack for lack in window.missing)
    assert (window.prefill_ms, window.decode_ms) == (None, None)


def test_without_the_count_of_cached_tokens_nothing_is_said_of_what_was_computed() -> None:
    page = "\n".join(line for line in PAGE.split("\n") if not line.startswith("sglang:cached_tokens"))
    window = engine_between(None, parse_sglang_metrics(page, 1795633700.0))
    assert window.computed_tokens is None
    assert "sglang:cached_tokens_total" in window.missing


def test_a_page_without_time_to_first_token_is_refused() -> None:
    with pytest.raises(ValueError, match="missing: sglang:time_to_first_token_seconds_count"):
        parse_sglang_metrics(PAGE.replace("time_to_first_token_seconds_count", "renamed"), 1795633700.0)
