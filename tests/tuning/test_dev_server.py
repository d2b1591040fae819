"""A real `langgraph dev` on our langgraph.json, driven through langgraph-sdk as Studio does: no network, no key, no model.

Its cache is a private one that it starts itself. Where LMCache is not installed, what needs a cache is skipped.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient
from real_cache import eventually
from real_logs import FEW_BIG

from agent_tools.deployments.base import silent
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import free_port
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate
from agent_tools.models.metrics import now
from agent_tools.workload.replay import ReplaySettings, replay

ROOT = Path(__file__).parents[2]
OFFLINE = {"LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGGRAPH_NO_VERSION_CHECK": "true", "LANGSMITH_TRACING": "false"}
TOKEN = "a token for the tests"  # noqa: S105
APPROVERS = {name: f"the own token of {name}" for name in ("alice", "bob")}
CACHES = """
[caches.default]
bounds = {{ max_size_mb = 64 }}
cooldown_seconds = 0
embedded = {{ l1_size_mb = 16, arena_folder = "{arena_folder}" }}

[caches.unreachable]
target = "http://127.0.0.1:9"
timeout_seconds = 1
"""
pytestmark = pytest.mark.needs("langgraph_cli")
GREATEST = {"window_seconds": 0}
"""Context: everything since the cache started."""


@dataclass(frozen=True)
class DevServer:
    """A `langgraph dev` that answers."""

    url: str
    log: Path
    process: psutil.Process
    cpu_seconds: float
    """What its start took; not by the clock, since other tests run beside it."""
    children: list[psutil.Process]
    """What it had started by then."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, arena_folder: Path) -> Callable[..., Any]:
    """Starts `langgraph dev` with our langgraph.json and, beside our graphs, one that blocks."""
    folder = tmp_path_factory.mktemp("dev")
    (folder / "caches.toml").write_text(CACHES.format(arena_folder=arena_folder), encoding="utf-8")
    config = json.loads((ROOT / "langgraph.json").read_text(encoding="utf-8"))
    config["graphs"]["blocking"] = f"{Path(__file__).with_name('blocking.py')}:graph"
    (folder / "langgraph.json").write_text(json.dumps(config | {"dependencies": [str(ROOT)]}), encoding="utf-8")

    @contextmanager
    def start(**environment: str) -> Iterator[DevServer]:
        port, log = free_port(), folder / f"dev{len(environment)}.log"
        command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload", "--host", "127.0.0.1"]
        environment |= OFFLINE | {"LMCACHE_AGENT_SETTINGS": "caches.toml", "LMCACHE_AGENT_STATE_FOLDER": str(folder / "state")}
        with (
            log.open("wb") as out,
            subprocess.Popen(
                [*command, "--port", str(port)], cwd=folder, env=os.environ | environment, stdout=out, stderr=out
            ) as server,
        ):
            process, url = psutil.Process(server.pid), f"http://127.0.0.1:{port}"
            try:
                eventually(lambda: answers(url) or server.poll() is not None, seconds=60)
                assert server.poll() is None, log.read_text(encoding="utf-8")
                yield DevServer(url, log, process, sum(process.cpu_times()[:2]), process.children(recursive=True))
            finally:
                children = process.children(recursive=True)
                server.terminate()
                _, left = psutil.wait_procs(children, timeout=20)
        assert not left, "its cache goes with it"

    return start


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ok", timeout=1).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def dev(start: Callable[..., Any]) -> Iterator[DevServer]:
    with start() as server:
        yield server


@pytest.fixture(scope="module")
def client(dev: DevServer) -> Iterator[SyncLangGraphClient]:
    with get_sync_client(url=dev.url, api_key=None) as client:
        yield client


@pytest.fixture(scope="module")
def thrashed(lmcache: None, dev: DevServer, client: SyncLangGraphClient) -> Iterator[ServerDeployment]:
    """The cache that the server's first run started, after more traffic than it holds."""
    cache = thrash(dev, client)
    yield cache
    io_loop.run(cache.close)


def thrash(dev: DevServer, client: SyncLangGraphClient) -> ServerDeployment:
    """Have the server start its cache, and send that more than it holds."""
    first: Any = client.runs.wait(None, "tune_cache", input={}, context={"mode": "observe", **GREATEST})
    assert first["tune_report"]["outcome"] == "observed"
    command = dev.process.children(recursive=True)[-1].cmdline()
    flags = dict(pairwise(command))
    folder = Path(flags["--lookup-hash-log-dir"])
    cache = ServerDeployment(f"http://127.0.0.1:{flags['--http-port']}", access_log=folder, arena_folder=Path("/dev/shm"))
    played = replay(FEW_BIG, f"tcp://127.0.0.1:{flags['--port']}", ReplaySettings(kv_bytes_per_token=512))
    eventually(lambda: len(io_loop.run(cache.access_log) or ()) >= played.requests)
    return cache


