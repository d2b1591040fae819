"""Draws the pictures of docs/recipes.md from real runs: ``python docs/recipe_pictures.py [NAME ...]``, ten minutes for all.

Each runs what its recipe says, on real processes of this machine with small caches and traffic of its own, and keeps what the
terminal showed as docs/recipes/NAME.svg. The alerts page of Prometheus needs Debian's `prometheus` and `chromium`.
"""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from agent_tools.arena_file import reserve
from agent_tools.deployments.server.process import ServerProcess, free_port
from agent_tools.io_loop import io_loop
from agent_tools.models import MB
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
WIDTH, SECONDS = 110, 20
BUDGET_MS = "2500"
"""A budget that a slow machine misses with a small L1, and keeps with a larger one."""
TRAFFIC = AgentTraffic(requests=300, conversations=40, turns=6, tool_tokens=1500, spread=0.3, seed=1).generate()
WITHOUT_WEB_FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
SHOWN = {"server": "http://127.0.0.1:8080", "coordinator": "http://127.0.0.1:9300"}
CACHES = """
[caches.prod]
target = "{url}"
arena_folder = "{arenas}"
max_mode = "{mode}"
cooldown_seconds = 0
bounds = {{ max_size_mb = 64 }}

[caches.prod.economics]
prefill = {{ tokens_per_second = 9000, gpus = 1, source = "measured at the engine" }}
prices = {{ memory_gb = 6.0, gpu_hour = 2.5 }}
"""
FLEET = """
[caches.fleet]
target = "fleet:{url}"
networks = ["127.0.0.0/8"]
bounds = {{ max_size_mb = 64 }}
"""


class Terminal:
    """A terminal that runs commands of `lmcache-agent` and is kept as a picture. Ports are shown as the recipes have them."""

    def __init__(self, name: str, settings: Path, shown: dict[str, str]) -> None:
        self.name, self._shown = name, shown
        self.environment = os.environ | {
            "LMCACHE_AGENT_SETTINGS": str(settings),
            "LMCACHE_AGENT_STATE_FOLDER": str(settings.parent / "state"),
            "COLUMNS": str(WIDTH),
        }
        self._console = Console(record=True, width=WIDTH, file=io.StringIO())

    def run(self, *words: str) -> str:
        """Run a command and show it with what it prints."""
        ran = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "agent_tools.doors.cli", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.show(f"$ lmcache-agent {' '.join(words)}", ran.stdout)
        return ran.stdout

    def show(self, command: str, text: str) -> None:
        """Show a command and its output."""
        for real, shown in self._shown.items():
            text, command = text.replace(real, shown), command.replace(real, shown)
        self._console.print(Text(command, style="bold green"))
        self._console.print(Text(text.rstrip() + "\n"))

    def save(self) -> None:
        """Write the picture, without fonts from the web."""
        drawn = self._console.export_svg(title=self.name.replace("_", " "), theme=MONOKAI)
        (HERE / "recipes" / f"{self.name}.svg").write_text(WITHOUT_WEB_FONTS.sub("", drawn), encoding="utf-8")


@contextmanager
def prod(folder: Path, mode: str) -> Iterator[tuple[ServerProcess, Path]]:
    """Start a server that is too small for its traffic, as operators.md says, and the traffic. Yield it and its settings."""
    with tempfile.TemporaryDirectory(prefix="lmcache-agent-pictures-", dir="/dev/shm") as name:
        primary = reserve(Path(name), 16 * MB)
        module = {"module_path": "agent_tools.server_module", "config": {"arena_folder": name, "max_l1_mb": 64}}
        flags = {
            "--l1-size-gb": 16 / 1024,
            "--l1-devdax-path": str(primary),
            "--no-l1-use-lazy": True,
            "--shm-name": "",
            "--eviction-policy": "LRU",
            "--supported-transfer-mode": "auto",
            "--server-module": json.dumps(module),
        }
        server = ServerProcess.launch(flags, folder / "logs")
        settings, halt = folder / "caches.toml", threading.Event()
        settings.write_text(CACHES.format(url=server.http_url, arenas=name, mode=mode), encoding="utf-8")

        def play() -> None:
            while not halt.is_set():
                replay(TRAFFIC, server.rpc_url, ReplaySettings(pace=TRAFFIC.duration / SECONDS), stop=halt)

        traffic = threading.Thread(target=play)
        try:
            io_loop.run(server.wait_ready)
            traffic.start()
            yield server, settings
        finally:
            halt.set()
            if traffic.ident is not None:
                traffic.join()
            io_loop.run(server.stop)


