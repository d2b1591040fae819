"""Weka's agent traces (github.com/callanjfox/kv-cache-tester): one JSON document, or one line, for each conversation.

A document has ``block_size``, ``hash_id_scope`` and ``requests``; a request has ``t`` (seconds from the conversation's start),
``in``, ``out``, ``hash_ids`` and ``model``. A sub-agent is a request of type ``subagent`` with ``requests`` of its own, on the
same clock. Ids of scope ``local``, the default, have a meaning only within their document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from agent_tools.errors import WorkloadError
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.complaints import decoded_part
from agent_tools.workload.lines import Source
from agent_tools.workload.memory import check_fits

from .block_ids import parse_id_lists
from .documents import documents
from .requests import Columns, ReadOptions, Requests

MEMORY_PER_BYTE = 8.0
"""The most memory, in bytes, that reading takes for each byte of text: the ids of one document are Python numbers for a while."""
DEEPEST = 20
"""Sub-agents of sub-agents are read down to this depth."""
GLOBAL = "global"

AT_ONCE = 2_000
"""Requests that are added together."""
_NO_IDS = msgspec.Raw(b"[]")
_IDS = list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Request(msgspec.Struct, gc=False, rename={"tokens": "in", "answer": "out", "kind": "type"}):
    t: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    kind: str = ""
    tokens: _Count = 0
    answer: _Count | None = 0
    hash_ids: msgspec.Raw = _NO_IDS
    model: str | None = ""
    requests: "list[_Request] | None" = None


class _Conversation(msgspec.Struct, gc=False):
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
    requests = Requests("Weka trace (kv-cache-tester)", options, unit=options.time_unit or 1.0)
    sizes: set[int] = set()
    count, agents = 0, 0
    part = _Part()
    for path, number, conversation in documents(files, _DECODER, requests, options):
        sizes.add(conversation.block_size)
        everything = list(_all(conversation.requests, 0))
        flat = [one for one in everything if one.kind != "subagent"]  # a mark of a sub-agent does not reach the engine itself
        agents += len(everything) - len(flat)
        if flat:
            if path != part.path or len(part.rows) >= AT_ONCE:
                part.add_to(requests)
                part = _Part(path)
            local = 0 if conversation.hash_id_scope == GLOBAL else count + 1
            start = count / options.starts_per_second
            part.rows += [(one, start, local, number) for one in flat]
            count += 1
    part.add_to(requests)
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


def _all(requests: Sequence[_Request], depth: int) -> Iterator[_Request]:
    for one in requests:
        yield one
        if one.requests and depth < DEEPEST:
            yield from _all(one.requests, depth + 1)


@dataclass
class _Part:
    """Requests of one file that are added together: each with its conversation's start (s), namespace and line."""

    path: Path = Path()
    rows: list[tuple[_Request, float, int, int]] = field(default_factory=list)

    def add_to(self, requests: Requests) -> None:
        """Add the requests to those of the trace.

        Raises:
            WorkloadError: A list of ids holds something else.
        """
        if not self.rows:
            return
        parsed = parse_id_lists([row[0].hash_ids for row in self.rows])
        if parsed is None:
            self._leave_out_bad_lists(requests)
            parsed = parse_id_lists([row[0].hash_ids for row in self.rows])
        if parsed is None:
            raise WorkloadError(f"{self.path}, line {self.rows[0][3]} or later: hash_ids is not a list of whole numbers")
        if not self.rows:
            return
        ids, counts = parsed
        asked, starts, namespaces, numbers = zip(*self.rows, strict=True)
        columns = Columns(
            ids=ids,
            counts=counts,
            tokens=np.array([one.tokens for one in asked], np.int64),
            seconds=np.array([one.t for one in asked]) * requests.unit + np.array(starts),
            outputs=np.array([one.answer or 0 for one in asked], np.int64),
            think=np.full(len(asked), nan),
            sessions=list(starts),
            models=[one.model or "" for one in asked],
            numbers=np.array(numbers, np.int64),
        )
        scopes = np.array(namespaces, np.int64)
        requests.add(columns, path=self.path, namespaces=np.repeat(scopes, counts) if scopes.any() else None)

    def _leave_out_bad_lists(self, requests: Requests) -> None:
        """Leave out the conversations with something else than whole numbers as ids, if broken ones are skipped."""
        source, bad = Source(self.path, requests.options.skip_bad_lines), set[int]()
        for one, _, _, number in self.rows:
            wrong = None if number in bad else _wrong_with(one.hash_ids)
            if wrong is not None:
                source.bad_line(number, wrong)
                bad.add(number)
        requests.bad_lines += len(bad)
        self.rows = [row for row in self.rows if row[3] not in bad]


def _wrong_with(ids: msgspec.Raw) -> str | None:
    try:
        decoded_part(ids, _IDS, "hash_ids")
    except ValueError as error:
        return str(error)
    return None