@pytest.fixture
def cache(dev: DevServer, client: SyncLangGraphClient, thrashed: ServerDeployment) -> Iterator[ServerDeployment]:
    """It, at the 16 MB it was started with, before and after each test, and with traffic since its last change."""
    yield thrashed
    if l1_mb(thrashed) != 16:
        io_loop.run(thrashed.apply, ConfigUpdate(max_size_mb=16), silent)
        again = thrash(dev, client)
        io_loop.run(again.close)


def l1_mb(cache: ServerDeployment) -> float | None:
    return io_loop.run(cache.config).max_size_mb


# ---- the server ----


def test_it_is_ready_within_five_seconds_and_has_started_no_cache_by_then(dev: DevServer) -> None:
    assert dev.cpu_seconds < 5
    assert not dev.children


def test_the_graphs_are_offered_with_a_description(client: SyncLangGraphClient) -> None:
    described = {one["graph_id"]: one.get("description") or "" for one in client.assistants.search()}
    assert "after approval" in described["tune_cache"]
    assert "model" in described["cache_agent"]


def test_our_routes_answer_beside_those_of_langgraph(dev: DevServer) -> None:
    assert httpx.get(f"{dev.url}/lmcache/caches").json() == ["default", "unreachable"]
    assert {"/lmcache/status", "/threads"} <= httpx.get(f"{dev.url}/openapi.json").json()["paths"].keys()


def test_what_blocks_the_event_loop_is_caught_and_nothing_of_ours_does(
    dev: DevServer, client: SyncLangGraphClient, cache: ServerDeployment
) -> None:
    blocked: Any = client.runs.wait(None, "blocking", input={}, raise_error=False)
    assert blocked["__error__"]["error"] == "BlockingError"
    caught = blocking_calls(dev)
    done: Any = client.runs.wait(None, "tune_cache", input={}, context={"mode": "auto", "verify_seconds": 1, **GREATEST})
    assert done["tune_report"]["outcome"] == "kept_undecided", done["tune_report"]["summary"]
    assert httpx.get(f"{dev.url}/lmcache/status", timeout=30).status_code == 200
    assert blocking_calls(dev) == caught > 0


def blocking_calls(dev: DevServer) -> int:
    """How often the server has complained of one so far."""
    return dev.log.read_text(encoding="utf-8").count("Blocking call")


# ---- what Studio shows ----


def test_the_forms_have_titles_descriptions_examples_and_choices(client: SyncLangGraphClient) -> None:
    (assistant,) = client.assistants.search(graph_id="tune_cache")
    schemas = client.assistants.get_schemas(assistant["assistant_id"])
    reason = schemas["input_schema"]["properties"]["tune_reason"]
    assert {"title", "description", "examples"} <= reason.keys()
    context = schemas["context_schema"]
    fields = context["properties"]
    assert fields.keys() == {"cache", "mode", "window_seconds", "verify_seconds", "bounds"}
    assert context["$defs"]["Mode"]["enum"] == ["observe", "recommend", "approve", "auto"]
    assert all("description" in field for field in fields.values())
    assert all({"title", "examples"} <= field.keys() for name, field in fields.items() if name != "mode")
    assert fields["verify_seconds"]["exclusiveMinimum"] == 0


def test_the_drawing_labels_every_step(client: SyncLangGraphClient) -> None:
    (assistant,) = client.assistants.search(graph_id="tune_cache")
    drawn = client.assistants.get_graph(assistant["assistant_id"], xray=True)
    labels = {str(node["id"]): (node.get("metadata") or {}).get("label") for node in drawn["nodes"]}
    assert labels.pop("__start__") is labels.pop("__end__") is None
    assert labels == {name: name.replace("_", " ").capitalize() for name in labels}
    assert {"read_metrics", "approve", "roll_back"} < labels.keys()
    assert {"source": "approve", "target": "reconfigure", "conditional": True} in drawn["edges"]


# ---- runs ----