def nightly(folder: Path) -> None:
    """Tune in mode auto, as cron does, and list what was done."""
    with prod(folder, "auto") as (server, settings):
        terminal = Terminal("nightly", settings, {server.http_url: SHOWN["server"]})
        threading.Event().wait(SECONDS)
        terminal.run("tune", "-c", "prod", "--mode", "auto", "--window", "20", "--verify-seconds", "30")
        terminal.run("changes", "-c", "prod")
        terminal.save()


def latency(folder: Path) -> None:
    """An agent with a real vLLM on the CPU that has its cache tuned. It needs the environment of `make demo-engine`."""
    terminal = Terminal("latency", folder / "caches.toml", {})
    words = ("examples/own_customer.py", "--budget-ms", BUDGET_MS)
    command = [str(HERE.parent / ".venv-engine" / "bin" / "python"), *words]
    ran = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)  # noqa: S603
    told = [line for line in ran.stdout.splitlines() if "; log: " not in line]
    terminal.show(f"$ .venv-engine/bin/python {' '.join(words)}", "\n".join(told))
    terminal.save()


def bill(folder: Path) -> None:
    """What the tools tell the agent that explains the bill."""
    with prod(folder, "recommend") as (server, settings):
        terminal = Terminal("bill", settings, {server.http_url: SHOWN["server"]})
        threading.Event().wait(2 * SECONDS)
        terminal.run("recommend", "-c", "prod")
        terminal.save()


def slack(folder: Path) -> None:
    """The body that a chat's webhook gets from a watch."""
    came: list[bytes] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as hook, prod(folder, "approve") as (server, settings):
        serving = threading.Thread(target=hook.serve_forever)
        serving.start()
        terminal = Terminal("slack", settings, {server.http_url: SHOWN["server"]})
        url = f"http://127.0.0.1:{hook.server_address[1]}/services/T0/B0/key"
        words = ("watch", "-c", "prod", "--every", "30", "--webhook", "env:SLACK_WEBHOOK")
        command = [sys.executable, "-m", "agent_tools.doors.cli", *words]
        watch = subprocess.Popen(command, env=terminal.environment | {"SLACK_WEBHOOK": url}, stdout=subprocess.DEVNULL)  # noqa: S603
        try:
            while not any(b'"offered"' in body for body in came):
                threading.Event().wait(0.5)
        finally:
            watch.terminate()
            watch.wait()
            hook.shutdown()
            serving.join()
        told = "\n".join(json.dumps(json.loads(body), indent=1, ensure_ascii=False) for body in came)
        terminal.show(f"$ lmcache-agent {' '.join(words)}    # what the webhook got", told)
        terminal.save()


