"""Traces with one JSON line per request and the ids of its blocks: Mooncake, Qwen-Bailian, Dynamo and AIPerf.

=============== ==== =============================================== =====================================================
format          time told by                                         source
=============== ==== =============================================== =====================================================
Mooncake        ms   ``hash_ids``                                    github.com/kvcache-ai/Mooncake, FAST25-release/traces
Qwen-Bailian    s    ``chat_id``                                     github.com/alibaba-edu/qwen-bailian-usagetraces-anon
Dynamo, AIPerf  ms   ``session_id``, ``input_tokens``, ``delay`` ... docs.nvidia.com/aiperf, Trace Replay
=============== ==== =============================================== =====================================================

Ids stand for prefixes. Recorders list ``ceil(input_length / block)`` or ``floor`` ids. LMCache caches whole chunks only, so the
reader drops the id of an incomplete last block. Qwen-Bailian has blocks of 16 tokens; for the others the block size follows from
the lines.
"""

from collections.abc import Sequence
from math import nan
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from agent_tools.errors import WorkloadError
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.lines import Block, Source
from agent_tools.workload.memory import check_fits

from .block_ids import parse_id_lists
from .requests import Columns, ReadOptions, Requests

MEMORY_PER_BYTE = 2.5
"""The most memory, in bytes, that reading takes for each byte of text."""
BAILIAN_BLOCK = 16
MS, SECOND = 1e-3, 1.0
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

