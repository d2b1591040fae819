"""How often a trial of a small gain errs: A/A trials, in which nothing changes, and trials of changes whose gain is known.

Run from the repository root::

    PYTHONPATH=. python benchmarks/trials.py [--trials 200]

The cache that is tried is the model of the server with a size, a tick and a phase of its own, which the judge does not know. The
results go to ``results/trials.json`` and ``results/trials.md``.
"""

import argparse
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agent_tools.deployments.snapshot import Served
from agent_tools.models import VerificationVerdict
from agent_tools.prediction.eviction_clock import EvictionClock, possible_clocks
from agent_tools.prediction.isolation import isolated
from agent_tools.prediction.running_server import RunningServer
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.recommender.counted_requests import counted_between
from agent_tools.recommender.trial import BLOCKS_BEFORE, cut, judge
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

RESULTS = Path(__file__).parent / "results"
READ_EVERY = 0.45
"""Seconds between two readings of the counters, as in the product."""
WINDOW = 60
"""Readings before the change, and between two looks after it."""


@dataclass(frozen=True)
class Trial:
    """One trial: its verdict at the end, and the gain that the change really had on the requests after it."""

    verdict: str
    true_gain: float
    looks: int


Change = dict[str, float]
"""New values of fields of a `ServerSetting`."""


def trial(seed: int, made: Change | None = None, believed_in: Change | None = None) -> Trial:
    """Make one trial on random traffic.

    Args:
        seed: Seed of all that is drawn.
        made: What really changes. If ``None``, nothing does (A/A).
        believed_in: What the judge takes to have changed. If ``None``, what really did.
    """
    draw = np.random.default_rng(seed)
    log = isolated(
        AgentTraffic(
            requests=3000,
            conversations=int(draw.integers(12, 60)),
            turns=float(draw.integers(3, 12)),
            tool_tokens=int(draw.choice([300, 600, 1500])),
            think_seconds=6,
            seed=seed,
        ).generate()
    )
    chunks = log.unique_chunks * float(draw.choice([0.05, 0.1, 0.2]))
    old = ServerSetting(capacity_chunks=chunks, watermark=float(draw.choice([0.6, 0.8, 0.9])), ratio=0.2)
    actual = replace(old, capacity_chunks=chunks * draw.uniform(0.98, 1.02))
    changed = float(log.timestamps[len(log) // 2])
    clock = EvictionClock(float(draw.random()), draw.uniform(0.99, 1.01))
    unchanged, changed_hits = (_served(log, actual, after, changed, clock) for after in (actual, replace(actual, **(made or {}))))
    new = replace(old, **(believed_in or made or {}))
    as_before, as_now = (
        np.mean([_served(log, old, one, changed, each) for each in possible_clocks(19)], axis=0) * log.chunk_size
        for one in (old, new)
    )
    first, last = float(log.timestamps[len(log) // 6]), float(log.timestamps[-1])
    before, after = _readings(log, changed_hits, first, changed), _readings(log, changed_hits, changed, last)
    tokens = sum(one.requested for one in before) / BLOCKS_BEFORE
    asked = log.chunks_per_request * log.chunk_size
    counted_before, counted = (counted_between(log.timestamps, asked, some) for some in (before, after))
    errors = cut(counted_before, as_before, tokens)
    late = log.timestamps >= changed
    true_gain = float((changed_hits[late] - unchanged[late]).sum() / max(log.chunks_per_request[late].sum(), 1))
    looks, found = 0, VerificationVerdict.UNDECIDED
    for seen in range(WINDOW, len(after) + WINDOW, WINDOW):
        looks += 1
        found = judge(errors, *(cut(counted[:seen], one, tokens) for one in (as_before, as_now))).verdict
        if found is not VerificationVerdict.UNDECIDED:
            break
    return Trial(found.value, true_gain, looks)


def _served(log: AccessLog, before: ServerSetting, after: ServerSetting, changed: float, clock: EvictionClock) -> np.ndarray:
    """Return (requests,) chunks served by a server whose setting changes once."""
    server = RunningServer(before, first_tick=clock.first_tick(log), period=clock.period)
    first = int(np.searchsorted(log.timestamps, changed))
    early, *_ = server.run(log, slice(0, first), changed)
    server.setting = after
    late, *_ = server.run(log, slice(first, len(log)), float(log.timestamps[-1]))
    return np.concatenate([early, late])


def _readings(log: AccessLog, hits: np.ndarray, start: float, end: float) -> list[Served]:
    edges = np.arange(start, end, READ_EVERY)
    places = np.searchsorted(log.timestamps, edges)
    asked = np.concatenate([[0], np.cumsum(log.chunks_per_request)])[places] * log.chunk_size
    hit = np.concatenate([[0], np.cumsum(hits)])[places] * log.chunk_size
    return [
        Served(float(edges[i]), float(edges[i + 1]), int(asked[i + 1] - asked[i]), int(hit[i + 1] - hit[i]))
        for i in range(len(edges) - 1)
    ]


KINDS: dict[str, tuple[Change | None, Change | None]] = {
    "A/A": (None, None),
    "A/A, though the model believes in watermark 0.9, ratio 0.05": (None, {"watermark": 0.9, "ratio": 0.05}),
    "A/A, though the model believes in watermark 0.5": (None, {"watermark": 0.5}),
    "watermark 0.9, ratio 0.05": ({"watermark": 0.9, "ratio": 0.05}, None),
    "watermark 0.5": ({"watermark": 0.5}, None),
    "ratio 0.1": ({"ratio": 0.1}, None),
}
"""What really changes, and what the judge takes to have changed if that is something else."""


def main() -> None:
    """Run the trials and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    count = parser.parse_args().trials
    results: dict[str, object] = {}
    lines = [
        "# Trials of small gains",
        "",
        "| change | trials | better | worse | undecided | wrong | mean true gain |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, (change, believed_in) in KINDS.items():
        made = [trial(seed, change, believed_in) for seed in range(count)]
        found = Counter(one.verdict for one in made)
        wrong = sum(
            one.verdict != "undecided" if change is None else one.verdict == ("worse" if one.true_gain > 0 else "better")
            for one in made
        )
        gain = float(np.mean([one.true_gain for one in made]))
        results[name] = {"trials": count, **found, "wrong": wrong, "mean_true_gain": gain, "looks": [one.looks for one in made]}
        lines.append(
            f"| {name} | {count} | {found['better']} | {found['worse']} | {found['undecided']} | {wrong} |"
            f" {100 * gain:+.1f} points |"
        )
    text = "\n".join(lines)
    print(text)
    (RESULTS / "trials.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "trials.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
