"""Claims about the window that the server's module records: it is the access log, and is fetched piece by piece."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from real_cache import Launch, Play, eventually
from real_logs import conversations, log_of

from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.deployments.server.workload_window import OTHERS, WorkloadWindow
from agent_tools.errors import NotLMCacheError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB
from agent_tools.prediction.forecast import chunks_of
from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.server_module.answer import packed
from agent_tools.server_module.lookups import Lookup
from agent_tools.server_module.window import Window
from agent_tools.wire.http_client import AdminClient
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

Connect = Callable[..., ServerDeployment]


class Recording:
    """A module's window over HTTP, without the server around it: records by hand, counts the chunks that are sent."""

    def __init__(self, requests: int = 1000, chunks: int = 10_000, seconds: float = 3600.0) -> None:
        self.window, self.instance, self.sent = Window(requests, chunks, seconds), "a", 0
        self._transport = httpx.MockTransport(self._answer)
        self.client = WorkloadWindow(AdminClient("http://module", transport=self._transport))

    def add(self, *chunks: int, time: float, tenant: str = "") -> None:
        hashes = [chunk.to_bytes(32, "big")[::-1] for chunk in chunks]
        self.window.add(Lookup(time, "model", tenant, 256 * len(chunks) + 7, hashes, 0, 0))

    def log(self) -> AccessLog:
        log = io_loop.run(self.client.log)
        assert log is not None
        return log

    def requests(self) -> list[list[int]]:
        """The chunks of each request, by the numbers they were recorded with."""
        log = self.log()
        assert log.hashes is not None
        names = [int.from_bytes(row.tobytes(), "little") for row in log.hashes]
        return [[names[chunk] for chunk in log.request(r)] for r in range(len(log))]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        part = self.window.since(int(request.url.params["since"]), 20)
        self.sent += len(part.records)
        models = [model for model, _ in self.window.names("model")]
        names: dict[str, Any] = {"tenants": self.window.names("tenant"), "models": models}  # as a module without layouts answers
        return httpx.Response(200, content=packed(part, version=1, instance=self.instance, chunk_size=256, **names))


def test_every_lookup_is_fetched_once_and_in_order_of_time() -> None:
    recording = Recording()
    for number in range(50):
        recording.add(1, 2, 10 + number, time=float(number))
    assert recording.requests() == [[1, 2, 10 + number] for number in range(50)]
    recording.add(1, 3, time=60.0)
    recording.add(1, 2, time=59.5)  # it ended later than one that began later
    assert recording.requests()[-2:] == [[1, 2], [1, 3]]
    assert recording.sent == 52
    assert recording.client.reaches(None)


def test_before_the_first_lookup_there_is_no_log() -> None:
    recording = Recording()
    assert io_loop.run(recording.client.log) is None
    assert recording.client.reaches(None)


def test_another_process_and_a_gap_begin_it_anew() -> None:
    recording = Recording(requests=10, seconds=1)
    for number in range(5):
        recording.add(number, time=float(number))
    assert len(recording.log()) == 5
    for number in range(5, 30):  # more than the window holds, since it was last read
        recording.add(number, time=float(number))
    assert recording.requests() == [[number] for number in range(20, 30)]
    assert not recording.client.reaches(None)
    assert recording.client.reaches(20.0)
    recording.window, recording.instance = Window(10, 100, 1), "b"
    recording.add(7, time=100.0)
    assert recording.requests() == [[7]]
    assert recording.client.reaches(None)


def test_when_the_module_begins_to_sample_all_is_read_anew_and_the_rate_is_stated() -> None:
    recording = Recording(chunks=1000)
    for number in range(40):
        recording.add(*range(1, 21), time=float(number))
    assert recording.log().sampling_rate == 1
    for number in range(40, 80):
        recording.add(*range(1, 21), time=float(number))
    log = recording.log()
    assert log.sampling_rate == 0.5
    assert not recording.client.reaches(0.0)
    assert "one in 2" in log.remarks[0]
    each = len(log.request(0))
    assert 0 < each < 20
    assert log.tokens.tolist() == [each * 256 + 3] * 80


