"""Claims about damaged and odd files of every format: a sentence, never a traceback, never a figure from half a file unsaid."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_tools.errors import WorkloadError
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.readers import read_trace

zstandard = pytest.importorskip("zstandard")

REQUESTS = 40


def ids(number: int) -> list[int]:
    return [number % 7, 100 + number % 7, 1000 + number]


def hashes(number: int, digits: int) -> list[str]:
    return [f"0x{random.Random(one).getrandbits(4 * digits):0{digits}x}" for one in ids(number)]  # noqa: S311


def turn(number: int, ms: float, block: int = 512) -> dict[str, Any]:
    return {"timestamp": ms, "input_length": 3 * block, "output_length": 3, "hash_ids": ids(number)}


def lookup(number: int, at: float) -> dict[str, Any]:
    layout = {"model_name": "m", "chunk_size": 256, "dtypes": ["torch.bfloat16"], "shapes": [[2, 1, 256, 32]]}
    named = {"request_id": f"r{number}", "seq_len": 800, "chunk_hashes": hashes(number, 64)}
    return {"timestamp": 1.76e9 + at} | layout | named


FORMATS: dict[str, Callable[[int, float], dict[str, Any]]] = {
    "lookups": lookup,
    "statistics": lambda n, at: {"timestamp": 1.76e9 + at, "lookup_id": f"r{n}", "chunk_hashes": hashes(n, 16)},
    "mooncake": lambda n, at: turn(n, 1000 * at),
    "bailian": lambda n, at: {"chat_id": n, "parent_chat_id": -1, "type": "text", "turn": 1} | turn(n, at, 16),
    "aiperf": lambda n, at: {"session_id": f"s{n}"} | turn(n, 1000 * at),
    "turns": lambda n, at: {"session_id": f"s{n}", "turns": [turn(n, 1000 * at)]},
    "weka": lambda n, at: {
        "id": n, "block_size": 64, "hash_id_scope": "global", "requests": [{"t": at, "in": 200, "out": 3, "hash_ids": ids(n)}],
    },
    "openai": lambda n, at: {"timestamp": 1.76e9 + at, "messages": [{"role": "user", "content": f"hello {n % 7} " * 300}]},
    "sharegpt": lambda n, _: {
        "conversations": [{"from": "human", "value": f"hello {n % 7} " * 300}, {"from": "gpt", "value": "x"}],
    },
    "agents": lambda n, _: {"session_id": n % 5, "input": f"hello {n % 7} " * 300, "output_length": 5, "pre_gap": 1.0},
}  # fmt: skip
TIMED = ("lookups", "statistics", "mooncake", "bailian", "aiperf", "turns", "weka", "openai")
A_LINE = ("lookups", "statistics", "mooncake", "bailian", "aiperf", "turns")
"""Formats that have a request a line, and are no documents."""


def records(name: str, at: Callable[[int], float] = lambda number: 10.0 * number) -> list[dict[str, Any]]:
    return [FORMATS[name](number, at(number)) for number in range(REQUESTS)]


def text(*found: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in found).encode()


def timed(record: dict[str, Any], time: object) -> dict[str, Any]:
    """Return a record with this in place of its times."""
    found: dict[str, Any] = json.loads(json.dumps(record))
    for part in [found, *found.get("turns", []), *found.get("requests", [])]:
        for key in ("timestamp", "t"):
            if key in part:
                part[key] = time
    return found


def read(path: Path, content: bytes, **options: Any) -> AccessLog:
    path.write_bytes(content)
    return read_trace(path, chunk_size=None if path.stem in {"weka", "bailian", "lookups"} else 512, **options)


def refused(path: Path, content: bytes, **options: Any) -> str:
    with pytest.raises(WorkloadError) as said:
        read(path, content, **options)
    return str(said.value)


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_mark_of_utf8_is_read_past_also_where_files_were_joined(tmp_path: Path, name: str) -> None:
    first, second = text(*records(name)[:20]), text(*records(name)[20:])
    log = read(tmp_path / name, b"\xef\xbb\xbf" + first + b"\xef\xbb\xbf" + second)
    assert (len(log), log.bad_lines, log.remarks) == (REQUESTS, 0, ())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_told(tmp_path: Path, name: str, encoding: str) -> None:
    assert "is in UTF-16, not in UTF-8" in refused(tmp_path / name, text(*records(name)).decode().encode(encoding))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize("length", [12, 30])
def test_a_file_cut_in_its_first_line_is_not_called_empty(tmp_path: Path, name: str, pack: Any, length: int) -> None:
    packed = pack(text(*records(name)))[:length]
    assert "cut short, or whose header is damaged: it holds no whole line" in refused(tmp_path / name, packed)
    assert "cut short" in refused(tmp_path / name, packed, skip_bad_lines=True)


def test_a_changed_header_is_damage(tmp_path: Path, name: str) -> None:
    packed = bytearray(gzip.compress(text(*records(name))))
    packed[3] ^= 0x55  # says that more fields of a header follow
    assert "header is damaged" in refused(tmp_path / name, bytes(packed))
    packed = bytearray(zstandard.compress(text(*records(name))))
    packed[10:] = b"z" * 40
    assert "fetch it again" in refused(tmp_path / name, bytes(packed)).lower()


def test_lines_of_nul_bytes_are_named(tmp_path: Path, name: str) -> None:
    whole = text(*records(name))
    assert "line 1: it holds NUL bytes" in refused(tmp_path / name, bytes(50) + whole)
    log = read(tmp_path / name, bytes(50) + whole, skip_bad_lines=True)
    assert (len(log), log.bad_lines) == (REQUESTS - 1, 1)
    assert "holds NUL bytes instead of text: it was not written whole" in refused(tmp_path / name, bytes(100))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_and_documents_over_many_lines_are_read_or_told(tmp_path: Path, name: str, indent: int | None) -> None:
    whole = json.dumps(records(name), indent=indent).encode()
    if name not in A_LINE:
        assert len(read(tmp_path / name, whole)) == REQUESTS
        return
    assert f"is one JSON list: write one request a line, for example with jq -c '.[]' {tmp_path}" in refused(
        tmp_path / name, whole
    )
    assert "is one JSON list" in refused(tmp_path / name, whole.replace(b"},", b"},\n"), skip_bad_lines=True)


def test_documents_one_after_the_other_over_many_lines_are_told(tmp_path: Path, name: str) -> None:
    whole = "\n".join(json.dumps(record, indent=1) for record in records(name)).encode()
    assert "over many lines: write one request a line, for example with jq -c '.'" in refused(tmp_path / name, whole)


@pytest.mark.parametrize("magic", [b"PK\x03\x04", b"BZh9", b"\xfd7zXZ\x00", b"PAR1"])
def test_files_packed_otherwise_are_told(tmp_path: Path, magic: bytes) -> None:
    assert "only gzip and zstd are read as they are" in refused(tmp_path / "a", magic + bytes(range(256)))


def test_a_damaged_file_of_a_folder_is_told_and_left_out_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(text(*records("mooncake")))
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(text(*records("mooncake")))[:30])
    with pytest.raises(WorkloadError, match=r"2\.jsonl\.gz is a gzip file that was cut short"):
        read_trace(tmp_path)
    log = read_trace(tmp_path, chunk_size=512, skip_bad_lines=True)
    assert (len(log), log.remarks) == (REQUESTS, (f"1 files of {tmp_path} are damaged and were left out (2.jsonl.gz)",))
    (tmp_path / "1.jsonl").unlink()
    with pytest.raises(WorkloadError, match="cut short"):
        read_trace(tmp_path, skip_bad_lines=True)


# ---- times ----


@pytest.mark.parametrize(
    ("time", "reason"),
    [
        ("yesterday", r"(timestamp|t) is text, not a number: write a date as a number|yesterday is no time"),
        (-5, r"(timestamp|t) is below 0|-5 is no time"),
        ([3], r"(timestamp|t) is a list, not a number|\[3\] is no time"),
    ],
)
@pytest.mark.parametrize("name", TIMED)
def test_a_time_that_is_none_is_told_in_words(tmp_path: Path, name: str, time: object, reason: str) -> None:
    found = records(name)
    found[7] = timed(found[7], time)
    file = tmp_path / name
    file.write_bytes(text(*found))
    with pytest.raises(WorkloadError, match=rf"line 8: \S*({reason})"):
        read_trace(file)
    log = read(file, text(*found), skip_bad_lines=True)
    assert (len(log), log.bad_lines) == (REQUESTS - 1, 1)


@pytest.mark.parametrize("name", ["mooncake", "bailian", "openai"])
def test_times_that_go_back_are_told(tmp_path: Path, name: str) -> None:
    log = read(tmp_path / name, text(*records(name, lambda number: 10.0 * number + (5000 if number < 20 else 0))))
    assert log.remarks[0].startswith("20 requests are dated up to 4,990 s before a request on an earlier line")
    shuffled = records(name, lambda number: 10.0 * number + (1 - 3 * (number % 2)))  # as requests that end out of order
    assert read(tmp_path / name, text(*shuffled)).remarks == ()


@pytest.mark.parametrize(
    ("name", "factor", "unit"),
    [("statistics", 1e3, "ms"), ("statistics", 1e6, "us"), ("mooncake", 1e-3, "s"), ("mooncake", 1e3, "us")],
)
def test_unix_times_tell_their_unit(tmp_path: Path, name: str, factor: float, unit: str) -> None:
    start = 1.76e9 if name == "mooncake" else 0.0
    found = records(name, lambda number: start + 10.0 * number)
    found = [timed(one, one["timestamp"] * factor) for one in found]
    told = f"the times are Unix times from 2025-10-09 on if they are in {unit}: give their unit with --time-unit {unit}"
    assert read(tmp_path / name, text(*found)).remarks == (told,)
    assert read(tmp_path / name, text(*found), time_unit=unit).remarks == ()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(2.4e7, "requests a second are not plausible"), (1e-4, "requests a second are not plausible"),
     (0.0012, "prompt tokens a second are not plausible")],
)  # fmt: skip
def test_rates_that_no_service_has_are_told(tmp_path: Path, seconds: float, told: str) -> None:
    found = records("mooncake", lambda number: number * seconds)
    assert any(told in one for one in read(tmp_path / "a", text(*found)).remarks)


def test_months_of_a_trace_with_times_of_its_own_are_told(tmp_path: Path) -> None:
    found = [turn(number, number * 3e6) for number in range(1000)]
    assert "35 days of requests are not plausible" in read(tmp_path / "a", text(*found)).remarks[0]


def test_a_unit_is_refused_where_the_format_has_one(tmp_path: Path) -> None:
    assert "have one unit always: leave out time_unit" in refused(tmp_path / "lookups", text(*records("lookups")), time_unit="ms")


# ---- seeds ----


def test_two_seeds_in_one_file_are_told(tmp_path: Path) -> None:
    def recorded(number: int, seed: int) -> dict[str, Any]:
        draw = [random.Random(100 * seed + one).getrandbits(64) for one in range(25 + number % 3)]  # noqa: S311
        return {"timestamp": 1.76e9 + number, "lookup_id": str(number), "chunk_hashes": [hex(one) for one in draw]}

    both = [recorded(number, 1 if number < 15 else 2) for number in range(30)]
    log = read(tmp_path / "a", text(*both))
    assert log.remarks[0].startswith("requests 1 to 15, 16 to 30 repeat their own chunks and none of each other's: if the engine")
    assert read(tmp_path / "a", text(*both[:15])).remarks == ()


# ---- whatever else ----


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(list(FORMATS)), st.sampled_from(["", "gzip", "zstd"]), st.booleans(), st.data())
def test_any_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, pack: str, skip: bool, data: st.DataObject
) -> None:
    content = bytearray({"": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[pack](text(*records(name))))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    try:
        log = read(tmp_path_factory.mktemp("odd") / name, bytes(content), skip_bad_lines=skip)
    except WorkloadError as refusal:
        error = str(refusal)
    else:
        error = ""
    assert "it is empty" not in error or not content.strip()
    if error:
        return
    assert log.offsets[-1] == len(log.chunk_ids)
    assert skip or len(log) >= content.count(b"\n") or pack  # no line is passed over in silence
