"""Claims about `replay`, held against the counters and logs of a real `lmcache server`."""

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from real_server import CHUNK_SIZE, Server, eventually, running_server

from agent_tools.deployments.server.process import free_port
from agent_tools.errors import CacheDiedError, NotLMCacheError, UnreachableError, UnsupportedError, WorkloadError
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.readers import read_lookup_log, read_trace
from agent_tools.workload.replay import ReplaySettings, replay

SMALL = AgentTraffic(
    requests=60, chunk_size=CHUNK_SIZE, conversations=4, system_tokens=700, tool_tokens=300, context_tokens=4_000, seed=1
)


def settings(model: str, **changes: object) -> ReplaySettings:
    """4 KiB a chunk, and a model name that no other test uses."""
    return ReplaySettings.model_validate({"model": model, "kv_bytes_per_token": 16, "clients": 1, **changes})


def made(*requests: tuple[int, ...], tokens: int | None = None) -> AccessLog:
    """A log of requests with these chunk ids, one a second."""
    counts = [len(request) for request in requests]
    return AccessLog(
        chunk_size=CHUNK_SIZE,
        chunk_ids=np.array([chunk for request in requests for chunk in request], dtype=np.int32),
        offsets=np.cumsum([0, *counts]),
        tokens=np.array([tokens or count * CHUNK_SIZE for count in counts]),
        timestamps=np.arange(len(requests), dtype=np.float64),
        tenants=np.zeros(len(requests), dtype=np.int16),
        models=np.zeros(len(requests), dtype=np.int16),
    )


def ceiling(log: AccessLog) -> int:
    """Chunks that a cache which keeps everything would find."""
    return len(log.chunk_ids) - log.unique_chunks


def test_the_server_counts_what_was_sent_and_found(server: Server) -> None:
    log = SMALL.generate()
    result = replay(log, server.rpc_url, settings("counts"))
    eventually(lambda: server.counter("lookups_requests", model_name="counts"), len(log))
    assert server.counter("lookup_requested_tokens", model_name="counts") == len(log.chunk_ids) * CHUNK_SIZE
    assert server.counter("lookup_hit_tokens", model_name="counts") == result.hit_chunks * CHUNK_SIZE
    assert (result.requests, result.skipped, result.tokens) == (len(log), 0, log.tokens.sum())
    assert result.requested_chunks == len(log.chunk_ids)
    assert result.sent_chunks == result.requested_chunks - result.hit_chunks
    assert result.hits.sum() == result.hit_chunks
    assert (result.corrupt_chunks, result.failed_retrieves, result.refused_stores) == (0, 0, 0)


def test_a_cache_that_holds_everything_finds_every_known_chunk(server: Server) -> None:
    log = SMALL.generate()
    assert replay(log, server.rpc_url, settings("everything")).hit_chunks == ceiling(log)
    assert replay(log, server.rpc_url, settings("everything")).hit_rate == 1


def test_four_clients_find_what_one_does_since_a_turn_waits_for_the_turn_before(server: Server) -> None:
    log = SMALL.model_copy(update={"conversations": 1, "tenants": 1}).generate()
    result = replay(log, server.rpc_url, settings("four", clients=4))
    assert result.hit_chunks == ceiling(log)
    assert server.status()["active_sessions"] == 0


def test_a_recorded_trace_reaches_its_published_ceiling(server: Server, traces: Path) -> None:
    log = read_trace(traces / "lmcache_agent_miniswe.jsonl.gz")
    result = replay(log, server.rpc_url, settings("miniswe", clients=4))
    eventually(lambda: server.counter("lookup_hit_tokens", model_name="miniswe"), result.hit_chunks * CHUNK_SIZE)
    assert result.hit_rate == pytest.approx(0.9371, abs=5e-5)
    assert result.corrupt_chunks == 0


def test_the_servers_own_log_shows_the_prefixes_that_were_sent(server: Server) -> None:
    log = SMALL.generate()
    replay(log, server.rpc_url, settings("echo"))
    eventually(lambda: server.counter("lookups_requests", model_name="echo"), len(log))
    seen = read_lookup_log(server.log_dir)
    seen = seen.select(np.flatnonzero(seen.models == seen.model_names.index("echo")))
    sent = log.select(np.flatnonzero(log.chunks_per_request))  # LMCache does not log what is shorter than a chunk
    assert seen.chunk_ids.tolist() == sent.chunk_ids.tolist()
    assert seen.offsets.tolist() == sent.offsets.tolist()
    assert seen.tokens.tolist() == sent.tokens.tolist()
    assert seen.chunk_bytes == 16 * CHUNK_SIZE
    assert seen.hashes is not None
    assert len(np.unique(seen.hashes, axis=0)) == log.unique_chunks


