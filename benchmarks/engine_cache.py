"""How well the model of the engine's own prefix cache (L0), and of what LMCache saves beyond it, does on a real vLLM.

For each size of L0 one vLLM; for each size of L1 the same conversations from an empty L1 and an L0 without them; predicted from
LMCache's log of lookups alone, with the full size of L0, and compared with the prompt tokens that vLLM counted by their source.
"""

import asyncio
import json
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from prediction import machine

from agent_tools.caches.registry import DEFAULT
from agent_tools.demo.engine.chat_traffic import ChatRequest, ChatTraffic, send, text
from agent_tools.demo.engine.demo import EngineOnACache, Phase, engine_on_a_cache, settings_for
from agent_tools.demo.engine.tiny_model import Shape
from agent_tools.demo.engine.vllm_server import BLOCK, MODEL
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, ConfigUpdate
from agent_tools.prediction.engine_cache import engine_caches
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.recommender.modelled import server_setting
from agent_tools.workload.access_log import AccessLog

STORE = Path(__file__).parent / "results" / "engine_cache.json"
TRAFFIC = ChatTraffic(conversations=14, turns=6, seed=5)
OWN = (0.25, 0.6, 1.5)
"""Sizes of L0, as shares of the distinct tokens of the workload."""
L1 = (0.25, 0.6, 1.0, 1.5)
"""Sizes of L1, likewise."""
CLIENTS = (1, 3)
Results = dict[str, Any]


def flush(tokens: int, number: int) -> list[ChatRequest]:
    """Return prompts that nobody asks for again and that fill L0, so that a pass begins without its own prompts there."""
    words, size = random.Random(number), 4000  # noqa: S311
    count = tokens // size + 2
    return [ChatRequest(0, turn, ({"role": "user", "content": text(words, size)},)) for turn in range(count)]


async def set_to(engine: EngineOnACache, size_mb: float) -> None:
    """Make L1 this large, live, and empty it."""
    await engine.clear("a cell begins with an empty L1")
    if (await io_loop.arun(engine.operations.settings, DEFAULT)).max_size_mb != size_mb:
        plan = await io_loop.arun(engine.operations.plan, DEFAULT, ConfigUpdate(max_size_mb=size_mb), "benchmark")
        await io_loop.arun(engine.operations.apply, plan, "benchmark")
    while (await engine.metrics()).total_size_mb != size_mb:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    await engine.clear("a cell begins with an empty L1")


async def cell(engine: EngineOnACache, own_tokens: int, size_mb: float, clients: int, number: int) -> Results:
    """Send the conversations once, and compare what vLLM counted with what the log predicts."""
    await send(engine.openai, MODEL, flush(own_tokens, number))
    await set_to(engine, size_mb)
    phase = await engine.send("cell", TRAFFIC.requests(), lambda *_: None, clients)
    if phase.errors or phase.metrics is None or phase.metrics.engine is None:
        raise RuntimeError(f"the pass failed: {phase.errors[:1]}")
    counted, log, setting = phase.metrics.engine, *await logged(engine, phase)
    (own,) = engine_caches(log, [own_tokens])
    prediction = await asyncio.to_thread(partial(predict_server, log, setting))
    whole = own.asked * log.chunk_size / counted.prompt_tokens
    found = {
        "own_tokens": own_tokens,
        "l1_mb": size_mb,
        "clients": clients,
        "prompt_tokens": counted.prompt_tokens,
        "own": counted.own_cache_tokens / counted.prompt_tokens,
        "own_predicted": own.share * whole,
        "saved": counted.lmcache_tokens / counted.prompt_tokens,
        "saved_predicted": own.saved(prediction) * whole,
        "lmcache_hits": (phase.metrics.tokens.hit_rate or 0) * whole,
    }
    print(json.dumps(found), flush=True)
    return found


async def logged(engine: EngineOnACache, phase: Phase) -> tuple[AccessLog, Any]:
    """Return the log of a pass and the setting of the server it ran on."""
    assert phase.metrics is not None  # noqa: S101  the pass is over
    named = engine.operations.registry.get(DEFAULT)
    seen = await io_loop.arun(engine.operations._observe, named)  # noqa: SLF001
    start = phase.metrics.window.start.timestamp()
    assert seen.log is not None  # noqa: S101  a private server keeps one
    return seen.log.select((seen.log.timestamps >= start).nonzero()[0]), server_setting(seen)


def report(results: Results) -> str:
    """Return the results as a page."""
    cells = results["cells"]
    own = [abs(one["own"] - one["own_predicted"]) for one in cells]
    saved = [abs(one["saved"] - one["saved_predicted"]) for one in cells]
    lines = [
        "# The engine's own cache, and what LMCache saves beyond it",
        "",
        f"{results['machine']}; a real vLLM 0.32 (CPU) with its own prefix cache on; {TRAFFIC.conversations} conversations of"
        f" {TRAFFIC.turns} turns, about {TRAFFIC.tokens:,} distinct tokens. Shares of the prompt tokens: as vLLM counted them,"
        " and as predicted from LMCache's log alone.",
        "",
        f"* own cache: mean error {100 * mean(own):.1f} points, largest {100 * max(own):.1f}",
        f"* saved by LMCache: mean error {100 * mean(saved):.1f} points, largest {100 * max(saved):.1f}",
        "",
        "| L0, tokens | L1, MB | clients | own cache | predicted | saved by LMCache | predicted | LMCache's own hit rate |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {one['own_tokens']:,} | {one['l1_mb']:.0f} | {one['clients']} | {one['own']:.1%} | {one['own_predicted']:.1%} |"
        f" {one['saved']:.1%} | {one['saved_predicted']:.1%} | {one['lmcache_hits']:.1%} |"
        for one in cells
    ]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def engine(own_tokens: int) -> AsyncIterator[EngineOnACache]:
    """A vLLM with an own cache of this size, in front of a private server."""
    with tempfile.TemporaryDirectory() as state:
        settings = settings_for(TRAFFIC, Path(state))
        footprint_mb = TRAFFIC.tokens * Shape().kv_bytes_per_token / MB
        cache = settings.caches[DEFAULT]
        bounds = cache.bounds.model_copy(update={"max_size_mb": 2 * footprint_mb})
        settings = settings.model_copy(update={"caches": {DEFAULT: cache.model_copy(update={"bounds": bounds})}})
        async with engine_on_a_cache(settings, print, own_cache_tokens=own_tokens) as one:
            yield one


async def run() -> None:
    """Measure all cells."""
    footprint_mb = TRAFFIC.tokens * Shape().kv_bytes_per_token / MB
    results: Results = {"machine": machine(), "cells": []}
    for share in OWN:
        own_tokens = int(TRAFFIC.tokens * share) // BLOCK * BLOCK
        async with engine(own_tokens) as one:
            for number, (size, clients) in enumerate((size, clients) for size in L1 for clients in CLIENTS):
                if clients > 1 and size not in (0.6, 1.0):
                    continue
                results["cells"].append(await cell(one, own_tokens, round(footprint_mb * size), clients, number))
                STORE.write_text(json.dumps(results, indent=1) + "\n")
                STORE.with_suffix(".md").write_text(report(results))


if __name__ == "__main__":
    asyncio.run(run())
    print(report(json.loads(STORE.read_text())))
