"""Measure what a cache setting is worth in time to first token, on a real vLLM. Needs the environment of `make demo-engine`.

Run from the repository root (about 30 minutes; nothing else should run on the machine)::

    PYTHONPATH=. .venv-engine/bin/python benchmarks/engine.py [--only search|break_even|changes|restart]

* search: measure the same conversations, from an empty L1, under each of 9 settings. Compare with the model's prediction for
  each, from an observation of the first setting right before those of a size, and with the setting that the advice picks.
* break_even: measure how long a prefix must be so that loading it is faster than computing it.
* changes: measure the time to first token while settings change live under traffic.
* restart: measure how long requests wait while the cache server restarts, with LMCache's time-out and with a shorter one.

The results are merged into one file. Settings that are already in it are not measured again; delete the file to start over.
"""

import argparse
import asyncio
import datetime as dt
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
from anyio import to_process
from prediction import machine

from agent_tools.caches import observer
from agent_tools.caches.registry import DEFAULT, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.demo.engine.chat_traffic import ChatAnswer, ChatRequest, ChatTraffic, send, text
from agent_tools.demo.engine.demo import EngineOnACache, Phase, engine_on_a_cache, settings_for, ttft_of
from agent_tools.demo.engine.tiny_model import Shape
from agent_tools.demo.engine.vllm_server import LMCACHES_OWN, MODEL, Connector
from agent_tools.deployments.base import silent
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.errors import UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Bounds, ConfigUpdate
from agent_tools.models.engine import TimeToFirstToken
from agent_tools.operations import Operations
from agent_tools.recommender.modelled import predicted_rate, predicted_ttft, server_setting
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.recommend import recommend

RESULTS = Path(__file__).parent / "results"
STORE = RESULTS / "engine.json"
TRAFFIC = ChatTraffic()
FOOTPRINT_MB = TRAFFIC.tokens * Shape().kv_bytes_per_token / MB
SMALLEST = 0.25
SIZES = tuple(round(FOOTPRINT_MB * share) for share in (SMALLEST, 0.6, 1.2))
SHAPES = ((0.8, 0.2), (0.95, 0.1), (0.6, 0.4))
"""Watermark and ratio; the first are LMCache's own."""
REPEATS = 3
"""Passes of the setting that the advice picks and of the best of the nine, taken in turn."""
PREFIXES = (0, 256, 512, 1024, 2048, 4096)
"""Tokens, whole chunks."""
SAMPLES = 5
TAIL = 64
"""Tokens after the prefix, always computed."""
PRIORITY = -15
"""Of all our sessions."""
USUAL = 100
"""Requests from which the usual time is taken, and about as many while changes are made."""

RESTARTS = 3
HEARTBEAT, TIMEOUT = "lmcache.mp.heartbeat_interval", "lmcache.mp.mq_timeout"
CONNECTORS: dict[str, dict[str, float]] = {
    "LMCache's defaults: 300 s, 10 s": {},
    "10 s, 10 s": {TIMEOUT: 10.0},
    "10 s, 2 s": {TIMEOUT: 10.0, HEARTBEAT: 2.0},
}
"""Settings of LMCache's connector in vLLM, by their name: how long it waits for an answer, and how often it asks for life."""
PATIENCE = 120.0
"""Seconds after which a restart is taken to have no end."""
DYING = 15.0
"""Seconds that a vLLM takes to end whose engine process has given up."""
ROOMY = ConfigUpdate(max_size_mb=SIZES[-1], eviction_watermark=0.95, eviction_ratio=0.05)
"""All conversations are in L1, and none is ever evicted."""

Results = dict[str, Any]


def nine() -> dict[str, ConfigUpdate]:
    """Every setting of the exhaustive search, by its name."""
    return {
        f"{size} MB, {watermark:g}/{ratio:g}": ConfigUpdate(max_size_mb=size, eviction_watermark=watermark, eviction_ratio=ratio)
        for size in SIZES
        for watermark, ratio in SHAPES
    }


async def set_to(engine: EngineOnACache, update: ConfigUpdate) -> None:
    """Empty L1 and set it live; without effect where it is set so already."""
    await engine.clear("a setting is measured from an empty L1")
    now = (await io_loop.arun(engine.operations.settings, DEFAULT)).known()
    wanted = {setting: value for setting, value in update.known().items() if now[setting] != value}
    if wanted:
        plan = await io_loop.arun(engine.operations.plan, DEFAULT, ConfigUpdate.model_validate(wanted), "benchmark")
        await io_loop.arun(engine.operations.apply, plan, "benchmark")
    while (await engine.metrics()).total_size_mb != update.max_size_mb:  # noqa: ASYNC110
        await anyio.sleep(0.2)  # until the arena that is drained has gone
    await engine.clear("a setting is measured from an empty L1")


