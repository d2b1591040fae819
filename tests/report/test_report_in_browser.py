"""The report as a person sees it: served over HTTP from a real cache with real traffic, in a real headless Chromium."""

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from serving import serving

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.doors.rest import rest_app
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate
from agent_tools.operations import Operations
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

playwright = pytest.importorskip("playwright.sync_api", reason="no browser is driven: playwright is not installed")

TRAFFIC = AgentTraffic(requests=150, seed=4).generate()
MORE = AgentTraffic(requests=10, seed=4).generate()
TOKEN = "a token of the tests"  # noqa: S105
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser: chromium is not installed")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{one}" for one in QUIET)]
    with playwright.sync_playwright() as driver, driver.chromium.launch(executable_path=chromium, args=arguments) as browser:
        yield browser


class Watched:
    """A cache that was under traffic, and what has to be known of it."""

    def __init__(self, operations: Operations) -> None:
        deployment = operations.registry.get("default").deployment
        assert isinstance(deployment, EmbeddedDeployment)
        self.operations = operations
        self.server = io_loop.run(deployment.started)

    def play(self, log: Any) -> None:
        """Replay in a thread of its own, since playwright keeps an event loop running in this one."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(replay, log, self.server.rpc_url, ReplaySettings()).result()

    def grow(self, size_mb: float) -> None:
        """Change the L1 size and judge it by the same traffic again, as `tune_cache` does."""
        before = io_loop.run(self.operations.baseline, "default")
        plan = io_loop.run(self.operations.plan, "default", ConfigUpdate(max_size_mb=size_mb), "stores fail for want of room")
        result = io_loop.run(self.operations.apply, plan, "tune_cache")
        with ThreadPoolExecutor(1) as pool:
            replayed = pool.submit(replay, TRAFFIC, self.server.rpc_url, ReplaySettings())
            io_loop.run(self.operations.verify, result, before, 20.0)
            replayed.result()


@pytest.fixture(scope="module")
def watched(lmcache: None, arena_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Of its own, since a log of one model is needed."""
    embedded = EmbeddedOptions(l1_size_mb=5, arena_folder=arena_folder)
    caches = {
        "default": CacheSettings(bounds=Bounds(max_size_mb=64), cooldown_seconds=0, embedded=embedded),
        "unreachable": CacheSettings(target="http://127.0.0.1:9", timeout_seconds=1),
    }
    operations = Operations(Registry(Settings(caches=caches, state_folder=tmp_path_factory.mktemp("state"))))
    try:
        watched = Watched(operations)
        watched.play(TRAFFIC)
        watched.grow(6)
        yield watched
    finally:
        io_loop.run(operations.close)


@pytest.fixture(scope="module")
def url(watched: Watched) -> Iterator[str]:
    with serving(rest_app(lambda: watched.operations)) as url:
        yield f"{url}/lmcache/report"


