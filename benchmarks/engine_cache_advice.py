"""What advice is worth on a real vLLM whose own prefix cache (L0) is on, in time to first token.

Run from the repository root (about 50 minutes; nothing else should run on the machine)::

    PYTHONPATH=. .venv-engine/bin/python benchmarks/engine_cache_advice.py [--only times|no_claim]

* times: measure the same conversations from empty caches, for each size of L0 and L1. Compare with the prediction from the
  smallest L1, and the L1 that the advice picks there with the best one.
* no_claim: with an L0 that holds everything, ask for advice after each of 10 workloads.

The results are merged into one file. What is already in it is not measured again; delete the file to start over.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from engine import observed, picked, prediction, set_to
from engine_cache import LIGHT, ONE_THREAD, PAUSE, engine, footprint_mb, one_pass
from prediction import machine

from agent_tools.caches.registry import DEFAULT
from agent_tools.demo.engine.chat_traffic import ChatTraffic
from agent_tools.demo.engine.demo import EngineOnACache, Phase
from agent_tools.demo.engine.vllm_server import BLOCK, SHAPE
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate
from agent_tools.models.advice import SymptomCode, Verdict

STORE = Path(__file__).parent / "results" / "engine_cache_advice.json"
TRAFFIC = ChatTraffic(seed=5)
OWN = (0.25, 0.6)
"""Sizes of L0, as shares of the distinct tokens of the workload. One of 150 % leaves nothing for LMCache to save."""
L1 = (0.25, 0.6, 1.0, 1.5)
"""Sizes of L1, likewise."""
CLIENTS = (1, 3)
REPEATS = 2
"""Passes of the pick and of the best L1, taken in turn."""
RUNS = 10
EVERYTHING = 1.5
"""Size of an L0 that holds the whole workload."""
Results = dict[str, Any]
Save = Callable[[], None]


def _own_tokens(traffic: ChatTraffic, share: float) -> int:
    return int(traffic.tokens * share) // BLOCK * BLOCK


def _size_mb(share: float) -> int:
    return round(footprint_mb(TRAFFIC) * share)


async def times(kept: Results, save: Save) -> None:
    """Measure the cells of time to first token."""
    for share in OWN:
        of_own: Results = kept.setdefault(f"{share:.0%}", {})
        if all(of_own.get(str(clients), {}).get("complete") for clients in CLIENTS):
            continue
        async with engine(TRAFFIC, _own_tokens(TRAFFIC, share), SHAPE) as one:
            await one_pass(one, TRAFFIC, L1[0], 1, 0)  # an engine is slower at first
            for clients in CLIENTS:
                await _times_of(one, clients, of_own.setdefault(str(clients), {}), save)


async def _times_of(one: EngineOnACache, clients: int, kept: Results, save: Save) -> None:
    """Measure each L1. The machine's speed drifts, so the smallest is observed anew right before each."""
    cells: Results = kept.setdefault("cells", {})
    for size in L1:
        if str(_size_mb(size)) in cells:
            continue
        seen = await observed(one, await one_pass(one, TRAFFIC, L1[0], clients, 0))
        update = ConfigUpdate(max_size_mb=_size_mb(size))
        said = prediction(seen, update)
        if "pick" not in kept:
            kept |= picked(seen)
            kept["pick"] = kept["pick"]["max_size_mb"] if kept["pick_in_words"] != "nothing would help" else _size_mb(L1[0])
        cells[str(_size_mb(size))] = [await _measured(one, clients, _size_mb(size)) | {"predicted": said["ttft"]}]
        print(f"{clients} clients, {_size_mb(size)} MB", json.dumps(cells[str(_size_mb(size))]), flush=True)
        save()
    best = min(cells, key=lambda one: _mean_ms(cells[one][:1]))
    of_pick = f"{kept['pick']:g}"
    kept["best"] = float(best)
    cells.setdefault(of_pick, [])
    while min(len(cells[of_pick]), len(cells[best])) < REPEATS:
        for which in dict.fromkeys((best, of_pick)):
            cells[which].append(await _measured(one, clients, float(which)))
        save()
    kept["complete"] = True
    save()


async def _measured(one: EngineOnACache, clients: int, size_mb: float) -> Results:
    await set_to(one, ConfigUpdate(max_size_mb=size_mb))
    phase = await one.send("pass", TRAFFIC.requests(), lambda *_: None, clients)
    if phase.errors or phase.metrics is None or phase.metrics.engine is None:
        raise RuntimeError(f"the pass failed: {phase.errors[:1]}")
    source = phase.metrics.engine
    return {"ttft": phase.ttft.model_dump(), "own": source.own_cache_share, "saved": source.saved_share}


def _mean_ms(passes: list[Results]) -> float:
    return mean(float(one["ttft"]["mean"]) for one in passes)


async def no_claim(kept: Results, save: Save) -> None:
    """Ask for advice where L0 holds everything, after each of some workloads, and look at what the report says."""
    os.environ |= ONE_THREAD
    runs: list[Results] = kept.setdefault("runs", [])
    if len(runs) >= RUNS:
        return
    async with engine(TRAFFIC, _own_tokens(TRAFFIC, EVERYTHING), LIGHT) as one:
        for seed in range(len(runs), RUNS):
            size = L1[seed % len(L1)]
            phase = await one_pass(one, TRAFFIC.with_seed(seed), size, 1 + 2 * (seed % 2), PAUSE)
            runs.append({"size_mb": _size_mb(size)} | await _advice_on(one, phase))
            print(json.dumps(runs[-1]), flush=True)
            save()