def test_progress_is_streamed_while_a_recommendation_is_made(client: SyncLangGraphClient, cache: ServerDeployment) -> None:
    context = {"mode": "recommend", **GREATEST}
    parts = list(client.runs.stream(None, "tune_cache", input={}, context=context, stream_mode=["custom", "values"]))
    told: list[Any] = [part.data for part in parts if part.event == "custom"]
    assert {event["step"] for event in told} == {"read_metrics", "recommend"}
    assert "max_size_mb from 16" in told[-1]["message"]
    report: Any = parts[-1].data
    assert report["tune_report"]["outcome"] == "recommended"
    assert l1_mb(cache) == 16


def test_an_unreachable_cache_and_settings_that_make_no_sense_are_told(client: SyncLangGraphClient) -> None:
    done: Any = client.runs.wait(None, "tune_cache", input={"tune_reason": "x"}, context={"cache": "unreachable"})
    assert done["tune_report"]["outcome"] == "failed"
    assert "http://127.0.0.1:9" in done["tune_report"]["summary"]
    wrong: Any = client.runs.wait(None, "tune_cache", input={}, context={"window_seconds": -1}, raise_error=False)
    assert "window_seconds" in wrong["__error__"]["message"]


def test_a_plan_waits_for_an_answer_of_the_right_shape(client: SyncLangGraphClient, cache: ServerDeployment) -> None:
    thread = client.threads.create()["thread_id"]
    context = {"verify_seconds": 1, **GREATEST}
    parts = list(client.runs.stream(thread, "tune_cache", input={}, context=context, stream_mode=["updates"]))
    asked: Any = parts[-1].data
    (question,) = asked["__interrupt__"]
    assert question["value"]["action_requests"][0]["args"]["update"].keys() == {"max_size_mb"}
    form = question["response_schema"]
    assert form["$defs"]["Decision"]["properties"]["type"]["enum"] == ["approve", "edit", "reject"]
    assert all("title" in field for field in form["$defs"]["Decision"]["properties"].values())

    wrong: Any = client.runs.wait(
        thread, "tune_cache", command={"resume": {"approved": True}}, context=context, raise_error=False
    )
    assert wrong["__error__"]["error"] == "ValidationError"
    assert l1_mb(cache) == 16
    assert client.threads.get_state(thread)["interrupts"]

    done: Any = client.runs.wait(thread, "tune_cache", command={"resume": form["examples"][0]}, context=context)
    assert done["tune_report"]["outcome"] == "kept_undecided", done["tune_report"]["summary"]
    assert l1_mb(cache) == question["value"]["action_requests"][0]["args"]["update"]["max_size_mb"]


def test_a_rejected_plan_changes_nothing(client: SyncLangGraphClient, cache: ServerDeployment) -> None:
    thread = client.threads.create()["thread_id"]
    asked: Any = client.runs.wait(thread, "tune_cache", input={}, context=GREATEST)
    assert asked["__interrupt__"]
    answer = {"decisions": [{"type": "reject", "message": "not today"}]}
    done: Any = client.runs.wait(thread, "tune_cache", command={"resume": answer}, context=GREATEST)
    assert done["tune_report"]["outcome"] == "rejected"
    assert "not today" in done["tune_report"]["summary"]
    assert l1_mb(cache) == 16


def changes(dev: DevServer) -> set[str]:
    """The ids of all changes on record."""
    return {one["change_id"] for one in httpx.get(f"{dev.url}/lmcache/changes", timeout=30).json()}


@pytest.mark.parametrize(
    "edited",
    [
        {"args": {"update": {"max_size_mb": 65}}},
        {"args": {"cache": "unreachable", "update": {"max_size_mb": 20}}},
        {"args": {"update": {"max_size_mb": 20}, "fingerprint": "of another"}},
        {"name": "lmcache_clear", "args": {"update": {"max_size_mb": 20}}},
        {"args": {}},
    ],
    ids=str,
)
def test_an_edited_approval_leads_nowhere_else(
    dev: DevServer, client: SyncLangGraphClient, cache: ServerDeployment, edited: dict[str, Any]
) -> None:
    thread, earlier = client.threads.create()["thread_id"], changes(dev)
    asked: Any = client.runs.wait(thread, "tune_cache", input={}, context=GREATEST)
    assert asked["__interrupt__"]
    answer = {"decisions": [{"type": "edit", "edited_action": edited}]}
    done: Any = client.runs.wait(thread, "tune_cache", command={"resume": answer}, context=GREATEST, raise_error=False)
    assert "__error__" in done or done["tune_report"]["outcome"] == "failed", done
    assert changes(dev) == earlier
    assert l1_mb(cache) == 16