async def one_pass(engine: EngineOnACache, name: str, update: ConfigUpdate) -> Phase:
    """The conversations once, under one setting."""
    await set_to(engine, update)
    phase = await engine.send(name, TRAFFIC.requests(), lambda *_: None)
    if phase.errors:
        raise RuntimeError(f"{name}: {phase.errors[0]}")
    print(f"{name}: {phase.ttft}, token hit rate {_rate(phase):.3f}, {phase.seconds:.0f} s", flush=True)
    return phase


def _rate(phase: Phase) -> float:
    assert phase.metrics is not None  # noqa: S101  the pass is over
    return phase.metrics.tokens.hit_rate or 0.0


def measured(phase: Phase) -> Results:
    """What is kept of one pass."""
    return {"ttft": phase.ttft.model_dump(), "token_hit_rate": _rate(phase), "seconds": phase.seconds}


async def observed(engine: EngineOnACache, phase: Phase) -> Observation:
    """What the recommender sees of a pass: the operations' own view of that window."""
    assert phase.metrics is not None  # noqa: S101  the pass is over
    operations = engine.operations
    named = operations.registry.get(DEFAULT)
    since = time.time() - phase.metrics.window.start.timestamp()
    window = await io_loop.arun(observer.window, named, since)
    return await io_loop.arun(operations._observe, named, window, None)  # noqa: SLF001


def prediction(seen: Observation, update: ConfigUpdate) -> Results:
    """Time to first token and token hit rate under a setting, from an observation of another."""
    setting = server_setting(seen, update.known())
    ttft = setting and predicted_ttft(seen, setting)
    if setting is None or ttft is None:
        raise RuntimeError("the engine has not shown its speed, so nothing can be predicted")
    return {"ttft": ttft.model_dump(), "token_hit_rate": predicted_rate(seen, setting)}


def picked(seen: Observation) -> Results:
    """What the advice on an observation of the first setting picks."""
    best = recommend(seen).best
    now = {"max_size_mb": SIZES[0], "eviction_watermark": SHAPES[0][0], "eviction_ratio": SHAPES[0][1]}
    return {
        "pick": now | (best.update.known() if best is not None and best.update is not None else {}),
        "pick_in_words": best.expected_impact if best is not None else "nothing would help",
    }


async def search(engine: EngineOnACache, kept: Results, save: Callable[[], None]) -> None:
    """Part (a)."""
    passes: Results = kept.setdefault("passes", {})
    predicted: Results = kept.setdefault("predicted", {})
    first = next(iter(nine()))
    await one_pass(engine, "not counted, since an engine is slower at first", nine()[first])
    for size in SIZES:
        missing = {name: one for name, one in nine().items() if one.max_size_mb == size and name not in passes}
        if not missing:
            continue
        seen = await observed(engine, await one_pass(engine, f"observed before {size} MB: {first}", nine()[first]))
        if "pick" not in kept:
            kept |= picked(seen)
        for name, update in missing.items():
            predicted[name] = prediction(seen, update)
            passes[name] = [measured(await one_pass(engine, name, update))]
            save()
    best = min(passes.keys() & nine().keys(), key=lambda name: _p50(passes[name][:1]))
    pick = ConfigUpdate.model_validate(kept["pick"])
    of_pick = f"{pick.max_size_mb:g} MB, {pick.eviction_watermark:g}/{pick.eviction_ratio:g}"
    kept |= {"best": best, "picked": of_pick}
    for _ in range(REPEATS):
        for name, update in {best: nine()[best], of_pick: pick}.items():
            if len(passes.setdefault(name, [])) < REPEATS:
                passes[name].append(measured(await one_pass(engine, name, update)))
                save()


def _p50(passes: list[Results]) -> float:
    return float(np.mean([one["ttft"]["p50"] for one in passes]))


