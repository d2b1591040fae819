"""Claims that a folder that somebody else wrote runs nothing, whichever of our programs is started in it.

Its modules are named like those that our programs import, and each writes a file when it runs.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import agent_tools.child_process
from agent_tools.child_process import environment, python_command
from agent_tools.demo.engine.vllm_server import VllmServer
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.io_loop import io_loop

NAMES = (
    "lmcache",
    "torch",
    "vllm",
    "transformers",
    "tokenizers",
    "typer",
    "httpx",
    "pydantic",
    "rich",
    "json",
    "shutil",
    "ctypes",
)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Starts the test in such a folder. Returns the modules of it that ran."""
    folder, traces = tmp_path / "cloned", tmp_path / "ran"
    traces.mkdir()
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"open({str(traces / name)!r}, 'w')\n")
    monkeypatch.chdir(folder)
    return lambda: sorted(path.name for path in traces.iterdir())


def python(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], env=os.environ | variables, capture_output=True, text=True, check=False)


def test_such_a_folder_runs_without_precautions(ran: Callable[[], list[str]]) -> None:
    python("-c", "import lmcache")
    assert ran() == ["lmcache"]


def test_a_private_server_runs_nothing_of_it_and_loads_our_module(
    not_forked: None, ran: Callable[[], list[str]], tmp_path: Path, arena_folder: Path
) -> None:
    deployment = EmbeddedDeployment(EmbeddedOptions(l1_size_mb=8, arena_folder=arena_folder), tmp_path / "logs")
    try:
        # Only our module in the server lists entries.
        assert list(io_loop.run(deployment.entries, 5)) == []
        assert ran() == []
    finally:
        io_loop.run(deployment.close)


def test_an_engine_of_the_demo_runs_nothing_of_it(ran: Callable[[], list[str]], tmp_path: Path) -> None:
    server = VllmServer.launch("tcp://127.0.0.1:9", tmp_path / "logs", 1)
    try:
        server._guard.wait(120)  # it ends by itself: vLLM is not installed, or port 1 is not ours
        assert server.log.read_text()
        assert ran() == []
    finally:
        io_loop.run(server.stop)


def test_python_m_runs_nothing_of_it(ran: Callable[[], list[str]]) -> None:
    done = python("-m", "agent_tools.doors.cli", "--help")
    assert ran() == []
    assert done.returncode == 0, done.stderr


def test_a_child_finds_our_package_wherever_this_process_found_it(ran: Callable[[], list[str]], tmp_path: Path) -> None:
    package = tmp_path / "checkout" / "agent_tools"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "child_process.py").write_text(Path(agent_tools.child_process.__file__).read_text())
    starts = (
        "import os, subprocess\nfrom agent_tools.child_process import environment, python_command\n"
        "command = python_command('import agent_tools; print(agent_tools.__file__)')\n"
        f"subprocess.run(command, env=environment(os.environ), cwd={str(tmp_path)!r}, check=True)\n"
    )
    # An interpreter without our package, in whose working directory or PYTHONPATH the package lies.
    bare = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    for folder, variables in ((package.parent, {}), (tmp_path, {"PYTHONPATH": os.pathsep + "checkout"})):
        done = subprocess.run(
            [bare, "-c", starts], cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == str(package / "__init__.py"), done.stderr


def test_a_child_keeps_pythonpath_but_not_its_empty_entries(ran: Callable[[], list[str]], tmp_path: Path) -> None:
    assert environment({"PYTHONPATH": os.pathsep.join(["", "lib", "/opt/lib", ""])})["PYTHONPATH"] == os.pathsep.join(
        [str(Path.cwd() / "lib"), "/opt/lib"]
    )
    subprocess.run(python_command("import json, shutil"), env=environment(os.environ | {"PYTHONPATH": os.pathsep}), check=True)
    assert ran() == []
