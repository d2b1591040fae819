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

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, repeat
from math import isnan, nan
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from agent_tools.errors import WorkloadError
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.complaints import decoded_part
from agent_tools.workload.lines import Block, Source
from agent_tools.workload.memory import check_fits

from .block_ids import parse_id_lists
from .requests import Columns, ReadOptions, Requests

MEMORY_PER_BYTE = 2.5
"""The most memory, in bytes, that reading takes for each byte of text."""
BAILIAN_BLOCK = 16
MS, SECOND = 1e-3, 1.0

_Time = Annotated[float, msgspec.Meta(ge=0)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_NO_IDS = msgspec.Raw(b"")


class _Line(msgspec.Struct, gc=False):  # fields hold no cycles, and a million lines would keep the collector busy
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


class _CheckedTurn(_Line, gc=False):
    """A turn of a session with every part checked. Slower, but errors name what is wrong with a line."""

    def __post_init__(self) -> None:
        complaint = _complaint(self)
        if complaint:
            raise ValueError(complaint)
        ids = decoded_part(self.hash_ids, list[int], "hash_ids")
        if any(not -(2**63) <= one < 2**64 for one in ids):
            msg = "hash_ids: an id has more than 64 bits"
            raise ValueError(msg)


class _Checked(_CheckedTurn, gc=False):
    """A request of its own with every part checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.session_id is None and isnan(self.timestamp) and isnan(self.created_time):
            msg = "no timestamp (or created_time), and no session_id to which it belongs"
            raise ValueError(msg)


class _Session(msgspec.Struct, gc=False):
    """All turns of a session in one line."""

    turns: list[_Line]
    session_id: str | int | None = None
    model: str = ""


class _CheckedSession(msgspec.Struct, gc=False):
    """The same with every turn checked."""

    turns: list[_CheckedTurn]
    session_id: str | int | None = None
    model: str = ""


_LINE = msgspec.json.Decoder(_Line)
_CHECKED = msgspec.json.Decoder(_Checked)
_SESSION = msgspec.json.Decoder(_Session)
_CHECKED_SESSION = msgspec.json.Decoder(_CheckedSession)


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
    requests = Requests("Qwen-Bailian trace" if bailian else "Mooncake trace", options, unit=unit)
    named = False
    sources = {path: Source(path, options.skip_bad_lines, memory_per_byte=MEMORY_PER_BYTE) for path in files}
    for path, source in sources.items():
        for block in source.blocks():
            columns = _columns(block, source, unit, turns=turns)
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


def _columns(block: Block, source: Source, unit: float, *, turns: bool) -> Columns:
    """Return the requests of a block, a request or a session a line.

    If something in it is unexpected, its lines are read again one by one, with every check.
    """
    decoders: tuple[msgspec.json.Decoder[Any], ...] = (_SESSION, _CHECKED_SESSION) if turns else (_LINE, _CHECKED)
    quick, checked = decoders
    taken: Callable[[Sequence[Any], Any, float], Columns | None] = _of_sessions if turns else _taken
    skipped = source.bad_lines
    try:
        found = taken(*source.records(block, quick), unit)
        if found is not None:
            return found
    except WorkloadError:
        pass  # the checked decoder says it better
    source.bad_lines = skipped
    found = taken(*source.records(block, checked), unit)
    if found is None:
        raise WorkloadError(f"{source.path}, line {block.first_line} or later: hash_ids is not a list of whole numbers")
    return found


def _of_sessions(sessions: Sequence[_Session | _CheckedSession], at: Any, unit: float) -> Columns | None:  # noqa: ANN401
    turns = [session.turns for session in sessions]
    lines, lengths = list(chain.from_iterable(turns)), list(map(len, turns))
    names = [
        f"line {number}" if session.session_id is None else session.session_id
        for session, number in zip(sessions, at.tolist(), strict=True)
    ]
    found = _taken(lines, np.repeat(at, lengths), unit, of_sessions=True)
    if found is None:
        return None
    models = found.models
    if any(session.model for session in sessions):
        of_sessions = chain.from_iterable(map(repeat, [session.model for session in sessions], lengths))
        models = [own or other for own, other in zip(models, of_sessions, strict=True)]
    return replace(found, sessions=list(chain.from_iterable(map(repeat, names, lengths))), models=models)


def _taken(lines: Sequence[_Line], numbers: Any, unit: float, *, of_sessions: bool = False) -> Columns | None:  # noqa: ANN401
    """Return the columns of some lines, or ``None`` if a line is incomplete or its ids are no plain numbers.

    Args:
        lines: The requests.
        numbers: (requests,) the line of each in its file.
        unit: Seconds in a unit of time.
        of_sessions: All lines are of sessions, so they need no time of their own.
    """
    parsed = parse_id_lists([line.hash_ids for line in lines])
    if parsed is None:
        return None
    ids, counts = parsed
    seconds = _either([one.timestamp for one in lines], lambda: [one.created_time for one in lines], np.isnan) * unit
    prompt = _either([one.input_length for one in lines], lambda: [one.input_tokens for one in lines], _negative)
    answers = _either([one.output_length for one in lines], lambda: [one.output_tokens for one in lines], _zero)
    sessions: list[object] = [one.session_id for one in lines]
    pauses = np.isnan(seconds)
    think = np.full(len(lines), nan)
    if pauses.any():
        named = np.array([one is not None for one in sessions], np.bool_)
        if not of_sessions and (pauses & ~named).any():
            return None
        think = _either([one.delay for one in lines], lambda: [one.delay_ms for one in lines], np.isnan) * MS
    if (prompt < 0).any():
        return None
    return Columns(
        ids=ids,
        counts=counts,
        tokens=prompt,
        seconds=seconds,
        outputs=answers,
        think=np.where(pauses, think, nan),
        sessions=sessions,
        models=[one.model for one in lines],
        numbers=numbers,
    )


def _either(first: Sequence[float], second: Callable[[], Sequence[float]], missing: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """Return (requests,) the first column, with the other name's value where it is missing."""
    one = np.array(first)
    gone = missing(one)
    return np.where(gone, np.array(second()), one) if gone.any() else one


def _negative(values: Any) -> Any:  # noqa: ANN401  (requests,) int64
    return values < 0


def _zero(values: Any) -> Any:  # noqa: ANN401  (requests,) int64
    return values == 0


def _complaint(line: _Line) -> str | None:
    """Return what a request lacks, in words."""
    if max(line.input_length, line.input_tokens) < 0:
        return "no input_length (or input_tokens)"
    if not memoryview(line.hash_ids).nbytes:
        return "no hash_ids"
    return None


def _nothing(files: Sequence[Path], bad_lines: int, *, bailian: bool) -> str:
    kind = "Qwen-Bailian's" if bailian else "the Mooncake"
    reason = f"none of its {bad_lines:,} lines is in {kind} format" if bad_lines else "it is empty"
    return f"{files[0]} holds no requests: {reason}"
