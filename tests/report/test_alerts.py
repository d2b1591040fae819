"""Claims about the alert rules: promtool takes them, each fires when it should, and real servers provoke them in Prometheus.

Prometheus is Debian's package `prometheus`; where it is not installed, these tests are skipped.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from real_cache import Launch, eventually
from real_logs import conversations, log_of

from agent_tools.deployments.server.process import ServerProcess, free_port
from agent_tools.io_loop import io_loop
from agent_tools.report.alerts import ALERTS, rules
from agent_tools.report.dashboard import PANELS, dashboard
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (apt-get install prometheus)",
)
JOB = 'job="lmcache", instance="a"'
TICKS = f"lmcache_mp_l1_eviction_loop_ticks_total{{{JOB}}}"
HITS, ASKED = f"lmcache_mp_lookup_hit_tokens_total{{{JOB}}}", f"lmcache_mp_lookup_requested_tokens_total{{{JOB}}}"
PROVOKED: Mapping[str, dict[str, str]] = {
    "LMCacheDown": {f"up{{{JOB}}}": "0x120"},
    "LMCacheRestarted": {f"process_start_time_seconds{{{JOB}}}": "1x118 2x2"},
    "LMCacheStoresDropped": {f'lmcache_mp_l1_allocation_failure_chunks_total{{{JOB}, during="l1_store"}}': "0+1x120"},
    "LMCacheL1FullWithoutEviction": {f"lmcache_mp_l1_usage_ratio{{{JOB}}}": "0.99x120"},
    "LMCacheEvictionStopped": {TICKS: "7x120"},
    "LMCacheEventsDropped": {f"lmcache_mp_event_bus_dropped_events_total{{{JOB}}}": "0x118 5x2"},
    "LMCacheModelNotRegistered": {f'lmcache_mp_lookup_early_exit_requests_total{{{JOB}, reason="no_gpu_context"}}': "0x118 5x2"},
    "LMCacheHitRateFell": {ASKED: "0+100x120", HITS: "0+90x100 9000+10x20"},
    "LMCacheL2LoadsFail": {f'lmcache_mp_l2_prefetch_failure_chunks_total{{{JOB}, reason="l1_oom"}}': "0x118 5x2"},
    "LMCacheAgentChangeUnclear": {'lmcache_agent_changes{instance="b", cache="default", outcome="unknown"}': "1x120"},
    "LMCacheAgentUndoesOften": {'lmcache_agent_changes{instance="b", cache="default", outcome="undone"}': "0x1320 3x120"},
}
"""Alert -> series, one value a minute, that provoke it."""
HEALTHY = {
    f"up{{{JOB}}}": "1x120",
    f"process_start_time_seconds{{{JOB}}}": "1x120",
    TICKS: "0+60x120",
    f"lmcache_mp_l1_usage_ratio{{{JOB}}}": "0.99x120",
    f"lmcache_mp_l1_evicted_chunks_total{{{JOB}}}": "0+10x120",
    f"lmcache_mp_event_bus_dropped_events_total{{{JOB}}}": "0x120",
    ASKED: "0+100x120",
    HITS: "0+90x120",
    'lmcache_agent_changes{instance="b", cache="default", outcome="verified"}': "0+1x120",
}


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(rules(), encoding="utf-8")
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(file))


def test_every_alert_fires_on_what_it_is_for_and_on_nothing_healthy(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(rules(), encoding="utf-8")
    assert PROVOKED.keys() == {one.name for one in ALERTS}
    tests: list[dict[str, Any]] = []
    for name, series in PROVOKED.items():
        at = "1440m" if name == "LMCacheAgentUndoesOften" else "120m"
        tests.append(_fires(name, series, at, firing=True))
        tests.append(_fires(name, HEALTHY, "120m", firing=False))
    case = tmp_path / "test.yaml"
    case.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}), encoding="utf-8")
    promtool("test", "rules", str(case))


def _fires(name: str, series: Mapping[str, str], at: str, *, firing: bool) -> dict[str, Any]:
    """Say whether an alert fires, by the expression that Prometheus keeps of its state, whatever its labels and texts are."""
    count = {"expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)', "eval_time": at}
    return {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [{**count, "exp_samples": [{"labels": "{}", "value": 1 if firing else 0}]}],
    }


def test_the_dashboard_is_json_of_expressions_that_prometheus_understands(tmp_path: Path) -> None:
    board = json.loads(dashboard("kv"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(board["panels"]) == len(PANELS)
    filled = [one.replace("$__rate_interval", "5m").replace("$job", "kv") for one in expressions]
    records = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(filled)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}), encoding="utf-8")
    assert f"{len(records)} rules found" in promtool("check", "rules", str(file))
    assert not [one for one in filled if "$" in one]


@contextmanager
def prometheus(folder: Path, *servers: ServerProcess) -> Iterator[str]:
    """A real Prometheus that scrapes servers every second, with the rules on windows of ten seconds."""
    (folder / "rules.yaml").write_text(rules(window="10s", lasting="1s"), encoding="utf-8")
    targets = [server.http_url.removeprefix("http://") for server in servers]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "lmcache", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command.append(f"--web.listen-address={url.removeprefix('http://')}")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _ready(url), seconds=60)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def firing(url: str) -> set[str]:
    alerts = httpx.get(f"{url}/api/v1/alerts").json()["data"]["alerts"]
    return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}


@pytest.mark.long
def test_real_servers_provoke_them_in_a_real_prometheus(launch: Launch, tmp_path: Path) -> None:
    full = launch({"--eviction-policy": "noop", "--l1-size-gb": 4 / 1024, "--event-bus-queue-size": 2})
    dead = launch({"--eviction-policy": "IsolatedLRU", "--l1-size-gb": 4 / 1024})
    traffic = AgentTraffic(requests=200, conversations=40, turns=5, seed=4).generate()
    with prometheus(tmp_path, full, dead) as url:
        seen: set[str] = set()

        def provoked(*names: str) -> bool:
            for server in (full, dead):
                if server.alive:
                    replay(traffic, server.rpc_url, ReplaySettings(clients=4))
            seen.update(firing(url))
            return set(names) <= seen

        eventually(
            lambda: provoked(
                "LMCacheStoresDropped", "LMCacheL1FullWithoutEviction", "LMCacheEventsDropped", "LMCacheEvictionStopped"
            ),
            seconds=90,
        )
        assert "LMCacheDown" not in seen
        io_loop.run(dead.stop)
        eventually(lambda: "LMCacheDown" in firing(url), seconds=60)


def test_every_name_of_lmcache_in_the_rules_is_one_that_a_server_exports_or_that_we_read(launch: Launch) -> None:
    server = launch({})
    replay(log_of(*conversations(3, 8), *conversations(3, 8)), server.rpc_url, ReplaySettings())
    used = set(re.findall(r"lmcache_mp_[a-zA-Z0-9_]+", rules() + dashboard()))
    from agent_tools.deployments.server import exposition  # noqa: PLC0415

    read = {*exposition._TOTALS, *exposition._TOKENS, *(name for name, _, _ in exposition._LABELLED)}

    def missing() -> set[str]:
        exported = set(re.findall(r"^lmcache_mp_[a-zA-Z0-9_]+", httpx.get(f"{server.http_url}/metrics").text, re.MULTILINE))
        return used - read - exported

    assert eventually(lambda: not missing()), missing()