_Time = Annotated[float, msgspec.Meta(ge=0)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_NO_IDS = msgspec.Raw(b"")


class _Line(msgspec.Struct):
    """One request. Aliases are fields of their own, and all are optional; `_complaint` says what is missing."""

    hash_ids: msgspec.Raw = _NO_IDS
    timestamp: _Time = nan
    created_time: _Time = nan
    input_length: _Count = -1
    input_tokens: _Count = -1
    output_length: _Count = 0
    output_tokens: _Count = 0
    session_id: str | int | None = None
    delay: _Time = nan
    delay_ms: _Time = nan
    model: str = ""


class _Checked(_Line):
    """The same with every part checked. Slower, but errors name what is wrong with a line."""

    def __post_init__(self) -> None:
        complaint = _complaint(self)
        if complaint:
            raise ValueError(complaint)
        try:
            ids = msgspec.json.decode(self.hash_ids, type=list[int])
        except msgspec.ValidationError as error:
            msg = f"hash_ids: {error}"
            raise ValueError(msg) from error
        if any(not -(2**63) <= one < 2**64 for one in ids):
            msg = "hash_ids: an id has more than 64 bits"
            raise ValueError(msg)


class _Session(msgspec.Struct):
    """All turns of a session in one line."""

    turns: list[_Checked]
    session_id: str | int | None = None
    model: str = ""


_LINE = msgspec.json.Decoder(_Line)
_CHECKED = msgspec.json.Decoder(_Checked)
_SESSION = msgspec.json.Decoder(_Session)
_FIELDS = attrgetter(
    "timestamp", "created_time", "input_length", "input_tokens", "output_length", "output_tokens", "session_id", "delay",
    "delay_ms", "model",
)  # fmt: skip


def read_hash_ids(files: Sequence[Path], options: ReadOptions, *, bailian: bool = False, turns: bool = False) -> AccessLog:
    """Read a trace of one or several files.

    Args:
        files: The files.
        options: What the files do not say.
        bailian: The files are Qwen-Bailian's: seconds, blocks of 16 tokens.
        turns: Each line is a session with its ``turns``.

    Raises:
        WorkloadError: Nothing to read, a broken line, a damaged or cut file, ids that do not stand for prefixes, a block size
            that cannot be determined, or a trace larger than memory.
    """
    check_fits(files, MEMORY_PER_BYTE)
    unit = options.time_unit or (SECOND if bailian else MS)
    requests = Requests("Qwen-Bailian trace" if bailian else "Mooncake trace", options)
    named = False
    sources = {path: Source(path, options.skip_bad_lines, memory_per_byte=MEMORY_PER_BYTE) for path in files}
    for path, source in sources.items():
        for block in source.blocks():
            columns = _turns(block, source, unit) if turns else _columns(block, source, unit)
            if len(columns.tokens):
                named = named or any(one is not None for one in columns.sessions)
                requests.add(columns, path=path)
    if not len(requests):
        raise WorkloadError(_nothing(files, sum(source.bad_lines for source in sources.values()), bailian=bailian))
    if named and not bailian:
        requests.source = "Mooncake trace with sessions (AIPerf, Dynamo)"
    if options.time_unit is None:
        requests.assumed.append(f"times are in {'seconds' if bailian else 'milliseconds'}, as its format has them")
    size = options.chunk_size or (BAILIAN_BLOCK if bailian else requests.block_size(files[0]))
    for path, number, reason in requests.too_few_ids(size):
        sources[path].bad_line(number, reason)
    requests.bad_lines = sum(source.bad_lines for source in sources.values())
    if not len(requests):
        raise WorkloadError(_nothing(files, requests.bad_lines, bailian=bailian))
    return requests.log(files[0], size)


def _columns(block: Block, source: Source, unit: float) -> Columns:
    """Return the requests of a block. If something in it is unexpected, read its lines again one by one, with every check."""
    skipped = source.bad_lines
    try:
        lines, numbers = source.records(block, _LINE)
        found = _taken(lines, numbers, unit)
        if found is not None:
            return found
    except WorkloadError:
        pass  # the checked decoder says it better
    source.bad_lines = skipped
    lines_checked, numbers = source.records(block, _CHECKED)
    found = _taken(lines_checked, numbers, unit)
    if found is None:
        raise WorkloadError(f"{source.path}, line {block.first_line} or later: hash_ids is not a list of whole numbers")
    return found


def _turns(block: Block, source: Source, unit: float) -> Columns:
    """Return the requests of a block with one session a line."""
    sessions, at = source.records(block, _SESSION)
    lines: list[_Line] = []
    numbers: list[int] = []
    for session, number in zip(sessions, at.tolist(), strict=True):
        for turn in session.turns:
            turn.session_id = f"line {number}" if session.session_id is None else session.session_id
            turn.model = turn.model or session.model
            lines.append(turn)
            numbers.append(number)
    found = _taken(lines, np.array(numbers, np.int64), unit)
    if found is None:
        raise WorkloadError(f"{source.path}, line {block.first_line} or later: hash_ids is not a list of whole numbers")
    return found


def _taken(lines: Sequence[_Line], numbers: Any, unit: float) -> Columns | None:  # noqa: ANN401  (requests,) int64
    """Return the columns of some lines, or ``None`` if a line is incomplete or its ids are no plain numbers."""
    lists = [line.hash_ids for line in lines]
    text = b"".join(lists)
    starts = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(memoryview(one)) for one in lists], out=starts[1:])
    parsed = parse_id_lists(text, starts)
    if parsed is None:
        return None
    ids, counts = parsed
    rows = list(map(_FIELDS, lines))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 10
    time, created, length, tokens, out, out_tokens, sessions, delay, delay_ms, models = columns
    seconds = _either(time, created) * unit
    prompt = np.maximum(np.array(length, np.int64), np.array(tokens, np.int64))
    named = np.array([one is not None for one in sessions], np.bool_)
    if (prompt < 0).any() or (np.isnan(seconds) & ~named).any():
        return None
    return Columns(
        ids=ids,
        counts=counts,
        tokens=prompt,
        seconds=seconds,
        outputs=np.maximum(np.array(out, np.int64), np.array(out_tokens, np.int64)),
        think=np.where(np.isnan(seconds), _either(delay, delay_ms) * MS, nan),
        sessions=list(sessions),
        models=list(models),
        numbers=numbers,
    )


def _either(first: Sequence[float], second: Sequence[float]) -> Any:  # noqa: ANN401  (requests,) float64
    one = np.array(first, np.float64)
    return np.where(np.isnan(one), np.array(second, np.float64), one)


def _complaint(line: _Line) -> str | None:
    """Return what a request lacks, in words."""
    if max(line.input_length, line.input_tokens) < 0:
        return "no input_length (or input_tokens)"
    if not memoryview(line.hash_ids).nbytes:
        return "no hash_ids"
    if line.session_id is None and line.timestamp != line.timestamp and line.created_time != line.created_time:
        return "no timestamp (or created_time), and no session_id to which it belongs"
    return None


def _nothing(files: Sequence[Path], bad_lines: int, *, bailian: bool) -> str:
    kind = "Qwen-Bailian's" if bailian else "the Mooncake"
    reason = f"none of its {bad_lines:,} lines is in {kind} format" if bad_lines else "it is empty"
    return f"{files[0]} holds no requests: {reason}"
