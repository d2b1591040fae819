"""How well the model of the engine's own prefix cache (L0), and of what LMCache saves beyond it, does on a real vLLM.

Run from the repository root::

    PYTHONPATH=. .venv-engine/bin/python benchmarks/engine_cache.py [--only tokens|two_engines]

* tokens: for each size of L0 one vLLM; for each size of L1 the same conversations from empty caches. LMCache's log predicts the
  prompt tokens by their source, which vLLM counted too. The model is small and clients pause, so a busy machine does no harm.
* two_engines: two vLLM with L0 of unequal size and other conversations each on one cache.

What advice is worth in time to first token is measured in engine_cache_advice.py.

The results are merged into one file. Cells that are already in it are not measured again; delete the file to start over.
"""

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from engine import observed, prefer_us, set_to
from prediction import machine

from agent_tools.caches.registry import DEFAULT, Registry
from agent_tools.caches.settings import Settings
from agent_tools.demo.engine.chat_traffic import ChatTraffic, client, send
from agent_tools.demo.engine.demo import EngineOnACache, Phase, engine_on_a_cache, settings_for
from agent_tools.demo.engine.tiny_model import Shape
from agent_tools.demo.engine.vllm_server import BLOCK, MODEL, VllmServer
from agent_tools.deployments.server.embedded import EmbeddedDeployment
from agent_tools.deployments.server.process import free_port
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, ConfigUpdate
from agent_tools.operations import Operations
from agent_tools.prediction.engine_cache import engine_caches
from agent_tools.recommender.modelled import predicted_hits, server_setting

