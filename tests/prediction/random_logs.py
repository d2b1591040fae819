"""Small random access logs, and a cache so naive that it is obviously right."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from agent_tools.workload.access_log import AccessLog, renumber
from agent_tools.workload.readers import read_mooncake

TRACES = Path(os.environ.get("LMCACHE_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
BLOCK = {"mooncake_conversation": 512, "mooncake_synthetic": 512, "lmcache_agent_miniswe": 256, "lmcache_agent_taubench": 256}


def trace(name: str) -> AccessLog:
    path = TRACES / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no recorded workload at {path}; set LMCACHE_TRACES to the folder that has it")
    return read_mooncake(path, chunk_size=BLOCK[name])


def log_of(
    requests: list[list[int]],
    *,
    chunk_size: int = 4,
    tails: list[int] | None = None,
    times: list[float] | None = None,
    **more: Any,
) -> AccessLog:
    """A log of requests given as lists of any chunk numbers; requests come a second apart unless `times` says otherwise."""
    flat = np.array([chunk for request in requests for chunk in request], np.int64)
    counts = np.array([len(request) for request in requests], np.int64)
    none = np.zeros(len(requests), np.int16)
    return AccessLog(
        chunk_size=chunk_size,
        chunk_ids=renumber(flat)[0],
        offsets=np.concatenate((np.zeros(1, np.int64), np.cumsum(counts))),
        tokens=counts * chunk_size + np.array(tails or [0] * len(requests), np.int64),
        timestamps=np.array(times or range(len(requests)), np.float64),
        **{"tenants": none, "models": none} | more,
    )


@st.composite
def logs(draw: st.DrawFn, max_requests: int = 14, tenants: int = 1) -> AccessLog:
    """Requests that each take up some prefix of an earlier one of the same tenant, and go on with new chunks."""
    requests: list[list[int]] = []
    owners: list[int] = []
    fresh = 0
    for _ in range(draw(st.integers(0, max_requests))):
        owner = draw(st.integers(0, tenants - 1))
        own = [request for request, other in zip(requests, owners, strict=True) if other == owner]
        known = draw(st.sampled_from(own)) if own else []
        kept = known[: draw(st.integers(0, len(known)))]
        new = draw(st.integers(0, 5))
        requests.append(kept + list(range(fresh, fresh + new)))
        owners.append(owner)
        fresh += new
    gaps = draw(st.lists(st.sampled_from([0.0, 0.13, 0.41, 1.07, 3.77]), min_size=len(requests), max_size=len(requests)))
    tails = draw(st.lists(st.integers(0, 3), min_size=len(requests), max_size=len(requests)))
    return log_of(
        requests,
        tails=tails,
        times=np.cumsum(gaps).tolist(),
        tenants=np.array(owners, np.int16),
        tenant_names=tuple(f"tenant {number}" for number in range(tenants)),
    )


def lru_hits(log: AccessLog, capacity: int, *, tail_first: bool = True) -> list[int]:
    """Hit chunks of each request under the prefix rule, by keeping an LRU cache of `capacity` chunks in a dictionary."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = []
    for index in range(len(log)):
        request = log.request(index).tolist()
        hit = 0
        while hit < len(request) and request[hit] in cache:
            hit += 1
        hits.append(hit)
        for chunk in reversed(request) if tail_first else request:
            cache[chunk] = None
            cache.move_to_end(chunk)
            while len(cache) > capacity:
                cache.popitem(last=False)
    return hits
