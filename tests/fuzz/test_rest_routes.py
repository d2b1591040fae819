"""Claims about every REST route by its own OpenAPI document: no request breaks one, and what it answers is what it documents.

The cache is simulated: what is tested is the door.
"""

import contextlib
from collections.abc import Iterator

import pytest
import schemathesis
from effort import tried
from pydantic import SecretStr
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import serving

from agent_tools.deployments.directory import Directory
from agent_tools.deployments.simulated import SimulatedOptions
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds
from agent_tools.operations import Operations
from agent_tools.rest import rest_app
from agent_tools.settings import CacheSettings, Settings

TOKEN = "correct-horse-battery-staple"  # noqa: S105
BEARER = {"Authorization": f"Bearer {TOKEN}"}
made: list[Operations] = []
app = rest_app(lambda: made[0])
schema = schemathesis.openapi.from_dict(app.openapi())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the service."""
    idle = SimulatedOptions(l1_size_mb=16, traffic=None)
    default = CacheSettings(target="simulated:", simulated=idle, bounds=Bounds(max_size_mb=64, allow_restart=True))
    settings = Settings(caches={"default": default}, state_folder=tmp_path_factory.mktemp("state"), token=SecretStr(TOKEN))
    made.append(Operations(Directory(settings)))
    with serving(app) as url:
        yield url
    io_loop.run(made.pop().close)


@schema.parametrize()
@tried(4, 150)
def test_no_request_breaks_a_route_and_every_answer_is_documented(case: Case, url: str) -> None:
    with contextlib.suppress(KeyError, TypeError, ValueError):  # a window is waited for: not here for minutes
        if float(case.query["window_seconds"]) > 0.01:
            case.query["window_seconds"] = 0.01
    # What the document lets through may still lie outside the operator's bounds, which is a 422 as well.
    case.call_and_validate(base_url=url, headers=BEARER, excluded_checks=[positive_data_acceptance])
