"""Claims about `lmcache-agent watch` as a process: its events, its webhook, its metrics, and what survives ``kill -9``."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from real_cache import eventually
from watched import Caches, Restartable

from agent_tools.changes.log import ChangeLog, stories
from agent_tools.errors import SettingsError
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate
from agent_tools.models.metrics import now
from agent_tools.watching.event import Event, EventKind
from agent_tools.watching.webhook import Webhook
from agent_tools.wire.access import NO_PROXY, Access

SIMULATED = """
[caches.sim]
target = "simulated:"
max_mode = "auto"
cooldown_seconds = 0
bounds = { max_size_mb = 256 }
simulated = { l1_size_mb = 64, kv_bytes_per_token = 4096, speed = 20 }
"""


class Process:
    """A watch that runs as a user starts it, and what it has printed."""

    def __init__(self, folder: Path, settings: str, *arguments: str, **environment: str) -> None:
        file = folder / "caches.toml"
        file.write_text(settings, encoding="utf-8")
        command = [sys.executable, "-m", "agent_tools.doors.cli", "--settings", str(file), "watch", *arguments]
        environ = os.environ | {"LMCACHE_AGENT_STATE_FOLDER": str(folder / "state"), **environment}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())

    def printed(self, words: str) -> str:
        """Wait for a line with these words, and return it."""
        return eventually(lambda: next((line for line in self.lines if words in line), ""), seconds=90)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        code = self.process.wait(30)
        self.reader.join()
        return code


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts watches; all that are left are ended."""
    started: list[Process] = []

    def start(settings: str, *arguments: str, **environment: str) -> Process:
        started.append(Process(tmp_path, settings, *arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait(30)
        one.reader.join()


@contextmanager
def hook(status: int = 200) -> Iterator[tuple[str, list[tuple[dict[str, str], Any]]]]:
    """A webhook that answers with this status, and what was sent to it: headers and JSON."""
    came: list[tuple[dict[str, str], Any]] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((dict(self.headers), json.loads(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/T0/key-of-the-hook", came
        finally:
            server.shutdown()
            thread.join()


def test_it_tunes_within_the_mode_and_tells_webhook_and_prometheus(start: Start) -> None:
    with hook() as (url, came):
        settings = SIMULATED + '[watch]\nwebhook = "env:HOOK"\nheaders = { Authorization = "env:HOOK_HEADER" }\n'
        options = ("-c", "sim", "--every", "2", "--verify-seconds", "2", "--metrics-port", "0")
        watch = start(settings, *options, HOOK=url, HOOK_HEADER="Bearer of-the-hook")
        metrics = watch.printed("metrics: http").partition(": ")[2]
        watch.printed("sim: changed: ")
        eventually(lambda: {"changed"} & {body["kind"] for _, body in came}, seconds=60)
        eventually(lambda: any("sim: auto: " in line for line in watch.lines), seconds=60)
        text = httpx.get(metrics, trust_env=False).text
        assert watch.end() == 0
    headers, body = next((headers, body) for headers, body in came if body["kind"] == "changed")
    assert headers["Authorization"] == "Bearer of-the-hook"
    assert body["text"].startswith("sim: changed: ")
    assert body["change_id"].startswith("change-")
    samples = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    assert {"lmcache_agent_watch_looks_total", "lmcache_agent_watch_events_total", "lmcache_agent_changes"} <= samples
    assert not any("key-of-the-hook" in line or "of-the-hook" in line for line in watch.lines)


@pytest.mark.parametrize("status", [None, 500, 302])
def test_a_dead_webhook_does_not_stop_the_watch_and_its_address_is_not_shown(start: Start, status: int | None) -> None:
    with hook(status or 200) as (alive, came):
        url = alive if status else "http://127.0.0.1:9/T0/key-of-the-hook"
        watch = start(SIMULATED, "-c", "sim", "--mode", "recommend", "--every", "1", "--webhook", url)
        watch.printed("an event was not sent: the webhook " + ("answered with status" if status else "did not answer"))
        looks = len([line for line in watch.lines if line.startswith("sim: recommend:")])
        eventually(lambda: len([line for line in watch.lines if line.startswith("sim: recommend:")]) > looks, seconds=60)
        assert watch.end() == 0
        assert bool(came) is (status is not None)
    assert not any("key-of-the-hook" in line for line in watch.lines)


def test_wrong_names_addresses_and_ports_are_refused_at_once(start: Start) -> None:
    for arguments, words in (
        (("-c", "nobody"), "there is no cache named"),
        (("-c", "sim", "--webhook", "env:NOT_SET_AT_ALL"), "NOT_SET_AT_ALL, which is not set"),
        (("-c", "sim", "--webhook", "ftp://key@host"), "not an address"),
    ):
        watch = start(SIMULATED, *arguments)
        watch.printed(words)
        assert watch.process.wait(30) == 1
        assert not any("key" in line for line in watch.lines)


def test_the_body_is_what_chat_services_show() -> None:
    event = Event(at=now(), cache="prod", kind=EventKind.FOUND, text="two\nlines")
    assert event.body()["text"] == "prod: found: two lines"
    with pytest.raises(SettingsError):
        Webhook(SecretStr("http://"), NO_PROXY)
    with pytest.raises(SettingsError):
        Webhook(SecretStr("http://host"), Access({"X": SecretStr("")}))


@pytest.mark.real_cache("it is restarted under two watches")
@pytest.mark.long
def test_two_watches_and_kill_9_set_a_lost_change_again_once(start: Start, prod: Restartable, on: Caches, tmp_path: Path) -> None:
    operations = on(prod.url)
    change = io_loop.run(operations.configure, "prod", ConfigUpdate(eviction_watermark=0.6), "a test", "test")
    assert change is not None
    settings = f'[caches.prod]\ntarget = "{prod.url}"\nmax_mode = "auto"\ncooldown_seconds = 0\n'
    options = ("-c", "prod", "--every", "1", "--verify-seconds", "1")
    first = start(settings, *options)
    first.printed("prod: auto: ")
    second = start(settings, *options)
    second.printed("standing by")
    first.end(signal.SIGKILL)
    prod.restart()
    second.printed("set again what a restart lost: eviction_watermark 0.8 -> 0.6")
    third = start(settings, *options)
    third.printed("standing by")
    second.end(signal.SIGKILL)
    third.printed("prod: auto: ")
    looks = len(third.lines)
    eventually(lambda: len(third.lines) > looks + 2, seconds=60)
    assert third.end() == 0
    log = stories(ChangeLog(tmp_path / "state" / "changes.jsonl").records("prod"))
    assert [story[0].actor.partition(",")[0] for story in log] == ["watch", "test"]
    assert io_loop.run(operations.settings, "prod").eviction_watermark == 0.6
