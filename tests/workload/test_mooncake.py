"""Claims about reading recorded workloads in the Mooncake format, and about telling formats apart."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from agent_tools.errors import WorkloadError
from agent_tools.workload.readers import read_mooncake, read_trace


def request(tokens: object, *ids: object, at: object = 0) -> str:
    return json.dumps({"timestamp": at, "input_length": tokens, "output_length": 9, "hash_ids": ids}) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


@pytest.mark.parametrize(
    ("name", "requests", "chunks", "unique", "block"),
    [
        ("mooncake_conversation", 12_031, 276_491, 170_899, 512),
        ("mooncake_synthetic", 3_993, 117_888, 40_148, 512),
        ("lmcache_agent_miniswe", 402, 9_254, 582, 256),
        ("lmcache_agent_taubench", 471, 137, 29, 256),
    ],
)
def test_recorded_traces_have_their_known_sizes(
    traces: Path, name: str, requests: int, chunks: int, unique: int, block: int
) -> None:
    log = read_trace(traces / f"{name}.jsonl.gz")
    assert (len(log), len(log.chunk_ids), log.unique_chunks, log.chunk_size) == (requests, chunks, unique, block)
    assert (log.chunks_per_request == log.tokens // block).all()


def test_equal_ids_mean_equal_prefixes_in_the_recorded_traces(traces: Path) -> None:
    for path in traces.glob("*.jsonl.gz"):
        log = read_trace(path)
        before = np.concatenate(([-1], log.chunk_ids[:-1]))
        before[log.offsets[:-1][log.chunks_per_request > 0]] = -1
        assert len(np.unique(np.stack([log.chunk_ids, before]), axis=1).T) == log.unique_chunks


def test_ids_of_incomplete_blocks_are_dropped(file: Path) -> None:
    file.write_text(request(1100, 7, 8, 9) + request(512, 7) + request(1024, 7, 8))
    log = read_mooncake(file)
    assert log.chunk_size == 512
    assert log.offsets.tolist() == [0, 2, 3, 5]
    assert log.chunk_ids.tolist() == [0, 1, 0, 0, 1]
    assert log.tokens.tolist() == [1100, 512, 1024]


def test_traces_that_list_whole_blocks_only_are_read_too(file: Path) -> None:
    file.write_text(request(1100, 7, 8, 9, 10) + request(255) + request(511, 7))
    log = read_mooncake(file)
    assert (log.chunk_size, log.offsets.tolist()) == (256, [0, 4, 4, 5])


def test_timestamps_become_seconds_and_requests_are_sorted_by_them(file: Path) -> None:
    file.write_text(request(512, 1, at=2500) + request(1024, 2, 3, at=1000.5) + request(512, 4, at=2500))
    log = read_mooncake(file)
    assert log.timestamps.tolist() == [1.0005, 2.5, 2.5]
    assert log.tokens.tolist() == [1024, 512, 512]
    assert log.chunk_ids.tolist() == [0, 1, 2, 3]


def test_a_block_size_that_cannot_be_told_must_be_given(file: Path) -> None:
    file.write_text(request(100, 1) + request(100, 2))
    with pytest.raises(WorkloadError, match=r"too short to distinguish blocks of 64 tokens from blocks of 128\. Give them"):
        read_mooncake(file)
    assert read_mooncake(file, chunk_size=64).chunk_ids.tolist() == [0, 1]
    assert read_mooncake(file, chunk_size=128).chunk_ids.tolist() == []


def test_a_block_size_that_no_line_agrees_on_must_be_given(file: Path) -> None:
    file.write_text(request(1024, 1, 2) + request(1024, 1, 2, 3, 4))
    with pytest.raises(WorkloadError, match="no power of two fits"):
        read_mooncake(file)
    assert read_mooncake(file, chunk_size=512).offsets.tolist() == [0, 2, 4]
    with pytest.raises(WorkloadError, match="line 1: 2 hash_ids for 4 whole blocks of 256 tokens"):
        read_mooncake(file, chunk_size=256)
    log = read_mooncake(file, chunk_size=256, skip_bad_lines=True)
    assert (len(log), log.bad_lines) == (1, 1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{\n", "truncated"),
        (request(-1), "input_length"),
        (request("long"), "input_length"),
        (request(512.5), "input_length"),
        (request(512, "a"), "hash_ids"),
        (request(512, 1.5), "hash_ids"),
        (request(512, 2**70), "hash_ids"),
        (request(512, 1, at=-5), "timestamp"),
        (request(512, 1, at=None), "timestamp"),
        ('{"timestamp": 1}\n', "input_length"),
    ],
)
def test_a_broken_line_is_named_or_skipped_and_counted(file: Path, bad: str, reason: str) -> None:
    file.write_text(request(1024, 1, 2) + bad + request(512, 1))
    with pytest.raises(WorkloadError, match=rf"trace\.jsonl, line 2: .*{reason}.*--skip-bad-lines"):
        read_mooncake(file)
    log = read_mooncake(file, skip_bad_lines=True)
    assert (len(log), log.bad_lines) == (2, 1)


def test_a_cut_line_at_the_end_of_a_trace_is_a_broken_line(file: Path) -> None:
    file.write_text(request(1024, 1, 2) + request(512, 1)[:-5])
    with pytest.raises(WorkloadError, match="line 2"):
        read_mooncake(file)


def test_a_cut_gzip_trace_says_how_many_lines_are_whole(file: Path, traces: Path) -> None:
    whole = (traces / "mooncake_conversation.jsonl.gz").read_bytes()
    file.write_bytes(whole[:100_000])
    with pytest.raises(WorkloadError, match=r"cut short: 1,\d\d\d lines are whole"):
        read_trace(file)
    assert len(read_trace(file, skip_bad_lines=True)) > 1000


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_an_empty_trace_is_told(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(WorkloadError, match="holds no requests: it is empty"):
        read_mooncake(file)


def test_formats_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    trace, log = tmp_path / "a.log", tmp_path / "lookup_hashes_b.jsonl"
    trace.write_text("broken\n" + request(1024, 1, 2) + request(512, 1))
    fields = {"timestamp": 5, "model_name": "toy", "chunk_size": 16, "seq_len": 16, "dtypes": [], "shapes": []}
    log.write_text(json.dumps(fields | {"chunk_hashes": ["0x" + "ab" * 32]}))
    assert read_trace(trace, skip_bad_lines=True).chunk_size == 512
    assert read_trace(log).model_names == ("toy",)
    with pytest.raises(WorkloadError, match=r"mixes formats: .*Mooncake trace \(a\.log\).*lookup log"):
        read_trace(tmp_path)
    trace.write_text("a server's own log\n")
    beside = read_trace(tmp_path)
    assert (beside.model_names, "1 files" in beside.remarks[0]) == (("toy",), True)


def test_a_file_of_no_known_format_is_told(file: Path) -> None:
    file.write_text('{"hello": "world"}\n')
    with pytest.raises(WorkloadError, match="none of the known formats: LMCache's lookup log"):
        read_trace(file)


def test_a_missing_trace_is_told(file: Path) -> None:
    with pytest.raises(WorkloadError, match=r"cannot read .*trace\.jsonl: No such file"):
        read_trace(file)


def test_an_empty_file_is_called_empty_whatever_it_was_meant_to_be(tmp_path: Path) -> None:
    empty = tmp_path / "trace.jsonl"
    empty.write_text("\n\n", encoding="utf-8")
    with pytest.raises(WorkloadError, match="holds no requests: it is empty"):
        read_trace(empty)