STORE = Path(__file__).parent / "results" / "engine_cache.json"
TRAFFIC = ChatTraffic(conversations=14, turns=6, seed=5)
LIGHT = Shape(hidden=512, intermediate=2048, heads=4)
"""As much KV a token as the demo's model, and a thirtieth of its computation."""
PAUSE = 0.3
"""Seconds between a light model's answer and the client's next request. L1 then fills about as fast as under the demo's model."""
OWN = (0.25, 0.6, 1.5)
"""Sizes of L0, as shares of the distinct tokens of the workload."""
SMALLEST = 0.25
L1 = (SMALLEST, 0.6, 1.0, 1.5)
"""Sizes of L1, likewise."""
THREE = (0.6, 1.0)
"""Sizes of L1 that three clients use too."""
ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""For a machine that does other things too: threads that wait for each other would stand still there."""
Results = dict[str, Any]
Save = Callable[[], None]
Part = Callable[[Results, Save], Coroutine[Any, Any, None]]


def footprint_mb(traffic: ChatTraffic) -> float:
    """Return the KV of all distinct tokens, MB."""
    return traffic.tokens * Shape().kv_bytes_per_token / MB


async def one_pass(engine: EngineOnACache, traffic: ChatTraffic, size: float, clients: int, pause: float) -> Phase:
    """Send the conversations once, from an L0 and an L1 that are empty."""
    await set_to(engine, ConfigUpdate(max_size_mb=round(footprint_mb(traffic) * size)))
    phase = await engine.send("pass", traffic.requests(), lambda *_: None, clients, pause)
    if phase.errors or phase.metrics is None or phase.metrics.engine is None:
        raise RuntimeError(f"the pass failed: {phase.errors[:1]}")
    return phase


async def token_cell(engine: EngineOnACache, own_tokens: int, phase: Phase) -> Results:
    """Compare what vLLM counted with what the log predicts: with the full size of L0, and fitted to the count."""
    assert phase.metrics is not None  # noqa: S101  the pass is over
    counted, seen = phase.metrics.engine, await observed(engine, phase)
    setting = server_setting(seen)
    assert counted is not None  # noqa: S101
    assert seen.log is not None  # noqa: S101
    assert setting is not None  # noqa: S101
    hits, size = predicted_hits(seen, setting), seen.log.chunk_size
    (own,) = engine_caches(seen.log, [own_tokens])
    of_window = own.hits[seen.in_window]
    beyond = (hits.l1 + hits.l2 - of_window).clip(min=0).sum(axis=1).mean()
    prompts = counted.prompt_tokens
    return {
        "prompt_tokens": prompts,
        "own": counted.own_cache_tokens / prompts,
        "own_predicted": float(of_window.sum() * size / prompts),
        "own_fitted": float(hits.own.sum() * size / prompts) if seen.own_cache else 0.0,  # type: ignore[union-attr]
        "saved": counted.lmcache_tokens / prompts,
        "saved_predicted": float(beyond * size / prompts),
        "saved_fitted": hits.saved_rate * float(hits.asked.sum()) * size / prompts,
        "usable": seen.own_cache.tokens / own_tokens if seen.own_cache else None,
        "lmcache_hits": (phase.metrics.tokens.hit or 0) / prompts,
        "lmcache_hits_predicted": hits.rate * float(hits.asked.sum()) * size / prompts,
        "preemptions": counted.preemptions,
    }


async def tokens(kept: Results, save: Save, own: Sequence[float] = OWN) -> None:
    """Measure the cells of prompt tokens by source."""
    cells: Results = kept.setdefault("cells", {})
    os.environ |= ONE_THREAD
    for share in own:
        own_tokens = int(TRAFFIC.tokens * share) // BLOCK * BLOCK
        wanted = [(size, clients) for clients in (1, 3) for size in (L1 if clients == 1 else THREE)]
        missing = [one for one in wanted if _name(share, *one) not in cells]
        if not missing:
            continue
        async with engine(TRAFFIC, own_tokens, LIGHT) as one:
            for size, clients in missing:
                phase = await one_pass(one, TRAFFIC, size, clients, PAUSE * clients)
                found = await token_cell(one, own_tokens, phase)
                cells[_name(share, size, clients)] = found
                print(_name(share, size, clients), json.dumps(found), flush=True)
                save()


def _name(own: float, size: float, clients: int) -> str:
    return f"L0 {own:.0%}, L1 {size:.0%}, {clients} client{'s' if clients > 1 else ''}"


HALF = replace(TRAFFIC, conversations=7)
"""The traffic of each of two engines."""
OF_TWO = (0.4, 0.25)
"""L0 of each of two engines, as shares of the distinct tokens of both. vLLM refuses less than its longest prompt."""


async def two_engines(kept: Results, save: Save) -> None:
    """Measure two vLLM with L0 of unequal size and other conversations each, on one cache."""
    os.environ |= ONE_THREAD
    sizes = [int(2 * HALF.tokens * share) // BLOCK * BLOCK for share in OF_TWO]
    with tempfile.TemporaryDirectory() as state:
        settings = settings_for(TRAFFIC, Path(state), SMALLEST)
        cache = settings.caches[DEFAULT]
        second = f"http://127.0.0.1:{free_port()}"
        cache = cache.model_copy(update={"engine": None, "engines": (cache.engine, second)})
        settings = settings.model_copy(update={"caches": {DEFAULT: cache}})
        async with two_on_a_cache(settings, sizes) as (one, other):
            await set_to(one, ConfigUpdate(max_size_mb=round(footprint_mb(TRAFFIC))))
            async with asyncio.TaskGroup() as tasks:
                requests = HALF.with_seed(HALF.seed + 1).requests()
                tasks.create_task(send(other, MODEL, requests, pause=2 * PAUSE))
                phase = tasks.create_task(one.send("two engines", HALF.requests(), lambda *_: None, 1, 2 * PAUSE))
            kept["engines"], kept["split"] = await _of_each(one, phase.result())
            save()


async def _of_each(one: EngineOnACache, phase: Phase) -> tuple[list[Results], str]:
    """Compare what each engine counted with what the log predicts."""
    seen = await observed(one, phase)
    engine, own, setting = seen.metrics.engine, seen.own_cache, server_setting(seen)
    assert engine is not None  # noqa: S101  both were read
    assert own is not None  # noqa: S101
    assert own.engine_of is not None  # noqa: S101
    assert seen.log is not None  # noqa: S101
    assert setting is not None  # noqa: S101
    hits, size = predicted_hits(seen, setting), seen.log.chunk_size
    found = []
    for number, counted in enumerate(engine.engines):
        mine = own.engine_of[seen.in_window] == number
        saved = (hits.saved_l1 + hits.saved_l2)[:, mine].sum(axis=1).mean()
        prompts = counted.prompt_tokens
        found.append(
            {
                "own_tokens": counted.own_cache_size_tokens,
                "prompt_tokens": prompts,
                "prompt_tokens_by_split": int(seen.log.tokens[seen.in_window][mine].sum()),
                "own": counted.own_cache_share,
                "own_predicted": float(own.hits[seen.in_window][mine].sum() * size / prompts),
                "saved": counted.saved_share,
                "saved_predicted": float(saved * size / prompts),
            }
        )
    print(json.dumps(found), own.split, flush=True)
    return found, own.split


@asynccontextmanager
async def two_on_a_cache(settings: Settings, sizes: Sequence[int]) -> AsyncIterator[tuple[EngineOnACache, Any]]:
    """Both vLLM and their cache; the second by its client alone."""
    operations = Operations(Registry(settings))
    vllms: list[VllmServer] = []
    try:
        deployment = operations.registry.get(DEFAULT).deployment
        assert isinstance(deployment, EmbeddedDeployment)  # noqa: S101  the settings define it so
        server = await io_loop.arun(deployment.started)
        for url, size in zip(settings.caches[DEFAULT].engines, sizes, strict=True):
            port, logs = int(url.rpartition(":")[2]), settings.state_folder / "logs"
            vllms.append(VllmServer.launch(server.rpc_url, logs, port, own_cache_tokens=size, shape=LIGHT))
            prefer_us()
            await vllms[-1].wait_ready(900)  # one after the other: a vLLM measures free memory as it starts
        async with client(vllms[0].url) as first, client(vllms[1].url) as second:
            yield EngineOnACache(operations, vllms[0], first), second
    finally:
        for vllm in vllms:
            await vllm.stop()
        await io_loop.arun(operations.close)


@asynccontextmanager
async def engine(traffic: ChatTraffic, own_tokens: int, shape: Shape) -> AsyncIterator[EngineOnACache]:
    """A vLLM with an own cache of this size, in front of a private server."""
    with tempfile.TemporaryDirectory() as state:
        settings = settings_for(traffic, Path(state), SMALLEST)
        cache = settings.caches[DEFAULT]
        bounds = cache.bounds.model_copy(update={"max_size_mb": 2 * footprint_mb(traffic)})
        settings = settings.model_copy(update={"caches": {DEFAULT: cache.model_copy(update={"bounds": bounds})}})
        async with engine_on_a_cache(settings, print, own_cache_tokens=own_tokens, shape=shape) as one:
            prefer_us()
            yield one


def report(results: Results) -> str:
    """Return the results as a page."""
    lines = ["# The engine's own cache, and what LMCache saves beyond it", ""]
    lines += [
        f"A real vLLM 0.32 (CPU) with its own prefix cache (L0) on, in front of `lmcache server` 0.5.6. {TRAFFIC.conversations}"
        f" conversations of {TRAFFIC.turns} turns, about {TRAFFIC.tokens:,} distinct tokens, from empty caches. Shares of the"
        " prompt tokens: as vLLM counted them by source, as LMCache's log of lookups predicts them with the full size of L0, and"
        " with the usable size fitted to what L0 served, as in the product."
    ]
    if cells := results.get("tokens", {}).get("cells"):
        lines += ["", *_token_lines(cells)]
    if two := results.get("two_engines", {}).get("engines"):
        lines += ["", *_two_lines(two, results["two_engines"]["split"])]
    notes = {part["note"] for part in results.values() if "note" in part}
    return "\n".join([*lines, "", *sorted(notes), f"({machine()})"]) + "\n"


def _token_lines(cells: Results) -> list[str]:
    def errors(figure: str, how: str) -> str:
        off = [100 * abs(one[figure] - one[f"{figure}_{how}"]) for one in cells.values()]
        return f"mean error {mean(off):.1f} points, largest {max(off):.1f}"

    named = {"own": "own cache", "saved": "saved by LMCache"}
    lines = [
        f"* {name}: full size {errors(figure, 'predicted')}; fitted {errors(figure, 'fitted')}" for figure, name in named.items()
    ]
    lines += [
        "",
        "| L0 and L1, shares of the distinct tokens | own cache | predicted | fitted | saved by LMCache | predicted | fitted |"
        " LMCache's own hits | predicted |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    figures = [name + how for name in ("own", "saved") for how in ("", "_predicted", "_fitted")]
    figures += ["lmcache_hits", "lmcache_hits_predicted"]
    return lines + [f"| {name} | " + " | ".join(f"{one[figure]:.1%}" for figure in figures) + " |" for name, one in cells.items()]


def _two_lines(engines: list[Results], split: str) -> list[str]:
    rows = [
        f"| {one['own_tokens']:,} | {one['prompt_tokens']:,} | {one['prompt_tokens_by_split']:,} | {one['own']:.1%} |"
        f" {one['own_predicted']:.1%} | {one['saved']:.1%} | {one['saved_predicted']:.1%} |"
        for one in engines
    ]
    return [
        "## Two engines on one cache",
        "",
        f"L0 of unequal size, other conversations each. The log names no engine; requests were divided: {split}.",
        "",
        "| L0, tokens | prompt tokens | by the division | own cache | predicted | saved by LMCache | predicted |",
        "|--:|--:|--:|--:|--:|--:|--:|",
        *rows,
    ]


PARTS = {"tokens": tokens, "two_engines": two_engines}


def measure(parts: Mapping[str, Part], store: Path, page: Callable[[Results], str]) -> None:
    """Measure the parts that the command line asks for, and write the results and their page after each step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--store", type=Path, default=store)
    given = parser.parse_args()
    results: Results = json.loads(given.store.read_text()) if given.store.exists() else {}

    def save() -> None:
        given.store.write_text(json.dumps(results, indent=1) + "\n")
        given.store.with_suffix(".md").write_text(page(results))

    for name, part in parts.items():
        if given.only in {None, name}:
            asyncio.run(part(results.setdefault(name, {}), save))


if __name__ == "__main__":
    measure(PARTS, STORE, report)