async def break_even(engine: EngineOnACache, kept: Results, save: Callable[[], None]) -> None:
    """Part (b): prefixes that nobody asked for before, and the same again with another end."""
    await set_to(engine, ConfigUpdate(max_size_mb=2 * SIZES[-1]))
    computed: dict[int, list[float]] = {prefix: [] for prefix in PREFIXES}
    loaded: dict[int, list[float]] = {prefix: [] for prefix in PREFIXES}
    async with engine.watched():
        for sample in range(SAMPLES):
            for prefix in PREFIXES:
                new, again = await send(engine.openai, MODEL, [_prompt(prefix, sample, end) for end in range(2)])
                if again.cached_tokens != prefix:
                    raise RuntimeError(f"{again.cached_tokens} tokens were loaded of a prefix of {prefix}: {again.error}")
                computed[prefix].append(1e3 * (new.ttft or np.nan))
                loaded[prefix].append(1e3 * (again.ttft or np.nan))
        await anyio.sleep(1.5)
    seen = await io_loop.arun(engine.operations._observe, engine.operations.registry.get(DEFAULT))  # noqa: SLF001
    medians = {
        str(prefix): {"computed_ms": float(np.median(computed[prefix])), "loaded_ms": float(np.median(loaded[prefix]))}
        for prefix in PREFIXES
    }
    lengths = np.repeat(PREFIXES[1:], SAMPLES)
    computing, loading = (
        np.polyfit(lengths, np.concatenate([times[p] for p in PREFIXES[1:]]), 1) for times in (computed, loaded)
    )
    crossing = float((loading[1] - computing[1]) / (computing[0] - loading[0]))
    kept |= {
        "medians": medians,
        "computed_line_ms": {"per_token": float(computing[0]), "at_no_prefix": float(computing[1])},
        "loaded_line_ms": {"per_token": float(loading[0]), "at_no_prefix": float(loading[1])},
        "crossing_tokens": max(crossing, 0.0),
        "shortest_measured_faster": next(
            (p for p in PREFIXES[1:] if medians[str(p)]["loaded_ms"] < medians[str(p)]["computed_ms"]), None
        ),
        "speed": seen.engine_speed and seen.engine_speed.model_dump(),
    }
    save()


def _prompt(prefix: int, sample: int, end: int) -> ChatRequest:
    """A prompt that begins with a prefix of so many tokens; prompts of one `sample` differ in their ends."""
    words = text(random.Random(f"{prefix}/{sample}"), max(prefix - 1, 0))  # noqa: S311  the role is a token too
    end_words = text(random.Random(f"{prefix}/{sample}/{end}"), TAIL)  # noqa: S311
    system = [{"role": "system", "content": words}] if prefix else []
    return ChatRequest(0, end, (*system, {"role": "user", "content": end_words}))


LIVE_CHANGES: tuple[tuple[str, ConfigUpdate, ConfigUpdate], ...] = (
    ("L1 larger", ConfigUpdate(max_size_mb=SIZES[-1]), ConfigUpdate(max_size_mb=2 * SIZES[-1])),
    ("L1 smaller", ConfigUpdate(max_size_mb=2 * SIZES[-1]), ConfigUpdate(max_size_mb=SIZES[-1])),
    (
        "watermark and ratio",
        ConfigUpdate(eviction_watermark=0.95, eviction_ratio=0.05),
        ConfigUpdate(eviction_watermark=0.9, eviction_ratio=0.1),
    ),
    ("policy", ConfigUpdate(eviction_policy="lru"), ConfigUpdate(eviction_policy="arc")),
)
"""What is changed live: its name, how it is set before, and to what; a change is made `SAMPLES` times."""


async def changes(engine: EngineOnACache, kept: Results, save: Callable[[], None]) -> None:
    """Part (c): conversations that are all in L1 go on, while settings are changed by an agent elsewhere."""
    await set_to(engine, ROOMY)
    await send(engine.openai, MODEL, last_turns())
    kept["usual"] = ttft_of(await _some(engine, USUAL)).model_dump()
    kept["live"] = {}
    await changed_elsewhere(engine, ConfigUpdate(eviction_policy="lru"))  # its process starts
    for name, start, end in LIVE_CHANGES:
        answers: list[ChatAnswer] = []
        took: list[float] = []
        for _ in range(SAMPLES):
            await changed_elsewhere(engine, start)
            await send(engine.openai, MODEL, last_turns())
            meanwhile, seconds = await _while_changing(engine, end)
            answers += meanwhile
            took.append(seconds)
        kept["live"][name] = {
            "change_seconds": took,
            "ttft_ms": [1e3 * (one.ttft or np.inf) for one in answers],
            "cached_share": min(one.cached_tokens / one.prompt_tokens for one in answers),
        }
        print(name, kept["live"][name], flush=True)
        save()


