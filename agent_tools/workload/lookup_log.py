"""LMCache's lookup-hash log: the lookups of a live ``lmcache server --lookup-hash-log-dir DIR``, as an access log.

The log has one JSON line per lookup that reached hashing (LMCache 0.5.6,
``mp_observability/subscribers/logging/lookup_hash.py``): timestamp, model, chunk size, sequence length, KV layout and the chained
hash of every whole chunk. It does not record the tenant (``cache_salt``), hits, or requests shorter than one chunk.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import prod
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from agent_tools.errors import WorkloadError

from .access_log import AccessLog, in_time_order
from .chunk_layout import ChunkLayout, ObjectGroup
from .chunk_table import ChunkTable, parse_hash_lists
from .complaints import decoded_part
from .formats.times import FEWEST_REQUESTS, UNIX_TIMES
from .jumps import CLOCK_SET_BACK, without_jumps
from .lines import Block, Source
from .memory import check_fits

_FILES = "lookup_hashes_*.jsonl*"
_HASH = re.compile(rb'"0x([0-9a-f]+)"')
_BLAKE3_BYTES = 32
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_T = TypeVar("_T")
_DTYPE_BITS = re.compile(r"(?:torch\.)?(?:b?float|u?int)(\d+)")

MEMORY_PER_BYTE = 1.1
"""The most memory, in bytes, that reading takes for each byte of text; see `benchmarks/results/prediction.md`."""
REPEATED = "{} lookups appear in the log more than once and were counted once"

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Line(msgspec.Struct, gc=False):  # fields hold no cycles, and a million lines would keep the collector busy
    """One lookup. Its long parts, and parts that seldom change, stay unread."""

    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    model_name: str
    chunk_size: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    seq_len: _Count
    dtypes: msgspec.Raw
    shapes: msgspec.Raw
    chunk_hashes: msgspec.Raw
    request_id: str = ""


class _CheckedLine(_Line):
    """One lookup with every part checked. Slower, but errors name what is wrong with a line."""

    def __post_init__(self) -> None:
        _chunk_bytes(self.dtypes, self.shapes)
        hashes = decoded_part(self.chunk_hashes, list[Annotated[str, msgspec.Meta(pattern="^0x([0-9a-f]{2})+$")]], "chunk_hashes")
        if len({len(chunk_hash) for chunk_hash in hashes}) > 1:
            msg = "the chunk hashes are not all of one width"
            raise ValueError(msg)
        whole = self.seq_len // self.chunk_size
        if len(hashes) > whole:
            msg = f"{len(hashes)} chunk hashes, but {self.seq_len} tokens hold {whole} whole chunks of {self.chunk_size}"
            raise ValueError(msg)
        self.chunk_hashes = msgspec.Raw(msgspec.json.encode(hashes))  # the fast parser expects this spacing


_LINE = msgspec.json.Decoder(_Line)
_CHECKED_LINE = msgspec.json.Decoder(_CheckedLine)


def read_lookup_log(path: Path | str, *, chunk_size: int | None = None, skip_bad_lines: bool = False) -> AccessLog:
    """Read a lookup-hash log: a folder of rotated ``lookup_hashes_*.jsonl`` files, or one such file, plain or gzip.

    Lookups are sorted by time. Equal hashes under two models are two chunks. All tenants appear as one, because the log does not
    name them. A live server may leave a half-written last line in the newest file; it is skipped. A lookup that appears twice
    (same time and request id) counts once. If the clock was set back, earlier lookups are moved back with it. `remarks` report
    both. `chunk_bytes` is the size on one KV rank, and ``None`` if the lines disagree.

    Args:
        path: The folder or file.
        chunk_size: Read only lookups with this chunk size (tokens). Needed if the log holds several.
        skip_bad_lines: Skip broken lines and count them in `AccessLog.bad_lines`, instead of raising.

    Raises:
        WorkloadError: Nothing to read, a broken line, a damaged file, several chunk sizes, or a log larger than memory.
    """
    path = Path(path)
    return read_lookup_files(_files(path), path, chunk_size=chunk_size, skip_bad_lines=skip_bad_lines)


def read_lookup_files(
    files: Sequence[Path], path: Path, *, chunk_size: int | None = None, skip_bad_lines: bool = False
) -> AccessLog:
    """Read the files of one lookup-hash log, oldest first. `path` is what messages call it. See `read_lookup_log`."""
    check_fits(files, MEMORY_PER_BYTE)
    reader, skipped = _Reader(chunk_size), 0
    for file in files:
        source = Source(file, skip_bad_lines, live=file == files[-1], memory_per_byte=MEMORY_PER_BYTE)
        for block in source.blocks():
            reader.add(block, source)
        skipped += source.bad_lines
    return reader.log(path, skipped)


@dataclass(frozen=True)
class KeyBlock:
    """Some lookups in the order of the file, with 64 bits of each chunk's hash, which the model is mixed into."""

    keys: npt.NDArray[np.uint64]
    """(chunks,) one lookup after the other."""
    counts: npt.NDArray[np.int64]
    """(lookups,) chunks of each."""
    tokens: int
    """Prompt tokens of all, tails included."""
    chunk_size: int


