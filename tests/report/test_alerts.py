"""Claims about the alert rules: promtool takes them, each fires when it should, and none fires on what is well.

`test_alerts_provoked` has the same of real servers. Prometheus is Debian's package `prometheus`; where it is not installed,
these tests are skipped.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from real_cache import Launch, eventually
from real_logs import conversations, log_of

from agent_tools.report.alerts import ALERTS, rules
from agent_tools.report.dashboard import PANELS, dashboard
from agent_tools.workload.replay import ReplaySettings, replay

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (apt-get install prometheus)",
)
JOB = 'job="lmcache", instance="a"'
TICKS = f"lmcache_mp_l1_eviction_loop_ticks_total{{{JOB}}}"
HITS, ASKED = f"lmcache_mp_lookup_hit_tokens_total{{{JOB}}}", f"lmcache_mp_lookup_requested_tokens_total{{{JOB}}}"
LOOKUPS = f"lmcache_mp_lookups_requests_total{{{JOB}}}"
UP = {f"up{{{JOB}}}": "1x120"}
FULL = {f"lmcache_mp_l1_usage_ratio{{{JOB}}}": "0.99x120"}
DROPPED = {f'lmcache_mp_l1_allocation_failure_chunks_total{{{JOB}, during="l1_store"}}': "0+1x120"}
UNKNOWN_MODEL = f'lmcache_mp_lookup_early_exit_requests_total{{{JOB}, reason="no_gpu_context"}}'
NOT_LOADED = f'lmcache_mp_l2_prefetch_failure_chunks_total{{{JOB}, reason="l1_oom"}}'
OF_AGENT = 'instance="b", cache="default"'
PROVOKED: Mapping[str, list[dict[str, str]]] = {
    "LMCacheDown": [{f"up{{{JOB}}}": "0x120"}],
    "LMCacheRestarted": [{f"process_start_time_seconds{{{JOB}}}": "1x118 2x2"}],
    "LMCacheStoresDropped": [DROPPED],
    "LMCacheL1FullWithoutEviction": [FULL | DROPPED],
    "LMCacheEvictionStopped": [{TICKS: "7x120"}],
    "LMCacheEventsDropped": [{f"lmcache_mp_event_bus_dropped_events_total{{{JOB}}}": "0x118 5x2"}],
    "LMCacheModelNotRegistered": [{UNKNOWN_MODEL: "3x118 8x2"}, UP | {UNKNOWN_MODEL: "_x118 5x2"}],
    "LMCacheHitRateFell": [{ASKED: "0+9000x120", HITS: "0+8000x100 800000+1000x20", LOOKUPS: "0+10x120"}],
    "LMCacheL2LoadsFail": [{NOT_LOADED: "3x118 8x2"}, UP | {NOT_LOADED: "_x118 5x2"}],
    "LMCacheAgentChangeUnclear": [{f"lmcache_agent_unclear_changes{{{OF_AGENT}}}": "0x100 1x20"}],
    "LMCacheAgentUndoesOften": [{f"lmcache_agent_undone_last_day{{{OF_AGENT}}}": "0x100 1x10 2x10"}],
}
"""Alert -> series, one value a minute, that provoke it within two hours. LMCache exports most counters from their first count."""
AGENT_AT_REST = {
    f"lmcache_agent_unclear_changes{{{OF_AGENT}}}": "0x120",
    f"lmcache_agent_undone_last_day{{{OF_AGENT}}}": "0x120",
    'lmcache_agent_change_log_problems{instance="b"}': "0x120",
}
IDLE = UP | {
    f"process_start_time_seconds{{{JOB}}}": "1x120",
    TICKS: "0+60x120",
    f"lmcache_mp_l1_usage_ratio{{{JOB}}}": "0x120",
    f"lmcache_mp_event_bus_dropped_events_total{{{JOB}}}": "0x120",
}
BUSY = IDLE | {
    **FULL,
    f"lmcache_mp_l1_evicted_chunks_total{{{JOB}}}": "0+10x120",
    ASKED: "0+9000x120",
    HITS: "0+8000x120",
    LOOKUPS: "0+10x120",
}
JUST_STARTED = {
    f"up{{{JOB}}}": "_x60 0 1x60",
    f"process_start_time_seconds{{{JOB}}}": "_x61 9x60",
    TICKS: "_x62 1+60x60",
    f"lmcache_mp_l1_usage_ratio{{{JOB}}}": "_x61 0+0.01x60",
    f"lmcache_mp_event_bus_dropped_events_total{{{JOB}}}": "_x61 0x60",
    ASKED: "_x63 500+9000x60",
    HITS: "_x63 0+0x10 0+8000x50",
    LOOKUPS: "_x63 2+10x60",
}
QUIET: Mapping[str, dict[str, str]] = {
    "busy": BUSY,
    "idle": IDLE,
    "just started, and Prometheus asked a little before": JUST_STARTED,
    "an agent that did nothing": AGENT_AT_REST,
    "an agent that was just started": {name: f"_x119 {values[0]}x1" for name, values in AGENT_AT_REST.items()},
    "an agent whose changes are kept, and one was undone": AGENT_AT_REST
    | {f'lmcache_agent_changes{{{OF_AGENT}, outcome="verified"}}': "0+1x120"}
    | {f"lmcache_agent_undone_last_day{{{OF_AGENT}}}": "0x60 1x60"},
    "a change that is under way for some minutes": {f"lmcache_agent_unclear_changes{{{OF_AGENT}}}": "0x60 1x3 0x57"},
    "L1 full, and all that is asked for is there": IDLE | FULL | {ASKED: "0+9000x120", HITS: "0+9000x120", LOOKUPS: "0+10x120"},
    "a large request that does not fit once": BUSY | {next(iter(DROPPED)): "_x60 40x60"},
    "ten requests that hit, and an hour later ten that miss": IDLE
    | {ASKED: "0x9 0+9000x10 90000x49 90000+9000x10 180000x38", HITS: "0x9 0+9000x10 90000x98"}
    | {LOOKUPS: "0x9 0+1x10 10x49 10+1x10 20x38"},
    "traffic that ended an hour ago": IDLE
    | {ASKED: "0+9000x60 540000x60", HITS: "0+8000x60 480000x60", LOOKUPS: "0+10x60 600x60"},
    "one missed scrape": BUSY | {f"up{{{JOB}}}": "1x60 0 1x59"},
    "Prometheus was just started, and the server failed long ago": {
        f"up{{{JOB}}}": "_x110 1x10",
        UNKNOWN_MODEL: "_x110 40x10",
        NOT_LOADED: "_x110 40x10",
        f"process_start_time_seconds{{{JOB}}}": "_x110 1x10",
    },
}


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(rules(), encoding="utf-8")
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(file))


def test_every_alert_fires_on_what_it_is_for(tmp_path: Path) -> None:
    assert PROVOKED.keys() == {one.name for one in ALERTS}
    tests = [_fired(series, f'"{name}"', 1) for name, several in PROVOKED.items() for series in several]
    _test_rules(tmp_path, tests)


def test_the_page_for_operators_has_a_row_for_each_alert() -> None:
    page = (Path(__file__).parents[2] / "docs" / "production.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(LMCache\w+)` \|", page, re.MULTILINE) == [one.name for one in ALERTS]


@pytest.mark.parametrize("what", QUIET)
def test_nothing_fires_on_what_is_well(tmp_path: Path, what: str) -> None:
    _test_rules(tmp_path, [_fired(QUIET[what], '~".+"', 0)])


def test_what_happens_to_one_server_fires_for_none_of_its_neighbours(tmp_path: Path) -> None:
    neighbour = {name.replace('instance="a"', 'instance="c"'): values for name, values in BUSY.items()}
    several = [one for provoked in PROVOKED.values() for one in provoked]
    _test_rules(tmp_path, [_fired(neighbour | one, '~".+", instance="c"', 0) for one in several])


def _test_rules(folder: Path, tests: list[dict[str, Any]]) -> None:
    (folder / "rules.yaml").write_text(rules(), encoding="utf-8")
    case = folder / "test.yaml"
    case.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}), encoding="utf-8")
    promtool("test", "rules", str(case))


def _fired(series: Mapping[str, str], alerts: str, expected: int) -> dict[str, Any]:
    """Count the alerts that fired within two hours, by the series that Prometheus keeps of them."""
    fired = f'count(count by (alertname) (count_over_time(ALERTS{{alertname={alerts}, alertstate="firing"}}[2h]))) or vector(0)'
    return {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [{"expr": fired, "eval_time": "2h", "exp_samples": [{"labels": "{}", "value": expected}]}],
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
