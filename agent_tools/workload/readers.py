"""Logs and traces of requests: one reader that recognises both formats by their content."""

import json
from pathlib import Path

from agent_tools.errors import WorkloadError

from .access_log import AccessLog
from .lines import Source
from .lookup_log import read_lookup_log
from .mooncake import read_mooncake

__all__ = ["read_lookup_log", "read_mooncake", "read_trace"]


def read_trace(path: Path | str, *, chunk_size: int | None = None, skip_bad_lines: bool = False) -> AccessLog:
    """Read LMCache's lookup-hash log (a folder or a file) or a trace in the Mooncake format, plain or gzip.

    Args:
        path: A file, or the folder given to ``lmcache server --lookup-hash-log-dir``.
        chunk_size: Tokens per chunk. Only needed if the file does not determine it; see the two readers.
        skip_bad_lines: Leave broken lines out and count them in `AccessLog.bad_lines`, instead of raising.

    Raises:
        WorkloadError: The file has neither format, holds no requests, has a broken line, is damaged, or is not a regular file.
    """
    path = Path(path)
    read = read_lookup_log if path.is_dir() or _has_lookups(path) else read_mooncake
    return read(path, chunk_size=chunk_size, skip_bad_lines=skip_bad_lines)


def _has_lookups(path: Path) -> bool:
    """Return whether the first readable line of a file is a lookup, not a request in the Mooncake format."""
    source, lines = Source(path, skip_bad_lines=True), 0
    for block in source.blocks():
        if not block.data.strip():  # at once: a hostile file can hold a thousand million blank lines
            continue
        for line in block.data.splitlines():
            if not line.strip():
                continue
            lines += 1
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(fields, dict) and fields.keys() & {"chunk_hashes", "hash_ids"}:
                return "chunk_hashes" in fields
    if not lines:
        msg = f"{path} holds no requests: it is empty"
        raise WorkloadError(msg)
    msg = (
        f"{path} holds neither LMCache's lookup-hash log (lines with chunk_hashes) nor a trace in the Mooncake format (lines "
        "with timestamp, input_length and hash_ids)"
    )
    raise WorkloadError(msg)