# ---- who may come in ----


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://smith.langchain.com"}, 200),
        ({"Origin": "https://eu.smith.langchain.com"}, 200),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "https://notsmith.langchain.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://elsewhere.example", "X-Auth-Scheme": "langsmith"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://smith.langchain.com"}, 200),
        ({"Host": "elsewhere.example"}, 403),
        ({"Host": "[nonsense"}, 403),
    ],
    ids=str,
)
def test_without_a_token_only_this_machine_and_studio_are_answered(dev: DevServer, headers: dict[str, str], status: int) -> None:
    assert httpx.post(f"{dev.url}/threads/search", json={}, headers=headers).status_code == status
    hello = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    for route in ("mcp", "a2a/tune_cache"):  # switched off for everybody
        assert httpx.post(f"{dev.url}/{route}", json=hello, headers=headers).status_code in {401, 403, 404}, route


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Any]) -> Iterator[DevServer]:
    """A server that asks for a token, and for one of another kind from who approves."""
    with start(LMCACHE_AGENT_TOKEN=TOKEN, LMCACHE_AGENT_APPROVERS=json.dumps(APPROVERS)) as server:
        yield server


def test_with_a_token_only_who_sends_it_is_answered(guarded: DevServer) -> None:
    for route in ("threads/search", "assistants/search", "runs/wait"):
        for headers in ({}, {"Authorization": "Bearer guess"}, {"X-Auth-Scheme": "langsmith"}):
            assert httpx.post(f"{guarded.url}/{route}", json={}, headers=headers).status_code == 401
    assert httpx.get(f"{guarded.url}/lmcache/caches").status_code == 401
    with get_sync_client(url=guarded.url, api_key=None, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        assert client.assistants.search(graph_id="tune_cache")
        # Switched off: they would serve each graph as a tool that nobody could be asked about.
        for route in ("mcp", "mcp/", f"a2a/{client.assistants.search(graph_id='tune_cache')[0]['assistant_id']}"):
            hello = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
            answer = httpx.post(f"{guarded.url}/{route}", json=hello, headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status_code == 404, route
            assert httpx.post(f"{guarded.url}/{route}", json=hello).status_code in {401, 404}, route
    # What stays open says nothing of a cache; docs/production.md says how to close it.
    for route in ("ok", "info", "metrics"):
        answer = httpx.get(f"{guarded.url}/{route}")
        assert answer.status_code == 200
        assert "lmcache_" not in answer.text.lower()


# ---- what a caller may make it do ----


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """An address that answers, and the requests that came there."""
    came: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.path)
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/hook", came
        finally:
            server.shutdown()
            thread.join()


def refused_for_its_webhook(answer: httpx.Response) -> bool:
    """By our rule, or by the server's own ones against loopback, which newer servers ask first."""
    if answer.status_code == 422:
        return any(words in answer.text for words in ("Webhook host blocked", "Loopback webhooks"))
    return answer.status_code == 403 and "a run may not call a webhook" in answer.text


def test_a_run_calls_no_webhook(dev: DevServer, client: SyncLangGraphClient) -> None:
    thread = client.threads.create()["thread_id"]
    given = {"assistant_id": "tune_cache", "input": {}, "context": {"cache": "unreachable"}}
    with listening() as (url, came):
        for route in ("runs/wait", "runs/stream", "runs", f"threads/{thread}/runs/wait", f"threads/{thread}/runs"):
            for hook in (url, "/lmcache/clear"):
                answer = httpx.post(f"{dev.url}/{route}", json={**given, "webhook": hook}, timeout=30)
                assert refused_for_its_webhook(answer), (route, answer.text)
        cron = httpx.post(f"{dev.url}/runs/crons", json={**given, "schedule": "* * * * *", "webhook": url})
        assert cron.status_code >= 400
        batch = httpx.post(f"{dev.url}/runs/batch", json=[{**given, "webhook": url}], timeout=30)
        assert refused_for_its_webhook(batch), batch.text
        client.runs.wait(None, "tune_cache", input={}, context={"cache": "unreachable"})
        assert came == []


def test_a_schedule_is_made_replaced_and_removed(dev: DevServer, client: SyncLangGraphClient) -> None:
    def scheduled(*options: str) -> list[Any]:
        program = [sys.executable, str(ROOT / "examples" / "watch_cron.py"), "--url", dev.url, "--cache", "unreachable"]
        subprocess.run([*program, *options], check=True, timeout=60)
        return list(client.crons.search())

    (first,) = scheduled("--schedule", "0 3 * * *")
    (second,) = scheduled("--schedule", "0 4 * * *", "--mode", "auto")
    assert (first["schedule"], second["schedule"]) == ("0 3 * * *", "0 4 * * *")
    (assistant,) = client.assistants.search(metadata={"cache": "unreachable"})
    assert assistant["context"]["mode"] == "auto"
    done: Any = client.runs.wait(None, assistant["assistant_id"], input={})
    assert (done["tune_report"]["cache"], done["tune_report"]["mode"]) == ("unreachable", "auto")
    assert scheduled("--remove") == []


def test_who_starts_a_run_does_not_approve_it(guarded: DevServer, lmcache: None) -> None:
    began = now()

    def by(token: str) -> SyncLangGraphClient:
        return get_sync_client(url=guarded.url, api_key=None, headers={"Authorization": f"Bearer {token}"})

    with by(TOKEN) as starter, by(APPROVERS["alice"]) as alice:
        thread = starter.threads.create()["thread_id"]
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            alice.runs.wait(thread, "tune_cache", input={}, context={"cache": "unreachable"})
        for command in ({"goto": "reconfigure"}, {"update": {"tune_approved": True}}):
            with pytest.raises(httpx.HTTPStatusError, match="403"):
                starter.runs.wait(thread, "tune_cache", command=command)
        done: Any = starter.runs.wait(thread, "tune_cache", input={}, context={"cache": "unreachable"})
        assert done["tune_report"]["outcome"] == "failed"
        for someone in (starter, alice):
            with pytest.raises(httpx.HTTPStatusError, match="nobody may write the state of a thread"):
                someone.threads.update_state(thread, {"tune_approved": True}, as_node="approve")
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            alice.runs.wait(thread, "tune_cache", input={}, command={"resume": {}})
        assert alice.threads.get_state(thread)["values"]

        cache = thrash(guarded, starter)
        context, yes = {"verify_seconds": 1, **GREATEST}, {"resume": {"decisions": [{"type": "approve"}]}}
        for person, outcome in ((starter, "failed"), (alice, "kept_undecided")):
            thread = starter.threads.create()["thread_id"]
            asked: Any = starter.runs.wait(thread, "tune_cache", input={}, context=context)
            assert asked["__interrupt__"]
            done = person.runs.wait(thread, "tune_cache", command=yes, context=context)
            assert done["tune_report"]["outcome"] == outcome, done["tune_report"]["summary"]
            assert (l1_mb(cache) == 16) is (person is starter)
        io_loop.run(cache.close)
    told = httpx.get(f"{guarded.url}/lmcache/changes", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    # Tests before this one have changed the cache too.
    since = {one["actor"] for one in told if datetime.fromisoformat(one["recorded_at"]) >= began}
    assert since == {"graph tune_cache, approved by alice"}
    assert httpx.get(f"{guarded.url}/lmcache/caches", headers={"Authorization": f"Bearer {APPROVERS['bob']}"}).status_code == 401


# ---- last, since advice that was undone is not given again ----


def test_an_approval_that_is_sent_again_changes_nothing_again(
    dev: DevServer, client: SyncLangGraphClient, cache: ServerDeployment
) -> None:
    """Again to the same thread, from a checkpoint of before, to a copy of the thread; and also after the change was undone."""
    thread = client.threads.create()["thread_id"]
    context, yes = {"verify_seconds": 1, **GREATEST}, {"resume": {"decisions": [{"type": "approve"}]}}
    asked: Any = client.runs.wait(thread, "tune_cache", input={}, context=context)
    copied: Any = client.threads.copy(thread)
    waiting = client.threads.get_state(thread)["checkpoint"]
    earlier = changes(dev)
    done: Any = client.runs.wait(thread, "tune_cache", command=yes, context=context)
    assert done["tune_report"]["change"] is not None, done["tune_report"]["summary"]
    (change,) = changes(dev) - earlier
    grown = l1_mb(cache)
    assert grown == asked["__interrupt__"][0]["value"]["action_requests"][0]["args"]["update"]["max_size_mb"]

    def again() -> None:
        for where, more in ((thread, {}), (thread, {"checkpoint": waiting}), (copied["thread_id"], {})):
            client.runs.wait(where, "tune_cache", command=yes, context=context, raise_error=False, **more)
            assert changes(dev) - earlier <= {change, undone}
            assert l1_mb(cache) == now_mb

    undone, now_mb = "none yet", grown
    again()
    undo: Any = httpx.post(f"{dev.url}/lmcache/changes/{change}/undo", timeout=60).json()
    undone, now_mb = undo["change_id"], 16
    assert l1_mb(cache) == 16
    again()
