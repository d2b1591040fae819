"""Claims about reading LMCache's lookup-hash log; the format is held against the real server in test_replay.py."""

import gzip
import json
import os
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_tools.errors import WorkloadError
from agent_tools.workload import lines
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.readers import read_lookup_log, read_mooncake

A, B, C = "0x" + "a1" * 31 + "00", "0x" + "b2" * 30 + "0000", "0x" + "00" * 32
NUMBERS = count()


def lookup(*hashes: str, **fields: object) -> dict[str, Any]:
    return {
        "timestamp": 1795484674.25,
        "request_id": f"r{next(NUMBERS)}",
        "model_name": "toy",
        "chunk_size": 256,
        "seq_len": 256 * len(hashes) + 3,
        "dtypes": ["torch.float16"],
        "shapes": [[2, 1, 256, 32]],
        "chunk_hashes": list(hashes),
    } | fields


def text(*lookups: dict[str, Any]) -> str:
    return "".join(json.dumps(fields) + "\n" for fields in lookups)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lookup_hashes_20261124_014434_000000.jsonl"


def test_a_log_becomes_arrays(file: Path) -> None:
    file.write_text(text(lookup(A, B), lookup(A, C, timestamp=1795484675)))
    log = read_lookup_log(file)
    assert (log.chunk_size, log.chunk_bytes, log.bad_lines) == (256, 2 * 256 * 32 * 2, 0)
    assert log.chunk_ids.tolist() == [0, 1, 0, 2]
    assert log.offsets.tolist() == [0, 2, 4]
    assert log.tokens.tolist() == [515, 515]
    assert log.timestamps.tolist() == [1795484674.25, 1795484675]
    assert (log.model_names, log.models.tolist(), log.tenant_names) == (("toy",), [0, 0], ("",))


def test_hashes_keep_every_byte_also_trailing_zeros(file: Path) -> None:
    file.write_text(text(lookup(A, B, C)))
    hashes = read_lookup_log(file).hashes
    assert hashes is not None
    assert ["0x" + one.tobytes().hex() for one in hashes] == [A, B, C]


def test_the_same_hash_under_two_models_is_two_chunks(file: Path) -> None:
    file.write_text(text(lookup(A), lookup(A, model_name="other"), lookup(A, model_name="toy")))
    log = read_lookup_log(file)
    assert log.chunk_ids.tolist() == [0, 1, 0]
    assert [log.model_names[model] for model in log.models] == ["toy", "other", "toy"]


def test_rotated_files_are_read_as_one_log_in_time_order(tmp_path: Path) -> None:
    (tmp_path / "lookup_hashes_20261124_020000_000001.jsonl").write_text(text(lookup(C, timestamp=3), lookup(A, timestamp=1)))
    with gzip.open(tmp_path / "lookup_hashes_20261124_010000_000000.jsonl.gz", "wt") as older:
        older.write(text(lookup(B, timestamp=2), lookup(A, timestamp=2)))
    log = read_lookup_log(tmp_path)
    assert log.timestamps.tolist() == [1, 2, 2, 3]
    assert log.hashes is not None
    assert ["0x" + log.hashes[chunk].tobytes().hex() for chunk in log.chunk_ids] == [A, B, A, C]
    assert log.chunk_ids.tolist() == [0, 1, 0, 2]


def test_a_lookup_that_stands_there_twice_counts_once(file: Path) -> None:
    once, other = lookup(A, B), lookup(A, B, timestamp=1795484675)
    file.write_text(text(once, other, once))
    log = read_lookup_log(file)
    assert (len(log), log.unique_chunks) == (2, 2)
    assert log.remarks == ("1 lookups appear in the log more than once and were counted once",)
    nameless = [lookup(A, request_id=""), lookup(B, request_id="")]
    file.write_text(text(*nameless))
    assert len(read_lookup_log(file)) == 2


def test_where_the_clock_was_set_back_the_order_of_the_lines_holds(file: Path) -> None:
    file.write_text(text(lookup(A, timestamp=7200.0), lookup(B, timestamp=7230.0), lookup(C, timestamp=3600.0)))
    log = read_lookup_log(file)
    assert log.timestamps.tolist() == [3570.0, 3600.0, 3600.0]
    assert log.chunk_ids.tolist() == [0, 1, 2]
    assert log.hashes is not None
    assert "0x" + log.hashes[0].tobytes().hex() == A
    assert log.remarks == ("the clock was set back 1 times while the log was written: earlier lookups were moved back with it",)


def test_a_log_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for day in (20261124, 20261125):
        file = tmp_path / f"lookup_hashes_{day}_000000_0.jsonl"
        file.touch()
        os.truncate(file, 2 * 10**12)  # a file of holes
    with pytest.raises(WorkloadError, match=r"2 files would take about \d+\.\d GB of memory, and \d+\.\d GB are available"):
        read_lookup_log(tmp_path)
    with pytest.raises(WorkloadError, match="read fewer of the rotated files"):
        read_mooncake(file)


