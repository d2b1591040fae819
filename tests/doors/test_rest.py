"""The REST door as its clients see it, over real HTTP and a real cache: what it answers, what it refuses, and whom it lets in."""

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from blockbuster import blockbuster_ctx
from pydantic import SecretStr, TypeAdapter
from real_cache import Play
from real_logs import conversations, log_of
from serving import serving
from typer.testing import CliRunner

from agent_tools.caches.registry import Cache, Registry
from agent_tools.caches.settings import Settings
from agent_tools.doors.cli import app as command_line
from agent_tools.doors.problems import STATUS, Problem
from agent_tools.doors.rest import rest_app
from agent_tools.doors.rest_models import VersionAnswer
from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.models import (
    Advice,
    CacheConfig,
    CacheMetrics,
    CacheOptimizationResult,
    ChangeRecord,
    ChangeResult,
    LMCacheStatus,
    Plan,
    Support,
)
from agent_tools.operations import Operations

TOKEN = "correct horse battery staple"  # noqa: S105
ANY = "0.0.0.0"  # noqa: S104  refused everywhere


@pytest.fixture(scope="module")
def client(operations: Operations) -> Iterator[httpx.Client]:
    with serving(rest_app(lambda: operations)) as url, httpx.Client(base_url=f"{url}/lmcache", timeout=60) as client:
        yield client


def problem(answer: httpx.Response) -> Problem:
    """The problem in an answer, whose members agree with the answer."""
    assert answer.headers["content-type"] == "application/problem+json"
    told = Problem.model_validate_json(answer.content)
    assert (told.status, told.instance) == (answer.status_code, answer.request.url.path)
    assert told.type.endswith(f":{told.code}")
    return told


# ---- reading ----


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("caches", list[str]),
        ("status", LMCacheStatus),
        ("metrics", CacheMetrics),
        ("version", VersionAnswer),
        ("config", CacheConfig),
        ("config/support", dict[str, Support]),
        ("recommendations", Advice),
        ("changes", list[ChangeRecord]),
    ],
)
def test_a_reading_is_answered_with_its_model(client: httpx.Client, cache: Cache, path: str, model: Any) -> None:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    read: object = TypeAdapter(model).validate_json(answer.content)
    assert read is not None


def test_figures_are_those_of_the_cache(client: httpx.Client, cache: Cache, play: Play) -> None:
    client.get("metrics")  # a reading from which the window can start
    result = play(log_of(*conversations(3, 8), *conversations(3, 8)), clients=1)
    window = CacheMetrics.model_validate_json(client.get("metrics", params={"window_seconds": 0.01}).content)
    assert (window.total_requests, window.stored_chunks) == (result.requests, result.sent_chunks)
    assert not window.window.lifetime
    status = LMCacheStatus.model_validate_json(client.get("status").content)
    assert (status.metrics.resident_chunks, status.config.max_size_mb, status.backend) == (24, 16, cache.deployment.backend)


def test_the_names_of_the_caches_are_listed(client: httpx.Client) -> None:
    assert client.get("caches").json() == ["default", "unreachable"]


# ---- changing ----


def change(client: httpx.Client, size_mb: float, **query: Any) -> httpx.Response:
    return client.post("config", params={"reason": "a test", **query}, json={"max_size_mb": size_mb})


def size_mb(client: httpx.Client) -> float:
    return float(client.get("config").json()["max_size_mb"])


def test_a_plan_is_followed_recorded_and_undone(client: httpx.Client, cache: Cache) -> None:
    plan = Plan.model_validate_json(change(client, 20, dry_run=True).content)
    assert size_mb(client) == 16
    answer = change(client, 20, fingerprint=plan.fingerprint)
    assert (CacheConfig.model_validate_json(answer.content).max_size_mb, size_mb(client)) == (20, 20)
    last = client.get("changes", params={"limit": 1}).json()
    assert [(one["actor"], one["reason"], one["outcome"]) for one in last] == [("rest", "a test", "applied")]
    assert answer.headers["location"] == f"/lmcache/changes/{last[0]['change_id']}"
    story = client.get(client.base_url.join(answer.headers["location"])).json()
    assert [one["outcome"] for one in story] == ["started", "applied"]
    assert story[-1:] == last
    undone = ChangeResult.model_validate_json(client.post(f"changes/{last[0]['change_id']}/undo").content)
    assert (undone.config.max_size_mb, size_mb(client)) == (16, 16)
    assert client.get(client.base_url.join(answer.headers["location"])).json()[-1]["outcome"] == "undone"


