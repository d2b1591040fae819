"""Print published figures of public traces beside ours.

For the whole files, which are not part of this repository::

    curl -LO https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces/conversation_trace.jsonl
    curl -LO https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces/synthetic_trace.jsonl
    curl -LO https://media.githubusercontent.com/media/alibaba-edu/qwen-bailian-usagetraces-anon/main/qwen_traceA_blksz_16.jsonl
    curl -LO https://media.githubusercontent.com/media/alibaba-edu/qwen-bailian-usagetraces-anon/main/qwen_traceB_blksz_16.jsonl
    python benchmarks/published.py conversation_trace.jsonl synthetic_trace.jsonl qwen_trace*.jsonl

The kind of a trace is told by its name. Of any other trace the command prints our figures alone.

A test checks the Mooncake figures on the recorded traces. Nobody checked those of Qwen-Bailian: its traces were not at hand. Its
ideal hit ratios are from summaries of the paper; its tables of policies were not readable to us, so they are not here.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.readers import read_trace


@dataclass(frozen=True)
class Figure:
    """One figure, ours and the publisher's, as shares."""

    name: str
    ours: float
    published: float | None


PUBLISHED: dict[str, dict[str, float]] = {
    "conversation": {"ideal": 0.40, "3 M tokens": 0.41, "50 M tokens": 1.0},
    "synthetic": {"ideal": 0.66},
    "traceA": {"ideal": 0.62},
    "traceB": {"ideal": 0.54},
}
"""Mooncake, FAST'25: Table 2, and Fig. 9 (read off). Qwen-Bailian, ATC'25."""
PAPERS = {"conversation": "Mooncake, FAST'25", "synthetic": "Mooncake, FAST'25", "traceA": "Qwen-Bailian, ATC'25",
          "traceB": "Qwen-Bailian, ATC'25"}  # fmt: skip
CHECKED = ("conversation", "synthetic")
"""Kinds of which the recorded traces are at hand."""
SIZES = {"3 M tokens": 3e6, "50 M tokens": 50e6}
TOP = 0.1
"""Share of the distinct blocks that are the most reused ones."""


def figures(log: AccessLog, kind: str = "") -> list[Figure]:
    """Return the ideal hit ratio of a log, and how much of it an LRU of some sizes gives."""
    curve, known = hit_rate_curve(log), PUBLISHED.get(kind, {})
    found = [Figure("ideal hit ratio, of whole blocks", curve.ceiling(), known.get("ideal"))]
    for name, tokens in SIZES.items():
        part = curve.hits(tokens / log.chunk_size) / max(curve.hits(curve.footprint), 1)
        found.append(Figure(f"share of it that a cache of {name} gives", part, known.get(name)))
    found.append(Figure(f"share of the reuses that the {TOP:.0%} most reused blocks have", reuses_of_the_top(log), None))
    return found


def reuses_of_the_top(log: AccessLog, share: float = TOP) -> float:
    """Return which share of all reuses the most reused blocks have; 0 if no block is asked for twice."""
    reuses = np.sort(np.bincount(log.chunk_ids) - 1)[::-1]
    return float(reuses[: int(np.ceil(share * len(reuses)))].sum() / max(int(reuses.sum()), 1))


def main() -> None:
    """Print the figures of each file named."""
    for path in map(Path, sys.argv[1:]):
        kind = next((kind for kind in PUBLISHED if kind in path.name), "")
        log = read_trace(path)
        print(f"{path.name}: {log.source}, {len(log):,} requests, {log.chunk_size} tokens a block")
        for one in figures(log, kind):
            beside = "" if one.published is None else f" ({PAPERS[kind]}: {one.published:.0%})"
            print(f"  {one.name}: {one.ours:.1%}{beside}")


if __name__ == "__main__":
    main()