def test_what_a_live_server_has_half_written_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "lookup_hashes_1.jsonl").write_text(text(lookup(A)))
    (tmp_path / "lookup_hashes_2.jsonl").write_text(text(lookup(B)) + text(lookup(C))[:-30])
    assert len(read_lookup_log(tmp_path)) == 2


def test_a_last_line_that_lacks_only_its_newline_is_read(file: Path) -> None:
    file.write_text(text(lookup(A), lookup(B)).rstrip("\n"))
    assert len(read_lookup_log(file)) == 2


def test_a_half_written_line_in_an_older_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "lookup_hashes_1.jsonl").write_text(text(lookup(B)) + text(lookup(C))[:-30])
    (tmp_path / "lookup_hashes_2.jsonl").write_text(text(lookup(A)))
    with pytest.raises(WorkloadError, match=r"lookup_hashes_1\.jsonl, line 2: .*--skip-bad-lines"):
        read_lookup_log(tmp_path)
    log = read_lookup_log(tmp_path, skip_bad_lines=True)
    assert (len(log), log.bad_lines) == (2, 1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "truncated"),
        ("[]", "the line is a list, not an object"),
        ("\x00\x00", "NUL bytes"),
        (json.dumps(lookup(A, timestamp="now")), "timestamp"),
        (json.dumps(lookup(A, seq_len=-1)), "seq_len"),
        (json.dumps(lookup(A, chunk_size=0)), "chunk_size"),
        (json.dumps(lookup(A, model_name=None)), "model_name"),
        (json.dumps({"timestamp": 1}), "model_name"),
        (json.dumps(lookup(A, B, seq_len=511)), "2 chunk hashes, but 511 tokens hold 1 whole chunks of 256"),
        (json.dumps(lookup(A[:-1])), r"chunk_hashes\[0\] is not 0x and pairs of hexadecimal digits"),
        (json.dumps(lookup(A.upper())), "in lower case"),
        (json.dumps(lookup(A, A[:-2])), "not all of one width"),
        (json.dumps(lookup(A, chunk_hashes="0xab")), "chunk_hashes is text, not a list"),
        (json.dumps(lookup(A, chunk_hashes=[7])), r"chunk_hashes\[0\] is a whole number, not text"),
        (json.dumps(lookup(A, dtypes=7)), "dtypes is a whole number, not a list"),
        (json.dumps(lookup(A, shapes=[[-1]])), r"shapes\[0\]\[0\] is below 0"),
        (json.dumps(lookup(A)) + "}", "malformed"),
    ],
)
def test_a_broken_line_is_named_or_skipped_and_counted(file: Path, bad: str, reason: str) -> None:
    file.write_text(text(lookup(A)) + "\n" + bad + "\n" + text(lookup(B)))
    with pytest.raises(WorkloadError, match=rf"jsonl, line 3: .*{reason}"):
        read_lookup_log(file)
    log = read_lookup_log(file, skip_bad_lines=True)
    assert (len(log), log.unique_chunks, log.bad_lines) == (2, 2, 1)


def test_bytes_that_are_no_text_are_a_broken_line(file: Path) -> None:
    file.write_bytes(text(lookup(A)).encode() + b'{"model_name": "\xff"}\n')
    with pytest.raises(WorkloadError, match="line 2"):
        read_lookup_log(file)


def test_mixed_chunk_sizes_are_refused_unless_one_is_chosen(file: Path) -> None:
    file.write_text(text(lookup(A), lookup(B, chunk_size=128), lookup(C)))
    with pytest.raises(WorkloadError, match=r"mixes chunk sizes: 128 tokens \(1 lookups\), 256 tokens \(2 lookups\)"):
        read_lookup_log(file)
    assert len(read_lookup_log(file, chunk_size=256)) == 2
    assert read_lookup_log(file, chunk_size=128).chunk_size == 128
    with pytest.raises(WorkloadError, match="no lookup with chunks of 64 tokens; it has 128 tokens"):
        read_lookup_log(file, chunk_size=64)


@pytest.mark.parametrize(
    ("dtypes", "shapes", "expected"),
    [
        (["torch.bfloat16", "torch.float8_e4m3fn"], [[2, 256, 8], [256]], 2 * 256 * 8 * 2 + 256),
        (["uint8"], [[100]], 100),
        (["torch.complex64"], [[100]], None),
        (["float32"], [[1], [1]], None),
        ([], [], None),
    ],
)
def test_chunk_bytes_follow_the_layout(file: Path, dtypes: list[str], shapes: list[list[int]], expected: int | None) -> None:
    file.write_text(text(lookup(A, dtypes=dtypes, shapes=shapes)))
    assert read_lookup_log(file).chunk_bytes == expected


def test_chunk_bytes_are_unknown_when_the_layouts_differ(file: Path) -> None:
    file.write_text(text(lookup(A), lookup(B, shapes=[[2, 1, 256, 64]])))
    assert read_lookup_log(file).chunk_bytes is None


