"""Compare predictions for in-process LMCache with what a real `LMCacheEngine` served, from the record of its own recorder.

Run from the repository root::

    PYTHONPATH=. python benchmarks/in_process.py

Each cell is a real engine without a model (`tests/deployments/engine_script.py`) with an L1 of its own size and policy. LMCache's
own chunk statistics record its lookups; the prediction knows only these files. Some have a local disk or a remote store behind
L1. Results go to ``results/in_process.json`` and ``.md``.
"""

import json
import math
import random
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "deployments"))

from engine_process import CHUNK, CHUNK_BYTES, EngineProcess

from agent_tools.deployments.server.process import free_port
from agent_tools.models import MB
from agent_tools.prediction.in_process_model import InProcessPolicy
from agent_tools.prediction.in_process_setting import InProcessSetting
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.workload.readers import read_trace

RESULTS = Path(__file__).parent / "results"
REQUESTS = 600
SIZES_MB = (2, 4, 8)
POLICIES: tuple[InProcessPolicy, ...] = ("LRU", "LFU")
TIERS_MB = {2: (6, math.inf), 4: (8,)}
"""Sizes of L1 that a local disk is put behind, and of that disk; ``inf`` is a remote store (``fs``). The longest prompt fits into
the smallest L1."""
WITH_TIER: tuple[InProcessPolicy, ...] = ("LRU", "FIFO")
AT_ONCE = 2
Prompts = list[tuple[int, int, int]]


@dataclass(frozen=True)
class Cell:
    """One engine."""

    workload: str
    size_mb: float
    tier_mb: float
    """Size of the local disk behind L1; ``inf`` for a remote store, 0 for neither."""
    policy: str
    served: float
    """Token hit rate over whole chunks, as the engine found them in either tier."""
    predicted: float

    @property
    def error_points(self) -> float:
        """Distance of the prediction, points."""
        return 100 * abs(self.predicted - self.served)


def documents(draw: random.Random) -> Prompts:
    """Questions about documents of different popularity."""
    return [(min(int(draw.paretovariate(0.9)), 60), 6, draw.randrange(CHUNK)) for _ in range(REQUESTS)]


def conversations(draw: random.Random) -> Prompts:
    """Conversations that grow by one or two chunks a turn, several at a time."""
    lengths, prompts = {}, []
    for _ in range(REQUESTS):
        session = draw.randrange(25) + 25 * (len(prompts) // 150)
        lengths[session] = lengths.get(session, 1) + draw.randint(1, 2)
        prompts.append((1000 + session, min(lengths[session], 20), draw.randrange(CHUNK)))
    return prompts


def scans(draw: random.Random) -> Prompts:
    """A small set that is asked for often, and long prompts that come once."""
    return [
        (5000 + draw.randrange(12), 4, draw.randrange(1, CHUNK)) if draw.random() < 0.7 else (9000 + number, 9, 3)
        for number in range(REQUESTS)
    ]


WORKLOADS: dict[str, Callable[[random.Random], Prompts]] = {
    "documents": documents, "conversations": conversations, "scans": scans,
}  # fmt: skip


def measured(workload: str, size_mb: float, tier_mb: float, policy: InProcessPolicy) -> Cell:
    """Run one cell."""
    prompts = WORKLOADS[workload](random.Random(7))  # noqa: S311  a workload
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as disk:
        engine = EngineProcess(
            free_port(),
            max_local_cpu_size=size_mb / 1024,
            cache_policy=policy,
            **_tier(disk, tier_mb),
            enable_chunk_statistics=True,
            chunk_statistics_strategy="file_hash",
            extra_config={"chunk_statistics_file_output_dir": folder},
        )
        try:
            found = engine.ready().play(*prompts)
        finally:
            engine.stop()
        log = read_trace(folder, chunk_size=CHUNK)
    sizes = {"capacity_chunks": size_mb * MB / CHUNK_BYTES, "l2_capacity_chunks": tier_mb * MB / CHUNK_BYTES}
    said = predict_server(log, InProcessSetting(**sizes, cache_policy=policy))
    return Cell(workload, size_mb, tier_mb, policy, sum(found) / sum(chunks for _, chunks, _ in prompts), said.hit_rate)


def _tier(folder: str, size_mb: float) -> dict[str, Any]:
    if math.isinf(size_mb):
        return {"remote_url": f"fs://localhost:0{folder}", "remote_serde": "naive"}
    return {"local_disk": folder, "max_local_disk_size": size_mb / 1024} if size_mb else {}


def _in_words(size_mb: float) -> str:
    return "remote store" if math.isinf(size_mb) else f"disk of {size_mb:g} MB" if size_mb else ""


def main() -> None:
    """Run all cells and write the results."""
    cells = [(workload, size, 0, policy) for workload in WORKLOADS for size in SIZES_MB for policy in POLICIES]
    tiers = [(size, tier) for size, behind in TIERS_MB.items() for tier in behind]
    cells += [(name, *sizes, policy) for name in WORKLOADS for sizes in tiers for policy in WITH_TIER]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        done = list(threads.map(lambda cell: measured(*cell), cells))
    errors = [cell.error_points for cell in done]
    lines = [
        "# In-process LMCache: predicted from its own record, against what it served",
        "",
        f"{len(done)} engines (LMCache 0.5.6, without a model), {REQUESTS} requests each. The prediction reads the",
        f"`chunk_hashes` files alone. Error: mean {sum(errors) / len(errors):.2f} points, largest {max(errors):.2f}.",
        "",
        "| workload | L1, MB | behind it | policy | served | predicted | error, points |",
        "|---|--:|---|---|--:|--:|--:|",
        *(
            f"| {c.workload} | {c.size_mb:g} | {_in_words(c.tier_mb)} | {c.policy} | {c.served:.1%} |"
            f" {c.predicted:.1%} | {c.error_points:.2f} |"
            for c in done
        ),
    ]
    (RESULTS / "in_process.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (RESULTS / "in_process.json").write_text(json.dumps([asdict(cell) for cell in done], indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
