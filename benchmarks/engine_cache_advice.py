"""What advice is worth on a real vLLM whose own prefix cache (L0) is on, in time to first token.

Run from the repository root (about 80 minutes; nothing else should run on the machine)::

    PYTHONPATH=. .venv-engine/bin/python benchmarks/engine_cache_advice.py [--only times|no_claim]

* times: measure the same conversations from empty caches, for each size of L0 and L1. Compare with the prediction from the
  smallest L1, and the L1 that the advice picks there with the best one.
* no_claim: with an L0 that holds everything, ask for advice after each of 10 workloads.

The results are merged into one file. What is already in it is not measured again; delete the file to start over.
"""

import json
import os
import time
from pathlib import Path
from statistics import mean

from engine import observed, prediction, set_to
from engine_cache import LIGHT, ONE_THREAD, PAUSE, Results, Save, engine, footprint_mb, measure, one_pass
from prediction import machine

from agent_tools.caches.registry import DEFAULT
from agent_tools.demo.engine.chat_traffic import ChatTraffic
from agent_tools.demo.engine.demo import EngineOnACache, Phase
from agent_tools.demo.engine.vllm_server import BLOCK, SHAPE
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate
from agent_tools.models.advice import SymptomCode, Verdict
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.recommend import recommend

STORE = Path(__file__).parent / "results" / "engine_cache_advice.json"
TIMED = ChatTraffic(conversations=7, turns=5, seed=5)
HELD = ChatTraffic(seed=5)
"""The traffic of the part `no_claim`."""
OWN = (0.25, 0.6)
"""Sizes of L0, as shares of the distinct tokens of the workload. One of 150 % leaves nothing for LMCache to save."""
L1 = (0.25, 0.6, 1.0, 1.5)
"""Sizes of L1, likewise."""
CLIENTS = (1, 3)
"""Of several, each sends its next request after an answer, and waits for the others' requests."""
REPEATS = {1: 3, 3: 6}
"""Passes of the L1 that the advice picks and of the best of the cells, in turn, by clients: those of several differ more."""
RUNS = 10
EVERYTHING = 1.5
"""Size of an L0 that holds the whole workload."""


def _own_tokens(traffic: ChatTraffic, share: float) -> int:
    return int(traffic.tokens * share) // BLOCK * BLOCK


async def times(kept: Results, save: Save) -> None:
    """Measure the cells of time to first token."""
    for share in OWN:
        of_own: Results = kept.setdefault(f"{share:.0%}", {})
        if all(_complete(of_own.get(str(clients), {}), clients) for clients in CLIENTS):
            continue
        async with engine(TIMED, _own_tokens(TIMED, share), SHAPE) as one:
            await _timed_pass(one, 1, _sized(L1[0]))  # an engine is slower at first
            for clients in CLIENTS:
                await _times_of(one, clients, of_own.setdefault(str(clients), {}), save)


def _complete(part: Results, clients: int) -> bool:
    return len(part.get("passes_of_pick", [])) >= REPEATS[clients]


async def _times_of(one: EngineOnACache, clients: int, kept: Results, save: Save) -> None:
    """Measure each L1, then the one that the advice on the smallest picks, in turn with the best of them."""
    cells: Results = kept.setdefault("cells", {})
    for name, update in {f"{_sized(share).max_size_mb:g} MB": _sized(share) for share in L1}.items():
        if name in cells:
            continue
        before = await _timed_pass(one, clients, _sized(L1[0]))  # right before, since the speed of the machine drifts
        seen = await observed(one, before)
        if "pick" not in kept:
            kept |= _picked(seen)
        said = prediction(seen, update)
        cells[name] = _measured(await _timed_pass(one, clients, update)) | {"predicted": said["ttft"]}
        print(f"{clients} clients, {name}", json.dumps(cells[name]), flush=True)
        save()
    best = kept.setdefault("best", min(cells, key=lambda one: _mean_ms(cells[one])))
    in_turn = {"passes_of_pick": kept["pick"], "passes_of_best": {"max_size_mb": float(best.removesuffix(" MB"))}}
    while not _complete(kept, clients):
        for which, update in in_turn.items():
            setting = ConfigUpdate.model_validate(_sized(L1[0]).known() | update)
            kept.setdefault(which, []).append(_measured(await _timed_pass(one, clients, setting)))
            print(f"{clients} clients, {which}", _mean_ms(kept[which][-1]), flush=True)
        save()


def _sized(share: float) -> ConfigUpdate:
    size = round(footprint_mb(TIMED) * share)
    return ConfigUpdate(max_size_mb=size, eviction_watermark=0.8, eviction_ratio=0.2)


