"""Fixtures: a real `lmcache server`, and the recorded traces where they are at hand."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_server import Server, running_server


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), "--supported-transfer-mode", "auto") as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """The shared server with an empty L1; its counters go on, so tests use model names of their own."""
    shared_server.clear()
    return shared_server


@pytest.fixture
def traces() -> Path:
    """The folder of recorded traces (`LMCACHE_TRACES`, or `shared/traces` beside the repository)."""
    folder = Path(os.environ.get("LMCACHE_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
    if not folder.is_dir():
        pytest.skip(f"recorded traces are not at hand: {folder} does not exist (set LMCACHE_TRACES)")
    return folder
