"""The lookups of in-process LMCache, from the files that its chunk statistics write.

Set ``enable_chunk_statistics``, ``chunk_statistics_strategy: file_hash`` and ``chunk_statistics_auto_start_statistics`` in the
engine's LMCache configuration, and ``chunk_statistics_file_output_dir`` in its ``extra_config``. vLLM's scheduler writes the
files; SGLang has no such record (LMCache 0.5.6).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent_tools.errors import SettingsError
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.formats.chunk_statistics import FILES, read_chunk_statistics
from agent_tools.workload.formats.requests import ReadOptions

_NAME = re.compile(r"chunk_hashes_(\d+)_(\d+)\.jsonl")
_BITS = re.compile(r"(?:torch\.)?(?:b?float|u?int)(\d+)")


class LookupRecord:
    """The record in one folder. The files are read again only if they have grown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: tuple[list[tuple[str, int]], AccessLog] | None = None

    def read(self, chunk_size: int, chunk_bytes: int | None) -> AccessLog | None:
        """Return the lookups of the process that wrote last, or ``None`` before the first.

        Earlier processes wrote files too, but their hashes may have had another seed, and their cache is gone.

        Raises:
            SettingsError: The folder does not exist.
            WorkloadError: A file is broken.
        """
        if not self._folder.is_dir():
            raise SettingsError(
                f"the access_log folder {self._folder} does not exist on this machine; name the folder of the engine's"
                " chunk_statistics_file_output_dir, or leave access_log out"
            )
        files = of_latest_process(sorted(self._folder.glob(FILES)))
        sizes = [(file.name, file.stat().st_size) for file in files]
        if not any(size for _, size in sizes):
            return None
        if self._last is None or self._last[0] != sizes:
            log = read_chunk_statistics(files, ReadOptions(chunk_size), live=True)
            self._last = sizes, replace(log, chunk_bytes=chunk_bytes, source="")  # a live cache
        return self._last[1]


def of_latest_process(files: Sequence[Path]) -> list[Path]:
    """Return the files of the process that wrote last. LMCache numbers the files of a process from 0, behind the time."""
    named = [(file, match) for file in files if (match := _NAME.match(file.name))]
    named.sort(key=lambda one: (int(one[1][1]), int(one[1][2])))
    starts = [place for place, (_, match) in enumerate(named) if int(match[2]) == 0]
    return [file for file, _ in named[starts[-1] if starts else 0 :]]


def bytes_of_chunk(meta: Mapping[str, Any]) -> int | None:
    """Return the KV bytes of one chunk on one worker, from ``/meta``; ``None`` if LMCache describes them in another way."""
    shape, bits = meta.get("kv_shape"), _BITS.match(str(meta.get("kv_dtype")))
    if not isinstance(shape, list | tuple) or not all(isinstance(one, int) and one > 0 for one in shape) or bits is None:
        return None
    return math.prod(shape) * int(bits[1]) // 8