def test_hashes_of_another_algorithm_are_read_but_not_mixed(file: Path) -> None:
    file.write_text(text(lookup("0x" + "ab" * 8, "0x" + "cd" * 8)))
    hashes = read_lookup_log(file).hashes
    assert hashes is not None
    assert hashes.shape == (2, 8)
    file.write_text(text(lookup("0x" + "ab" * 8), lookup(A)))
    with pytest.raises(WorkloadError, match="not 8 bytes wide"):
        read_lookup_log(file)


def test_other_spacing_is_read_all_the_same(file: Path) -> None:
    file.write_text(json.dumps(lookup(A, B), separators=(",", ":")) + "\r\n" + text(lookup(A, B)).replace('", "0x', '" ,\t "0x'))
    assert read_lookup_log(file).chunk_ids.tolist() == [0, 1, 0, 1]


def test_a_lookup_without_chunks_is_kept(file: Path) -> None:
    file.write_text(text(lookup(), lookup(A), lookup()))
    assert read_lookup_log(file).offsets.tolist() == [0, 0, 1, 1]


def test_an_empty_folder_says_who_would_fill_it(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"holds no lookup_hashes_.*--lookup-hash-log-dir"):
        read_lookup_log(tmp_path)


def test_an_empty_or_missing_file_is_told(file: Path) -> None:
    with pytest.raises(WorkloadError, match="does not exist"):
        read_lookup_log(file)
    file.write_text("\n")
    with pytest.raises(WorkloadError, match="holds no lookups yet"):
        read_lookup_log(file)
    file.write_text("what\nis this\n")
    with pytest.raises(WorkloadError, match="none of the 2 lines"):
        read_lookup_log(file, skip_bad_lines=True)


def test_a_cut_gzip_file_says_how_much_of_it_is_whole(file: Path) -> None:
    whole = gzip.compress(text(lookup(A), lookup(B), *(lookup(C) for _ in range(400))).encode(), compresslevel=0)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkloadError, match=r"cut short: [12]\d\d lines are whole"):
        read_lookup_log(file)
    log = read_lookup_log(file, skip_bad_lines=True)
    assert 100 < len(log) < 300
    assert log.bad_lines == 1


def test_a_damaged_gzip_file_is_told_and_never_skipped(file: Path) -> None:
    whole = bytearray(gzip.compress(text(*[lookup(A)] * 100).encode()))
    whole[len(whole) // 2] ^= 0xFF
    file.write_bytes(whole)
    with pytest.raises(WorkloadError, match="damaged gzip file"):
        read_lookup_log(file, skip_bad_lines=True)


def test_gzip_members_one_after_the_other_are_one_file(file: Path) -> None:
    file.write_bytes(gzip.compress(text(lookup(A)).encode()) + gzip.compress(text(lookup(B)).encode()))
    assert len(read_lookup_log(file)) == 2


HASHES = st.lists(st.sampled_from([A, B, C, "0x" + "12" * 32, "0x" + "00" * 31 + "01"]), max_size=5)
LOOKUPS = st.lists(
    st.builds(
        lambda hashes, at, model: lookup(*hashes, timestamp=at, model_name=model, request_id=""),
        HASHES,
        st.floats(0, 4.9),  # out of order as lines of several threads may be
        st.sampled_from(["a", "b", "ü\n"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(LOOKUPS, st.integers(1, 700))
def test_a_log_reads_as_it_was_written_whatever_the_blocks(lookups: list[dict[str, Any]], block: int) -> None:
    """Against a plain reading with the standard library."""
    ordered = sorted(lookups, key=lambda fields: fields["timestamp"])
    names: dict[tuple[str, str], int] = {}
    ids = [[names.setdefault((one["model_name"], chunk), len(names)) for chunk in one["chunk_hashes"]] for one in ordered]
    log = read_blocks(text(*lookups).encode(), block)
    assert [log.request(number).tolist() for number in range(len(log))] == ids
    assert [log.model_names[model] for model in log.models] == [one["model_name"] for one in ordered]
    assert log.tokens.tolist() == [one["seq_len"] for one in ordered]
    assert log.hashes is not None
    assert ["0x" + one.tobytes().hex() for one in log.hashes] == [chunk for _, chunk in names]


@settings(deadline=None, max_examples=300)
@given(LOOKUPS, st.data())
def test_a_damaged_log_is_read_or_refused_but_never_crashes(lookups: list[dict[str, Any]], data: st.DataObject) -> None:
    whole = bytearray(text(*lookups).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        log = read_blocks(bytes(whole), 10**6, skip_bad_lines=data.draw(st.booleans()))
    except WorkloadError:
        return
    assert log.offsets[-1] == len(log.chunk_ids)
    assert (log.chunks_per_request <= log.tokens // log.chunk_size).all()
    assert sorted(set(log.chunk_ids.tolist())) == list(range(log.unique_chunks))
    assert (np.diff(log.timestamps) >= 0).all()


def read_blocks(content: bytes, block: int, *, skip_bad_lines: bool = False) -> AccessLog:
    """Read a log of this content in blocks of this many bytes."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_READ_BYTES", block)
        path = Path(folder) / "log"
        path.write_bytes(content)
        return read_lookup_log(path, skip_bad_lines=skip_bad_lines)
