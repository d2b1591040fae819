"""In-process LMCache's own record of its lookups: chunk statistics with strategy ``file_hash`` (LMCache 0.5.6).

A line has ``timestamp`` (s), ``lookup_id`` (the engine's request id) and ``chunk_hashes``: no tokens, chunk size, model or hits.
The last hash of a request may be of a chunk that is only started, which LMCache hashes but does not store. The engine's own log,
where it is given, tells the tokens of each request by the same id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.errors import WorkloadError
from agent_tools.workload.access_log import AccessLog, in_time_order
from agent_tools.workload.chunk_table import ChunkTable
from agent_tools.workload.complaints import decoded_part
from agent_tools.workload.jumps import CLOCK_SET_BACK, without_jumps
from agent_tools.workload.lines import Block, Source
from agent_tools.workload.memory import check_fits
from agent_tools.workload.one_seed import must_share_a_seed, parts_without_a_common_hash

from .block_ids import leading
from .engine_log import EngineCounts, read_engine_log
from .requests import BLOCK_SIZES, ReadOptions, dense
from .times import with_time_remarks

FILES = "chunk_hashes_*.jsonl*"
MEMORY_PER_BYTE = 1.5
"""The most memory, in bytes, that reading takes for each byte of text."""
DEFAULT_CHUNK_SIZE = 256
"""LMCache's default ``chunk_size``."""
JOINED_SHARE = 0.5
"""Share of the requests that must stand in the engine's log for it to be taken for the same engine's."""

Int64 = npt.NDArray[np.int64]


class _Line(msgspec.Struct, gc=False):  # fields hold no cycles, and a million lines would keep the collector busy
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    lookup_id: str | int
    chunk_hashes: msgspec.Raw


class _Checked(_Line):
    """The same with every hash checked. Slower, but errors name what is wrong with a line."""

    def __post_init__(self) -> None:
        hashes: list[str] = decoded_part(self.chunk_hashes, list[str], "chunk_hashes")
        wrong = [one for one in hashes if not one.startswith("0x") or not 2 < len(one) <= _WIDEST + 2]
        try:
            [int(one, 16) for one in hashes]
        except ValueError:
            wrong = hashes
        if wrong:
            msg = "chunk_hashes are not hexadecimal numbers of at most 256 bits"
            raise ValueError(msg)
        self.chunk_hashes = msgspec.Raw(msgspec.json.encode([one.lower() for one in hashes]))


_LINE = msgspec.json.Decoder(_Line)
_CHECKED = msgspec.json.Decoder(_Checked)
_WIDEST = 64
_QUOTE, _OPEN, _CLOSE, _COMMA, _SPACE, _ZERO, _X = (ord(char) for char in '"[], 0x')
_NOT_HEX = 0xFF
_HEX = np.full(256, _NOT_HEX, dtype=np.uint8)
for _digit, _char in enumerate(b"0123456789abcdef"):
    _HEX[_char] = _digit


@dataclass(frozen=True)
class _Columns:
    ids: npt.NDArray[np.int32]
    counts: Int64
    timestamps: npt.NDArray[np.float64]
    names: list[str]


