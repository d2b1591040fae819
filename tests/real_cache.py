"""What the shared fixtures hand to tests, and the one way in which tests wait."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import pytest

from agent_tools.deployments.server.command_line import Flags
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.replay import ReplayResult

T = TypeVar("T")


class Play(Protocol):
    """Replays a log into the embedded cache, with keyword arguments of `ReplaySettings`."""

    def __call__(self, log: AccessLog, **settings: object) -> ReplayResult: ...


class Launch(Protocol):
    """Starts a real server with these flags, on free ports and with a lookup-hash log."""

    def __call__(self, flags: Flags, environment: Mapping[str, str] | None = None) -> ServerProcess: ...


def eventually(value: Callable[[], T], seconds: float = 10) -> T:
    """Wait until a value is true and return it: the server counts, stores and evicts on threads of its own."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not (last := value()):
        if time.monotonic() > deadline:
            pytest.fail(f"still {last!r} after {seconds} s")
        pause.wait(0.05)
    return last
