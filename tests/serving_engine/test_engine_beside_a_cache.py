"""Claims about a cache whose directory names its engine: what is told, and that an engine in trouble keeps nobody from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from pydantic import ValidationError
from serving import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import Route

from agent_tools import LMCacheToolkit
from agent_tools.caches.registry import DEFAULT, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.simulated.deployment import SimulatedOptions
from agent_tools.errors import SettingsError
from agent_tools.io_loop import io_loop
from agent_tools.operations import Operations

PAGE = (Path(__file__).parent / "vllm_0_32_0.txt").read_text()


@contextmanager
def behind(engine: str | None, folder: Path) -> Iterator[Operations]:
    cache = CacheSettings(target="simulated:", engine=engine, simulated=SimulatedOptions(speed=20), timeout_seconds=1)
    operations = Operations(Registry(Settings(caches={DEFAULT: cache}, state_folder=folder)))
    try:
        yield operations
    finally:
        io_loop.run(operations.close)


@contextmanager
def engine(answer: object) -> Iterator[str]:
    async def metrics(_: Request) -> object:
        return answer

    with serving(Starlette(routes=[Route("/metrics", metrics)])) as url:  # type: ignore[arg-type]
        yield url


def test_status_metrics_and_report_tell_what_the_engine_measured(tmp_path: Path) -> None:
    with engine(PlainTextResponse(PAGE)) as url, behind(url, tmp_path) as operations:
        metrics = io_loop.run(operations.metrics)
        assert metrics.engine is not None
        assert (metrics.engine.requests, metrics.engine.own_cache_tokens) == (3, 3840)
        assert "engine" not in metrics.unavailable
        status = io_loop.run(operations.status)
        assert status.metrics.engine is not None
        page = io_loop.run(operations.report)
        assert "time to first token" in page
        tool = LMCacheToolkit(operations=operations).get_tools()
        text = next(one for one in tool if one.name == "lmcache_get_metrics").invoke({})
        assert "time to first token 737 ms (p50 90" in text


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (PlainTextResponse("busy", 503), "no engine answers"),
        (RedirectResponse("http://127.0.0.1:1/metrics"), "no engine answers"),
        (PlainTextResponse("lmcache_mp_lookups_requests_total 3\n"), "does not look like vLLM"),
        (PlainTextResponse(PAGE.replace("} 6015.0", "} NaN")), "does not look like vLLM"),
    ],
    ids=["refuses", "redirects", "is no vLLM", "gives no number"],
)
def test_an_engine_in_trouble_is_told_and_the_cache_is_read_all_the_same(answer: object, why: str, tmp_path: Path) -> None:
    with engine(answer) as url, behind(url, tmp_path) as operations:
        metrics = io_loop.run(operations.metrics)
    assert metrics.engine is None
    assert why in metrics.unavailable["engine"]
    assert metrics.total_size_mb


def test_an_engine_that_does_not_answer_costs_no_reading_of_the_cache(tmp_path: Path) -> None:
    with behind("http://127.0.0.1:9", tmp_path) as operations:
        metrics = io_loop.run(operations.metrics)
    assert metrics.engine is None
    assert "no engine answers at http://127.0.0.1:9/metrics" in metrics.unavailable["engine"]


def test_without_an_engine_it_is_said_that_none_is_named(tmp_path: Path) -> None:
    with behind(None, tmp_path) as operations:
        metrics, page = io_loop.run(operations.metrics), io_loop.run(operations.report)
    assert metrics.engine is None
    assert "names no engine" in metrics.unavailable["engine"]
    assert "time to first token" not in page


def test_it_is_asked_once_a_second_however_many_look(tmp_path: Path) -> None:
    asked = 0

    async def metrics(_: Request) -> PlainTextResponse:
        nonlocal asked
        asked += 1
        return PlainTextResponse(PAGE)

    async def ten(operations: Operations) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(operations.metrics)

    with serving(Starlette(routes=[Route("/metrics", metrics)])) as url, behind(url, tmp_path) as operations:
        io_loop.run(ten, operations)
    assert asked <= 2


@pytest.mark.parametrize("address", ["10.0.0.1", "http://user:secret@host:1", "file:///etc/passwd"])
def test_an_address_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    with behind(address, tmp_path) as operations, pytest.raises(SettingsError) as told:
        io_loop.run(operations.metrics)
    assert "secret" not in str(told.value)


def test_a_fleet_has_no_one_engine() -> None:
    with pytest.raises(ValidationError, match="a fleet has many"):
        CacheSettings(target="fleet:http://127.0.0.1:1", engine="http://127.0.0.1:2")