def read_chunk_statistics(
    files: Sequence[Path], options: ReadOptions, *, engine_log: Path | None = None, live: bool = False
) -> AccessLog:
    """Read the record of one in-process LMCache.

    Args:
        files: The rotated files, oldest first.
        options: What the files do not say. `chunk_size` is LMCache's default if neither the options nor the engine's log tell it.
        engine_log: The engine's log, with LMCache's line for each request.
        live: LMCache may still be writing the last file.

    Raises:
        WorkloadError: Nothing to read, a broken line, files of processes with different hash seeds, an engine's log of another
            engine, a chunk size that contradicts it, or a record larger than memory.
    """
    check_fits(files, MEMORY_PER_BYTE)
    table, pieces, ends, bad = ChunkTable(8), list[_Columns](), list[int](), 0
    for file in files:
        source = Source(file, options.skip_bad_lines, live=live and file == files[-1], memory_per_byte=MEMORY_PER_BYTE)
        pieces += [_columns(block, source, table) for block in source.blocks()]
        ends.append(sum(len(piece.ids) for piece in pieces))
        bad += source.bad_lines
    requests = sum(len(piece.counts) for piece in pieces)
    if not requests:
        reason = f"none of its {bad:,} lines is one of chunk statistics" if bad else "no lookup was recorded yet"
        raise WorkloadError(f"{files[0]} holds no requests: {reason}")
    ids = np.concatenate([piece.ids for piece in pieces])
    listed = np.concatenate([piece.counts for piece in pieces])
    must_share_a_seed(files, ids, np.array(ends))
    names = [name for piece in pieces for name in piece.names]
    counts = None if engine_log is None else read_engine_log(engine_log)
    size, whole, tokens, assumed, remarks = _lengths(ids, listed, names, counts, options)
    remarks += _of_seeds(parts_without_a_common_hash(ids, listed))
    unit = options.time_unit or 1.0
    timestamps, set_back = without_jumps(np.concatenate([piece.timestamps for piece in pieces]) * unit)
    log = AccessLog(
        chunk_size=size,
        chunk_ids=leading(ids, listed, whole),
        offsets=np.concatenate(([0], np.cumsum(whole))),
        tokens=tokens,
        timestamps=timestamps,
        tenants=np.zeros(requests, np.int16),
        models=np.zeros(requests, np.int16),
        hashes=table.hashes(),
        bad_lines=bad,
        remarks=(*((CLOCK_SET_BACK.format(set_back),) if set_back else ()), *remarks),
        source="LMCache chunk statistics (in-process)",
        assumed=tuple(assumed),
    )
    return with_time_remarks(in_time_order(_kept_hashes(log)), unit)


def _of_seeds(parts: Sequence[tuple[int, int]]) -> list[str]:
    if not parts:
        return []
    named = ", ".join(f"{first:,} to {last:,}" for first, last in parts[:5])
    return [
        f"requests {named} repeat their own chunks and none of each other's: if the engine was restarted between them without"
        " PYTHONHASHSEED, equal prompts have different hashes and the hit rate comes out too low, so read each part alone"
    ]


def _kept_hashes(log: AccessLog) -> AccessLog:
    """Return the log with dense ids. Hashes of started chunks are dropped with their ids."""
    return dense(log) if len(log.chunk_ids) else replace(log, hashes=None)