def test_a_plan_of_yesterday_is_refused_and_changes_nothing(client: httpx.Client, cache: Cache) -> None:
    yesterday = change(client, 20, dry_run=True).json()["fingerprint"]
    assert change(client, 18).status_code == 200
    refused = problem(change(client, 20, fingerprint=yesterday))
    assert (refused.status, refused.code) == (409, "stale_plan")
    assert "plan anew" in refused.detail
    assert size_mb(client) == 18


def test_optimize_and_clear_count_what_went(client: httpx.Client, cache: Cache, play: Play) -> None:
    play(log_of(*conversations(20, 16)), clients=1)
    dropped = client.post("optimize", json={"target_utilization_percent": 50, "reason": "too full"})
    assert CacheOptimizationResult.model_validate_json(dropped.content).entries_evicted == 64
    cleared = CacheOptimizationResult.model_validate_json(client.delete("clear").content)
    assert (cleared.entries_before, cleared.entries_after) == (256, 0)
    assert [one["reason"] for one in client.get("changes").json()[-3:]] == ["too full", "", ""]


def test_of_two_changes_at_once_the_second_is_told_to_wait(client: httpx.Client, operations: Operations, cache: Cache) -> None:
    async def meanwhile() -> httpx.Response:
        async with operations.actor._sole_changer(cache):
            return await asyncio.to_thread(change, client, 20)

    busy = problem(io_loop.run(meanwhile))
    assert (busy.status, busy.code) == (409, "busy")
    assert size_mb(client) == 16


# ---- what makes no sense ----


@pytest.mark.parametrize(
    ("asked", "body", "status", "code", "words"),
    [
        ("GET status?cache=prod", None, 404, "unknown_cache", "no cache named 'prod'; the caches are: default,"),
        ("GET status?cache=http://127.0.0.1:9", None, 404, "unknown_cache", "no cache named"),
        ("GET status?cache=unreachable", None, 503, "unreachable", "no cache answered"),
        ("DELETE clear?cache=unreachable", None, 503, "unreachable", "no cache answered"),
        ("DELETE clear?cahce=unreachable", None, 422, "bad_request", "query.cahce: Extra inputs are not permitted"),
        ("GET metrics?window_seconds=-1", None, 422, "bad_request", "query.window_seconds: Input should be greater than 0"),
        ("GET metrics?window_seconds=soon", None, 422, "bad_request", "query.window_seconds: Input should be a valid number"),
        ("GET changes?limit=0", None, 422, "bad_request", "query.limit"),
        ("GET version?cache=unreachable", None, 503, "unreachable", "no cache answered"),
        ("POST config", {"max_size_mb": "a lot"}, 422, "bad_request", "max_size_mb has the wrong type"),
        ("POST config", {"auto_eviction": 0}, 422, "bad_request", "auto_eviction has the wrong type"),
        ("POST config", {"max_size_mb": "20"}, 422, "bad_request", "max_size_mb has the wrong type"),
        ("POST config", {"size": 20}, 422, "bad_request", "body.size: Extra inputs"),
        ("POST config", {"max_size_mb": 20, "reason": "a test"}, 422, "bad_request", "body.reason: Extra inputs"),
        ("POST config?dryrun=true", {"max_size_mb": 20}, 422, "bad_request", "query.dryrun: Extra inputs"),
        ("POST config", None, 422, "bad_request", "body: Field required"),
        ("POST config", [{"max_size_mb": 20}], 422, "bad_request", "body"),
        ("POST config", b'{"max_size_mb": NaN}', 422, "bad_request", "max_size_mb"),
        ("POST config", b'{"hash_algorithm": "\\ud800"}', 422, "bad_request", "half a character"),
        ("POST config", b'{"max_si', 422, "bad_request", "not JSON"),
        ("POST config", b"\xff", 400, "bad_request", "error parsing the body"),
        ("POST config", {"max_size_mb": 100}, 422, "out_of_bounds", "above the operator's bound of 64"),
        ("POST config", {"max_size_mb": 20, "enabled": False}, 422, "unsupported", "no off switch"),
        ("POST config", {"hash_algorithm": "md5"}, 422, "unsupported", "hash_algorithm cannot be changed"),
        ("POST config?fingerprint=0123456789abcdef", {"max_size_mb": 20}, 409, "stale_plan", "plan anew"),
        ("GET changes/change-0", None, 404, "unknown_change", "there is no change 'change-0'"),
        ("POST optimize", {"target_utilization_percent": 100}, 422, "bad_request", "target_utilization_percent"),
        ("POST changes/change-0/undo", None, 404, "unknown_change", "there is no change 'change-0'"),
        ("POST changes/change-0/verify", None, 404, "unknown_change", "there is no change 'change-0'"),
        ("POST changes/x/verify?verify_seconds=0", None, 422, "bad_request", "verify_seconds"),
        ("GET nothing", None, 404, "not_found", "Not Found"),
        ("GET clear", None, 405, "method_not_allowed", "Method Not Allowed"),
    ],
)
def test_bad_input_is_named_in_one_sentence_and_changes_nothing(
    client: httpx.Client, cache: Cache, asked: str, body: object, status: int, code: str, words: str
) -> None:
    def state() -> tuple[Any, Any]:
        return client.get("config").json(), client.get("changes").json()

    before = state()
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    refused = problem(client.request(*asked.split(), content=content, headers={"content-type": "application/json"}))
    assert (refused.status, refused.code) == (status, code)
    assert words in refused.detail
    assert "Traceback" not in refused.detail
    assert state() == before