def lookup_keys(path: Path, *, chunk_size: int | None = None, skip_bad_lines: bool = False) -> Iterator[KeyBlock]:
    """Yield a lookup-hash log block by block, in memory that does not depend on its size.

    Unlike `read_lookup_log`, this function neither sorts the lookups by time nor looks for repeated ones.

    Raises:
        WorkloadError: As `read_lookup_log`, except for the size of the log.
    """
    reader, files = _Reader(chunk_size), _files(path)
    for file in files:
        source = Source(file, skip_bad_lines, live=file == files[-1])
        for block in source.blocks():
            found = reader.keys(block, source)
            if found is not None:
                yield found
    if chunk_size is None and len(reader.chunk_sizes) > 1:
        raise WorkloadError(reader.mixed(path))


def _files(path: Path) -> list[Path]:
    """Return the files of a log, oldest first. Their names begin with the UTC time at which they were opened."""
    if not path.exists():
        msg = f"{path} does not exist: name a lookup-hash log, e.g. the folder given to `lmcache server --lookup-hash-log-dir`"
        raise WorkloadError(msg)
    if not path.is_dir():
        return [path]
    files = sorted(path.glob(_FILES))
    if not files:
        msg = f"{path} holds no lookup_hashes_*.jsonl file; `lmcache server --lookup-hash-log-dir {path}` writes them"
        raise WorkloadError(msg)
    return files


@dataclass(frozen=True)
class _Columns:
    """Some lookups, column by column."""

    ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.float64]
    models: npt.NDArray[np.int16]
    names: npt.NDArray[np.int64]
    """(lookups,) a digest of time and request id, different for every lookup."""


