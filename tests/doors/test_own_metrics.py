"""Claims about our own figures for Prometheus, and about the commands that print alerts and a dashboard."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from serving import serving
from typer.testing import CliRunner

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.simulated.deployment import SimulatedDeployment, SimulatedOptions
from agent_tools.doors.cli import app
from agent_tools.doors.rest import rest_app
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate
from agent_tools.operations import Operations


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Operations]:
    """Operations on a simulated cache that more memory would help."""
    options = SimulatedOptions(l1_size_mb=64, kv_bytes_per_token=4096)
    default = CacheSettings(target="simulated:", simulated=options, bounds=Bounds(max_size_mb=256), cooldown_seconds=0)
    operations = Operations(Registry(Settings(caches={"default": default}, state_folder=tmp_path)))
    deployment = operations.registry.get("default").deployment
    assert isinstance(deployment, SimulatedDeployment)
    io_loop.run(deployment.advance, 400.0)
    yield operations
    io_loop.run(operations.close)


def test_changes_by_outcome_and_the_last_advice_are_exported(small: Operations) -> None:
    change = io_loop.run(small.configure, "default", ConfigUpdate(eviction_ratio=0.3), "test", "test")
    assert change is not None
    io_loop.run(small.undo, None, change.change_id, "test")
    with serving(rest_app(lambda: small)) as url:
        advice = httpx.get(f"{url}/lmcache/recommendations", timeout=60).json()
        text = httpx.get(f"{url}/lmcache/agent/metrics").text
    samples = {(s.name, *sorted(s.labels.values())): s.value for f in text_string_to_metric_families(text) for s in f.samples}
    assert samples["lmcache_agent_changes", "default", "undone"] == 1
    assert samples["lmcache_agent_changes", "applied", "default"] == 1  # the undo
    assert samples[("lmcache_agent_advice", *sorted(("default", advice["verdict"])))] == 1
    assert samples["lmcache_agent_change_log_problems",] == 0
    if advice["verdict"] == "act":
        gain = 100 * advice["recommendations"][0]["gain"]["estimate"]
        assert samples["lmcache_agent_predicted_gain_points", "default"] == pytest.approx(gain)


def test_the_commands_print_what_the_other_programs_read() -> None:
    rules = yaml.safe_load(CliRunner().invoke(app, ["alerts", "--job", "kv", "--window", "2m"]).stdout)
    down, restarted, *_ = rules["groups"][0]["rules"]
    assert down["expr"] == 'up{job="kv"} == 0'
    assert "[2m]" in restarted["expr"]
    board = json.loads(CliRunner().invoke(app, ["dashboard", "--job", "kv"]).stdout)
    assert board["templating"]["list"][1]["query"] == "kv"