async def changed_elsewhere(engine: EngineOnACache, update: ConfigUpdate) -> float:
    """Change settings of the server from another process; seconds it took."""
    deployment = engine.operations.registry.get(DEFAULT).deployment
    assert isinstance(deployment, EmbeddedDeployment)  # noqa: S101  settings say so
    server = await io_loop.arun(deployment.started)
    return await to_process.run_sync(change_from_here, server.http_url, str(EmbeddedOptions().arena_folder), update.known())


def change_from_here(url: str, arenas: str, update: Results) -> float:
    """In that process. It yields to all others, so that what it computes does not slow down the engine beside it.

    An agent is elsewhere, as a rule; here both have the same two cores.
    """
    with suppress(OSError):  # it leads a session already
        os.setsid()
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    os.nice(19)
    bounds = Bounds(max_size_mb=2 * SIZES[-1], max_watermark=0.95)
    cache = CacheSettings(target=url, arena_folder=Path(arenas), bounds=bounds, cooldown_seconds=0)

    async def change() -> float:
        with tempfile.TemporaryDirectory() as state:
            operations = Operations(Registry(Settings(caches={DEFAULT: cache}, state_folder=Path(state))))
            try:
                await operations.settings(DEFAULT)
                began = time.perf_counter()
                await operations.apply(await operations.plan(DEFAULT, ConfigUpdate(**update), "benchmark"), "benchmark")
                return time.perf_counter() - began
            except UnsupportedError as error:
                if "already has these settings" in str(error):
                    return 0.0
                raise
            finally:
                await operations.close()

    return io_loop.run(change)


def last_turns() -> list[ChatRequest]:
    """The longest request of each conversation."""
    requests = {one.conversation: one for one in TRAFFIC.requests() if one.turn == TRAFFIC.turns - 1}
    return [requests[number] for number in sorted(requests)]


async def _some(engine: EngineOnACache, number: int) -> list[ChatAnswer]:
    turns = last_turns()
    return await send(engine.openai, MODEL, [turns[one % len(turns)] for one in range(number)])


async def _while_changing(engine: EngineOnACache, update: ConfigUpdate) -> tuple[list[ChatAnswer], float]:
    """The requests from before a change is made until the second after it, one after the other; and how long it took."""
    turns, answers, took, left = last_turns(), [], 0.0, 2

    async def change() -> None:
        nonlocal took
        await anyio.sleep(0.05)  # a request is on its way
        took = await changed_elsewhere(engine, update)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(change)
        while left:
            answers += await send(engine.openai, MODEL, [turns[len(answers) % len(turns)]])
            left -= 1 if took else 0
    return answers, took


async def restarts(engine: EngineOnACache) -> list[Results]:
    """What each of some restarts of the cache server does to requests; no more after one that had no end."""
    found: list[Results] = []
    while len(found) < RESTARTS and all(one["recovered_after_seconds"] for one in found):
        await send(engine.openai, MODEL, last_turns())
        found.append(await one_restart(engine))
        print("restart", {key: value for key, value in found[-1].items() if key != "timeline"}, flush=True)
    return found


async def one_restart(engine: EngineOnACache) -> Results:
    """Restart the server on the same ports while requests go on, one after the other, until all is as it was."""
    deployment = engine.operations.registry.get(DEFAULT).deployment
    assert isinstance(deployment, EmbeddedDeployment)  # noqa: S101  settings say so
    answers: list[ChatAnswer] = []
    turns, began, took = last_turns(), time.time(), 0.0

    async def restart() -> None:
        nonlocal took
        await anyio.sleep(0.05)  # a request is on its way
        # What a setting that needs a restart brings about.
        await io_loop.arun(deployment._restart, ConfigUpdate(eviction_watermark=0.95), silent)  # noqa: SLF001
        took = time.time() - began

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(restart)
        while engine.vllm.alive and time.time() < began + PATIENCE and not (took and _all_hit(answers[-len(turns) :])):
            answers += await send(engine.openai, MODEL, [turns[len(answers) % len(turns)]])
    await anyio.sleep(DYING)
    missed = [one for one in answers if not one.cached_tokens]
    recovered = engine.vllm.alive and _all_hit(answers[-len(turns) :])
    return {
        "restart_seconds": took,
        "longest_seconds": max(one.ttft or one.total for one in answers),
        "computed_anew": sum(one.error is None for one in missed),
        "failed": sum(one.error is not None for one in answers),
        "recovered_after_seconds": missed[-1].started + missed[-1].total - began if recovered else None,
        "engine_survived": engine.vllm.alive,
        "timeline": [[round(one.started - began, 2), round(one.total, 3), one.cached_tokens, one.error] for one in answers],
    }


