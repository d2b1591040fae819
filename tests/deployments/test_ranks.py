"""Claims about the counters of an in-process engine's ranks. A stand-in: no tensor-parallel vLLM runs on this machine."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest

from agent_tools.deployments.counters import Counters, TokenCounters
from agent_tools.deployments.in_process.deployment import InProcessDeployment
from agent_tools.deployments.in_process.exposition import parse_in_process_exposition
from agent_tools.deployments.in_process.ranks import once_per_engine, ranks_answering
from agent_tools.deployments.members import together
from agent_tools.deployments.snapshot import Snapshot, metrics_between
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Health
from agent_tools.wire.http_client import AdminClient

WORKER = Snapshot(
    asked_at=100.0,
    taken_at=100.0,
    process_start=0.0,
    instance_id="one",
    counters=Counters(lookups=420, stored_chunks=3360, evictions=10),
    tokens={("coder", ""): TokenCounters(requested=2_150_400, hit_l1=1_290_240)},
    l1_used_bytes=64 * MB,
    l1_total_bytes=128 * MB,
    resident_objects=3360,
    objects_per_chunk=1.0,
    chunk_size=256,
    health=Health(healthy=True),
)


def meta(rank: int, world_size: int) -> dict[str, object]:
    return {"model_name": "coder", "world_size": world_size, "worker_id": rank}


def total(*metas: dict[str, object]) -> Snapshot:
    names = {f"worker{number}": one for number, one in enumerate(metas)}
    members = once_per_engine(dict.fromkeys(names, WORKER), names)
    return replace(together(members, {}), objects_per_chunk=ranks_answering(members))


def test_ranks_of_one_engine_count_each_prompt_once_and_add_their_bytes() -> None:
    seen = metrics_between(None, total(meta(0, 2), meta(1, 2)))
    assert (seen.total_requests, seen.tokens.requested, seen.stored_chunks, seen.evictions) == (420, 2_150_400, 3360, 10)
    assert (seen.tokens_cached, seen.used_size_mb) == (3360 * 256, 128)
    assert seen.kv_bytes_per_token == pytest.approx(128 * MB / (3360 * 256))


def test_data_parallel_workers_are_engines_of_their_own() -> None:
    seen = metrics_between(None, total(meta(0, 1), meta(0, 1)))
    assert (seen.total_requests, seen.tokens_cached) == (840, 2 * 3360 * 256)


def test_two_engines_of_two_ranks_count_twice() -> None:
    seen = metrics_between(None, total(meta(0, 2), meta(1, 2), meta(0, 2), meta(1, 2)))
    assert (seen.total_requests, seen.tokens_cached) == (840, 2 * 3360 * 256)


PAGE = """\
import sys
from types import SimpleNamespace

from prometheus_client import REGISTRY, generate_latest
from lmcache.observability import PrometheusLogger

first = None
for rank in map(int, sys.argv[1:]):
    meta = SimpleNamespace(model_name="coder", worker_id=rank, role="worker", served_model_name="")
    one = PrometheusLogger(meta) if first is None else PrometheusLogger._create_label_view(first, meta)
    first = first or one
    for name, count in {
        "num_lookup_requests": 420, "num_lookup_tokens": 2150400, "num_lookup_hits": 1290240, "num_stored_tokens": 860160,
        "local_cpu_evict_keys_count": 10,
    }.items():
        getattr(one, f"counter_{name}").labels(**one.labels).inc(count)
    one.gauge_local_cache_usage.labels(**one.labels).set(64 * 2**20 + rank)
    one.gauge_local_storage_usage.labels(**one.labels).set(7)
    one.local_cpu_hot_cache_count.set(3360)
print(generate_latest(REGISTRY).decode())
"""
"""A page of LMCache's own metrics, with one rank or several in one process. LMCache labels each with its ``worker_id``."""


@pytest.fixture(scope="module")
def page(lmcache: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of ranks 2 and 10."""
    quiet = {"LMCACHE_LOG_LEVEL": "ERROR", "LMCACHE_DISABLE_BANNER": "1", "LMCACHE_TRACK_USAGE": "false"}
    whole = {**os.environ, **quiet, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path_factory.mktemp("prometheus"))}
    script = [sys.executable, "-c", PAGE, "2", "10"]
    done = subprocess.run(script, check=False, env=whole, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout[done.stdout.index("# HELP") :]


def test_ranks_behind_one_page_count_each_prompt_once_and_add_their_bytes(page: str) -> None:
    both, own = (parse_in_process_exposition(page, 256, 1, rank) for rank in (None, "10"))
    for one, ranks in ((both, 2), (own, 1)):
        assert one.counters == Counters(lookups=420, stored_chunks=3360, evictions=10)
        assert [*one.tokens.values()] == [TokenCounters(requested=2_150_400, hit_l1=1_290_240)]
        assert (one.ranks, one.disk_used_bytes, one.resident_keys) == (ranks, 7 * ranks, 3360 * ranks)
    assert (both.l1_used_bytes, own.l1_used_bytes) == (2 * 64 * MB + 12, 64 * MB + 10)


@pytest.mark.parametrize("addresses", [1, 2])
def test_an_engine_whose_ranks_share_a_page_is_one_engine(addresses: int, page: str) -> None:
    """Behind one address, both ranks are on its page; with two, each page has both, and each counts for its own rank."""

    def answer(rank: int, request: httpx.Request) -> httpx.Response:
        conf = {
            "chunk_size": 256,
            "max_local_cpu_size": 0.125,
            "min_retrieve_tokens": 0,
            "cache_policy": "LRU",
            "local_cpu": True,
        }
        found: dict[str, Any] = {
            "/conf": conf | {"use_layerwise": False, "max_local_disk_size": 0.0},
            "/meta": {"model_name": "coder", "world_size": 2, "worker_id": (2, 10)[rank], "role": "worker"},
            "/bypass/list": {"all_backends": ["LocalCPUBackend"], "bypassed_backends": []},
            "/freeze/status": {"freeze": False},
            "/hot_cache/status": {"hot_cache": True},
        }
        path = request.url.path
        return httpx.Response(200, text=page) if path == "/metrics" else httpx.Response(200, json=found[path])

    async def read() -> Snapshot:
        engine = InProcessDeployment([f"http://127.0.0.1:{1 + rank}" for rank in range(addresses)])
        for rank, worker in enumerate(engine.workers.values()):
            await worker.close()
            worker._admin = AdminClient(worker.url, transport=httpx.MockTransport(partial(answer, rank)))
        try:
            return await engine.snapshot()
        finally:
            await engine.close()

    seen = metrics_between(None, io_loop.run(read))
    assert (seen.total_requests, seen.tokens.requested, seen.stored_chunks, seen.evictions) == (420, 2_150_400, 3360, 10)
    assert (seen.resident_chunks, seen.total_size_mb, seen.used_size_mb) == (3360, 256, pytest.approx(128))
    assert seen.kv_bytes_per_token == pytest.approx((128 * MB + 12) / (3360 * 256))


def test_if_the_first_rank_does_not_answer_another_one_counts() -> None:
    seen = metrics_between(None, total(meta(1, 2)))
    assert seen.total_requests == 420
