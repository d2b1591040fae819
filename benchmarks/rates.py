"""One caller asks for far too much, over REST and MCP. Is it refused, told when to come back, and are other callers' reads fast?

Run from the repository root::

    PYTHONPATH=. python benchmarks/rates.py [--seconds 120]

A real `lmcache server` with our module serves an engine's 20 requests a second. `lmcache-agent serve` and
`lmcache-agent mcp --http` run in front of it, each in a process of its own. The caller `greedy` keeps more searches and windows
of observation going at both doors than one caller may have, and does not wait as it is told. The caller `reader` reads over REST,
one request after the other, and the raw calls that the same reads need go to the server itself, in turns with them. The target is
a p95 of reads within 3 times the raw p95.
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from overhead import RAW
from prediction import machine
from server_module_soak import engine, watched_server

from agent_tools.deployments.server.process import free_port
from agent_tools.doors.mcp_answers import RETRY_AFTER
from agent_tools.doors.rates import Load

RESULTS = Path(__file__).parent / "results" / "rates.json"
TOKENS = {name: f"the token of {name}, 32 characters" for name in ("reader", "greedy")}
READS = {"status": "lmcache_get_status", "metrics": "lmcache_get_metrics", "config": "lmcache_get_config"}
"""Routes that `reader` reads, and the tool that makes the same raw calls."""
SEARCHES, WINDOWS = 2 * Load.SEARCH.most_for_one, 2 * Load.WINDOW.most_for_one
"""Requests that `greedy` keeps in progress at each door, twice what one caller may have."""
WINDOW_SECONDS = 5
PAUSE = 0.1
"""Seconds between two readings, and after a refusal, where `greedy` does not wait as it was told."""
NUMBERS = itertools.count(2)
"""Numbers of messages: a session takes no second one with the number of one in progress."""
HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "benchmark", "version": "1"}}


@dataclass
class Seen:
    """What was measured."""

    ours: dict[str, list[float]] = field(default_factory=lambda: {route: [] for route in READS})
    """Milliseconds of each read."""
    raw: dict[str, list[float]] = field(default_factory=lambda: {route: [] for route in READS})
    """Milliseconds of its raw calls."""
    refused: Counter[str] = field(default_factory=Counter)
    """Answers to `greedy`, by door and kind."""
    problems: list[str] = field(default_factory=list)
    """What should not have been."""


@contextlib.contextmanager
def door(settings: Path, url: str, *command: str) -> Iterator[None]:
    """A door of ours in a process of its own, until it has answered and while it is used."""
    environment = os.environ | {"LMCACHE_AGENT_SETTINGS": str(settings)}
    argv = [sys.executable, "-m", "agent_tools.doors.cli", *command]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url, trust_env=False)
                break
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def settings_of(folder: Path, url: str) -> Path:
    """The operator's settings: one cache, and a token for each caller."""
    file = folder / "caches.toml"
    tokens = "\n".join(f'{name} = "{token}"' for name, token in TOKENS.items())
    file.write_text(
        f'state_folder = "{folder}/state"\n[caches.default]\ntarget = "{url}"\n[tokens]\n{tokens}\n', encoding="utf-8"
    )
    return file


async def until(end: float, work: Callable[[], Awaitable[None]], seen: Seen) -> None:
    """Do it over and over."""
    while time.monotonic() < end:
        try:
            await work()
        except (httpx.HTTPError, KeyError, ValueError) as error:  # noqa: PERF203  a request that fails is counted
            seen.problems.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(PAUSE)


def greedy_over_rest(client: httpx.AsyncClient, seen: Seen, path: str) -> Callable[[], Awaitable[None]]:
    """One request of `greedy` after the other, whatever it was told."""

    async def ask() -> None:
        answer = await client.get(path)
        told = int(answer.headers.get("Retry-After", 0)) >= 1
        kind = "429 with Retry-After" if answer.status_code == httpx.codes.TOO_MANY_REQUESTS and told else str(answer.status_code)
        seen.refused[f"REST: {kind}"] += 1
        if answer.status_code != httpx.codes.OK:
            await asyncio.sleep(PAUSE)

    return ask


def greedy_over_mcp(client: httpx.AsyncClient, url: str, seen: Seen, params: dict[str, Any]) -> Callable[[], Awaitable[None]]:
    """The same by calls of a tool."""

    async def ask() -> None:
        message = {"jsonrpc": "2.0", "id": next(NUMBERS), "method": "tools/call", "params": params}
        answer = await client.post(url, json=message)
        result = json.loads(answer.text.rpartition("data: ")[2])["result"]
        refused = result["isError"] and result["content"][0]["text"].startswith("too_many_requests")
        told = result.get("_meta", {}).get(RETRY_AFTER, 0) >= 1
        seen.refused["MCP: refused with seconds to wait" if refused and told else f"MCP: isError {result['isError']}"] += 1
        if result["isError"]:
            await asyncio.sleep(PAUSE)

    return ask


async def session(client: httpx.AsyncClient, url: str) -> None:
    """Say hello over MCP."""
    hello = await client.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO})
    hello.raise_for_status()
    client.headers.update({"mcp-session-id": hello.headers["mcp-session-id"], "mcp-protocol-version": HELLO["protocolVersion"]})
    await client.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})