def approve(folder: Path) -> None:
    """The question that a run of `tune_cache` asks on LangGraph's server, and what follows its approval."""
    from langgraph_sdk import get_sync_client  # noqa: PLC0415

    with prod(folder, "approve") as (server, settings):
        terminal = Terminal("approve", settings, {server.http_url: SHOWN["server"]})
        port = free_port()
        command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload", "--port", str(port)]
        with (folder / "dev.log").open("wb") as log:
            dev = subprocess.Popen(command, cwd=HERE.parent, env=terminal.environment, stdout=log, stderr=log)  # noqa: S603
        try:
            while not _answers(f"http://127.0.0.1:{port}/ok"):
                threading.Event().wait(0.5)
            with get_sync_client(url=f"http://127.0.0.1:{port}", api_key=None, timeout=600) as client:
                context = {"cache": "prod", "window_seconds": 20, "verify_seconds": 30}
                thread = client.threads.create()["thread_id"]
                asked: Any = client.runs.wait(thread, "tune_cache", input={}, context=context)
                question = asked["__interrupt__"][0]["value"]["action_requests"][0]
                terminal.show(
                    "# tune_cache waits", f"{question['name']} {json.dumps(question['args'])}\n{question['description']}"
                )
                answer = {"decisions": [{"type": "approve"}]}
                done: Any = client.runs.wait(thread, "tune_cache", command={"resume": answer}, context=context)
                report = done["tune_report"]
                terminal.show(f"# answered with {json.dumps(answer)}", f"{report['outcome']}: {report['summary']}")
        finally:
            dev.terminate()
            dev.wait()
        terminal.run("changes", "-c", "prod")
        terminal.save()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1, trust_env=False).is_success
    except httpx.TransportError:
        return False


def fleet(folder: Path) -> None:
    """Look at a fleet of three servers behind a coordinator, and say what would be changed where."""
    sys.path += [str(TESTS), str(TESTS / "deployments")]
    from fleet_processes import FleetProcesses  # noqa: PLC0415

    processes = FleetProcesses(folder, more=lambda: {"--server-module": '{"module_path": "agent_tools.server_module"}'})
    try:
        processes.wait_ready()
        for server in processes.servers.values():
            replay(TRAFFIC, server.rpc_url, ReplaySettings(clients=2))
        settings = folder / "caches.toml"
        entry = (
            "[caches.fleet]",
            f'target = "fleet:{processes.url}"',
            'networks = ["127.0.0.0/8"]',
            "bounds = { max_size_mb = 64 }",
        )
        settings.write_text("\n".join(entry), encoding="utf-8")
        terminal = Terminal("fleet", settings, {processes.url: SHOWN["coordinator"]})
        terminal.run("status", "-c", "fleet")
        terminal.run("tune-fleet", "-c", "fleet", "--mode", "recommend", "--window", "0")
        terminal.save()
    finally:
        processes.stop()


def alerts(folder: Path) -> None:
    """Prometheus' own page of our alerts, for a server that is too small and never evicts. Windows are 10 s here."""
    sys.path += [str(TESTS), str(TESTS / "report")]
    from real_prometheus import job, prometheus  # noqa: PLC0415

    flags = {"--l1-size-gb": 4 / 1024, "--eviction-policy": "noop", "--supported-transfer-mode": "auto"}
    server = ServerProcess.launch(flags, folder / "logs")
    try:
        io_loop.run(server.wait_ready)
        with prometheus(folder, [job("lmcache", server.http_url)]) as seen:
            while "LMCacheL1FullWithoutEviction" not in seen.firing(server.http_url):
                replay(TRAFFIC, server.rpc_url, ReplaySettings(clients=2))
            target = HERE / "recipes" / "alerts.png"
            options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1000,620", "--virtual-time-budget=5000"]
            options += [f"--user-data-dir={folder}/profile", f"--screenshot={target}"]
            subprocess.run(["chromium", *options, f"{seen.url}/classic/alerts"], check=True, capture_output=True)  # noqa: S603, S607
    finally:
        io_loop.run(server.stop)


PICTURES: dict[str, Callable[[Path], None]] = {
    one.__name__: one for one in (nightly, latency, slack, approve, fleet, bill, alerts)
}


def main() -> None:
    """Draw all, or those that are named."""
    for name in sys.argv[1:] or PICTURES:
        with ExitStack() as stack:
            PICTURES[name](Path(stack.enter_context(tempfile.TemporaryDirectory())))
        print(f"docs/recipes/{name}: {[one.stat().st_size for one in (HERE / 'recipes').glob(name + '.*')]} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
