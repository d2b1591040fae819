"""Claims about the counters of an in-process engine's ranks. A stand-in: no tensor-parallel vLLM runs on this machine."""

from dataclasses import replace

import pytest

from agent_tools.deployments.counters import Counters, TokenCounters
from agent_tools.deployments.in_process.ranks import once_per_engine, ranks_answering
from agent_tools.deployments.members import together
from agent_tools.deployments.snapshot import Snapshot, metrics_between
from agent_tools.models import MB, Health

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


def test_if_the_first_rank_does_not_answer_another_one_counts() -> None:
    seen = metrics_between(None, total(meta(1, 2)))
    assert seen.total_requests == 420
