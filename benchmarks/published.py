"""Print published figures of public traces beside ours.

For the whole files, which are not part of this repository::

    curl -LO https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces/conversation_trace.jsonl
    curl -LO https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces/synthetic_trace.jsonl
    python benchmarks/published.py conversation_trace.jsonl synthetic_trace.jsonl

The kind of a Mooncake trace is told by its name. Of any other trace the command prints our figures alone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.readers import read_trace


@dataclass(frozen=True)
class Figure:
    """One figure, ours and the publisher's, as shares."""

    name: str
    ours: float
    published: float | None
    source: str = ""


PUBLISHED: dict[str, dict[str, float]] = {
    "conversation": {"ideal": 0.40, "3 M tokens": 0.41, "50 M tokens": 1.0},
    "synthetic": {"ideal": 0.66},
}
"""Mooncake, FAST'25: Table 2, and Fig. 9 (read off)."""
SIZES = {"3 M tokens": 3e6, "50 M tokens": 50e6}


def figures(log: AccessLog, kind: str = "") -> list[Figure]:
    """Return the ideal hit ratio of a log, and how much of it an LRU of some sizes gives."""
    curve, known = hit_rate_curve(log), PUBLISHED.get(kind, {})
    found = [Figure("ideal hit ratio, of whole blocks", curve.ceiling(), known.get("ideal"), "Table 2")]
    for name, tokens in SIZES.items():
        part = curve.hits(tokens / log.chunk_size) / max(curve.hits(curve.footprint), 1)
        found.append(Figure(f"share of it that a cache of {name} gives", part, known.get(name), "Fig. 9"))
    return found


def main() -> None:
    """Print the figures of each file named."""
    for path in map(Path, sys.argv[1:]):
        kind = next((kind for kind in PUBLISHED if kind in path.name), "")
        log = read_trace(path)
        print(f"{path.name}: {log.source}, {len(log):,} requests, {log.chunk_size} tokens a block")
        for one in figures(log, kind):
            beside = "" if one.published is None else f" (Mooncake, FAST'25, {one.source}: {one.published:.0%})"
            print(f"  {one.name}: {one.ours:.1%}{beside}")


if __name__ == "__main__":
    main()
