"""Inject faults at every step of a change on real servers. Check that the settings in force are known and can be undone.

Run from the repository root (about 50 minutes)::

    PYTHONPATH=. python benchmarks/faults.py [--every 1]

The benchmark plans, applies and undoes a change of four settings through a proxy that breaks one call, or all calls from it on.
Then it reads the settings in force from the server and compares them with what the product reported and recorded. It applies the
same plan twice more, and undoes the change. It kills agents with SIGKILL in separate processes, with their checkpoint kept and
lost, and it kills and restarts the server. It fills the agent's disk, lets a second agent change the server under another name,
and spoils pages of metrics. `tests/faults` holds the steps and checks; `make test` runs the most important ones.
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from prediction import machine

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "faults"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "tuning"))
import full_disk
import killed_agent
import killed_graph
import other_name
from fault_proxy import KILLS, MEANWHILE, METRICS, Fault, FaultProxy
from faulted_change import Scene, aftermath, attempt, told, trial
from tuning import THRASHING

from agent_tools.changes import read_back
from agent_tools.deployments.server import module_client as server_module
from agent_tools.deployments.server.arenas import arena_file
from agent_tools.deployments.server.command_line import Flags
from agent_tools.deployments.server.process import ServerProcess, free_port
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Bounds, L2Adapter
from agent_tools.workload.replay import ReplaySettings, replay

killed_agent.PRELOAD.extend(["other_name", "prediction"])  # what this file imports, since each new process imports it
RESULTS = Path(__file__).parent / "results" / "faults.json"
LANES = 4
PATIENCE = 4.0
"""Seconds that a change is waited for, instead of 15, so that hundreds of them can time out."""
L1_ONLY = Bounds(max_size_mb=24, min_watermark=0.8, max_watermark=0.8, min_ratio=0.2, max_ratio=0.2)
"""What the graph may change: a size, for which an arena is added."""


@dataclass
class Server:
    """A real server with our module and an L1 of one arena of 16 MB; it can be killed and comes back at its old address."""

    folder: Path
    arenas: Path
    ports: tuple[int, int] = field(default_factory=lambda: (free_port(), free_port()))
    process: ServerProcess | None = None

    @property
    def l2(self) -> L2Adapter:
        """The file store that changes attach."""
        return L2Adapter(type="fs", settings={"base_path": str(self.folder / "l2")})

    @property
    def config(self) -> dict[str, object]:
        """Of the server's module."""
        return {"off": ["arenas"], "l2_adapters": [{"type": self.l2.type, **self.l2.settings}]}

    async def start(self) -> ServerProcess:
        """With the settings it was first started with."""
        async with arena_file(self.arenas, 16 * MB) as primary:
            flags: Flags = {
                "--l1-size-gb": 16 / 1024,
                "--eviction-policy": "LRU",
                "--supported-transfer-mode": "auto",
                "--server-module": json.dumps({"module_path": "agent_tools.server_module", "config": self.config}),
                "--l1-devdax-path": str(primary),
                "--no-l1-use-lazy": True,
                "--shm-name": "",
            }
            self.process = await asyncio.to_thread(ServerProcess.launch, flags, self.folder / "logs", self.ports)
            await self.process.wait_ready()
        return self.process

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None  # noqa: S101  started
        for child in psutil.Process(self.process._guard.pid).children():  # noqa: SLF001  its parent is ours
            child.kill()
            child.wait(10)

    async def stop(self) -> None:
        """Leave nothing."""
        if self.process is not None:
            await self.process.stop()


