"""Small access logs, most of them made by hand, for replaying into real servers."""

import numpy as np

from agent_tools.workload.access_log import AccessLog, renumber
from agent_tools.workload.generate import AgentTraffic

CHUNK_SIZE = 256
FEW_BIG = AgentTraffic(requests=100, conversations=20, turns=10, tool_tokens=600, seed=1).generate()
"""Agents for a second or two: with 128 KB a chunk, 128 of their 269 chunks fill 16 MB, and what is evicted is asked for again."""


def log_of(*requests: list[int] | range, tenants: tuple[str, ...] = ("",), tail: int = 0) -> AccessLog:
    """Requests with these chunk numbers, one a second; the tenants take turns; each prompt has `tail` tokens more.

    Prompts are made from chunk numbers counted by first appearance: two logs of the same shape ask for the same prompts.
    """
    counts = np.array([len(request) for request in requests])
    chunk_ids, _ = renumber(np.array([chunk for request in requests for chunk in request], dtype=np.int64))
    return AccessLog(
        chunk_size=CHUNK_SIZE,
        chunk_ids=chunk_ids,
        offsets=np.concatenate(([0], np.cumsum(counts))),
        tokens=counts * CHUNK_SIZE + tail,
        timestamps=np.arange(len(requests), dtype=np.float64),
        tenants=(np.arange(len(requests)) % len(tenants)).astype(np.int16),
        models=np.zeros(len(requests), dtype=np.int16),
        tenant_names=tenants,
    )


def conversations(count: int, chunks: int) -> list[range]:
    """So many requests of so many chunks each that share nothing."""
    return [range(number * chunks, (number + 1) * chunks) for number in range(count)]