async def _advice_on(one: EngineOnACache, phase: Phase) -> Results:
    """Return what the advice on a pass claims, and what the report says of it."""
    assert phase.metrics is not None  # noqa: S101  the pass is over
    assert phase.metrics.engine is not None  # noqa: S101  likewise
    since = time.time() - phase.metrics.window.start.timestamp()
    advice = await io_loop.arun(one.operations.recommend, DEFAULT, since)
    claims = [one for one in advice.recommendations if (one.gain and one.gain.estimate > 0) or one.saving or one.ttft]
    told = next((s.summary for s in advice.symptoms if s.code is SymptomCode.LMCACHE_SAVES_NOTHING), None)
    page = await io_loop.arun(one.operations.report, DEFAULT)
    return {
        "saved": phase.metrics.engine.saved_share,
        "verdict": advice.verdict.value,
        "claims": [claim.expected_impact for claim in claims],
        "tried": advice.trial is not None,
        "told": told,
        "in_report": bool(told) and "nothing here" in page,
        "silent": advice.verdict is not Verdict.ACT and not claims and advice.trial is None,
    }


def report(results: Results) -> str:
    """Return the results as a page."""
    lines = ["# Advice where the engine's own cache is on", ""]
    lines += [
        f"A real vLLM 0.32 (CPU) with its own prefix cache (L0) on, in front of `lmcache server` 0.5.6. {TRAFFIC.conversations}"
        f" conversations of {TRAFFIC.turns} turns, about {TRAFFIC.tokens:,} distinct tokens ({footprint_mb(TRAFFIC):.0f} MB of"
        " KV), from empty caches.",
    ]
    if cells := results.get("times"):
        lines += ["", *_times_lines(cells)]
    if runs := results.get("no_claim", {}).get("runs"):
        lines += ["", *_no_claim_lines(runs)]
    return "\n".join([*lines, "", f"({machine()})"]) + "\n"


def _times_lines(kept: Results) -> list[str]:
    rows, errors, picks = [], [], []
    for share, of_own in kept.items():
        for clients, part in of_own.items():
            who = f"{clients} client{'' if clients == '1' else 's'}"
            for size, passes in part["cells"].items():
                row = f"| {share} | {who} | {float(size):g} MB | {passes[0]['own']:.1%} | {passes[0]['saved']:.1%} | "
                row += f"{passes[0]['ttft']['mean']:,.0f} | "
                if said := passes[0].get("predicted"):
                    errors.append((clients, abs(said["mean"] / passes[0]["ttft"]["mean"] - 1)))
                    row += f"{said['mean']:,.0f} | {said['mean'] / passes[0]['ttft']['mean'] - 1:+.1%} |"
                rows.append(row if said else row + "| |")
            if part.get("complete"):
                pick, best = (_mean_ms(part["cells"][f"{part[which]:g}"]) for which in ("pick", "best"))
                picks.append(
                    f"* L0 {share}, {who}: the advice picks {part['pick']:g} MB ({part['pick_in_words']}): {pick:,.0f} ms; the"
                    f" best L1 is {part['best']:g} MB with {best:,.0f} ms: {pick / best - 1:+.1%}"
                )
    summary = ", ".join(
        f"{mean(found):.1%} on average and at most {max(found):.1%} with {clients} client{'' if clients == '1' else 's'}"
        for clients in sorted({who for who, _ in errors})
        if (found := [error for who, error in errors if who == clients])
    )
    return [
        "## Time to first token, measured and predicted",
        "",
        "Means, ms. Each is predicted from an observation of the smallest L1 right before it was measured, since the machine's"
        " speed drifts. Predictions leave out the wait for other requests.",
        "",
        "| L0, share of the distinct tokens | clients | L1 | own cache | saved by LMCache | mean | predicted | error |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
        *rows,
        "",
        f"Error of the predicted mean: {summary}.",
        "",
        *picks,
    ]


def _no_claim_lines(runs: list[Results]) -> list[str]:
    silent, told, in_report = (sum(bool(run[which]) for run in runs) for which in ("silent", "told", "in_report"))
    return [
        "## An own cache that holds everything",
        "",
        f"L0 of {EVERYTHING:.0%} of the workload, L1 of {', '.join(f'{size:.0%}' for size in L1)} in turn, one client and three."
        f" In {silent} of {len(runs)} runs no advice, no trial and no claim of a saving; in {told} LMCache is said to save"
        f" nothing, and what would change that; in {in_report} the report says so.",
        "",
        *sorted({f"> {run['told']}" for run in runs if run["told"]})[:1],
    ]


PARTS = {"times": times, "no_claim": no_claim}


def main() -> None:
    """Measure the parts, and write the results and the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--store", type=Path, default=STORE)
    given = parser.parse_args()
    results: Results = json.loads(given.store.read_text()) if given.store.exists() else {}

    def save() -> None:
        given.store.write_text(json.dumps(results, indent=1) + "\n")
        given.store.with_suffix(".md").write_text(report(results))

    for name, part in PARTS.items():
        if given.only in {None, name}:
            asyncio.run(part(results.setdefault(name, {}), save))


if __name__ == "__main__":
    main()