@contextlib.asynccontextmanager
async def scene_of(bounds: Bounds | None = None) -> AsyncIterator[tuple[Scene, Server]]:
    """A server of its own, and a proxy before it."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory(dir="/dev/shm") as arenas:
        server = Server(Path(name), Path(arenas))
        process = await server.start()
        proxy = FaultProxy(process.http_url)
        await proxy.open()
        try:
            yield Scene(process.http_url, proxy, Path(name), Path(arenas), server.l2, bounds=bounds), server
        finally:
            await proxy.close()
            await server.stop()


@dataclass(frozen=True)
class Finding:
    """One injected fault."""

    group: str
    call: str
    fault: str
    lasting: bool
    end: str
    """Which step it ended, or how the second process did."""
    error: str
    seconds: float
    wrong: list[str]


Injection = tuple[str, int, Fault, bool]
"""(group, number of the call, fault, lasting)."""


async def one(
    scene: Scene, calls: list[str], injection: Injection, inject: Callable[[], Awaitable[tuple[str, str, list[str]]]]
) -> Finding:
    """Inject and tell."""
    (group, call, fault, lasting), began = injection, time.monotonic()
    end, error, wrong = await inject()
    if wrong:
        print(injection, end, error, wrong, flush=True)
    if (now := await scene.in_force()) != scene.first:
        raise RuntimeError(f"{injection} left {now} in force: {wrong}")
    return Finding(group, calls[call - 1], fault.value, lasting, end, error, time.monotonic() - began, wrong)


# ---- one call, or all from it on ----


def spoilt(calls: Sequence[str], every: int) -> list[Injection]:
    """Each call with each fault, once and lasting in turns; a refused connection lasts always."""
    faults = [fault for fault in Fault if fault not in {*KILLS, *MEANWHILE, *METRICS}]
    return [
        ("spoilt call", call, fault, fault is Fault.REFUSED or bool((call + number) % 2))
        for call in range(1, len(calls) + 1, every)
        for number, fault in enumerate(faults)
    ]


def odd_metrics(calls: Sequence[str], every: int) -> list[Injection]:
    """Each page of metrics, once and from then on."""
    pages = [number for number, call in enumerate(calls, start=1) if call.startswith("GET /metrics")]
    return [("metrics", page, fault, lasting) for page in pages[::every] for fault in METRICS for lasting in (False, True)]


def meanwhile(calls: Sequence[str], every: int) -> list[Injection]:
    """What else can happen at each call."""
    return [(group, call, fault, False) for call in range(1, len(calls) + 1, every) for group, fault in MEANWHILE_GROUPS.items()]


MEANWHILE_GROUPS = {"disk full": Fault.DISK_FULL, "one server, two names": Fault.OTHER_NAME}


async def spoil_calls(every: int, keep: Callable[[list[Finding]], None]) -> list[Finding]:
    """On several servers side by side: much of it is waiting."""
    todo: list[Injection] = []
    found: list[Finding] = []
    calls: list[str] = []  # of the first rehearsal; others may wait, and so ask, once more or less

    async def lane() -> None:
        async with scene_of() as (scene, _):
            await scene.rehearse()
            if not calls:
                calls.extend(scene.calls)
                todo.extend(all_at_calls(calls, every))
                random.Random(1).shuffle(todo)  # noqa: S311  so that a run that is ended early has some of each
            while todo:
                injection = todo.pop()
                found.append(await one(scene, calls, injection, partial(_spoil, scene, *injection[1:])))
                if len(todo) % 50 == 0:
                    print(f"{len(todo)} left", flush=True)
                    keep(found)

    await asyncio.gather(*(lane() for _ in range(LANES)))
    return found


def all_at_calls(calls: Sequence[str], every: int) -> list[Injection]:
    """All that happens at a call of a change."""
    return [*spoilt(calls, every), *odd_metrics(calls, every), *meanwhile(calls, every)]


async def _spoil(scene: Scene, call: int, fault: Fault, lasting: bool) -> tuple[str, str, list[str]]:
    if fault is Fault.DISK_FULL:
        done, wrong = await full_disk.trial(scene, call)
    elif fault is Fault.OTHER_NAME:
        done, wrong = await other_name.trial(scene, call)
    else:
        done, wrong = await trial(scene, call, fault, lasting=lasting)
        if fault is Fault.MANY_SERIES and done.error is not None:
            wrong.append(f"many series are no trouble, and yet: {done.error}")
    return done.step, type(done.error).__name__ if done.error else "none", wrong


# ---- killed agents ----


def kills(calls: list[str], group: str, every: int) -> list[Injection]:
    """Before some reads; before and after each call that changes something."""
    changing = [number for number, call in enumerate(calls, start=1) if not call.startswith("GET ")]
    reading = [number for number in range(1, len(calls) + 1, every) if number not in changing]
    before = [(group, call, Fault.KILL_BEFORE, False) for call in sorted({*reading, *changing})]
    return [*before, *((group, call, Fault.KILL_AFTER, False) for call in changing)]


async def kill_agents(every: int) -> list[Finding]:
    """Those that plan, apply and undo."""

    async def inject(scene: Scene, call: int, fault: Fault) -> tuple[str, str, list[str]]:
        end, wrong = await killed_agent.trial(scene, call, fault)
        return end, "", wrong

    async with scene_of() as (scene, _):
        await scene.rehearse()
        calls = list(scene.calls)
        return [
            await one(scene, calls, injection, partial(inject, scene, *injection[1:3]))
            for injection in kills(calls, "agent killed", every)
        ]


async def kill_graphs(every: int) -> list[Finding]:
    """Those that run `tune_cache`, with their checkpoint kept and lost."""

    async def inject(scene: Scene, lost: bool, call: int, fault: Fault) -> tuple[str, str, list[str]]:
        end, wrong = await killed_graph.trial(scene, call, fault, lost=lost)
        return end, "", wrong

    async with scene_of(L1_ONLY) as (scene, server):
        assert server.process is not None  # noqa: S101  started
        pace = ReplaySettings(pace=THRASHING.duration / 5)
        await asyncio.to_thread(replay, THRASHING, server.process.rpc_url, pace)
        calls = await killed_graph.rehearsed(scene)
        return [
            await one(scene, calls, injection, partial(inject, scene, lost, *injection[1:3]))
            for lost, group in ((False, "graph killed, resumed from its checkpoint"), (True, "graph killed, checkpoint lost"))
            for injection in kills(calls, group, every)
        ]


# ---- killed servers ----


async def kill_servers() -> list[Finding]:
    """At each call that changes something, and at some before it; each is started again with its first settings."""
    async with scene_of() as (scene, server):
        await scene.rehearse()
        calls = list(scene.calls)
        return [
            await one(scene, calls, injection, partial(_kill_server, scene, server, *injection[1:3]))
            for injection in kills(calls, "server killed", 15)
        ]


async def _kill_server(scene: Scene, server: Server, call: int, fault: Fault) -> tuple[str, str, list[str]]:
    with tempfile.TemporaryDirectory(dir=scene.folder) as name:
        state_folder = Path(name)

        def kill() -> None:
            server.kill()
            scene.proxy.shut()

        scene.proxy.arm(call, fault, kill=kill)
        async with scene.agent(state_folder) as operations:
            done = await attempt(operations, scene.update)
        await server.stop()
        await server.start()
        await scene.proxy.open()
        scene.proxy.heal()
        wrong = [fault async for fault in told(scene, state_folder, done, scene.first)]
        wrong += [fault async for fault in aftermath(scene, state_folder, done)]
    return done.step, type(done.error).__name__ if done.error else "none", wrong


# ---- all of it ----


def table(rows: Iterable[tuple[str, str]], findings: list[Finding], heads: tuple[str, str]) -> list[str]:
    """Counts by two names."""
    lines = [f"| {heads[0]} | {heads[1]} | injected | claims that did not hold |", "|---|---|--:|--:|"]
    total = Counter(rows)
    failed = Counter(row for row, finding in zip(rows, findings, strict=True) if finding.wrong)
    return [*lines, *(f"| {one} | {other} | {count} | {failed[one, other]} |" for (one, other), count in sorted(total.items()))]


def report(findings: list[Finding], minutes: float) -> str:
    """The figures as Markdown."""
    today = dt.datetime.now(tz=dt.timezone.utc)
    by_fault = [(one.group, f"{one.fault}{', from then on' if one.lasting else ''}") for one in findings]
    by_end = [(one.end, one.error or "-") for one in findings]
    wrong = sum(bool(one.wrong) for one in findings)
    return "\n".join(
        [
            "# Faults",
            "",
            f"{machine()}, {today:%Y-%m-%d}. {len(findings)} injected faults in {minutes:.0f} minutes, on real servers of",
            f"LMCache 0.5.6. After {wrong} of them one of these checks failed: the settings in force are the reported and",
            "recorded ones, or were reported as unknown; the lock is free; applying the same plan again changes nothing; undo",
            "restores the first settings; every line of the change log is complete, and records the outcome of each change whose",
            "process survived; no file is left behind.",
            "",
            "By injected fault:",
            "",
            *table(by_fault, findings, ("what", "fault")),
            "",
            "By result (the step that failed, and its error; for killed agents, how the second agent ended):",
            "",
            *table(by_end, findings, ("end", "error")),
            "",
        ]
    )


def all_of_them(every: int, keep: Callable[[list[Finding]], None]) -> list[Finding]:
    """One kind after the other. What was found so far is kept from time to time."""
    found: list[Finding] = []
    for kind in (
        partial(spoil_calls, every, keep),
        partial(kill_agents, 2 * every),
        partial(kill_graphs, 6 * every),
        kill_servers,
    ):
        found = [*found, *io_loop.run(kind)]
        keep(found)
    return found


def main() -> None:
    """Inject, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every n-th call")
    every = parser.parse_args().every
    server_module.PATIENCE = read_back.LONGEST_DELAY = PATIENCE
    began = time.monotonic()

    def keep(findings: list[Finding]) -> None:
        RESULTS.with_suffix(".md").write_text(report(findings, (time.monotonic() - began) / 60))
        figures: dict[str, Any] = {"machine": machine(), "findings": [vars(finding) for finding in findings]}
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")

    findings = all_of_them(every, keep)
    print(RESULTS.with_suffix(".md").read_text())
    if any(finding.wrong for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    main()
