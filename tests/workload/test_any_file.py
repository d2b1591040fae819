"""Claims about files that are no log: one sentence, soon, and without filling the memory."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent_tools.errors import WorkloadError
from agent_tools.workload import lines
from agent_tools.workload.lines import LONGEST_LINE, Source
from agent_tools.workload.readers import read_trace

LIMIT = """
import resource, sys
from agent_tools.errors import WorkloadError
from agent_tools.workload.readers import read_trace
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_trace(sys.argv[1], skip_bad_lines=True)
except WorkloadError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
"""Prints what is said of a file, and how many MB more than its imports the program took."""


def told(file: Path) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", LIMIT, str(file)], capture_output=True, text=True, timeout=120, check=True)
    said, memory = done.stdout.splitlines()
    return said, int(memory)


def test_a_pipe_that_nobody_writes_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "is not a regular file" in told(pipe)[0]  # in a process of its own: opening it would wait for ever


def test_a_device_without_end_is_refused() -> None:
    with pytest.raises(WorkloadError, match="/dev/zero is not a regular file, so it might never end; copy"):
        read_trace("/dev/zero")


def test_six_gigabytes_of_gzip_without_a_line_break_are_refused_in_little_memory(tmp_path: Path) -> None:
    member = gzip.compress(bytes(2**26))
    file = tmp_path / "trace.jsonl.gz"
    file.write_bytes(member * 96)
    said, memory = told(file)
    assert f"line 1 is longer than {LONGEST_LINE // 2**20} MiB" in said
    assert memory < 400


def test_one_gzip_member_that_swells_is_unpacked_in_pieces(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl.gz"
    file.write_bytes(gzip.compress(b"\n" * 2**29, compresslevel=1))
    said, memory = told(file)
    assert "holds no requests" in said
    assert memory < 200


def test_a_long_line_behind_good_ones_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 2**20)
    file = tmp_path / "trace.jsonl"
    good = json.dumps({"timestamp": 1, "input_length": 512, "hash_ids": [1]})
    file.write_text(f"{good}\n{good}\n" + "x" * 2**23)
    with pytest.raises(WorkloadError, match="line 3 is longer than"):
        read_trace(file, chunk_size=512)


def test_text_that_swells_beyond_the_memory_is_refused_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = json.dumps({"timestamp": 1, "input_length": 512, "hash_ids": [1]}) + "\n"
    file = tmp_path / "trace.jsonl.gz"
    file.write_bytes(gzip.compress(good.encode() * 200_000))  # shrinks 300 times
    assert len(read_trace(file, chunk_size=512)) == 200_000
    monkeypatch.setattr(lines, "available_bytes", lambda: 2**24)
    with pytest.raises(WorkloadError, match="holds more text than fits into memory"):
        read_trace(file, chunk_size=512)
    assert sum(block.lines for block in Source(file).blocks()) == 200_000  # who keeps nothing is not bounded