def test_a_line_break_in_a_path_does_not_lead_past_the_door(client: httpx.Client) -> None:
    told = client.post("changes/change-%0A/undo")
    assert (told.status_code, told.headers["content-type"]) == (404, "application/problem+json")
    assert "there is no change" in told.json()["detail"]


def test_a_wrong_method_is_told_the_right_one(client: httpx.Client) -> None:
    assert client.get("clear").headers["allow"] == "DELETE"


def test_every_error_of_ours_has_a_status() -> None:
    def below(kind: type[LMCacheToolError]) -> set[type[LMCacheToolError]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    ours = {kind for kind in below(LMCacheToolError) if kind.__module__ == "agent_tools.errors"}  # no route runs the agent
    assert ours - {LMCacheToolError} == set(STATUS)


async def test_a_bug_does_not_tell_what_is_inside() -> None:
    def broken() -> Operations:
        raise RuntimeError("/secret/path")

    async with asking(rest_app(broken)) as client:
        answer = await client.get("/lmcache/status")
    assert (problem(answer).status, problem(answer).code) == (500, "internal_server_error")
    assert "secret" not in answer.text


# ---- who may come in ----


def asking(app: Any, **settings: Any) -> httpx.AsyncClient:
    """A client of an application without a network between."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8100", **settings)


@pytest.fixture
def guarded(tmp_path: Path) -> httpx.AsyncClient:
    """A service that demands `TOKEN`; its caches are never started."""
    operations = Operations(Registry(Settings(state_folder=tmp_path, token=SecretStr(TOKEN))))
    return asking(rest_app(lambda: operations))


@pytest.fixture
def unguarded(tmp_path: Path) -> httpx.AsyncClient:
    """A service without a token; its caches are never started."""
    operations = Operations(Registry(Settings(state_folder=tmp_path)))
    return asking(rest_app(lambda: operations))


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic("anyone", TOKEN), basic("", TOKEN)])
async def test_who_has_the_token_may_come_in_under_any_name(guarded: httpx.AsyncClient, given: str) -> None:
    answer = await guarded.get("/lmcache/caches", headers={"authorization": given, "host": "cache.example"})
    assert (answer.status_code, answer.json()) == (200, ["default"])


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer wrong", TOKEN, f"Bearer {TOKEN}x", f"Token {TOKEN}", basic(TOKEN, ""), "Basic é", "Basic x"]
)
@pytest.mark.parametrize("path", ["caches", "report", "nothing"])
async def test_who_has_not_is_asked_for_it(guarded: httpx.AsyncClient, path: str, given: str) -> None:
    answer = await guarded.get(f"/lmcache/{path}", headers={"authorization": given.encode("latin-1")} if given else {})
    assert (problem(answer).status, problem(answer).code) == (401, "unauthorized")
    assert [one.split()[0] for one in answer.headers.get_list("www-authenticate")] == ["Bearer", "Basic"]


async def test_the_token_is_asked_for_before_the_body_is_read(guarded: httpx.AsyncClient) -> None:
    answer = await guarded.post("/lmcache/config", content=b"{not json")
    assert answer.status_code == 401


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8100", "127.1.2.3", "[::1]:8100"])
async def test_without_a_token_this_machine_may_come_in(unguarded: httpx.AsyncClient, host: str) -> None:
    assert (await unguarded.get("/lmcache/caches", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8100", ANY, "192.168.1.2", "", "[::1", "a]b"])
async def test_without_a_token_a_name_of_elsewhere_is_refused(unguarded: httpx.AsyncClient, host: str) -> None:
    answer = await unguarded.get("/lmcache/caches", headers={"host": host})
    assert problem(answer).code == "misdirected_request"
    assert "LMCACHE_AGENT_TOKEN" in problem(answer).detail


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9999", "http://localhost"])
@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
async def test_pages_of_another_origin_are_refused_even_with_the_token(
    guarded: httpx.AsyncClient, method: str, origin: str
) -> None:
    headers = {"origin": origin, "authorization": f"Bearer {TOKEN}"}
    answer = await guarded.request(method, "/lmcache/clear", headers=headers)
    assert problem(answer).code == "forbidden"
    assert "access-control-allow-origin" not in answer.headers


async def test_a_page_of_its_own_origin_may_come_in(unguarded: httpx.AsyncClient) -> None:
    assert (await unguarded.get("/lmcache/caches", headers={"origin": "http://localhost:8100"})).status_code == 200


# ---- beside others ----


async def test_a_server_that_it_is_mounted_into_keeps_its_own_rules(unguarded: httpx.AsyncClient) -> None:
    answer = await unguarded.get("/threads", headers={"host": "api", "origin": "https://studio.example"})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


async def test_nothing_blocks_the_loop(operations: Operations, cache: Cache) -> None:
    async with asking(rest_app(lambda: operations), timeout=60) as client:
        with blockbuster_ctx() as blocking:
            # As `langgraph dev` does: a lock that is held for microseconds blocks nothing.
            for lock in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
                blocking.functions[lock].deactivate()
            paths = ("caches", "status", "version", "config", "config/support", "metrics", "recommendations", "changes", "report")
            for path in paths:
                assert (await client.get(f"/lmcache/{path}")).status_code == 200, path


IMPORTS = """
import threading
from agent_tools.operations import shared_operations
from agent_tools.doors.rest import app
print(shared_operations.cache_info().currsize, threading.active_count())
"""


def test_importing_it_starts_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["0", "1"]


async def test_its_document_names_every_route_model_and_problem(unguarded: httpx.AsyncClient) -> None:
    spec = (await unguarded.get("/openapi.json")).json()
    routes = {one["operationId"]: one for item in spec["paths"].values() for one in item.values()}
    assert set(spec["paths"]) == {
        f"/lmcache/{path}"
        for path in (
            *("caches", "status", "version", "metrics", "config", "config/support", "recommendations", "report"),
            *("config/export", "config/drift", "agent/metrics", "caches/compare"),
            *("optimize", "clear", "changes", "changes/{change_id}"),
            *("changes/{change_id}/undo", "changes/{change_id}/verify"),
        )
    }
    assert {"get_status", "change_config", "undo_change", "get_report"} < set(routes)
    for one in routes.values():
        assert one["summary"]
        assert one["description"]
        assert "application/problem+json" in one["responses"]["422"]["content"]
    answers = routes["change_config"]["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert [one["$ref"].split("/")[-1] for one in answers] == ["CacheConfig", "Plan"]
    assert "Location" in routes["change_config"]["responses"]["200"]["headers"]
    assert "stale_plan" in routes["change_config"]["responses"]["409"]["description"]
    schemas = spec["components"]["schemas"]
    assert set(re.findall(r"#/components/schemas/([\w-]+)", json.dumps(spec))) <= set(schemas)
    assert "Shortest prefix" in json.dumps(schemas["CacheConfig"])


# ---- alone ----


@pytest.fixture
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_AGENT_STATE_FOLDER", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_own_state")
def test_other_machines_are_not_served_without_a_token() -> None:
    result = CliRunner().invoke(command_line, ["serve", "--host", ANY])
    assert result.exit_code == 1
    assert "lets other machines change caches: set LMCACHE_AGENT_TOKEN" in " ".join(result.output.split())


@pytest.mark.usefixtures("_own_state")
def test_a_token_that_is_easily_guessed_is_refused_and_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_AGENT_TOKEN", "hunter2")
    result = CliRunner().invoke(command_line, ["serve"])
    assert result.exit_code == 1
    assert "token" in result.output
    assert "hunter2" not in result.output


@contextmanager
def _served(**environment: str) -> "Iterator[subprocess.Popen[str]]":
    """`lmcache-agent serve`, ended here should the test fail."""
    command = [sys.executable, "-m", "agent_tools.doors.cli", "serve", "--port", "0"]
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | path | environment) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.usefixtures("_own_state")
def test_served_alone_it_answers_on_loopback_until_interrupted(tmp_path: Path) -> None:
    with _served(LMCACHE_AGENT_TOKEN=TOKEN) as process:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        assert httpx.get(f"{url}/lmcache/caches").status_code == 401
        assert httpx.get(f"{url}/lmcache/caches", auth=("me", TOKEN)).json() == ["default"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, process.stderr.read()
    assert not (tmp_path / "state" / "logs").exists()  # no cache was asked for, so none was started
