"""Logs and traces of requests: one reader that recognises every format by its content."""

import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from agent_tools.errors import WorkloadError
from agent_tools.plain import plain

from .access_log import AccessLog
from .formats.chunk_statistics import read_chunk_statistics
from .formats.documents import LIST, ONE_A_LINE, first_line, one_a_line
from .formats.hash_ids import read_hash_ids
from .formats.prompts import has_text
from .formats.requests import ReadOptions
from .formats.text import read_text
from .formats.times import UNITS
from .formats.vllm_log import DETAILS, RECEIVED
from .formats.weka import read_weka
from .lines import Source
from .lookup_log import read_lookup_files, read_lookup_log
from .unpack import DamagedFileError

__all__ = ["KNOWN", "read_lookup_log", "read_mooncake", "read_trace"]

LOOKUPS, STATISTICS, BAILIAN, MOONCAKE, SESSIONS, WEKA, TEXT, VLLM = (
    "LMCache's lookup log", "LMCache's chunk statistics", "a Qwen-Bailian trace", "a Mooncake trace",
    "a trace of sessions (AIPerf)", "a Weka trace", "chat requests with text", "vLLM's request log",
)  # fmt: skip
KNOWN = (
    "LMCache's lookup log (lines with chunk_hashes and chunk_size) or chunk statistics (chunk_hashes and lookup_id), a trace with"
    " hash_ids (Mooncake, Qwen-Bailian, Dynamo, AIPerf, Weka), or requests with text (messages, prompt, conversations)"
)
_SUFFIXES = {".jsonl", ".json", ".ndjson", ".log", ".txt", ".csv", ".gz", ".zst"}
_LENGTHS_ONLY = ("request tokens", "contexttokens", "num_prefill_tokens", "input_tokens,output_tokens")
_OF_LINES = (b'"hash_ids"', b'"chunk_hashes"')
"""Names in formats that have a request a line."""
_OF_TEXT = (b'"conversations"', b'"messages"', b'"prompt"', b'"pre_gap"')
_OF_VLLM = (RECEIVED.encode(), DETAILS.encode())
_DOCUMENT = 2**20
"""Bytes of the beginning of a document from which its format is recognised."""


def read_trace(  # noqa: PLR0913  what a file does not say itself
    path: Path | str,
    *,
    chunk_size: int | None = None,
    skip_bad_lines: bool = False,
    chain: bool = False,
    time_unit: str | None = None,
    starts_per_second: float = 1.0,
    tokenizer: Path | None = None,
    engine_log: Path | None = None,
) -> AccessLog:
    """Read a log or a trace of any format that `KNOWN` names: a file, or a folder of files of one format; plain, gzip or zstd.

    Args:
        path: A file or a folder.
        chunk_size: Tokens per chunk, if the file does not determine it.
        skip_bad_lines: Leave broken lines out and count them in `AccessLog.bad_lines`, instead of raising.
        chain: The ids of a trace stand for single blocks: chain them, so that they stand for prefixes.
        time_unit: Unit of the file's times (``s``, ``ms``, ``us``, ``ns``), if it is not its format's.
        starts_per_second: Requests or sessions a second, for a file without times.
        tokenizer: A model's ``tokenizer.json`` or its folder, for a file with text.
        engine_log: The engine's log, which tells tokens and hits for chunk statistics.

    Raises:
        WorkloadError: The file has no known format, holds no requests, has a broken line, is damaged, or is not a regular file;
            or a folder mixes formats.
    """
    path = Path(path)
    if time_unit is not None and time_unit not in UNITS:
        raise WorkloadError(f"{plain(time_unit)} is no unit of time: give one of {', '.join(UNITS)}")
    if starts_per_second <= 0:
        raise WorkloadError(f"{starts_per_second:g} starts a second: give a number above 0")
    kind, files, left_out = _kind(path, _files(path), skip_bad_lines=skip_bad_lines)
    options = ReadOptions(
        chunk_size, skip_bad_lines, chain, None if time_unit is None else UNITS[time_unit], starts_per_second, tokenizer
    )
    if engine_log is not None and kind != STATISTICS:
        raise WorkloadError(f"an engine's log is joined with LMCache's chunk statistics; {path} is {kind}")
    if time_unit is not None and kind in {LOOKUPS, VLLM}:
        raise WorkloadError(f"the times in {kind} have one unit always: leave out time_unit (--time-unit)")
    log = _read(kind, files, path, options, engine_log)
    return replace(log, remarks=(*log.remarks, *left_out)) if left_out else log


def _read(kind: str, files: Sequence[Path], path: Path, options: ReadOptions, engine_log: Path | None) -> AccessLog:
    if kind == LOOKUPS:
        return read_lookup_files(files, path, chunk_size=options.chunk_size, skip_bad_lines=options.skip_bad_lines)
    if kind == STATISTICS:
        return read_chunk_statistics(files, options, engine_log=engine_log, live=path.is_dir())
    if kind == WEKA:
        return read_weka(files, options)
    if kind in {TEXT, VLLM}:
        return read_text(files, options, vllm_log=kind == VLLM)
    return read_hash_ids(files, options, bailian=kind == BAILIAN, turns=kind == SESSIONS)


def read_mooncake(path: Path | str, *, chunk_size: int | None = None, skip_bad_lines: bool = False) -> AccessLog:
    """Read one file that is known to be a trace in the Mooncake format. See `read_hash_ids`."""
    return read_hash_ids([Path(path)], ReadOptions(chunk_size, skip_bad_lines))


