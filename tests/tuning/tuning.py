"""What the claims about `tune_cache` share: traffic to tune by, a run from start to report, and what L1 holds by the server."""

import threading
import time
from dataclasses import dataclass
from typing import Any

from agent_tools.caches.registry import Cache
from agent_tools.io_loop import io_loop
from agent_tools.operations import Operations
from agent_tools.tuning.state import TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache
from agent_tools.workload.generate import AgentTraffic

THRASHING = AgentTraffic(requests=240, conversations=40, turns=6, tool_tokens=1500, spread=0.3, seed=1).generate()
"""Twice 16 MB of KV: what is evicted is asked for again, a tenth of all tokens, whenever the eviction ticks fall."""
NO_REUSE = AgentTraffic(
    requests=200, conversations=200, turns=1, system_tokens=100, user_tokens=1500, spread=0.2, seed=2
).generate()
"""Every conversation has one turn, and no system prompt fills a chunk."""


@dataclass(frozen=True)
class Window:
    """Traffic that was observed, second by second."""

    start: float

    @property
    def seconds(self) -> float:
        """From its start until now. The cache was read just before the start, so that the window holds this traffic alone."""
        return time.time() - self.start


class readings:  # noqa: N801  reads as a verb at its uses
    """Reads the metrics every half second in the background, as a watching agent would."""

    def __init__(self, operations: Operations) -> None:
        self._operations, self._stop = operations, threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._stop.wait(0.5):
            io_loop.run(self._operations.metrics)


def tuned(operations: Operations, context: TuneContext, while_verifying: Any = None) -> TuneReport:
    """Run the graph in auto mode; once the change is applied, call `while_verifying`."""
    graph = build_tune_cache(operations=operations).compile()
    report, traffic = None, None
    for kind, event in graph.stream({"tune_reason": "test"}, context=context, stream_mode=["custom", "values"]):
        if kind == "values":
            report = event.get("tune_report")
        elif event["message"].startswith("applied") and while_verifying is not None:
            traffic = threading.Thread(target=while_verifying)
            traffic.start()
    if traffic is not None:
        traffic.join()
    return TuneReport.model_validate(report)


def l1_mb(cache: Cache) -> float:
    """L1 capacity as the server itself reports it, MB."""
    return io_loop.run(cache.deployment.snapshot).l1_total_bytes / 2**20