def test_each_tenant_is_a_cache_salt(server: Server) -> None:
    log = SMALL.model_copy(update={"tenants": 3}).generate()
    result = replay(log, server.rpc_url, settings("tenants"))
    eventually(lambda: server.counter("lookup_hit_tokens", model_name="tenants"), result.hit_chunks * CHUNK_SIZE)
    for number, name in enumerate(log.tenant_names):
        hits = result.hits[log.tenants == number].sum()
        assert server.counter("lookup_hit_tokens", model_name="tenants", cache_salt=name) == hits * CHUNK_SIZE > 0


def test_each_model_of_a_log_keeps_its_name(server: Server) -> None:
    log = made((0, 1), (2, 3), (0, 1))
    log = AccessLog(**vars(log) | {"models": np.array([0, 1, 0], dtype=np.int16), "model_names": ("model-a", "model-b")})
    assert replay(log, server.rpc_url, settings("unused")).hits.tolist() == [0, 0, 2]
    eventually(lambda: server.counter("lookups_requests", model_name="model-a"), 2)
    assert server.counter("lookups_requests", model_name="model-b") == 1


def test_a_request_shorter_than_a_chunk_is_looked_up_and_ended(server: Server) -> None:
    result = replay(made((), (), tokens=CHUNK_SIZE - 1), server.rpc_url, settings("short"))
    assert (result.requests, result.requested_chunks, result.hit_rate) == (2, 0, None)
    eventually(
        lambda: server.counter("lookup_early_exit_requests", model_name="short", reason="empty_chunk_hashes"), result.requests
    )


def test_a_store_larger_than_the_cache_is_sent_but_not_kept(server: Server) -> None:
    log = made(tuple(range(20)), tuple(range(20)))  # 20 chunks of 2 MiB; L1 has 32 MiB
    result = replay(log, server.rpc_url, settings("large", kv_bytes_per_token=8192))
    assert (result.hit_chunks, result.sent_chunks, result.refused_stores) == (0, 40, 0)
    eventually(lambda: server.counter("l1_allocation_failure_chunks", model_name="large", during="l1_store"), 40)


def test_kv_that_comes_back_different_is_counted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    log = made((0, 1, 2), (0, 3))
    replay(log, server.rpc_url, settings("corrupt"))
    expected = "agent_tools.workload.kv_client.marks"  # a fault that the real server cannot be made to show
    monkeypatch.setattr(expected, lambda ids: (ids + 1).astype(np.uint32))
    result = replay(log, server.rpc_url, settings("corrupt"))
    assert (result.hit_chunks, result.corrupt_chunks) == (5, 5)


def test_a_paced_replay_keeps_to_the_logs_times(server: Server) -> None:
    log = made(*[(number,) for number in range(6)])
    result = replay(log, server.rpc_url, settings("paced", pace=10.0))
    assert (result.started >= log.timestamps / 10).all()
    assert result.seconds >= 0.5
    assert result.lag_seconds == pytest.approx((result.started - log.timestamps / 10).max())


def test_a_session_with_think_times_is_replayed_as_a_closed_loop(server: Server) -> None:
    log = replace(
        made((0,), (1,), (0, 2), (0, 2, 3)),
        timestamps=np.array([0.0, 0.5, 2.0, 4.0]),
        sessions=np.array([0, -1, 0, 0], np.int32),
        think_seconds=np.array([np.nan, np.nan, 2.0, 2.0]),
    )
    result = replay(log, server.rpc_url, settings("closed", pace=10.0, clients=2))
    assert result.hits.tolist() == [0, 0, 1, 2]
    assert (np.diff(result.started[[0, 2, 3]]) > 0.2).all()  # the turn's own time comes on top of the think time


def test_no_request_starts_after_the_time_limit(server: Server) -> None:
    log = made(*[(number,) for number in range(100)])
    result = replay(log, server.rpc_url, settings("limit", pace=10.0, limit_seconds=0.55))
    assert (result.requests, result.skipped) == (6, 94)
    assert np.isnan(result.started[6:]).all()
    assert (result.hits[6:] == -1).all()
    eventually(lambda: server.counter("lookups_requests", model_name="limit"), 6)