def _lengths(
    ids: npt.NDArray[np.int32], listed: Int64, names: list[str], counts: EngineCounts | None, options: ReadOptions
) -> tuple[int, Int64, Int64, list[str], list[str]]:
    """Return chunk size, whole chunks and tokens of each request, what was assumed, and remarks."""
    known = None if counts is None else np.array([counts.tokens.get(name, -1) for name in names], np.int64)
    joined = np.zeros(len(listed), np.bool_) if known is None else known >= 0
    if known is not None and joined.mean() < JOINED_SHARE:
        raise WorkloadError(
            f"only {int(joined.sum()):,} of the {len(names):,} recorded requests stand in the engine's log: it is of another"
            " engine or another time; name the log of the engine that wrote this record, or leave it out"
        )
    assumed: list[str] = []
    size = options.chunk_size or (DEFAULT_CHUNK_SIZE if known is None else _chunk_size(known[joined], listed[joined]))
    if known is None and options.chunk_size is None:
        assumed.append(f"chunks of {DEFAULT_CHUNK_SIZE} tokens, LMCache's default (--chunk-size says otherwise)")
    inside = np.zeros(int(ids.max()) + 1 if len(ids) else 0, np.bool_)
    last = np.cumsum(listed) - 1
    is_last = np.zeros(len(ids), np.bool_)
    is_last[last[listed > 0]] = True
    inside[ids[~is_last]] = True
    continued = np.zeros(len(listed), np.bool_)
    continued[listed > 0] = inside[ids[last[listed > 0]]]
    whole = np.where(continued, listed, np.maximum(listed - 1, 0))
    tokens = np.where(continued, listed * size, np.maximum(listed * size - size // 2, 0))
    remarks: list[str] = []
    if known is not None and counts is not None:
        wrong = joined & (-(-known // size) != listed)
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            raise WorkloadError(
                f"request {names[place]} has {listed[place]} chunk hashes but {known[place]} tokens in the engine's log, which do"
                f" not fit chunks of {size} tokens: give the engine's chunk_size (--chunk-size)"
            )
        whole = np.where(joined, known // size, whole)
        tokens = np.where(joined, known, tokens)
        remarks.append(counts.in_words([name for name, is_joined in zip(names, joined, strict=True) if is_joined]))
    if not joined.all():
        assumed.append("the last chunk of a request is only started, unless another request goes on behind it")
    return size, whole, tokens, assumed, remarks


def _chunk_size(tokens: Int64, listed: Int64) -> int:
    """Return the chunk size that agrees with all joined requests."""
    sizes = [int(size) for size in BLOCK_SIZES if (-(-tokens // size) == listed).all()]
    if len(sizes) == 1 or DEFAULT_CHUNK_SIZE in sizes:
        return sizes[0] if len(sizes) == 1 else DEFAULT_CHUNK_SIZE
    raise WorkloadError("the tokens in the engine's log do not settle the chunk size: give it with chunk_size (--chunk-size)")


def _columns(block: Block, source: Source, table: ChunkTable) -> _Columns:
    skipped = source.bad_lines
    lines = source.records(block, _LINE)[0]
    parsed = _parsed(lines)
    if parsed is None:
        source.bad_lines = skipped
        lines = list(source.records(block, _CHECKED)[0])
        parsed = _parsed(lines)
    if parsed is None:
        raise WorkloadError(f"{source.path}, line {block.first_line} or later: chunk_hashes are not hexadecimal numbers")
    hashes, counts = parsed
    ids = table.ids(hashes.view(np.uint8).reshape(-1, 8), np.zeros(len(hashes), np.int16))
    return _Columns(ids, counts, np.array([line.timestamp for line in lines]), [str(line.lookup_id) for line in lines])


def _parsed(lines: Sequence[_Line]) -> tuple[npt.NDArray[np.uint64], Int64] | None:
    lists = [line.chunk_hashes for line in lines]
    text = b"".join(lists)
    hashes, counts = np.empty(len(text) // 6 + 1, np.uint64), np.empty(len(lists), np.int64)
    found = _parse(np.frombuffer(text, np.uint8), hashes, counts)
    return None if found < 0 else (hashes[:found], counts)


@compiled
def _parse(text: npt.NDArray[np.uint8], hashes: npt.NDArray[np.uint64], counts: Int64) -> int:
    """Fill `hashes` (the last 64 bits of each) and `counts` from JSON. Return how many there are, or -1 at an unexpected byte."""
    found, at = 0, 0
    for line in range(len(counts)):
        if at >= len(text) or text[at] != _OPEN:
            return -1
        at += 1
        first, more = found, False
        while more or text[at] != _CLOSE:
            if text[at] != _QUOTE or text[at + 1] != _ZERO or text[at + 2] != _X:
                return -1
            at += 3
            value, digits = np.uint64(0), 0
            while text[at] != _QUOTE:
                digit = _HEX[text[at]]
                if digit == _NOT_HEX or digits == _WIDEST:
                    return -1
                value = (value << np.uint64(4)) | np.uint64(digit)
                digits += 1
                at += 1
            if digits == 0:
                return -1
            at += 1
            hashes[found] = value
            found += 1
            more = text[at] == _COMMA
            if more:
                at += 1 + (text[at + 1] == _SPACE)
        at += 1
        counts[line] = found - first
    return found if at == len(text) else -1
