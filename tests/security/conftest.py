"""What the claims about security share: a place that must never be called, and operations on a server not to be trusted.

Imports are made in the fixtures, since they need an extra; where it is missing, all modules that use these are skipped.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.io_loop import io_loop
from agent_tools.operations import Operations


@pytest.fixture(name="outside")
def _outside() -> Iterator[Any]:
    from hostile_server import outside  # noqa: PLC0415

    with outside() as there:
        yield there
        assert there.callers == [], "a request left the operator's directory"


@pytest.fixture
def meet(tmp_path: Path) -> Iterator[Any]:
    """Operations whose cache ``prod`` is a hostile server with these answers, and that server."""
    from hostile_server import HostileServer, hostile  # noqa: PLC0415

    with ExitStack() as stack:

        def meet(answers: dict[str, Any], **settings: Any) -> tuple[Operations, HostileServer]:
            url, server = stack.enter_context(hostile(answers))
            caches = {"prod": CacheSettings.model_validate({"target": url, **settings})}
            operations = Operations(Registry(Settings(caches=caches, state_folder=tmp_path / "state")))
            stack.callback(io_loop.run, operations.close)
            return operations, server

        yield meet