def test_a_stopped_replay_ends_at_once_and_leaves_nothing_behind(server: Server) -> None:
    stop = threading.Event()
    log = made(*[(number,) for number in range(100)])
    result = replay(log, server.rpc_url, settings("stopped", pace=1.0), stop=stop, on_progress=lambda *_: stop.set())
    assert result.skipped >= 90, "one a second would have been sent for 100 s"
    assert_nothing_left(server)


def test_an_interrupted_replay_leaves_nothing_behind(server: Server) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    log = made(*[(number,) for number in range(100)])
    with pytest.raises(KeyboardInterrupt):
        replay(log, server.rpc_url, settings("interrupted", pace=1.0, clients=4), on_progress=interrupt)
    assert_nothing_left(server)


def assert_nothing_left(server: Server) -> None:
    status = server.status()
    assert status["active_sessions"] == 0
    assert status["registered_non_cuda_instance_ids"] == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("ThreadPool", "mq-client"))]


def test_progress_ends_with_all_requests_done(server: Server) -> None:
    reports: list[tuple[int, int]] = []
    replay(SMALL.generate(), server.rpc_url, settings("progress"), on_progress=lambda *report: reports.append(report))
    assert reports == sorted(reports)
    assert reports[-1] == (60, 60)


def test_another_chunk_size_is_refused_before_any_traffic(server: Server) -> None:
    log = SMALL.model_copy(update={"chunk_size": 512}).generate()
    with pytest.raises(
        WorkloadError,
        match=r"chunks of 512 tokens, but the server at .* has chunks of 256 tokens; start the server with --chunk-size 512",
    ):
        replay(log, server.rpc_url, settings("mismatch"))
    assert server.counter("lookups_requests", model_name="mismatch") == 0


def test_a_tenant_that_cannot_be_a_salt_is_refused(server: Server) -> None:
    log = AccessLog(**vars(made((0,))) | {"tenant_names": ("a@b",)})
    with pytest.raises(WorkloadError, match="tenant 'a@b' cannot be a cache salt"):
        replay(log, server.rpc_url, settings("salt"))


@pytest.mark.needs("lmcache")
def test_nothing_listening_is_told_at_once() -> None:
    with pytest.raises(UnreachableError, match="nothing listens at tcp://127"):
        replay(made((0,)), f"tcp://127.0.0.1:{free_port()}", settings("nobody"))


@pytest.mark.needs("lmcache")
@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:port", ""])
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(UnreachableError, match="give one like tcp://127"):
        replay(made((0,)), address, settings("nowhere"))


def test_the_http_port_is_not_taken_for_the_rpc_port(server: Server) -> None:
    with pytest.raises(NotLMCacheError, match="RPC address"):
        replay(made((0,)), server.http_url.replace("http", "tcp"), settings("http", timeout_seconds=1))


def test_a_server_that_takes_no_kv_from_clients_is_told(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, pytest.raises(UnsupportedError, match="--supported-transfer-mode auto"):
        replay(made((0,)), server.rpc_url, settings("driven", timeout_seconds=1))


def test_a_server_that_hangs_or_dies_ends_the_replay(tmp_path: Path) -> None:
    log = made(*[(number,) for number in range(2_000)])
    with running_server(tmp_path, "--supported-transfer-mode", "auto") as server:

        def hang(done: int, _: int) -> None:
            if done:
                server.process.send_signal(signal.SIGSTOP)

        with pytest.raises(CacheDiedError, match=r"did not answer \w+ within 1 s; \d+ of 2,000 requests were done"):
            replay(log, server.rpc_url, settings("hung", clients=4, timeout_seconds=1), on_progress=hang)
        server.process.send_signal(signal.SIGCONT)

        def kill(done: int, _: int) -> None:
            if done:
                server.process.kill()
                server.process.wait()

        with pytest.raises(CacheDiedError, match=r"is gone: .*; \d+ of 2,000 requests were done"):
            replay(log, server.rpc_url, settings("dead", clients=4), on_progress=kill)


def test_importing_replay_does_not_import_lmcache_or_torch() -> None:
    code = "import sys, agent_tools.workload.replay; print([name for name in ('lmcache', 'torch', 'zmq') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