def _picked(seen: Observation) -> Results:
    """Return what the advice on the smallest L1 picks, in words and as settings."""
    best = recommend(seen).best
    if best is None or best.update is None:
        return {"pick_in_words": "nothing", "pick": {}}
    return {"pick_in_words": f"{best.title}: {best.expected_impact}", "pick": best.update.known()}


async def _timed_pass(one: EngineOnACache, clients: int, update: ConfigUpdate) -> Phase:
    await set_to(one, update)
    phase = await one.send("pass", TIMED.requests(), lambda *_: None, clients)
    if phase.errors or phase.metrics is None or phase.metrics.engine is None:
        raise RuntimeError(f"the pass failed: {phase.errors[:1]}")
    return phase


def _measured(phase: Phase) -> Results:
    assert phase.metrics is not None  # noqa: S101  the pass is over
    source = phase.metrics.engine
    assert source is not None  # noqa: S101  likewise
    return {"ttft": phase.ttft.model_dump(), "own": source.own_cache_share, "saved": source.saved_share}


def _mean_ms(cell: Results) -> float:
    return float(cell["ttft"]["mean"])


async def no_claim(kept: Results, save: Save) -> None:
    """Ask for advice where L0 holds everything, after each of some workloads, and look at what the report says."""
    os.environ |= ONE_THREAD
    runs: list[Results] = kept.setdefault("runs", [])
    if len(runs) >= RUNS:
        return
    async with engine(HELD, _own_tokens(HELD, EVERYTHING), LIGHT) as one:
        for seed in range(len(runs), RUNS):
            size = L1[seed % len(L1)]
            phase = await one_pass(one, HELD.with_seed(seed), size, 1 + 2 * (seed % 2), PAUSE)
            runs.append({"size_mb": round(footprint_mb(HELD) * size)} | await _advice_on(one, phase))
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
    lines += ["A real vLLM 0.32 (CPU) with its own prefix cache (L0) on, in front of `lmcache server` 0.5.6, from empty caches."]
    if cells := results.get("times"):
        lines += ["", *_times_lines(cells)]
    if runs := results.get("no_claim", {}).get("runs"):
        lines += ["", *_no_claim_lines(runs)]
    return "\n".join([*lines, "", f"({machine()})"]) + "\n"


def _in_words(traffic: ChatTraffic) -> str:
    return (
        f"{traffic.conversations} conversations of {traffic.turns} turns, about {traffic.tokens:,} distinct tokens"
        f" ({footprint_mb(traffic):.0f} MB of KV)"
    )


def _times_lines(kept: Results) -> list[str]:
    rows, errors, picks = [], [], []
    for share, of_own in kept.items():
        for clients, part in of_own.items():
            who = f"{clients} client{'' if clients == '1' else 's'}"
            for size, cell in part["cells"].items():
                off = cell["predicted"]["mean"] / _mean_ms(cell) - 1
                errors.append((clients, abs(off)))
                rows.append(
                    f"| {share} | {who} | {size} | {cell['own']:.1%} | {cell['saved']:.1%} | {_mean_ms(cell):,.0f} |"
                    f" {cell['predicted']['mean']:,.0f} | {off:+.1%} |"
                )
            if _complete(part, int(clients)):
                pick, best = (mean(map(_mean_ms, part[f"passes_of_{which}"])) for which in ("pick", "best"))
                picks.append(
                    f"* L0 {share}, {who}: the advice on the smallest L1 picks {part['pick_in_words']}. Measured {pick:,.0f} ms;"
                    f" the best of these L1 is {part['best']} with {best:,.0f} ms (means of {len(part['passes_of_pick'])} passes"
                    f" each, in turn): {pick / best - 1:+.1%}"
                )
    summary = ", ".join(
        f"{mean(found):.1%} on average and at most {max(found):.1%} with {clients} client{'' if clients == '1' else 's'}"
        for clients in sorted({who for who, _ in errors})
        if (found := [error for who, error in errors if who == clients])
    )
    return [
        "## Time to first token, measured and predicted",
        "",
        f"{_in_words(TIMED)}.",
        "",
        "Means, ms. Each is predicted from an observation of the smallest L1 right before it was measured, since the machine's"
        " speed drifts.",
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
        f"{_in_words(HELD)}.",
        "",
        f"L0 of {EVERYTHING:.0%} of the workload, L1 of {', '.join(f'{size:.0%}' for size in L1)} in turn, one client and three."
        f" In {silent} of {len(runs)} runs no advice, no trial and no claim of a saving; in {told} LMCache is said to save"
        f" nothing, and what would change that; in {in_report} the report says so.",
        "",
        *sorted({f"> {run['told']}" for run in runs if run["told"]})[:1],
    ]


PARTS = {"times": times, "no_claim": no_claim}


if __name__ == "__main__":
    measure(PARTS, STORE, report)