def _files(path: Path) -> list[Path]:
    """Return the files to read, in the order of their names: those of a rotated log begin with the time of their start."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise WorkloadError(
            f"{path} holds no log: there is no lookup_hashes_*.jsonl, chunk_hashes_*.jsonl or trace in it;"
            f" `lmcache server --lookup-hash-log-dir {path}` writes one"
        )
    return files


def _kind(path: Path, files: Sequence[Path], *, skip_bad_lines: bool) -> tuple[str, list[Path], list[str]]:
    """Return the format of the files, the files of that format, and remarks on the files left out.

    Raises:
        WorkloadError: No file has a known format, or the files have several.
        DamagedFileError: A file is damaged, and damaged ones are not left out.
    """
    kinds: dict[Path, str] = {}
    damaged: dict[Path, DamagedFileError] = {}
    for file in files:
        try:
            found = _kind_of(file)
        except DamagedFileError as error:  # noqa: PERF203  folders are small
            if not skip_bad_lines or not path.is_dir():
                raise
            damaged[file] = error
        else:
            if found is not None:
                kinds[file] = found
    count = Counter(kinds.values())
    if len(count) > 1:
        examples = {kind: file.name for file, kind in kinds.items()}
        named = ", ".join(f"{number} of {kind} ({plain(examples[kind])})" for kind, number in count.most_common())
        raise WorkloadError(f"{path} mixes formats: {named}. Name one of the files, or a folder with files of one format")
    if damaged and not kinds:
        raise next(iter(damaged.values()))
    if not kinds:
        raise WorkloadError(
            f"{path} holds no requests: none of its {len(files)} files has a known format: {KNOWN}"
            if path.is_dir()
            else _no_kind(path)
        )
    others = [file for file in files if file not in kinds and file not in damaged]
    return next(iter(count)), list(kinds), _left_out(path, others, "hold no requests") + _left_out(path, damaged, "are damaged")


def _left_out(path: Path, files: Collection[Path], why: str) -> list[str]:
    names = ", ".join(plain(one.name) for one in list(files)[:3])
    return [f"{len(files)} files of {path} {why} and were left out ({names})"] if files else []


def _kind_of(file: Path) -> str | None:
    """Return the format of a file from its first readable line, or ``None`` if it has no known format or no text.

    Raises:
        DamagedFileError: The file is damaged, or was cut before it says what it is.
        WorkloadError: The file has a format with a request a line, and is not written so.
    """
    first = first_line(file)
    if not first:
        return None
    found = _kind_of_record(_record(first)) if one_a_line(file) else _kind_of_document(file)
    if found is None and not LIST.match(first):  # in a list over many lines, the last line alone is a request
        found = _kind_of_lines(file)
    if found is None:
        _must_be_lines(file, first)
    return found


def _must_be_lines(file: Path, first: bytes) -> None:
    if not first.strip(b"\0 \r\t"):
        raise DamagedFileError(
            f"{file} holds NUL bytes instead of text: it was not written whole (the machine stopped, or the disk was full)"
        )
    start = _start(file).lstrip()
    if start[:1] in {b"[", b"{"} and any(name in start for name in _OF_LINES):
        parts, items = ("one JSON list", ".[]") if start[:1] == b"[" else ("JSON over many lines", ".")
        raise WorkloadError(f"{file} is {parts}: {ONE_A_LINE.format(items, shlex.quote(str(file)))}")


def _no_kind(file: Path) -> str:
    """Say why one file has no format."""
    first = first_line(file)
    if not first:
        return f"{file} holds no requests: it is empty"
    header = first[:200].decode("utf-8", "replace").lower()
    if any(one in header for one in _LENGTHS_ONLY) and "," in header:
        return (
            f"{file} states only the lengths of requests (as BurstGPT and Azure's traces do): without what prompts share, no hits"
            " can be predicted. Bring a trace with hash_ids, or the requests with their text"
        )
    return f"{file} has none of the known formats: {KNOWN}"


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _kind_of_record(record: dict[str, Any] | None) -> str | None:
    if record is None:
        return None
    if "chunk_hashes" in record:
        return STATISTICS if "lookup_id" in record and "chunk_size" not in record else LOOKUPS
    if "requests" in record and "block_size" in record:
        return WEKA
    if "hash_ids" in record:
        return BAILIAN if "chat_id" in record else MOONCAKE
    turns = record.get("turns")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "hash_ids" in turns[0]:
        return SESSIONS
    return TEXT if has_text(record) else None


def _kind_of_document(file: Path) -> str | None:
    """Return the format of a file that is one JSON document, from the names at its beginning."""
    text = _start(file)
    if text.lstrip()[:1] not in {b"{", b"["}:
        return None
    if b'"block_size"' in text and b'"requests"' in text:
        return WEKA
    return TEXT if any(name in text for name in _OF_TEXT) else None


def _start(file: Path) -> bytes:
    start = bytearray()
    for piece in Source(file, skip_bad_lines=True).pieces():
        start += piece
        if len(start) >= _DOCUMENT:
            break
    return bytes(start[:_DOCUMENT])


def _kind_of_lines(file: Path) -> str | None:
    """Return the format of the first line that is a request: lines before it may be broken, or of a program's log."""
    source = Source(file, skip_bad_lines=True)
    for block in source.blocks():
        if not block.data.strip():  # at once: a hostile file can hold a thousand million blank lines
            continue
        if any(part in block.data for part in _OF_VLLM):
            return VLLM
        for line in block.data.splitlines():
            found = _kind_of_record(_record(line)) if line.strip() else None
            if found is not None:
                return found
    if source.cut is not None:
        raise source.cut
    return None
