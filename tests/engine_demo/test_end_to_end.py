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
    """What the demo runs in: one thread of computation, since two that wait for each other stand still on a busy machine."""
    one_thread = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    return os.environ | one_thread | {"LMCACHE_AGENT_STATE_FOLDER": str(tmp_path / "state"), "TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture
def leftovers(tmp_path: Path) -> set[str]:
    """What lies in shared memory before; the demo's own temporary folder is made."""
    (tmp_path / "tmp").mkdir()
    return {entry.name for entry in SHARED_MEMORY.iterdir()}


def vllm_left(tmp_path: Path) -> set[str]:
    """What the demo would leave of vLLM: its shared memory is named ``psm_...``, its model is in our temporary folder."""
    memory = {entry.name for entry in SHARED_MEMORY.iterdir() if entry.name.startswith("psm_")}
    return memory | {entry.name for entry in (tmp_path / "tmp").iterdir() if entry.name.startswith("lmcache-agent-")}


@pytest.mark.timeout(1200)
def test_after_tuning_the_engine_loads_more_from_lmcache_and_computes_less(tmp_path: Path, leftovers: set[str]) -> None:
    command = [sys.executable, *DEMO, "--output", str(tmp_path / "told")]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=1180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded, own, computed = (
        shares(done.stdout, source) for source in ("loaded from LMCache", "from vLLM's own cache", "computed")
    )
    assert own[0] > 0.1, "vLLM's own prefix cache is on"
    assert loaded[1] > loaded[0] + 0.1
    assert computed[1] < computed[0] - 0.1
    assert sum(one[1] for one in (loaded, own, computed)) == pytest.approx(1, abs=0.01)
    assert re.search(r"Changed: max_size_mb \d+ -> \d+ \(live\)", done.stdout)
    assert re.search(r"Verified: improved: .*; time to first token .* before, .* after", done.stdout)
    assert "time to first token" in (tmp_path / "told" / "report.html").read_text(encoding="utf-8").lower()
    assert "<svg" in (tmp_path / "told" / "ttft.svg").read_text(encoding="utf-8")
    assert not vllm_left(tmp_path) - leftovers


def shares(told: str, source: str) -> tuple[float, float]:
    """The share of the prompt tokens from one source, before and after, as the demo's table says."""
    (row,) = (line for line in told.splitlines() if f"prompt tokens {source}" in line)
    figures = [float(figure) / 100 for figure in re.findall(r"([\d.]+)%", row)]
    return figures[0], figures[-1]


@pytest.mark.timeout(1200)
def test_a_killed_demo_takes_vllm_and_all_its_processes_with_it(tmp_path: Path, leftovers: set[str]) -> None:
    with subprocess.Popen([sys.executable, *DEMO], env=environment(tmp_path), stdout=subprocess.DEVNULL) as demo:
        try:
            started = eventually(lambda: engine_processes(demo.pid), seconds=1100)
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
