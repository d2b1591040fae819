"""Claims about the programs in examples/: each is run as a reader would run it, against a real server."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from real_cache import eventually

from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.snapshot import Snapshot
from agent_tools.io_loop import io_loop
from agent_tools.models import MB

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.usefixtures("lmcache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def small_cache(folder: Path) -> Iterator[Path]:
    """examples/small_cache.py at work; the settings file that names its server."""
    settings = folder / "caches.toml"
    command = [sys.executable, str(EXAMPLES / "small_cache.py"), str(settings)]
    with subprocess.Popen(command, cwd=folder, env=environment(folder)) as process:
        try:
            eventually(lambda: settings.exists() and settings.stat().st_size, seconds=60)
            eventually(lambda: (counters := read(settings).counters) and counters.evictions > 100, seconds=60)
            yield settings
        finally:
            servers = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            process.wait(30)
    assert process.returncode == 0
    assert not settings.exists(), "it cleans up after itself"
    assert not psutil.wait_procs(servers, timeout=10)[1]


def read(settings: Path) -> Snapshot:
    """What the server of a settings file says of itself."""
    (url,) = re.findall(r'target = "(.*)"', settings.read_text(encoding="utf-8"))
    cache = ServerDeployment(url)
    try:
        return io_loop.run(cache.snapshot)
    finally:
        io_loop.run(cache.close)


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs an example to its end."""

    def run(name: str, *arguments: str, settings: Path | None = None) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments]
        environ = environment(folder, settings)
        return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)

    return run


def environment(folder: Path, settings: Path | None = None) -> dict[str, str]:
    named = {} if settings is None else {"LMCACHE_AGENT_SETTINGS": str(settings)}
    return os.environ | {"LMCACHE_AGENT_STATE_FOLDER": str(folder / "state")} | named


@pytest.mark.long
def test_a_plan_that_one_process_asks_about_is_carried_out_by_another(run: Run, small_cache: Path) -> None:
    asked = run("orchestrator", "start", "--window", "3", settings=small_cache)
    assert asked.returncode == 0, asked.stderr
    assert "max_size_mb 4 -> " in asked.stdout
    assert "resume approve" in asked.stdout
    assert read(small_cache).l1_total_bytes == 4 * MB, "asking changes nothing"
    done = run("orchestrator", "resume", "approve", "--window", "3", settings=small_cache)
    assert done.returncode == 0, done.stderr
    note, *answers = done.stdout.splitlines()
    assert note.startswith(("improved: ", "kept_undecided: "))
    assert read(small_cache).l1_total_bytes > 4 * MB
    assert len(answers) == 4
    assert all(answer.endswith("(for ACME)") for answer in answers)
    again = run("orchestrator", "resume", "reject", settings=small_cache)
    assert again.returncode == 2
    assert "no request waits for an answer" in again.stderr


@pytest.mark.long
def test_a_night_goes_on_past_a_cache_that_cannot_be_reached(run: Run, small_cache: Path, folder: Path) -> None:
    two = folder / "two.toml"
    gone = '\n[caches.gone]\ntarget = "http://127.0.0.1:9"\ntimeout_seconds = 1\n'
    two.write_text(small_cache.read_text(encoding="utf-8") + gone, encoding="utf-8")
    done = run("nightly", "--folder", "pages", settings=two)
    assert done.returncode == 0, done.stderr
    rows = {row.split(" | ")[0].strip("| "): row for row in done.stdout.splitlines() if row.startswith("| ")}
    assert "| failed |" in rows["gone"]
    assert re.search(r"\| (recommended|do_nothing) \|", rows["default"])
    assert "<svg" in (folder / "pages" / "default.html").read_text(encoding="utf-8")
    assert not (folder / "pages" / "gone.html").exists()
    assert run("nightly", "--mode", "approve", settings=two).returncode == 2


@pytest.mark.long
def test_a_missed_budget_has_the_cache_tuned_and_work_gets_faster(run: Run) -> None:
    done = run("supervisor", "--budget-ms", "0.5", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    before, tuned, after = done.stdout.splitlines()
    assert "max_size_mb 4 -> " in tuned
    first, second = (float(re.findall(r"p95 ([\d.]+) ms", line)[0]) for line in (before, after))
    assert second < first
