"""Claims about advice on what a real server did, and about what came of following it. Figures are the server's own."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from real_cache import Launch, Play
from real_engine import engine
from real_logs import conversations, log_of

from agent_tools.caches.registry import Cache, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.models import ActionKind, Bounds, ChangeOutcome, ConfigUpdate, Rung, SymptomCode, Verdict, VerificationVerdict
from agent_tools.operations import Operations
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, _kv_client, replay


def demanding(seed: int, requests: int = 240) -> AgentTraffic:
    """Twice 16 MB of KV, or three times with 360 requests: what is evicted is asked for again."""
    return AgentTraffic(requests=requests, conversations=40, turns=6, tool_tokens=1500, spread=0.3, seed=seed)


def test_the_proposed_size_gives_the_predicted_hit_rate(operations: Operations, cache: Cache, play: Play) -> None:
    log = demanding(seed=1, requests=360).generate()  # the gain is then clear, whenever the eviction ticks fall
    io_loop.run(operations.clear, "default", "test")  # on record, so that the model starts from an empty cache too
    began = io_loop.run(operations.metrics).window.end.timestamp()
    before = play(log, model="advice").hit_rate
    advice = io_loop.run(operations.recommend, "default", None, None, lambda _: None, began)
    assert advice.rung is Rung.ACCESS_LOG
    assert advice.token_hit_rate == pytest.approx(before)
    assert advice.verdict is Verdict.ACT, advice.why
    best = advice.best
    assert best is not None
    assert best.gain is not None
    assert best.update is not None
    change = io_loop.run(operations.apply, io_loop.run(operations.plan, "default", best.update, advice.why), "test")
    assert change.config.max_size_mb == best.update.max_size_mb
    io_loop.run(operations.clear, "default", "test")
    after = play(log, model="advice").hit_rate
    assert before is not None
    assert after is not None
    # A second pass is not the first one's twin in time; two points are what that was seen to make.
    assert best.gain.lower - 0.02 <= after - before <= best.gain.upper + 0.02


def test_a_server_of_the_size_that_is_called_enough_keeps_the_hit_rate(
    operations: Operations, cache: Cache, play: Play, launch: Launch
) -> None:
    log = AgentTraffic(requests=120, conversations=6, turns=20, tool_tokens=600, spread=0.3, seed=5).generate()
    io_loop.run(operations.clear, "default", "test")
    began = io_loop.run(operations.metrics).window.end.timestamp()
    before = play(log, model="spare", pace=20).hit_rate
    advice = io_loop.run(operations.recommend, "default", None, None, lambda _: None, began)
    assert advice.spare is not None, advice.why
    assert advice.spare.enough_mb <= 0.75 * advice.spare.size_mb
    smaller = launch({"--l1-size-gb": advice.spare.enough_mb / 1024})
    after = replay(log, smaller.rpc_url, ReplaySettings(model="spare", pace=20)).hit_rate
    assert before is not None
    assert after is not None
    assert after >= before - 0.02, "half a point, and what two passes were seen to differ by"


def test_a_cache_frozen_below_its_watermark_is_diagnosed_and_thawed(launch: Launch, tmp_path: Path) -> None:
    """256 chunks, watermark 0.95: after 12 requests of 20 chunks 240 are used; the next does not fit, and nothing is evicted."""
    server = launch({"--l1-size-gb": 8 / 1024, "--eviction-trigger-watermark": 0.95})
    target = {"target": server.http_url, "access_log": server.folder / "lookups", "bounds": Bounds(allow_restart=True)}
    operations = Operations(Registry(Settings(caches={"prod": CacheSettings.model_validate(target)}, state_folder=tmp_path)))
    try:
        traffic = log_of(*conversations(12, 20), *[range(240, 260)] * 30)  # one a second
        with engine(server, "replay", 1):  # without it the world size of what is trimmed is unknown
            replay(traffic, server.rpc_url, ReplaySettings(pace=12))
            advice = io_loop.run(operations.recommend, "prod")
            assert advice.verdict is Verdict.ACT
            assert SymptomCode.WATERMARK_TOO_HIGH in {symptom.code for symptom in advice.symptoms}
            assert "L1 is frozen: it is 94% used, which is below the watermark of 95%" in " ".join(
                symptom.summary for symptom in advice.symptoms
            )
            assert advice.best is not None
            assert advice.best.update is not None
            assert (advice.best.update.eviction_watermark or 1) < 0.94
            (thaw,) = [one for one in advice.recommendations if one.action is ActionKind.OPTIMIZE]
            assert thaw.target_utilization_percent is not None
            done = io_loop.run(operations.optimize, "prod", thaw.target_utilization_percent, "test")
            assert done.entries_before == 240
            assert done.entries_after <= 256 * thaw.target_utilization_percent / 100
        assert replay(log_of(range(20), range(20)), server.rpc_url).hits.tolist()[1] == 20
    finally:
        io_loop.run(operations.close)


def test_chunks_locked_by_an_engine_that_never_frees_them_are_found(
    operations: Operations, cache: Cache, server: ServerProcess, play: Play
) -> None:
    io_loop.run(operations.clear, "default", "test")  # on record, so that the larger requests of other tests do not count
    play(log_of(*conversations(10, 3)), model="locks")
    kv_client = _kv_client()
    connection = kv_client.Connection(server.rpc_url, 10, threading.Event())
    engine = kv_client.KVClient(connection, 77, ("locks",), 128)
    try:
        for number in range(10):
            asked = kv_client.Request(f"lock-{number}", 0, "", np.arange(3 * number, 3 * number + 3), 3 * 256)
            connection.wait(engine._rpc.lookup(engine._key(asked), 1), "lookup")
            assert connection.wait(engine._rpc.wait_prefetch_status(asked.id, 10), "wait_prefetch_status") == 3
        told = {symptom.code: symptom for symptom in io_loop.run(operations.diagnose, "default")}
        assert "locks on 30 of 30 chunks in L1" in told[SymptomCode.LOCKS_HELD].summary
    finally:
        for number in range(10):
            connection.wait(engine._rpc.end_session(f"lock-{number}"), "end_session")
        engine.close()
        connection.close()
    io_loop.run(cache.deployment.clear)


def test_a_change_that_helped_is_verified_on_other_requests_than_before(operations: Operations, cache: Cache, play: Play) -> None:
    io_loop.run(operations.clear, "default", "test")
    began = io_loop.run(operations.metrics).window.end.timestamp()
    play(demanding(seed=8).generate(), model="today")
    seconds = time.time() - began
    before = io_loop.run(operations.baseline, "default", seconds)
    change = io_loop.run(operations.apply, io_loop.run(operations.plan, "default", ConfigUpdate(max_size_mb=48), ""), "test")
    tomorrow = demanding(seed=9).generate()
    traffic = threading.Thread(target=play, args=(tomorrow,), kwargs={"model": "tomorrow"})
    traffic.start()
    told = io_loop.run(operations.verify, change, before, 30)
    traffic.join()
    assert told.in_force
    assert told.paired
    assert told.verdict is VerificationVerdict.BETTER
    assert told.after.tokens.requested >= before.metrics.tokens.requested
    last = io_loop.run(operations.changes)[-1]
    assert (last.change_id, last.outcome, last.detail) == (change.change_id, ChangeOutcome.VERIFIED, told.why)
