"""A stand-in for an `lmcache server` 0.5.6 that says what no real one can be made to say: secrets, hostile names, redirects.

Its answers have the shape of a real one's (`recorded_answers`), and it is served over real HTTP on loopback.
"""

import copy
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from recorded_answers import ANSWERS, METRICS
from serving import serving
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from agent_tools.operations import Operations

CANARY = "rosebud-7f3a9c"
"""A secret, in every place where a server or an operator can have one."""


def named(name: str) -> dict[str, Any]:
    """The answers of a server whose tenants, models, adapters, version and instance have this name."""
    answers = copy.deepcopy(ANSWERS)
    label = name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    answers["/metrics"] = METRICS % {"name": label}
    answers["/lmc_version"] = name
    manager = answers["/status"]["storage_manager"]
    manager["l2_adapters"] = [{"is_healthy": False, "type": name}]
    manager["store_controllers"] = {name: {"thread_alive": False}}
    answers["/config"]["storage_manager"]["l2_adapter_config"]["adapters"] = [{"base_path": name}]
    answers["/quota"] = {"users": {name: {"limit_gb": 1.0}}}
    return answers


def telling() -> dict[str, Any]:
    """The answers of a server that holds secrets in all places where one of LMCache's settings can have them."""
    answers = copy.deepcopy(ANSWERS)
    boot = answers["/config"]
    boot["storage_manager"]["l2_adapter_config"]["adapters"] = [
        {
            "base_path": "/kv",
            "password": CANARY,
            "aws-secret-access-key": CANARY,
            "url": f"redis://user:{CANARY}/with@signs@host:6379/0",
            "endpoint": f"https://host/bucket?X-Amz-Security-Token={CANARY}&x=1",
            "options": {"deep": [{"apiKey": CANARY}, f"AccountName=a;AccountKey={CANARY};"]},
            "plain_repr": f"Backend(host='h', password='{CANARY}')",
            "serde_config": f"SerdeConfig(type='x', kwargs={{'secret': '{CANARY}'}})",
        }
    ]
    boot["mp"]["server_modules"] = [{"module_path": "m", "config": {"token": CANARY}}]
    boot["observability"]["otlp_endpoint"] = f"https://me:{CANARY}@collector:4317"
    boot["coordinator"]["url"] = f"http://me:{CANARY}@coordinator:9300"
    answers["/env"] = {"AWS_SECRET_ACCESS_KEY": CANARY}
    return answers


class HostileServer:
    """What it answers, and all that it was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.refuses: Response | None = None
        """What every change is answered with; 404 without."""
        self.redirects: Response | None = None
        """What everything is answered with, if anything."""
        self.asked: list[tuple[str, str]] = []
        self.headers: set[str] = set()
        """Names of all headers it was sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """It takes any path."""
        assert scope["type"] == "http"
        answer = self._answer(Request(scope, receive))
        await answer(scope, receive, send)

    @property
    def changes(self) -> list[tuple[str, str]]:
        """All requests that are no reading."""
        return [one for one in self.asked if one[0] != "GET"]

    def _answer(self, request: Request) -> Response:
        path = request.scope["path"]
        self.asked.append((request.method, path))
        self.headers |= set(request.headers)
        if self.redirects is not None:
            return self.redirects
        if path == "/reconfigure/dax/l1/status":
            return JSONResponse({"error": "L1 is not devdax-backed"}, 409)
        if request.method == "GET" and path.startswith("/quota/"):
            return JSONResponse(
                {"cache_salt": path.removeprefix("/quota/"), "current_usage_gb": 0.0, "limit_gb": 0.0, "exists": False}
            )
        if request.method != "GET" or path not in self.answers:
            missing = JSONResponse({"detail": f"no {path}; my environment: password={CANARY}"}, 404)
            return missing if request.method == "GET" or self.refuses is None else self.refuses
        answer = self.answers[path]
        return Response(answer) if path == "/metrics" else JSONResponse(answer)


@contextmanager
def hostile(answers: dict[str, Any]) -> Iterator[tuple[str, HostileServer]]:
    """Its address and itself, while it is served."""
    server = HostileServer(answers)
    with serving(server) as url:
        yield url, server


class Meet(Protocol):
    """Operations whose cache ``prod`` is a hostile server with these answers, and that server."""

    def __call__(self, answers: dict[str, Any], **settings: Any) -> tuple[Operations, HostileServer]: ...


class Outside:
    """A listening socket that is not the operator's: whoever connects is noted, and gets nothing."""

    def __init__(self, listening: socket.socket) -> None:
        self.host, self.port = listening.getsockname()[:2]
        self.callers: list[Any] = []
        self._listening = listening

    def listen(self) -> None:
        """Until it is closed."""
        while True:
            try:
                connection, caller = self._listening.accept()
            except OSError:
                return
            self.callers.append(caller)
            connection.close()


@contextmanager
def outside() -> Iterator[Outside]:
    """One at loopback, where all that this machine could be made to call ends up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        there = Outside(listening)
        thread = threading.Thread(target=there.listen, daemon=True)
        thread.start()
        try:
            yield there
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
