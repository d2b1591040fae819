"""Claims about every REST route by its own OpenAPI document: no request breaks one, and what it answers is what it documents.

The cache is simulated: what is tested is the door.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from effort import LONG
from pydantic import SecretStr
from serving import serving

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.simulated.deployment import SimulatedOptions
from agent_tools.doors.rest import rest_app
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds
from agent_tools.operations import Operations

TOKEN = "correct-horse-battery-staple"  # noqa: S105


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    """Of an idle simulated cache."""
    idle = SimulatedOptions(l1_size_mb=16, traffic=None)
    default = CacheSettings(target="simulated:", simulated=idle, bounds=Bounds(max_size_mb=64, allow_restart=True))
    settings = Settings(caches={"default": default}, state_folder=tmp_path, token=SecretStr(TOKEN))
    operations = Operations(Registry(settings))
    yield operations
    io_loop.run(operations.close)


@pytest.mark.timeout(1200 if LONG else 180)
@pytest.mark.long
def test_no_request_breaks_a_route_and_every_answer_is_documented(operations: Operations) -> None:
    """By Schemathesis's own command line, in all its phases: examples, the edges of every parameter, noise, and sequences."""
    app = rest_app(lambda: operations)
    routes = sum(len(methods) for methods in app.openapi()["paths"].values())
    effort = ["--max-examples", "150"] if LONG else ["--max-examples", "4", "--generation-deterministic"]
    # What the document lets through may still lie outside the operator's bounds, which is a 422 as well.
    checks = ["--exclude-checks", "positive_data_acceptance"]
    with serving(app) as url:
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--no-color"]
        known = ["--header", f"Authorization: Bearer {TOKEN}", "--suppress-health-check", "all"]
        hooks = {"SCHEMATHESIS_HOOKS": "rest_hooks", "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(
            [*command, *known, *checks, *effort], env=os.environ | hooks, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {routes}\n" in done.stdout
