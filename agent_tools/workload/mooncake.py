"""Recorded workloads in the Mooncake format, as an access log.

The format has one JSON line per request: ``timestamp`` (ms), ``input_length`` (tokens) and ``hash_ids``, the prefix-chained ids
of its blocks (github.com/kvcache-ai/Mooncake, FAST25-release/traces). Other fields are ignored. Mooncake lists
``ceil(input_length / block)`` ids, other recorders ``floor``. LMCache caches whole chunks only, so the reader drops the id of an
incomplete last block.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from agent_tools.errors import WorkloadError

from .access_log import AccessLog, in_time_order, renumber
from .lines import Source
from .memory import check_fits

_BLOCK_SIZES = 2 ** np.arange(3, 17)
"""Block sizes in tokens that a trace is checked for: 8 to 65,536."""
MEMORY_PER_BYTE = 9.0
"""The most memory, in bytes, that reading takes for each byte of text: every id is a Python number for a while."""


class _Line(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    hash_ids: list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]]


_LINE = msgspec.json.Decoder(_Line)


def read_mooncake(path: Path | str, *, chunk_size: int | None = None, skip_bad_lines: bool = False) -> AccessLog:
    """Read a trace in the Mooncake format, plain or gzip. Requests are sorted by time; timestamps become seconds.

    Args:
        path: The file.
        chunk_size: Tokens per block of the trace. Default: the one power of two that agrees with every line.
        skip_bad_lines: Skip broken lines and count them in `AccessLog.bad_lines`, instead of raising.

    Raises:
        WorkloadError: Nothing to read, a broken line, a damaged or cut file, a block size that cannot be determined, or a trace
            larger than memory.
    """
    check_fits([Path(path)], MEMORY_PER_BYTE)
    source = Source(Path(path), skip_bad_lines, memory_per_byte=MEMORY_PER_BYTE)
    lines, numbers = _lines(source)
    tokens = np.array([line.input_length for line in lines], dtype=np.int64)
    listed = np.array([len(line.hash_ids) for line in lines], dtype=np.int64)
    size = chunk_size or _block_size(source.path, tokens, listed)
    whole = tokens // size
    good = listed >= whole
    for number, ids, blocks in zip(numbers[~good], listed[~good], whole[~good], strict=True):
        source.bad_line(number, f"{ids} hash_ids for {blocks} whole blocks of {size} tokens")
    kept = [line for line, is_good in zip(lines, good, strict=True) if is_good]
    return in_time_order(_log(kept, whole[good], size, source.bad_lines))


def _lines(source: Source) -> tuple[list[_Line], npt.NDArray[np.int64]]:
    """Return all requests of a trace and their line numbers."""
    lines: list[_Line] = []
    numbers: list[npt.NDArray[np.int64]] = []
    for block in source.blocks():
        found, at = source.records(block, _LINE)
        lines += found
        numbers.append(at)
    if not lines:
        reason = f"none of its {source.bad_lines:,} lines is in the Mooncake format" if source.bad_lines else "it is empty"
        msg = f"{source.path} holds no requests: {reason}"
        raise WorkloadError(msg)
    return lines, np.concatenate(numbers)


def _block_size(path: Path, tokens: npt.NDArray[np.int64], listed: npt.NDArray[np.int64]) -> int:
    """Return the tokens per block that agree with every line: each line lists the floor or ceiling of ``tokens / size`` ids."""
    sizes = [size for size in _BLOCK_SIZES.tolist() if _agrees(size, tokens, listed).all()]
    if len(sizes) == 1:
        return int(sizes[0])
    if sizes:
        reason = f"its requests are too short to distinguish blocks of {sizes[0]} tokens from blocks of {sizes[1]}"
    else:
        reason = "no power of two fits the hash_ids of every line"
    msg = f"the tokens per block of {path} cannot be determined: {reason}. Give them with chunk_size (--chunk-size)."
    raise WorkloadError(msg)


def _agrees(size: int, tokens: npt.NDArray[np.int64], listed: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    agrees: npt.NDArray[np.bool_] = (listed == tokens // size) | (listed == -(-tokens // size))
    return agrees


def _log(lines: list[_Line], blocks: npt.NDArray[np.int64], chunk_size: int, bad_lines: int) -> AccessLog:
    ids = [line.hash_ids[:whole] for line, whole in zip(lines, blocks.tolist(), strict=True)]
    chunk_ids, _ = renumber(np.array([chunk for request in ids for chunk in request], dtype=np.int64))
    return AccessLog(
        chunk_size=chunk_size,
        chunk_ids=chunk_ids,
        offsets=np.concatenate(([0], np.cumsum(blocks))),
        tokens=np.array([line.input_length for line in lines], dtype=np.int64),
        timestamps=np.array([line.timestamp for line in lines]) / 1000,
        tenants=np.zeros(len(lines), dtype=np.int16),
        models=np.zeros(len(lines), dtype=np.int16),
        bad_lines=bad_lines,
    )
