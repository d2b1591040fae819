"""Claims about several engines in front of one cache, and about engines whose figures must not be believed.

The pages are recorded from one vLLM 0.32.0 and changed: what is tested is how figures add up and what is left out.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from serving import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from agent_tools.caches.registry import DEFAULT, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.simulated.deployment import SimulatedOptions
from agent_tools.io_loop import io_loop
from agent_tools.models import CacheMetrics
from agent_tools.models.engine import EngineMetrics
from agent_tools.operations import Operations
from agent_tools.prediction.engine_split import Admission
from agent_tools.serving.admissions import admissions_of
from agent_tools.serving.attribution import doubt, other_span
from agent_tools.serving.engine_reading import EngineCounters, EngineReading, together
from agent_tools.serving.engine_window import engine_between
from agent_tools.serving.vllm_metrics import parse_vllm_metrics

PAGE = (Path(__file__).parent / "vllm_0_32_0.txt").read_text()
STARTED = 1795633640.04
ONE = parse_vllm_metrics(PAGE, STARTED + 360, "http://a")
OTHER = replace(ONE, name="http://b", process_start=STARTED - 99, own_cache_size=2_560)


def counted(reading: EngineReading, seconds: float, **counters: float) -> EngineReading:
    """Return a later reading with higher counters."""
    more = {name: getattr(reading.counters, name) + value for name, value in counters.items()}
    return replace(reading, taken_at=reading.taken_at + seconds, counters=replace(reading.counters, **more))


def test_the_counters_of_all_engines_are_added_up_and_each_stays_visible() -> None:
    before = together([ONE, OTHER])
    after = together([counted(ONE, 60, prompt_tokens=1_000, own_cache_tokens=400), counted(OTHER, 60, prompt_tokens=3_000)])
    window = engine_between(before, after)
    assert (window.prompt_tokens, window.own_cache_tokens, window.lifetime) == (4_000, 400, False)
    assert [(one.name, one.prompt_tokens) for one in window.engines] == [("http://a", 1_000), ("http://b", 3_000)]
    assert window.own_cache_size_tokens == (ONE.own_cache_size or 0) + 2_560 if ONE.own_cache_size is not None else True


def test_data_parallel_engines_behind_one_page_are_read_one_by_one() -> None:
    second = "".join(
        re.sub(r" 3840\.0$", " 640.0", line.replace('engine="0"', 'engine="1"')) + "\n"
        for line in PAGE.splitlines()
        if 'engine="0"' in line
    )
    reading = parse_vllm_metrics(PAGE + second, STARTED + 360, "http://a")
    window = engine_between(None, reading)
    assert [one.name for one in window.engines] == ["http://a#0", "http://a#1"]
    assert [one.own_cache_tokens for one in window.engines] == [3_840, 640]
    assert window.own_cache_tokens == 4_480


def test_one_engine_that_restarts_in_the_window_leaves_no_figure_of_half_a_window() -> None:
    before = together([ONE, OTHER])
    again = replace(OTHER, process_start=STARTED + 300, counters=EngineCounters(prompt_tokens=10))
    window = engine_between(before, together([counted(ONE, 60, prompt_tokens=1_000), again]))
    assert window.lifetime
    assert "since it started" in str(other_span(window, 60))


@pytest.mark.parametrize(
    ("without", "missing"),
    [("request_queue_time", "vllm:request_queue_time_seconds_sum"), ("num_preemptions", "vllm:num_preemptions_total")],
)
def test_a_figure_that_a_page_lacks_is_named_and_the_others_are_read(without: str, missing: str) -> None:
    page = "\n".join(line for line in PAGE.split("\n") if without not in line)
    window = engine_between(None, parse_vllm_metrics(page, STARTED + 360))
    assert window.missing[0] == missing or missing in window.missing
    assert window.prompt_tokens == 6_015
    assert window.queue_ms is None or without != "request_queue_time"


def test_of_the_three_sources_of_prompt_tokens_one_may_be_missing() -> None:
    page = "\n".join(line for line in PAGE.split("\n") if "external_prefix_cache" not in line)
    window = engine_between(None, parse_vllm_metrics(page, STARTED + 360))
    assert window.lmcache_tokens == 6_015 - 2_175 - 3_840
    page = "\n".join(line for line in page.split("\n") if "prefill_kv_computed" not in line)
    window = engine_between(None, parse_vllm_metrics(page, STARTED + 360))
    assert (window.lmcache_tokens, window.computed_tokens, window.saved_share) == (None, None, None)


def test_the_names_of_an_older_vllm_are_read() -> None:
    older = PAGE.replace("vllm:prefix_cache_", "vllm:gpu_prefix_cache_").replace("kv_cache_usage", "gpu_cache_usage")
    assert engine_between(None, parse_vllm_metrics(older, STARTED + 360)).own_cache_tokens == 3_840


def test_prompt_tokens_by_source_are_preferred_to_hits_at_admission() -> None:
    more = 'vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="external_kv_transfer"} 256.0\n'
    assert parse_vllm_metrics(f"{PAGE}\n{more}", STARTED + 360).counters.lmcache_tokens == 256


def test_what_an_engine_admitted_between_readings_tells_its_requests() -> None:
    before = together([ONE, OTHER])
    after = together([counted(ONE, 1, admitted_tokens=700), counted(OTHER, 1, admitted_tokens=0)])
    assert admissions_of([before, after]) == [Admission(ONE.taken_at + 1, 0, 700)]
    assert admissions_of([ONE]) == []


WINDOW = EngineMetrics(
    seconds=60, requests=50, prompt_tokens=1_000_000, computed_tokens=0, own_cache_tokens=0, lmcache_tokens=900_000
)


@pytest.mark.parametrize(
    ("asked", "hit", "why"),
    [
        (1_000_000, 10_000, "another connector"),  # a decoder that is fed by its prefiller
        (3_000_000, 2_900_000, "name all engines"),
        (10_000, 950_000, "another cache's engine"),
    ],
)
def test_figures_that_are_not_this_caches_are_not_attributed_to_it(asked: int, hit: int, why: str) -> None:
    reason = doubt(WINDOW, asked=asked, hit=hit, seconds=60)
    assert why in str(reason)
    assert WINDOW.model_copy(update={"doubt": reason}).saved_share is None


def test_figures_that_fit_are_believed() -> None:
    assert doubt(WINDOW, asked=980_000, hit=900_000, seconds=60) is None
    assert WINDOW.saved_share == pytest.approx(0.9)


def read(engines: tuple[str, ...], folder: Path) -> CacheMetrics:
    cache = CacheSettings(target="simulated:", engines=engines, simulated=SimulatedOptions(speed=20), timeout_seconds=1)
    operations = Operations(Registry(Settings(caches={DEFAULT: cache}, state_folder=folder)))
    try:
        return io_loop.run(operations.metrics)
    finally:
        io_loop.run(operations.close)


def test_all_engines_are_read_and_half_of_them_gives_no_figures(tmp_path: Path) -> None:
    async def page(_: Request) -> PlainTextResponse:
        return PlainTextResponse(PAGE)

    app = Starlette(routes=[Route("/metrics", page)])
    with serving(app) as one, serving(app) as other:
        both = read((one, other), tmp_path)
        assert both.engine is not None
        assert both.engine.prompt_tokens == 2 * 6_015
        assert {engine.name for engine in both.engine.engines} == {one, other}
        half = read((one, "http://127.0.0.1:9"), tmp_path)
    assert half.engine is None
    assert "1 of 2 engines cannot be read, so the figures of all are left out" in half.unavailable["engine"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"engine": "http://a:1", "engines": ("http://b:1",)}, "not both"),
        ({"engines": ("http://a:1", "http://a:1")}, "names an engine twice"),
        ({"target": "fleet:http://a:1", "engines": ("http://b:1",)}, "a fleet has many engines"),
        ({"engine_cache_tokens": ()}, "at least 1 item"),
    ],
)
def test_settings_that_name_engines_wrongly_are_refused(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CacheSettings.model_validate(settings)
