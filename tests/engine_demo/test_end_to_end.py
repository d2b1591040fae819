"""The demo as a user runs it, with a real vLLM. Skipped where that is not installed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from real_cache import eventually

pytestmark = pytest.mark.usefixtures("vllm", "lmcache")

DEMO = ("-c", "from agent_tools.doors.cli import app; app()", "demo-engine", "--conversations", "5", "--turns", "5")
SHARED_MEMORY = Path("/dev/shm")


def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"LMCACHE_AGENT_STATE_FOLDER": str(tmp_path / "state"), "TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture
def leftovers(tmp_path: Path) -> set[str]:
    """What lies in shared memory before; the demo's own temporary folder is made."""
    (tmp_path / "tmp").mkdir()
    return {entry.name for entry in SHARED_MEMORY.iterdir()}


def vllm_left(tmp_path: Path) -> set[str]:
    """What the demo would leave of vLLM: its shared memory is named ``psm_...``, its model is in our temporary folder."""
    memory = {entry.name for entry in SHARED_MEMORY.iterdir() if entry.name.startswith("psm_")}
    return memory | {entry.name for entry in (tmp_path / "tmp").iterdir() if entry.name.startswith("lmcache-agent-")}


@pytest.mark.timeout(300)
def test_the_median_request_has_its_first_token_sooner_after_tuning(tmp_path: Path, leftovers: set[str]) -> None:
    command = [sys.executable, *DEMO, "--output", str(tmp_path / "told")]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sooner,) = re.findall(r"first token ([\d.]+) times sooner", done.stdout)
    assert float(sooner) > 1.5
    assert re.search(r"Changed: max_size_mb \d+ -> \d+ \(live\)", done.stdout)
    assert re.search(r"Verified: improved: .*; time to first token .* before, .* after", done.stdout)
    assert "time to first token" in (tmp_path / "told" / "report.html").read_text(encoding="utf-8").lower()
    assert "<svg" in (tmp_path / "told" / "ttft.svg").read_text(encoding="utf-8")
    assert not vllm_left(tmp_path) - leftovers


@pytest.mark.timeout(120)
def test_a_killed_demo_takes_vllm_and_all_its_processes_with_it(tmp_path: Path, leftovers: set[str]) -> None:
    with subprocess.Popen([sys.executable, *DEMO], env=environment(tmp_path), stdout=subprocess.DEVNULL) as demo:
        try:
            started = eventually(lambda: engine_processes(demo.pid), seconds=100)
        finally:
            demo.send_signal(signal.SIGKILL)
    assert not psutil.wait_procs(started, timeout=20)[1]
    eventually(lambda: not vllm_left(tmp_path) - leftovers, seconds=20)


def engine_processes(demo: int) -> list[psutil.Process]:
    """All processes of a demo, once vLLM has started its engine."""
    processes = psutil.Process(demo).children(recursive=True)
    return processes if any("VLLM::" in " ".join(cmdline(one)) for one in processes) else []


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