def _all_hit(answers: list[ChatAnswer]) -> bool:
    return all(one.cached_tokens for one in answers)


PARTS = {"search": search, "break_even": break_even, "changes": changes}
"""Those that are measured on one and the same engine."""
RESTART = "restart"


def report(results: Results) -> str:
    """All parts that were measured, as Markdown."""
    parts = {"search": _search_lines, "break_even": _break_even_lines, "changes": _changes_lines, RESTART: _restart_lines}
    lines = [
        "# What a setting of the cache is worth on a real vLLM",
        "",
        "vLLM 0.32 on the CPU in front of `lmcache server` 0.5.6, a Llama of random weights (4 KB of KV a token, chunks of 256"
        f" tokens), one client, vLLM's own prefix cache off. {len(TRAFFIC.requests())} requests of {TRAFFIC.conversations}"
        f" conversations, {FOOTPRINT_MB:.0f} MB of KV in all.",
    ]
    for name, told in parts.items():
        kept = results.get(name)
        if kept and kept.get("complete"):
            lines += ["", *told(kept), "", f"({kept['machine']}, {kept['date']})"]
    return "\n".join(lines) + "\n"


def _search_lines(kept: Results) -> list[str]:
    rows, errors = [], []
    for name in nine():
        one, said = kept["passes"][name][0], kept["predicted"][name]
        error = said["ttft"]["mean"] / one["ttft"]["mean"] - 1
        errors.append(abs(error))
        rows.append(
            f"| {name} | {one['token_hit_rate']:.1%} | {said['token_hit_rate']:.1%} | "
            + " | ".join(f"{one['ttft'][figure]:,.0f}" for figure in ("mean", "p50", "p95", "p99"))
            + f" | {said['ttft']['mean']:,.0f} | {error:+.1%} |"
        )
    best, picked = (kept["passes"][kept[name]] for name in ("best", "picked"))
    first = kept["passes"][next(iter(nine()))][0]["ttft"]["p50"]
    return [
        "## Nine settings, measured and predicted",
        "",
        "Each from an empty L1, and predicted from an observation of the first right before those of a size were measured,"
        " since this machine's speed drifts. Times to first token in ms.",
        "",
        "| setting | token hit rate | predicted | mean | p50 | p95 | p99 | predicted mean | error |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *rows,
        "",
        f"Error of the predicted mean: {np.mean(errors):.1%} on average, at most {max(errors):.1%}.",
        f"The advice picks {kept['picked']} ({kept['pick_in_words']}): p50 {_p50(picked):,.0f} ms,"
        f" {first / _p50(picked):.1f} times better than the first setting's {first:,.0f} ms;"
        f" the best of the nine is {kept['best']} with {_p50(best):,.0f} ms"
        f" (means of {len(picked)} and {len(best)} passes): the pick is {_p50(picked) / _p50(best) - 1:+.1%} from it.",
    ]


def _break_even_lines(kept: Results) -> list[str]:
    speed, computing, loading = kept["speed"], kept["computed_line_ms"], kept["loaded_line_ms"]
    rows = [f"| {p} | {one['computed_ms']:,.0f} | {one['loaded_ms']:,.0f} |" for p, one in kept["medians"].items()]
    told = (
        f"The engine's own metrics say {1e3 * speed['per_computed_token']:.3f} ms to compute a token"
        f" and {1e3 * (speed['per_loaded_token'] or 0):.3f} ms to load one."
        if speed
        else ""
    )
    return [
        "## How long a prefix must be to be worth loading",
        "",
        f"Medians of {SAMPLES} time to first token in ms, of a prefix and {TAIL} tokens more.",
        "",
        "| prefix, tokens | computed | loaded |",
        "|--:|--:|--:|",
        *rows,
        "",
        f"Fitted: {computing['at_no_prefix']:.0f} ms + {computing['per_token']:.3f} ms a computed token,"
        f" {loading['at_no_prefix']:.0f} ms + {loading['per_token']:.3f} ms a loaded one; the lines cross at"
        f" {kept['crossing_tokens']:.0f} tokens. The shortest prefix measured to be faster loaded is"
        f" {kept['shortest_measured_faster']} tokens; nothing shorter than one chunk (256) is ever loaded. {told}",
    ]


