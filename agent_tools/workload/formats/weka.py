"""Weka's agent traces (github.com/callanjfox/kv-cache-tester): one JSON document, or one line, for each conversation.

A document has ``block_size``, ``hash_id_scope`` and ``requests``; a request has ``t`` (seconds from the conversation's start),
``in``, ``out``, ``hash_ids`` and ``model``. A sub-agent is a request of type ``subagent`` with ``requests`` of its own, on the
same clock. Ids of scope ``local``, the default, have a meaning only within their document.
"""

from collections.abc import Iterator, Sequence
from math import nan
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from agent_tools.errors import WorkloadError
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.memory import check_fits

from .documents import documents
from .requests import Columns, ReadOptions, Requests

MEMORY_PER_BYTE = 8.0
"""The most memory, in bytes, that reading takes for each byte of text: the ids of one document are Python numbers for a while."""
DEEPEST = 20
"""Sub-agents of sub-agents are read down to this depth."""
GLOBAL = "global"

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Request(msgspec.Struct, rename={"tokens": "in", "answer": "out", "kind": "type"}):
    t: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    kind: str = ""
    tokens: _Count = 0
    answer: _Count | None = 0
    hash_ids: list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]] = []
    model: str | None = ""
    requests: "list[_Request] | None" = None


class _Conversation(msgspec.Struct):
    requests: list[_Request]
    block_size: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    hash_id_scope: str = "local"
    id: str | int | None = None


_DECODER = msgspec.json.Decoder(_Conversation)


def read_weka(files: Sequence[Path], options: ReadOptions) -> AccessLog:
    """Read conversations from one or several files.

    Raises:
        WorkloadError: Nothing to read, a broken document, different block sizes, or more text than fits into memory.
    """
    check_fits(files, MEMORY_PER_BYTE)
    requests = Requests("Weka trace (kv-cache-tester)", options)
    sizes: set[int] = set()
    count, agents = 0, 0
    for path, number, conversation in documents(files, _DECODER, requests, options):
        sizes.add(conversation.block_size)
        flat = list(_flat(conversation.requests, 0))
        agents += sum(one.kind == "subagent" for one in _all(conversation.requests, 0))
        if flat:
            local = 0 if conversation.hash_id_scope == GLOBAL else count + 1
            requests.add(_columns(flat, start=count / options.starts_per_second, number=number), path=path, namespace=local)
            count += 1
    if not len(requests):
        raise WorkloadError(f"{files[0]} holds no requests: none of its conversations has any")
    if len(sizes) > 1:
        raise WorkloadError(
            f"the conversations have different block sizes ({', '.join(map(str, sorted(sizes)))}): read one size at a time"
        )
    requests.assumed.append(f"{count:,} conversations start at {options.starts_per_second:g} a second")
    if agents:
        requests.remarks.append(f"the requests of {agents:,} sub-agents were counted with their conversation's")
    return requests.log(files[0], sizes.pop())


def _flat(requests: Sequence[_Request], depth: int) -> Iterator[_Request]:
    """Yield the requests that reach the engine: those of sub-agents too, not the marks of sub-agents themselves."""
    return (one for one in _all(requests, depth) if one.kind != "subagent")


def _all(requests: Sequence[_Request], depth: int) -> Iterator[_Request]:
    for one in requests:
        yield one
        if one.requests and depth < DEEPEST:
            yield from _all(one.requests, depth + 1)


def _columns(flat: Sequence[_Request], *, start: float, number: int) -> Columns:
    empty: Any = np.full(len(flat), nan)
    return Columns(
        ids=np.array([one for request in flat for one in request.hash_ids], np.int64),
        counts=np.array([len(request.hash_ids) for request in flat], np.int64),
        tokens=np.array([request.tokens for request in flat], np.int64),
        seconds=np.array([start + request.t for request in flat]),
        outputs=np.array([request.answer or 0 for request in flat], np.int64),
        think=empty,
        sessions=[start] * len(flat),
        models=[request.model or "" for request in flat],
        numbers=np.full(len(flat), number, np.int64),
    )
