"""Claims about our own figures for Prometheus, and about the commands that print alerts and a dashboard."""

import json
from collections.abc import Iterator
from datetime import timedelta
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
from agent_tools.doors.own_metrics import own_registry
from agent_tools.doors.rest import rest_app
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ChangeOutcome, ChangeRecord, ConfigUpdate, SettingChange, SupportLevel
from agent_tools.models.metrics import now
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
    assert samples["lmcache_agent_undone_last_day", "default"] == 1
    assert samples["lmcache_agent_unclear_changes", "default"] == 0
    assert samples["lmcache_agent_change_log_problems",] == 0
    if advice["verdict"] == "act":
        gain = 100 * advice["recommendations"][0]["gain"]["estimate"]
        assert samples["lmcache_agent_predicted_gain_points", "default"] == pytest.approx(gain)


@pytest.mark.parametrize(
    ("records", "unclear", "undone"),
    [
        ([], 0, 0),
        ([("a", ChangeOutcome.STARTED, 1)], 1, 0),
        ([("a", ChangeOutcome.STARTED, 1), ("a", ChangeOutcome.APPLIED, 1)], 0, 0),
        ([("a", ChangeOutcome.UNKNOWN, 30)], 0, 0),
        ([("a", ChangeOutcome.FAILED, 3), ("b", ChangeOutcome.REFUSED, 2)], 1, 0),
        ([("a", ChangeOutcome.FAILED, 3), ("b", ChangeOutcome.STARTED, 2), ("b", ChangeOutcome.APPLIED, 2)], 0, 0),
        ([("a", ChangeOutcome.APPLIED, 3), ("b", ChangeOutcome.UNKNOWN, 2), ("c", ChangeOutcome.FAILED, 1)], 2, 0),
        (
            [
                ("a", ChangeOutcome.APPLIED, 50),
                ("a", ChangeOutcome.UNDONE, 3),
                ("b", ChangeOutcome.UNDONE, 30),
                ("c", ChangeOutcome.UNDONE, 2),
            ],
            0,
            2,
        ),
    ],
)
def test_what_is_unclear_or_was_undone_lately(
    small: Operations, records: list[tuple[str, ChangeOutcome, int]], unclear: int, undone: int
) -> None:
    """Each record is an id, an outcome, and how many hours ago it was written."""
    setting = SettingChange(setting="eviction_ratio", old=0.2, new=0.3, how=SupportLevel.LIVE)
    for change_id, outcome, hours in records:
        small.actor.log.append(
            ChangeRecord(
                change_id=change_id,
                recorded_at=now() - timedelta(hours=hours),
                cache="default",
                actor="test",
                operation="reconfigure",
                outcome=outcome,
                changes=(setting,),
            )
        )
    registry = io_loop.run(own_registry, small)
    assert registry.get_sample_value("lmcache_agent_unclear_changes", {"cache": "default"}) == unclear
    assert registry.get_sample_value("lmcache_agent_undone_last_day", {"cache": "default"}) == undone


def test_the_commands_print_what_the_other_programs_read() -> None:
    rules = yaml.safe_load(CliRunner().invoke(app, ["alerts", "--job", "kv", "--window", "2m"]).stdout)
    down, restarted, *_ = rules["groups"][0]["rules"]
    assert down["expr"] == 'up{job="kv"} == 0'
    assert "[2m]" in restarted["expr"]
    board = json.loads(CliRunner().invoke(app, ["dashboard", "--job", "kv"]).stdout)
    assert board["templating"]["list"][1]["query"] == "kv"