def test_a_sampled_log_gives_the_curve_of_the_whole() -> None:
    traffic = AgentTraffic(requests=3000, conversations=60, seed=4).generate()
    recording = Recording(requests=5000, chunks=len(traffic.chunk_ids) // 3)
    rng = np.random.default_rng(0)
    names = [int(one) for one in rng.integers(2**62, size=traffic.unique_chunks)]
    for number in range(len(traffic)):
        recording.add(*(names[chunk] for chunk in traffic.request(number)), time=float(number))
    sampled = recording.log()
    assert sampled.sampling_rate < 1
    whole, part = hit_rate_curve(traffic), hit_rate_curve(sampled)
    for size_mb in (20.0, 60.0, 150.0):
        of_whole, of_part = (chunks_of([size_mb], log, 128.0)[0] for log in (traffic, sampled))
        assert of_whole == size_mb * MB / (128 * 256)
        assert part.hit_rate(of_part) == pytest.approx(whole.hit_rate(of_whole), abs=0.03)


def test_tenants_beyond_those_told_apart_are_called_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_tools.server_module.window.MAX_NAMES", 2)
    recording = Recording()
    for number, tenant in enumerate(("a", "b", "c", "a", "d")):
        recording.add(1, time=float(number), tenant=tenant)
    log = recording.log()
    assert [log.tenant_names[label] for label in log.tenants] == ["a", "b", OTHERS, "a", OTHERS]


@pytest.mark.parametrize("body", [b"", b"not msgpack", b"\x81\xa5first\x00"])
def test_an_answer_that_is_none_is_not_that_of_the_module(body: bytes) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    with pytest.raises(NotLMCacheError):
        io_loop.run(WorkloadWindow(AdminClient("http://module", transport=transport)).log)


# ---- on real servers ----


def test_the_window_of_a_remote_server_is_the_log_it_would_have_written_with_tenants(
    connect: Connect, play: Play, server: ServerProcess, module_token: SecretStr
) -> None:
    began = time.time()
    log = AgentTraffic(requests=120, tenants=2, seed=6).generate()
    play(log)
    window = io_loop.run(connect(server.http_url, token=module_token).access_log, began)
    logged = io_loop.run(connect(server.http_url, access_log=server.folder / "lookups")._logged, began)
    assert window is not None
    assert logged is not None
    assert {window.tenant_names[label] for label in window.tenants} == set(log.tenant_names)
    assert [tuple(window.request(r)) for r in range(len(window))] == [tuple(logged.request(r)) for r in range(len(logged))]
    assert np.abs(window.timestamps - logged.timestamps).max() < 0.01
    assert window.tokens.tolist() == logged.tokens.tolist()


@pytest.fixture(scope="module")
def forgetful(launch: Launch) -> ServerProcess:
    """A server whose module keeps few lookups, and samples soon."""
    config = {"window_chunks": 1000, "window_requests": 100, "window_seconds": 3600}
    return launch({"--server-module": json.dumps({"module_path": "agent_tools.server_module", "config": config})})


def test_when_the_window_is_too_short_the_servers_own_log_is_read(connect: Connect, forgetful: ServerProcess) -> None:
    remote = connect(forgetful.http_url)
    beside = connect(forgetful.http_url, access_log=forgetful.folder / "lookups")
    replay(log_of(*conversations(40, 40)), forgetful.rpc_url, ReplaySettings())
    eventually(lambda: len(io_loop.run(beside.access_log) or ()) == 40)
    whole, sampled = io_loop.run(beside.access_log), io_loop.run(remote.access_log)
    assert whole is not None
    assert sampled is not None
    assert (whole.sampling_rate, whole.unique_chunks) == (1, 1600)
    assert sampled.sampling_rate < 1
    assert sampled.unique_chunks == pytest.approx(1600 * sampled.sampling_rate, rel=0.3)