@pytest.fixture
def open_page(browser: Any, url: str) -> Iterator[Open]:
    """Opens the report, with its query, in a browser of one's own; afterwards, all was quiet and nothing left the host."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(query: str = "?refresh=0", **context: Any) -> Any:
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url + query)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [line for line in said if "503" not in line] == []  # which tells that a cache does not answer
    assert {one.split("?")[0] for one in asked} == {url}


def expect(locator: Any) -> Any:
    return playwright.expect(locator)


def tile(page: Any, name: str) -> Any:
    """The figure of a tile."""
    return page.locator(".tile", has=page.get_by_text(name, exact=True)).locator("b")


def test_it_shows_status_curve_advice_and_history(open_page: Open, watched: Watched) -> None:
    page, advice = open_page(), io_loop.run(watched.operations.recommend)
    assert advice.best is not None
    expect(page).to_have_title("LMCache report: default")
    expect(tile(page, "lookups")).to_have_text("150")  # since the change
    expect(tile(page, "token hit rate")).to_have_text(f"{advice.token_hit_rate:.1%}")
    expect(page.get_by_text("of 6 MB")).to_be_visible()
    for heading in ("Now", "Advice", "What other sizes would give", "What was changed"):
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
    expect(page.get_by_role("heading", name=advice.best.title)).to_be_visible()
    curve = page.get_by_role("img", name="Token hit rate by L1 size")
    assert curve.bounding_box()["height"] > 300
    assert f"now: {advice.token_hit_rate:.1%}" in curve.text_content()
    assert "proposed: " in curve.text_content()
    change = page.locator("section.card", has=page.get_by_role("heading", name="max_size_mb 5 -> 6 (live)"))
    [*_, judged] = io_loop.run(watched.operations.changes, "default")
    expect(change).to_contain_text(judged.detail)
    expect(change).to_contain_text("by tune_cache: stores fail for want of room")


@pytest.mark.parametrize(
    ("summary", "inside"), [("evidence: access log", "distinct chunks requested"), ("the figures", "always-full LRU")]
)
def test_a_click_unfolds_what_a_statement_rests_on(open_page: Open, summary: str, inside: str) -> None:
    page = open_page()
    detail = page.locator("details", has=page.get_by_text(summary, exact=True)).filter(has_text=inside).first
    expect(detail.get_by_text(inside)).to_be_hidden()
    detail.get_by_text(summary, exact=True).click()
    expect(detail.get_by_text(inside)).to_be_visible()


def test_it_reads_the_cache_again_by_itself_until_it_is_held_still(open_page: Open, watched: Watched) -> None:
    page = open_page("?refresh=1")
    shown = int(tile(page, "lookups").text_content())
    watched.play(MORE)
    playwright.expect(tile(page, "lookups")).to_have_text(f"{shown + 10}", timeout=20_000)
    page.get_by_role("link", name="pause").click()
    page.wait_for_url("**?cache=default&refresh=0")
    expect(page.get_by_text("paused")).to_be_visible()
    page.get_by_role("link", name="reload automatically").click()
    expect(page.get_by_text("reloads every 30 s")).to_be_visible()


def test_on_a_phone_it_fits_the_screen_unfolded_too(open_page: Open) -> None:
    page = open_page(**PHONE)
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    cut = "one => one.getBoundingClientRect().right > innerWidth && !one.closest('.scroll')"
    assert page.evaluate(f"[...document.querySelectorAll('main *')].filter({cut}).map(one => one.outerHTML)") == []
    small = "one => one.textContent.trim() && !one.closest('svg') && parseFloat(getComputedStyle(one).fontSize) < 12"
    assert page.evaluate(f"[...document.querySelectorAll('main *')].filter({small}).map(one => one.outerHTML)") == []


COLOUR = "([selector, property]) => getComputedStyle(document.querySelector(selector)).getPropertyValue(property)"


@pytest.mark.parametrize(
    ("scheme", "darker", "lighter"), [("dark", "background-color", "color"), ("light", "color", "background-color")]
)
def test_its_colours_follow_the_scheme_in_the_picture_too(open_page: Open, scheme: str, darker: str, lighter: str) -> None:
    page = open_page(color_scheme=scheme)

    def lightness(selector: str, property: str) -> float:  # noqa: A002  as CSS calls it
        colour = page.evaluate(COLOUR, [selector, property])
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / (3 * 255)

    for selector in ("body", "section.card"):
        assert lightness(selector, lighter) - lightness(selector, darker) > 0.6
    assert (lightness("svg text[style*='--picture-ink']", "fill") > 0.6) is (scheme == "dark")


def test_a_cache_that_does_not_answer_is_named_and_looked_for_again(open_page: Open) -> None:
    page = open_page("?cache=unreachable&refresh=0")
    expect(page.get_by_text("no cache answered")).to_be_visible()
    expect(page.get_by_role("link", name="reload automatically")).to_be_visible()


EVIL = "<img src=x onerror=document.title=`owned`>"
EVILS = (
    EVIL,
    "'><svg onload=document.title=`owned`>",
    "</style><script>document.title=`owned`;",
    '"onmouseover="document.title=1',
)


def test_names_that_clients_chose_run_nothing_in_a_browser(open_page: Open, watched: Watched) -> None:
    """As names of tenants and models of real traffic; LMCache takes all of a salt but @, / and the backslash."""
    few = AgentTraffic(requests=3, seed=5, tenants=len(EVILS)).generate()
    salts = tuple(evil.replace("/", "") for evil in EVILS)
    with ThreadPoolExecutor(1) as pool:
        for model in EVILS:
            settings = ReplaySettings(model=model)
            pool.submit(replay, replace(few, tenant_names=salts), watched.server.rpc_url, settings).result()
    page = open_page()
    title = page.title()
    expect(page.get_by_text(EVIL[:20]).first).to_be_attached()
    for place in page.locator("summary").all():
        place.click()
    page.mouse.move(100, 300)
    assert page.title() == title
    assert page.locator("img, script:not([nonce]), [onload], [onerror], [onmouseover]").count() == 0


def test_a_browser_comes_in_with_the_token_as_password(browser: Any, watched: Watched, tmp_path: Path) -> None:
    caches = {"default": CacheSettings(target=watched.server.http_url)}
    operations = Operations(Registry(Settings(caches=caches, state_folder=tmp_path, token=SecretStr(TOKEN))))
    with serving(rest_app(lambda: operations)) as url:
        for password, status in ((TOKEN, 200), ("wrong", 401)):
            with browser.new_context(http_credentials={"username": "me", "password": password}) as context:
                assert context.new_page().goto(f"{url}/lmcache/report").status == status
    io_loop.run(operations.close)
