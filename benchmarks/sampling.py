"""The error of the sampled curve on the recorded traces, and its speed and memory on a large lookup log.

Run from the repository root, with the traces' folder in ``LMCACHE_TRACES``::

    python benchmarks/sampling.py [--gb 10]

The exact curve of each trace is the truth; the error is the difference of hit rates over 40 capacities from 1/200 of the distinct
chunks to all of them, in points, over ten choices of the sample. ``--gb`` also reads a generated log of that size in a process of
its own. Results go to ``results/sampling.json`` and ``.md``.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.prediction.sampled_curve import FEWEST, SampledCurve, curve_of_blocks, sampled_curve
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.lookup_log import KeyBlock
from agent_tools.workload.readers import read_trace

RESULTS = Path(__file__).parent / "results"
TRACES = Path(os.environ.get("LMCACHE_TRACES", "traces"))
NAMES = ("mooncake_conversation", "mooncake_synthetic", "lmcache_agent_miniswe", "lmcache_agent_taubench")
SAMPLES = 10


def blocks_of(log: AccessLog, part: int = 1000) -> Iterator[KeyBlock]:
    """Yield a log as the reader of a lookup log yields it."""
    names = np.random.default_rng(5).integers(0, 2**64, log.unique_chunks, dtype=np.uint64)
    for first in range(0, len(log), part):
        last = min(first + part, len(log))
        ids = log.chunk_ids[log.offsets[first] : log.offsets[last]]
        tokens = int(log.tokens[first:last].sum())
        yield KeyBlock(names[ids], log.chunks_per_request[first:last], tokens, log.chunk_size)


def errors(found: SampledCurve, log: AccessLog) -> np.ndarray[Any, Any]:
    """Return the difference to the exact curve at each capacity, points."""
    exact = hit_rate_curve(log)
    return np.array([100 * (point.hit_rate - exact.hit_rate(point.capacity_chunks)) for point in found.points])


def of_trace(name: str, fewest: int) -> dict[str, Any]:
    """Measure one trace."""
    log = read_trace(TRACES / f"{name}.jsonl.gz")
    size = 73 * len(log.chunk_ids)
    found = [
        curve_of_blocks(lambda: blocks_of(log), size, 0.01, start=(number + 0.5) / SAMPLES, fewest=fewest)
        for number in range(SAMPLES)
    ]
    all_errors = np.array([np.abs(errors(one, log)) for one in found])
    stated = np.array([[100 * point.error for point in one.points] for one in found])
    return {
        "trace": name,
        "distinct": log.unique_chunks,
        "followed": found[0].sampled_chunks,
        "mean_error": float(all_errors.mean()),
        "worst_sample_mean_error": float(all_errors.mean(axis=1).max()),
        "largest_error": float(all_errors.max()),
        "stated_error": float(stated.mean()),
        "within_stated": float((all_errors <= stated + 1e-9).mean()),
    }


def generated(path: Path, size: float) -> None:
    """Write a lookup log of this many bytes: an hour of conversations after the other, from a few long prompts on."""
    draw = np.random.default_rng(3)
    head = '"model_name": "m", "chunk_size": 256, "dtypes": ["torch.bfloat16"], "shapes": [[2, 32, 256, 1024]]'
    shared = [_names(draw, 40) for _ in range(20)]
    sessions: list[list[str]] = []
    number = done = 0
    with path.open("w", encoding="ascii", buffering=2**22) as file:
        while done < size:
            if len(sessions) < 400 or draw.random() < 0.08:
                sessions.append(list(shared[min(int(draw.exponential(3)), 19)]))
                del sessions[:-2000]
            one = sessions[int(len(sessions) * draw.random() ** 0.5)]
            one += _names(draw, int(draw.integers(1, 12)))
            done += file.write(
                f'{{"timestamp": {1.76e9 + number / 9:.3f}, "request_id": "r{number}", {head}, "seq_len": {256 * len(one)},'
                f' "chunk_hashes": [{", ".join(one)}]}}\n'
            )
            number += 1


def _names(draw: np.random.Generator, count: int) -> list[str]:
    text = draw.bytes(32 * count).hex()
    return [f'"0x{text[64 * n : 64 * n + 64]}"' for n in range(count)]


def large(path: Path) -> dict[str, Any]:
    """Read the large log; called in a process of its own."""
    start = time.process_time()
    found = sampled_curve(path)
    return {
        "gb": path.stat().st_size / 1e9,
        "cpu_seconds": time.process_time() - start,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "requests": found.requests,
        "chunks": found.chunks,
        "distinct": found.footprint_chunks,
        "sampled_chunks": found.sampled_chunks,
        "stated_error": 100 * max(point.error for point in found.points),
    }


def main() -> None:
    """Measure and write the results."""
    given = argparse.ArgumentParser()
    given.add_argument("--gb", type=float, action="append", default=[])
    given.add_argument("--read", type=Path)
    asked = given.parse_args()
    if asked.read:
        print(json.dumps(large(asked.read)))
        return
    rows = [of_trace(name, fewest) for fewest in (FEWEST, 1) for name in NAMES if fewest > 1 or "mooncake" in name]
    big = []
    for size in asked.gb:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lookup_hashes_20260101_000000_000000.jsonl"
            generated(path, size * 1e9)
            command = [sys.executable, __file__, "--read", str(path)]
            big.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))  # noqa: S603
    lines = [
        "# The sampled curve: its error on the recorded traces",
        "",
        f"At most 1 % of the distinct chunks, but at least {FEWEST:,} (the first rows), or at most 1 % however few that are (the"
        f" last rows). Errors in points of hit rate against the exact curve, over 40 capacities and {SAMPLES} samples.",
        "",
        "| trace | distinct chunks | followed | mean | worst sample's mean | largest | stated (90 %) | within it |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {r['trace']} | {r['distinct']:,} | {r['followed']:,} | {r['mean_error']:.2f}"
            f" | {r['worst_sample_mean_error']:.2f} | {r['largest_error']:.2f} | {r['stated_error']:.2f}"
            f" | {r['within_stated']:.0%} |"
            for r in rows
        ),
    ]
    if big:
        lines += [
            "",
            "| log, GB | lookups | chunks | followed | processor seconds, two readings | memory, MB | largest stated error |",
        ]
        lines += ["|--:|--:|--:|--:|--:|--:|--:|"]
        lines += [
            f"| {r['gb']:.1f} | {r['requests']:,} | {r['chunks']:,} | {r['sampled_chunks']:,} | {r['cpu_seconds']:.0f}"
            f" | {r['memory_mb']:.0f} | {r['stated_error']:.2f} |"
            for r in big
        ]
    print("\n".join(lines))
    (RESULTS / "sampling.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (RESULTS / "sampling.json").write_text(json.dumps({"traces": rows, "large": big}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
