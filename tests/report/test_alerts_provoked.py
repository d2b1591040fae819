"""Claims about the alert rules in a real Prometheus: what happens to real servers and agents fires them, health fires none.

Prometheus is Debian's package `prometheus`; where it is not installed, these tests are skipped.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cut_short import change_cut_short
from real_cache import Launch, eventually
from real_logs import conversations, log_of
from real_prometheus import Prometheus, job, prometheus

from agent_tools.deployments.server.process import ServerProcess, free_port
from agent_tools.io_loop import io_loop
from agent_tools.report.alerts import ALERTS
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay
from benchmarks.incidents.beside import look_up_only

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (apt-get install prometheus)"),
    pytest.mark.real_cache("Prometheus scrapes it"),
    pytest.mark.long,
    pytest.mark.timeout(400),
]
AGAIN = log_of(*conversations(5, 4) * 400)
"""20 chunks that stay, over and over."""
ALL_NEW = log_of(*conversations(2000, 4))
OF_SERVERS = {one.name for one in ALERTS if "Agent" not in one.name}
PROVOKED_BELOW = (
    {"LMCacheStoresDropped", "LMCacheL1FullWithoutEviction", "LMCacheEventsDropped", "LMCacheEvictionStopped", "LMCacheDown"},
    {"LMCacheModelNotRegistered", "LMCacheL2LoadsFail"},
    {"LMCacheHitRateFell", "LMCacheRestarted"},
)


@contextmanager
def traffic(log: AccessLog, *servers: ServerProcess) -> Iterator[None]:
    """Send a log to servers, twenty requests a second each and over and over, until the block ends."""
    halt = threading.Event()

    def send(server: ServerProcess) -> None:
        while not halt.is_set():
            replay(log, server.rpc_url, ReplaySettings(pace=20, kv_bytes_per_token=128), stop=halt)

    threads = [threading.Thread(target=send, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        halt.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def healthy(launch: Launch) -> Iterator[ServerProcess]:
    """A server that is served well, beside those that are not."""
    server = launch({})
    with traffic(AGAIN, server):
        yield server


def test_every_alert_about_a_server_is_provoked_below() -> None:
    assert set().union(*PROVOKED_BELOW) == OF_SERVERS


def test_stores_dropped_l1_full_events_dropped_eviction_stopped_and_down(
    launch: Launch, healthy: ServerProcess, tmp_path: Path
) -> None:
    small = {"--l1-size-gb": 4 / 1024}
    full = launch(small | {"--eviction-policy": "noop"})
    dead = launch(small | {"--eviction-policy": "IsolatedLRU"})
    overrun = launch({"--event-bus-queue-size": 2})
    log = AgentTraffic(requests=200, conversations=40, turns=5, seed=4).generate()
    servers = {full: {"LMCacheStoresDropped", "LMCacheL1FullWithoutEviction"}, overrun: {"LMCacheEventsDropped"}}
    servers[dead] = servers[full] | {"LMCacheEvictionStopped"}
    with prometheus(tmp_path, [job("lmcache", healthy.http_url, *(one.http_url for one in servers))]) as seen:

        def provoked() -> bool:
            for server in servers:
                replay(log, server.rpc_url, ReplaySettings(clients=4))
            return all(seen.fired(server.http_url) == alerts for server, alerts in servers.items())

        eventually(provoked, seconds=120)
        io_loop.run(dead.stop)
        eventually(lambda: "LMCacheDown" in seen.fired(dead.http_url), seconds=60)
        assert _none_of_the_healthy(seen, healthy)


def test_a_model_that_nobody_registered_and_an_l2_whose_loads_fail(
    launch: Launch, healthy: ServerProcess, tmp_path: Path
) -> None:
    asked = launch({})
    l2 = '{"type": "fault_inject", "rate": 0.3, "inner": {"type": "mock", "max_size_gb": 0.5, "mock_bandwidth_gb": 1.0}}'
    lossy = launch({"--l2-adapter": l2, "--l1-size-gb": 4 / 1024})
    more_than_l1 = log_of(*conversations(40, 8) * 100)
    with prometheus(tmp_path, [job("lmcache", asked.http_url, lossy.http_url, healthy.http_url)]) as seen:
        _scraped_for_a_window(seen, asked)
        look_up_only(asked.rpc_url, "other/model", 8, [([1, 2, 3], 256)])  # once: the counter is born with it, and stays
        with traffic(more_than_l1, lossy):
            eventually(lambda: "LMCacheL2LoadsFail" in seen.fired(lossy.http_url), seconds=90)
        eventually(lambda: seen.fired(asked.http_url) == {"LMCacheModelNotRegistered"}, seconds=60)
        eventually(lambda: not seen.firing(asked.http_url), seconds=60)
        assert "LMCacheModelNotRegistered" not in seen.fired(lossy.http_url)
        assert _none_of_the_healthy(seen, healthy)


def test_a_hit_rate_that_falls_and_a_restart(launch: Launch, healthy: ServerProcess, tmp_path: Path) -> None:
    server = launch({})
    with prometheus(tmp_path, [job("lmcache", server.http_url, healthy.http_url)]) as seen:
        with traffic(AGAIN, server):
            _scraped_for_a_window(seen, server, requests=200)
        with traffic(ALL_NEW, server):
            eventually(lambda: seen.fired(server.http_url) == {"LMCacheHitRateFell"}, seconds=120)
        flags = {"--l1-size-gb": 16 / 1024, "--eviction-policy": "LRU", "--supported-transfer-mode": "auto"}
        io_loop.run(server.stop)
        again = ServerProcess.launch(flags, tmp_path / "logs", (server.http_port, server.rpc_port))
        try:
            io_loop.run(again.wait_ready)
            eventually(lambda: "LMCacheRestarted" in seen.fired(server.http_url), seconds=60)
        finally:
            io_loop.run(again.stop)
        assert _none_of_the_healthy(seen, healthy)


def _scraped_for_a_window(seen: Prometheus, server: ServerProcess, requests: int = 0) -> None:
    """Wait until the server was scraped for a window, and asked so often meanwhile."""
    address = server.http_url.removeprefix("http://")
    eventually(lambda: seen.query(f'up{{instance="{address}"}} offset 12s == 1'), seconds=90)
    if requests:
        asked = f'sum(increase(lmcache_mp_lookups_requests_total{{instance="{address}"}}[15s])) > {requests}'
        eventually(lambda: seen.query(asked), seconds=90)


def _none_of_the_healthy(seen: Prometheus, healthy: ServerProcess) -> bool:
    """Say whether the healthy server was scraped and served all the time, and no alert fired for it."""
    address = healthy.http_url.removeprefix("http://")
    assert seen.query(f'rate(lmcache_mp_lookup_hit_tokens_total{{instance="{address}"}}[10s]) > 0')
    assert seen.fired(healthy.http_url) == set()
    return True


@contextmanager
def agent(folder: Path, target: str, *arguments: str) -> Iterator[str]:
    """Run a command of `lmcache-agent` that serves metrics, on a cache named ``prod``. Yield the first line that it prints."""
    settings = f'[caches.prod]\ntarget = "{target}"\ncooldown_seconds = 0\n'
    (folder / "caches.toml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "agent_tools.doors.cli", "--settings", str(folder / "caches.toml"), *arguments]
    environment = os.environ | {"LMCACHE_AGENT_STATE_FOLDER": str(folder / "state")}
    with (folder / f"{arguments[0]}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield eventually(lambda: (folder / f"{arguments[0]}.log").read_text().strip(), seconds=60)
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_changes_that_are_undone_or_have_no_clear_outcome(launch: Launch, tmp_path: Path) -> None:
    server = launch({"--server-module": '{"module_path": "agent_tools.server_module"}'})
    rest, watched = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    jobs = [job("agent", rest, path="/lmcache/agent/metrics"), job("watch", watched), job("lmcache", server.http_url)]
    watch = ("watch", "-c", "prod", "--mode", "observe", "--every", "5", "--metrics-port", watched.rpartition(":")[2])
    serve = ("serve", "--port", rest.rpartition(":")[2])
    with agent(tmp_path, server.http_url, *serve), prometheus(tmp_path, jobs) as seen:
        with agent(tmp_path, server.http_url, *watch):
            for address in (rest, watched):
                undone = f'lmcache_agent_undone_last_day{{cache="prod", instance="{address.removeprefix("http://")}"}} == 0'
                eventually(lambda asked=undone: seen.query(asked), seconds=60)  # type: ignore[misc]
            for watermark in (0.7, 0.6):
                _change_and_undo(rest, watermark)
            eventually(lambda: seen.firing(rest) == seen.firing(watched) == {"LMCacheAgentUndoesOften"}, seconds=60)
        change_cut_short(server.http_url, tmp_path / "state")
        eventually(lambda: "LMCacheAgentChangeUnclear" in seen.firing(rest), seconds=60)
        change = {"eviction_ratio": 0.3}
        httpx.post(f"{rest}/lmcache/config?cache=prod&reason=again", json=change, timeout=60).raise_for_status()
        eventually(lambda: seen.firing(rest) == {"LMCacheAgentUndoesOften"}, seconds=60)
        assert seen.fired(server.http_url) == set()


def _change_and_undo(rest: str, watermark: float) -> None:
    asked = {"eviction_watermark": watermark}
    changed = httpx.post(f"{rest}/lmcache/config?cache=prod&reason=a+test", json=asked, timeout=60).raise_for_status()
    httpx.post(f"{rest}{changed.headers['location']}/undo?cache=prod", timeout=60).raise_for_status()