def _changes_lines(kept: Results) -> list[str]:
    usual = TimeToFirstToken.model_validate(kept["usual"])
    rows = [
        f"| {name} | {np.mean(one['change_seconds']):.2f} | {len(one['ttft_ms'])} | {np.median(one['ttft_ms']):,.0f}"
        f" | {max(one['ttft_ms']):,.0f} | {one['cached_share']:.0%} |"
        for name, one in kept["live"].items()
    ]
    meanwhile = np.concatenate([one["ttft_ms"] for one in kept["live"].values()])
    return [
        "## What a change costs the engine",
        "",
        f"All prompts in L1; changes come from another process, which yields to the engine. Usual time to first token ({USUAL}"
        f" requests): {usual}. Of {len(meanwhile)} requests that a change met, or that came right after it,"
        f" {(meanwhile > usual.p99).sum()} were slower than the usual p99.",
        "",
        f"| live change ({SAMPLES} times each) | takes, s | requests meanwhile | p50, ms | slowest, ms | least share of a prompt"
        " from the cache |",
        "|---|--:|--:|--:|--:|--:|",
        *rows,
    ]


def _restart_lines(kept: Results) -> list[str]:
    rows = [
        f"| {name} | {one['restart_seconds']:.1f} |"
        f" {one['longest_seconds']:.1f} | {one['computed_anew']} | {one['failed']} |"
        f" {_seconds(one['recovered_after_seconds'])} | {'yes' if one['engine_survived'] else '**no**'} |"
        for name in CONNECTORS
        for one in kept[name]
    ]
    return [
        "## What a restart of the cache server costs the engine",
        "",
        "Requests one after the other meanwhile, all of which hit before. LMCache's connector moves KV in the engine's own"
        f" process and waits there for the server's answer (`{TIMEOUT}`). It registers anew only with a server that it has missed"
        f" (`{HEARTBEAT}`): one that is back sooner does not know it, and leaves its stores without an answer. vLLM gives up an"
        " engine that does nothing for 300 s (`VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS`). All had the time to be as before"
        f" within {PATIENCE:.0f} s.",
        "",
        "| time-out, heartbeat | restart takes, s | longest request, s | computed anew | failed | all hit again after |"
        " engine survived |",
        "|---|--:|--:|--:|--:|--:|---|",
        *rows,
    ]


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


async def run(parts: list[str]) -> None:
    """Measure what is wanted, and merge it into the results."""
    results: Results = json.loads(STORE.read_text()) if STORE.exists() else {}

    def save() -> None:
        STORE.write_text(json.dumps(results, indent=1) + "\n")
        STORE.with_suffix(".md").write_text(report(results))

    def complete(part: str) -> None:
        results[part] |= {"complete": True, "machine": machine(), "date": f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}"}
        save()

    of_one_engine = [part for part in parts if part in PARTS]
    if of_one_engine:
        async with fresh_engine() as engine:
            for part in of_one_engine:
                await PARTS[part](engine, results.setdefault(part, {}), save)
                complete(part)
    if RESTART in parts:
        results[RESTART] = {}
        for name, connector in CONNECTORS.items():
            async with fresh_engine(connector) as engine:
                await set_to(engine, ROOMY)
                results[RESTART][name] = await restarts(engine)
            save()
        complete(RESTART)
    print(report(results))


@asynccontextmanager
async def fresh_engine(connector: Connector = LMCACHES_OWN) -> AsyncIterator[EngineOnACache]:
    """Both servers, with all that is measured within the operator's bounds; nothing is left of them."""
    state = Path(tempfile.mkdtemp(prefix="engine-bench-"))
    settings = settings_for(TRAFFIC, state, SMALLEST)
    cache = settings.caches[DEFAULT].model_copy(update={"bounds": Bounds(max_size_mb=2 * SIZES[-1], max_watermark=0.95)})
    settings = settings.model_copy(update={"caches": {DEFAULT: cache}})
    try:
        async with engine_on_a_cache(settings, lambda told: print(told, flush=True), connector) as engine:
            prefer_us()
            yield engine
    finally:
        shutil.rmtree(state, ignore_errors=True)


def prefer_us() -> None:
    """Let us, both servers included, go before whatever else runs here, as far as we may: as root, on Linux.

    To the scheduler each session is one group (autogroup), and the priority of a process counts only within it.
    """
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text(str(PRIORITY))


def main() -> None:
    """Measure, print, and write the results."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=[*PARTS, RESTART], help="one part")
    wanted = arguments.parse_args().only
    asyncio.run(run([wanted] if wanted else [*PARTS, RESTART]))


if __name__ == "__main__":
    main()
