"""Claims about reading ``/metrics``: of a real server, of several tenants and models, and of anything else."""

import contextlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_cache import Play

from agent_tools.deployments.counters import TokenCounters
from agent_tools.deployments.server.exposition import parse_exposition
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.workload.generate import AgentTraffic

LINES = """
# HELP lmcache_mp_lookups_requests_total Lookups.
# TYPE lmcache_mp_lookups_requests_total counter
lmcache_mp_lookups_requests_total{cache_salt="a",model_name="llama"} 3.0
lmcache_mp_lookups_requests_total{cache_salt="b",model_name="llama"} 4.0
# TYPE lmcache_mp_lookup_requested_tokens_total counter
lmcache_mp_lookup_requested_tokens_total{cache_salt="a",model_name="llama"} 1024.0
lmcache_mp_lookup_requested_tokens_total{cache_salt="b",model_name="qwen"} 2.048e+03
# TYPE lmcache_mp_lookup_hit_l1_tokens_total counter
lmcache_mp_lookup_hit_l1_tokens_total{cache_salt="b",model_name="qwen"} 512.0
# TYPE lmcache_mp_lookup_hit_l1_keys_total counter
lmcache_mp_lookup_hit_l1_keys_total{cache_salt="b",model_name="qwen"} 4.0
# TYPE lmcache_mp_l1_allocation_failure_chunks_total counter
lmcache_mp_l1_allocation_failure_chunks_total{during="l1_store",model_name="qwen"} 7.0
lmcache_mp_l1_allocation_failure_chunks_total{during="l2_prefetch",model_name="qwen"} 100.0
# TYPE lmcache_mp_lookup_early_exit_requests_total counter
lmcache_mp_lookup_early_exit_requests_total{reason="empty_chunk_hashes"} 2.0
lmcache_mp_lookup_early_exit_requests_total{reason="no_gpu_context"} 50.0
# TYPE lmcache_mp_l2_prefetch_failure_chunks_total counter
lmcache_mp_l2_prefetch_failure_chunks_total{model_name="qwen",reason="l1_oom"} 5.0
lmcache_mp_l2_prefetch_failure_chunks_total{model_name="qwen",reason="not_found"} 6.0
lmcache_mp_l2_prefetch_failure_chunks_total{model_name="qwen",reason="l1_contended"} 70.0
# TYPE lmcache_mp_event_bus_dropped_events_total counter
lmcache_mp_event_bus_dropped_events_total 0.0
# TYPE grpc_server_call_duration_seconds histogram
grpc_server_call_duration_seconds_bucket{grpc_method="lmcache.mp.LookupService/Lookup",le="+Inf"} 10.0
grpc_server_call_duration_seconds_count{grpc_method="lmcache.mp.LookupService/Lookup"} 10.0
grpc_server_call_duration_seconds_sum{grpc_method="lmcache.mp.LookupService/Lookup"} 0.25
grpc_server_call_duration_seconds_count{grpc_method="lmcache.mp.LookupService/WaitPrefetchStatus"} 10.0
grpc_server_call_duration_seconds_sum{grpc_method="lmcache.mp.LookupService/WaitPrefetchStatus"} 0.75
grpc_server_call_duration_seconds_sum{grpc_method="/lmcache.StoreService/Commit"} 99.0
"""


def test_a_real_page_gives_the_counters_of_what_was_sent(server: ServerProcess, play: Play) -> None:
    before = parse_exposition(httpx.get(f"{server.http_url}/metrics").text)
    result = play(AgentTraffic(requests=60, tenants=2, seed=1).generate(), model="exposition")
    text = httpx.get(f"{server.http_url}/metrics").text
    after = parse_exposition(text)
    assert after.has_cache_metrics
    assert after.counters.lookups - before.counters.lookups == result.requests
    mine = {labels: counts for labels, counts in after.tokens.items() if labels[0] == "exposition"}
    assert set(mine) == {("exposition", "tenant-1"), ("exposition", "tenant-2")}
    assert sum(counts.requested for counts in mine.values()) == result.requested_chunks * result.chunk_size
    assert sum(counts.hit_l1 for counts in mine.values()) == result.hit_chunks * result.chunk_size
    assert after.objects_per_token["exposition"] == pytest.approx(1 / result.chunk_size)
    assert after.process_start == before.process_start
    assert f'service_instance_id="{after.instance_id}"' in text


def test_label_sets_are_summed_and_other_reasons_left_out() -> None:
    read = parse_exposition(LINES)
    assert read.counters.lookups == 7
    assert read.counters.failed_stores == 7
    assert read.counters.short_prompts == 2
    assert (read.counters.l2_loads_failed, read.counters.l2_loads_lost) == (5, 6)
    assert read.tokens == {
        ("llama", "a"): TokenCounters(requested=1024),
        ("qwen", "b"): TokenCounters(requested=2048, hit_l1=512),
    }
    assert read.objects_per_token == {"qwen": 4 / 512}


def test_series_with_a_label_we_do_not_know_are_summed_too() -> None:
    series = 'lmcache_mp_lookup_requested_tokens_total{{cache_salt="",model_name="llama",node="{}"}} 256.0\n'
    assert parse_exposition(series.format(1) + series.format(2)).tokens == {("llama", ""): TokenCounters(requested=512)}


def test_a_lookup_is_timed_with_the_wait_for_its_prefetch() -> None:
    read = parse_exposition(LINES)
    assert (read.counters.lookup_calls, read.counters.lookup_seconds) == (10, 1.0)


@pytest.mark.parametrize("text", ["", "\n\n", "# HELP x\n", "python_gc_collections_total 3\n", "<html>not metrics</html>"])
def test_a_page_without_cache_metrics_says_so(text: str) -> None:
    read = parse_exposition(text)
    assert not read.has_cache_metrics
    assert read.tokens == {}
    assert read.objects_per_token == {}
    assert read.process_start is None


@pytest.mark.parametrize("value", ["many", "NaN", "+Inf", "1e999"])
@pytest.mark.parametrize("name", ["lookups_requests_total", "lookup_hit_l1_tokens_total", "event_bus_dropped_events_total"])
def test_what_is_not_a_count_is_a_value_error(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"many|nan|inf"):
        parse_exposition(f"lmcache_mp_{name} {value}\n")


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    read_or_refuse(text)


@given(
    st.sampled_from(["lmcache_mp_lookup", "lmcache_mp_lookups_requests_total", "target_info", "process_start_time_seconds"]),
    st.text(alphabet='{}="\\,# 0123456789.eE+-NaInf\nabc_'),
)
def test_any_broken_series_is_read_or_refused(name: str, rest: str) -> None:
    read_or_refuse(name + rest)


def read_or_refuse(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_exposition(text)