class _Reader:
    """Collects the lookups of a log, block by block."""

    def __init__(self, chunk_size: int | None) -> None:
        self.chunk_size = chunk_size
        self.chunk_sizes: Counter[int] = Counter()
        self.layouts: dict[tuple[bytes, bytes], int | None] = {}
        self.models: dict[tuple[str, int | None], int] = {}
        """Labels of models by name and bytes of a chunk: engines whose KV is laid out differently share no chunk."""
        self.blocks: list[_Columns] = []
        self._table: ChunkTable | None = None
        self._unnamed = count()

    def add(self, block: Block, source: Source) -> None:
        """Add a block of lines. If something in it is unexpected, read its lines again one by one, with every check."""
        columns = self._read(block, source, self._columns)
        if columns is not None:
            self.blocks.append(columns)

    def keys(self, block: Block, source: Source) -> KeyBlock | None:
        """Return the keys of a block of lines, and keep nothing of it; ``None`` if it has no lookup of the wanted chunk size."""
        return self._read(block, source, self._keys)

    def _read(self, block: Block, source: Source, take: Callable[[Sequence[_Line], int], _T]) -> _T | None:
        skipped = source.bad_lines
        try:
            return self._take(source.records(block, _LINE)[0], take)
        except ValueError:
            source.bad_lines = skipped
            lines = source.records(block, _CHECKED_LINE)[0]
            try:
                return self._take(lines, take)
            except ValueError as error:
                msg = f"{source.path}, line {block.first_line} or later: {error}"
                raise WorkloadError(msg) from error

    def _take(self, lines: Sequence[_Line], take: Callable[[Sequence[_Line], int], _T]) -> _T | None:
        """Take the lines that have the wanted chunk size; by default, the first chunk size met.

        Raises:
            ValueError: A line is inconsistent; none of the lines was taken.
        """
        if not lines:
            return None
        size = self.chunk_size or next(iter(self.chunk_sizes), lines[0].chunk_size)
        kept = [line for line in lines if line.chunk_size == size]
        for line in kept:
            layout = bytes(line.dtypes), bytes(line.shapes)
            if layout not in self.layouts:
                self.layouts[layout] = _chunk_bytes(line.dtypes, line.shapes)
        taken = take(kept, size) if kept else None
        self.chunk_sizes.update(line.chunk_size for line in lines)
        return taken

    def _keys(self, lines: Sequence[_Line], chunk_size: int) -> KeyBlock:
        labels = np.array([self._label(line) for line in lines], np.uint64)
        hashes, counts = self._hashes([line.chunk_hashes for line in lines])
        if self._table is None:
            self._table = ChunkTable(hashes.shape[1])  # holds nothing but the width of a hash
        words = np.zeros((len(hashes), -(-hashes.shape[1] // 8) * 8), np.uint8)
        words[:, : hashes.shape[1]] = hashes
        keys = np.repeat(labels, counts)
        for word in words.view(np.uint64).T:  # hashes of some algorithms have zeros in front
            keys = keys * _SPREAD ^ word
        return KeyBlock(keys, counts, sum(line.seq_len for line in lines), chunk_size)

    def _columns(self, lines: Sequence[_Line], chunk_size: int) -> _Columns:
        tokens = np.array([line.seq_len for line in lines], dtype=np.int64)
        models = np.array([self._label(line) for line in lines], dtype=np.int16)
        hashes, counts = self._hashes([line.chunk_hashes for line in lines])
        if (counts > tokens // chunk_size).any():
            msg = "more chunk hashes than whole chunks"
            raise ValueError(msg)
        if self._table is None:
            self._table = ChunkTable(hashes.shape[1])
        ids = self._table.ids(hashes, np.repeat(models, counts))
        # Lines without a request id all count as different lookups.
        names = np.array([hash((line.timestamp, line.request_id or next(self._unnamed))) for line in lines], dtype=np.int64)
        return _Columns(ids, counts, tokens, np.array([line.timestamp for line in lines]), models, names)

    def _label(self, line: _Line) -> int:
        size = self.layouts[bytes(line.dtypes), bytes(line.shapes)]
        return self.models.setdefault((line.model_name, size), len(self.models))

    def _models(self) -> tuple[tuple[str, ...], tuple[ChunkLayout | None, ...]]:
        """Return name and layout of each model label. A model with several layouts has a name for each."""
        several = {model for model, count in Counter(model for model, _ in self.models).items() if count > 1}
        names = (f"{model} ({size} bytes a chunk of one rank)" if model in several else model for model, size in self.models)
        layouts = (None if size is None else ChunkLayout((ObjectGroup(size),), model=model) for model, size in self.models)
        return tuple(names), tuple(layouts)

    def _hashes(self, lists: list[msgspec.Raw]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return (chunks, hash bytes) raw hashes, and the number of hashes in each list."""
        text = b"".join(lists)
        starts = np.cumsum([0, *(len(memoryview(part)) for part in lists)], dtype=np.int64)
        first = _HASH.search(text)
        hash_bytes = self._table.hash_bytes if self._table else len(first[1]) // 2 if first else _BLAKE3_BYTES
        parsed = parse_hash_lists(np.frombuffer(text, dtype=np.uint8), starts, hash_bytes)
        if parsed is None:
            msg = (
                f"a chunk hash is not {hash_bytes} bytes wide like the first one; read the logs of servers with different"
                " --hash-algorithm separately"
            )
            raise ValueError(msg)
        return parsed

    def log(self, path: Path, bad_lines: int) -> AccessLog:
        """Return all collected lookups, in time order."""
        if self._table is None:
            raise WorkloadError(self._nothing(path, bad_lines))
        if self.chunk_size is None and len(self.chunk_sizes) > 1:
            raise WorkloadError(self.mixed(path))
        counts = np.concatenate([block.counts for block in self.blocks])
        names, layouts = self._models()
        chunk_bytes = set(self.layouts.values())
        timestamps, set_back = without_jumps(np.concatenate([block.timestamps for block in self.blocks]))
        log = AccessLog(
            chunk_size=self.chunk_size or next(iter(self.chunk_sizes)),
            chunk_ids=np.concatenate([block.ids for block in self.blocks]),
            offsets=np.concatenate(([0], np.cumsum(counts))),
            tokens=np.concatenate([block.tokens for block in self.blocks]),
            timestamps=timestamps,
            tenants=np.zeros(len(counts), dtype=np.int16),
            models=np.concatenate([block.models for block in self.blocks]),
            model_names=names,
            layouts=layouts if any(layouts) else (),
            hashes=self._table.hashes(),
            chunk_bytes=chunk_bytes.pop() if len(chunk_bytes) == 1 else None,
            bad_lines=bad_lines,
            remarks=tuple(_time_remarks(timestamps, set_back)),
            source="LMCache lookup log",
        )
        return in_time_order(_each_once(log, np.concatenate([block.names for block in self.blocks])))

    def mixed(self, path: Path) -> str:
        """Return the complaint about a log of several chunk sizes."""
        return f"{path} mixes chunk sizes: {self._sizes()}. Choose one of them with chunk_size (--chunk-size)."

    def _sizes(self) -> str:
        return ", ".join(f"{size} tokens ({lookups:,} lookups)" for size, lookups in sorted(self.chunk_sizes.items()))

    def _nothing(self, path: Path, bad_lines: int) -> str:
        if self.chunk_sizes:
            return f"{path} has no lookup with chunks of {self.chunk_size} tokens; it has {self._sizes()}"
        if bad_lines:
            return f"none of the {bad_lines:,} lines of {path} is a lookup of LMCache's lookup-hash log"
        return f"{path} holds no lookups yet; send requests of at least one chunk to the server that writes it"


def _time_remarks(timestamps: npt.NDArray[np.float64], set_back: int) -> list[str]:
    said = [CLOCK_SET_BACK.format(set_back)] if set_back else []
    first, last = timestamps.min(), timestamps.max()
    if len(timestamps) > FEWEST_REQUESTS and not UNIX_TIMES[0] <= first <= last <= UNIX_TIMES[1]:
        said.append("the times are no Unix times in seconds, which LMCache writes: rates and times are not to be relied on")
    return said


def _each_once(log: AccessLog, names: npt.NDArray[np.int64]) -> AccessLog:
    """Return the log without repeated lookups."""
    _, first = np.unique(names, return_index=True)
    repeated = len(names) - len(first)
    if not repeated:
        return log
    return replace(log.select(np.sort(first)), remarks=(*log.remarks, REPEATED.format(repeated)))


def _chunk_bytes(dtypes: msgspec.Raw, shapes: msgspec.Raw) -> int | None:
    """Return the KV bytes of one chunk, from the names of torch dtypes and their shapes; ``None`` for an unknown dtype.

    Raises:
        ValueError: The arguments are not a list of names and a list of shapes.
    """
    names: list[str] = decoded_part(dtypes, list[str], "dtypes")
    sizes: list[int] = [prod(shape) for shape in decoded_part(shapes, list[list[_Count]], "shapes")]
    bits = [_DTYPE_BITS.match(name) for name in names]
    if len(bits) != len(sizes) or not bits or None in bits:
        return None
    return sum(size * int(match[1]) // 8 for size, match in zip(sizes, bits, strict=True) if match)