async def reading(ours: httpx.AsyncClient, server: httpx.AsyncClient, end: float, seen: Seen) -> None:
    """Read each route and make its raw calls, in turns."""
    while time.monotonic() < end:
        for route, tool in READS.items():
            began = time.perf_counter()
            answer = await ours.get(route)
            seen.ours[route].append(1e3 * (time.perf_counter() - began))
            if answer.status_code != httpx.codes.OK:
                seen.problems.append(f"reader was answered {answer.status_code} for {route}")
            began = time.perf_counter()
            with contextlib.suppress(httpx.TransportError):  # a connection that the server had closed, having been idle
                await asyncio.gather(*map(server.get, RAW[tool]))
                seen.raw[route].append(1e3 * (time.perf_counter() - began))
            await asyncio.sleep(PAUSE)


async def measured(rest: str, mcp: str, server: str, seconds: float, *, greed: bool) -> Seen:
    """Read for some seconds, with or without the greedy caller."""
    seen, end = Seen(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    header = {name: {"Authorization": f"Bearer {token}"} for name, token in TOKENS.items()}
    accept = header["greedy"] | {"Accept": "application/json, text/event-stream"}
    async with (
        httpx.AsyncClient(base_url=rest, headers=header["reader"], timeout=30, trust_env=False) as reader,
        httpx.AsyncClient(base_url=rest, headers=header["greedy"], timeout=60, limits=limits, trust_env=False) as over_rest,
        httpx.AsyncClient(headers=accept, timeout=60, limits=limits, trust_env=False) as over_mcp,
        httpx.AsyncClient(base_url=server, timeout=30, trust_env=False) as raw,
    ):
        work = [reading(reader, raw, end, seen)]
        if greed:
            await session(over_mcp, mcp)
            search = {"name": "lmcache_recommend", "arguments": {}}
            window = {"name": "lmcache_get_metrics", "arguments": {"window_seconds": WINDOW_SECONDS}}
            asked = [*[("recommendations", search)] * SEARCHES, *[(f"metrics?window_seconds={WINDOW_SECONDS}", window)] * WINDOWS]
            for path, params in asked:
                work += [until(end, greedy_over_rest(over_rest, seen, path), seen)]
                work += [until(end, greedy_over_mcp(over_mcp, mcp, seen, params), seen)]
        await asyncio.gather(*work)
    return seen


def run(seconds: float) -> dict[str, Any]:
    """Measure without the greedy caller for a quarter of the time, and with it for the rest."""
    with tempfile.TemporaryDirectory() as folder, watched_server() as one, engine(one.rpc_url, 0):
        settings = settings_of(Path(folder), one.http_url)
        ports = free_port(), free_port()
        over_rest, over_mcp = ("serve", "--port", str(ports[0])), ("mcp", "--http", "--port", str(ports[1]))
        rest, mcp = f"http://127.0.0.1:{ports[0]}/lmcache/", f"http://127.0.0.1:{ports[1]}/mcp"
        with door(settings, rest, *over_rest), door(settings, mcp, *over_mcp):
            for _ in range(3):  # first reads load what they need
                httpx.get(f"{rest}status", headers={"Authorization": f"Bearer {TOKENS['reader']}"}, timeout=60, trust_env=False)
            calm = asyncio.run(measured(rest, mcp, one.http_url, seconds / 4, greed=False))
            greedy = asyncio.run(measured(rest, mcp, one.http_url, 3 * seconds / 4, greed=True))
    rows = {
        f"{route}, {name}": {
            "reads": len(seen.ours[route]),
            **{
                f"{whose}_p{q}": float(np.percentile(getattr(seen, whose)[route], q))
                for whose in ("ours", "raw")
                for q in (50, 95)
            },
        }
        for name, seen in (("alone", calm), ("beside the greedy caller", greedy))
        for route in READS
    }
    return {"seconds": seconds, "reads": rows, "greedy": dict(greedy.refused), "problems": calm.problems + greedy.problems}


def report(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    today = dt.datetime.now(tz=dt.timezone.utc)
    rows = [
        f"| {name} | {one['reads']} | {one['ours_p50']:.0f} | {one['ours_p95']:.0f} | {one['raw_p50']:.0f} | {one['raw_p95']:.0f}"
        f" | {one['ours_p95'] / one['raw_p95']:.2f} |"
        for name, one in found["reads"].items()
    ]
    lines = [
        "# Rates",
        "",
        f"{machine()}, {today:%Y-%m-%d}, {found['seconds']:g} s. One caller keeps {SEARCHES} searches and {WINDOWS} windows",
        f"of {WINDOW_SECONDS} s going over REST and as many over MCP, twice what one caller may have, and asks again at once.",
        f"Another caller reads over REST. An engine sends 20 requests a second. Requests that failed: {len(found['problems'])}.",
        "",
        "Time of a read, and of its raw HTTP calls to the server at the same time, in milliseconds (target: p95 within 3 times",
        "the raw p95):",
        "",
        "| read | reads | p50 | p95 | raw p50 | raw p95 | p95 ratio |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *rows,
        "",
        "What the greedy caller was answered:",
        "",
        *(f"* {what}: {count}" for what, count in sorted(found["greedy"].items())),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    found = run(parser.parse_args().seconds)
    text = report(found)
    print(text)
    RESULTS.with_suffix(".md").write_text(text)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for problem in found["problems"][:20]:
        print(problem, file=sys.stderr)


if __name__ == "__main__":
    main()
