"""Claims about what is imported when: nothing that is not needed yet, since each new process of an agent waits for it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from real_cache import Play

from agent_tools.deployments.server.process import ServerProcess
from agent_tools.workload.generate import AgentTraffic

SLOW = {"lmcache", "torch", "matplotlib", "numba"}
"""What takes long to import and is for what it is named for only."""

DEFINE = """
from agent_tools import LMCacheToolkit
found = len(LMCacheToolkit().get_tools())
"""
READ = """
import asyncio
from blockbuster import blockbuster_ctx
from agent_tools import LMCacheToolkit
(tool,) = [tool for tool in LMCacheToolkit().get_tools() if tool.name == "lmcache_get_metrics"]
with blockbuster_ctx() as blocking:
    for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock", "io.BufferedReader.read", "os.stat", "os.listdir"):
        blocking.functions[name].deactivate()  # as `langgraph dev` does
    found = asyncio.run(tool.ainvoke({}))
"""
COMMAND = """
import sys
from typer.testing import CliRunner
from agent_tools.doors.cli import app
result = CliRunner().invoke(app, {arguments!r})
found = [result.exit_code, result.output]
"""
TELL = """
import json, sys
print(json.dumps([found, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def fresh(program: str, folder: Path, **environment: str) -> tuple[Any, set[str]]:
    """What a program found, and the packages it imported, in an interpreter of its own."""
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", program + TELL],
        env=os.environ | {"LMCACHE_AGENT_STATE_FOLDER": str(folder)} | environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    found, modules = json.loads(told)
    return found, set(modules)


def test_tools_are_defined_without_what_they_run_on(tmp_path: Path) -> None:
    tools, modules = fresh(DEFINE, tmp_path)
    assert tools >= 10
    assert not modules & (SLOW | {"numpy", "httpx", "langgraph", "pydantic_settings"})


def test_the_first_call_imports_what_it_needs_and_no_more_and_blocks_no_event_loop(tmp_path: Path, server: ServerProcess) -> None:
    (tmp_path / "caches.toml").write_text(f'[caches.default]\ntarget = "{server.http_url}"\n', encoding="utf-8")
    content, modules = fresh(READ, tmp_path, LMCACHE_AGENT_SETTINGS="caches.toml")
    assert content.startswith("window: ")
    assert not modules & SLOW


def test_importing_the_package_imports_nothing_else(tmp_path: Path) -> None:
    _, modules = fresh("import agent_tools\nfound = None\n", tmp_path)
    assert not modules & (SLOW | {"numpy", "httpx", "langchain_core", "langgraph", "pydantic", "rich", "typer"})


def test_help_needs_typer_alone(tmp_path: Path) -> None:
    (code, output), modules = fresh(COMMAND.format(arguments=["--help"]), tmp_path)
    assert code == 0
    assert "Exit codes" in output
    assert not modules & (SLOW | {"numpy", "httpx", "langchain_core", "langgraph", "pydantic", "rich"})


def test_status_imports_nothing_that_only_graphs_predictions_and_pictures_need(
    tmp_path: Path, server: ServerProcess, play: Play
) -> None:
    play(AgentTraffic(requests=40, seed=5).generate())
    (code, output), modules = fresh(COMMAND.format(arguments=["status", "--url", server.http_url]), tmp_path)
    assert code == 0, output
    assert "token hit rate" in output
    assert "judged by counters alone" in output
    assert not modules & (SLOW | {"langchain", "langchain_core", "langgraph"})
