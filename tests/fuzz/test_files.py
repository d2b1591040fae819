"""Claims about every file we read: lookup-hash logs, traces, the operator's settings, the change log.

Garbled, torn or hostile, it is read for what it holds or refused with the documented error; nothing else, and not for long.
"""

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st

from agent_tools.caches.settings import Settings
from agent_tools.changes.log import ChangeLog
from agent_tools.errors import SettingsError, WorkloadError
from agent_tools.models import ChangeOutcome, ChangeRecord
from agent_tools.models.metrics import now
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.lookup_log import read_lookup_log
from agent_tools.workload.readers import read_mooncake, read_trace

LOOKUP: dict[str, Any] = {
    "timestamp": 1.0,
    "request_id": "r",
    "model_name": "m",
    "chunk_size": 2,
    "seq_len": 5,
    "dtypes": ["torch.bfloat16"],
    "shapes": [[2, 1, 2, 4]],
    "chunk_hashes": ["0x" + "ab" * 8, "0x" + "cd" * 8],
}
REQUEST: dict[str, Any] = {"timestamp": 1000, "input_length": 5, "hash_ids": [0, 1, 2]}
ODD = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            -1,
            0,
            2**31,
            2**62,
            2**63,
            2**64,
            10**40,
            1e308,
            1e400,
            0.5,
            "",
            "0x",
            [],
            {},
            [[]],
            [-1],
            ["0x1"],
            "\ud800",
        ]
    ),
    st.floats(),
    st.integers(),
    st.text(max_size=5),
    st.lists(st.integers(-(2**63), 2**64), max_size=4),
)


def broken(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Lines of a file: good ones, ones with odd fields, torn ones and noise."""
    changed = st.dictionaries(st.sampled_from([*good, "more"]), ODD, max_size=2).map(lambda odd: json.dumps(good | odd).encode())
    torn = st.integers(0, len(json.dumps(good))).map(lambda cut: json.dumps(good).encode()[:cut])
    later = st.floats(-1e12, 1e12).map(lambda at: json.dumps(good | {"timestamp": at, "request_id": str(at)}).encode())
    line = st.one_of(changed, torn, later, st.binary(max_size=20), st.just(b"[" * 5000), st.just(json.dumps(good).encode()))
    ends = st.sampled_from([b"\n", b"\r\n", b"\n\n"])
    return st.tuples(st.lists(line, max_size=6), ends, st.booleans()).map(lambda made: made[1].join(made[0]) + made[1] * made[2])


def check(log: AccessLog) -> None:
    """What computes with a log relies on all of this."""
    assert log.chunk_size > 0
    assert len(log) == len(log.timestamps) == len(log.tenants) == len(log.models) == len(log.offsets) - 1
    assert (np.diff(log.offsets) >= 0).all()
    assert log.offsets[-1] == len(log.chunk_ids)
    assert log.unique_chunks == len(set(log.chunk_ids.tolist()))
    assert np.isfinite(log.timestamps).all()
    assert (np.diff(log.timestamps) >= 0).all()
    assert (log.chunks_per_request * log.chunk_size <= log.tokens).all()
    assert log.chunk_bytes is None or log.chunk_bytes >= 0
    assert (log.models < len(log.model_names)).all()


@pytest.mark.parametrize(
    ("read", "good"), [(read_lookup_log, LOOKUP), (read_mooncake, REQUEST), (read_trace, LOOKUP), (read_trace, REQUEST)]
)
@tried(40, 3000)
@given(data=st.data())
def test_any_log_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, read: Callable[..., AccessLog], good: dict[str, Any], data: st.DataObject
) -> None:
    content = data.draw(broken(good))
    if data.draw(st.booleans()):
        content = gzip.compress(content)
        content = content[: data.draw(st.integers(2, len(content)))]
    file = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    file.write_bytes(content)
    for skip in (False, True):
        try:
            log = read(file, chunk_size=data.draw(st.sampled_from([None, 2])), skip_bad_lines=skip)
        except WorkloadError:
            continue
        check(log)


@pytest.mark.parametrize("read", [read_lookup_log, read_mooncake, read_trace])
@pytest.mark.parametrize(
    "content", [b"[" * 2**22, b'{"a":' * 2**19, b"\n" * 2**22, b'{"chunk_hashes": "' + b"x" * 2**22, b"1" * 2**22]
)
def test_a_log_made_to_take_long_does_not(tmp_path: Path, read: Callable[..., AccessLog], content: bytes) -> None:
    (tmp_path / "log.jsonl").write_bytes(content)
    began = time.process_time()
    with pytest.raises(WorkloadError):
        read(tmp_path / "log.jsonl")
    assert time.process_time() - began < 5


# ---- the operator's settings ----

keys = st.sampled_from(
    ["target", "bounds", "access_log", "networks", "addresses", "timeout_seconds", "embedded", "simulated", "engine"]
)
toml = st.recursive(
    st.sampled_from(
        ["1", "-1", "nan", "inf", "true", '""', '"x"', '"\\u0000"', '"http://h:1"', "1979-05-27", "0x10", "'''a", "{", "[", "= ="]
    ),
    lambda inner: (
        st.lists(inner, max_size=2).map(lambda many: f"[{', '.join(many)}]")
        | st.dictionaries(st.sampled_from(["max_size_mb", "l2_adapter", "type", "x"]), inner, max_size=2).map(
            lambda many: "{" + ", ".join(f"{name} = {one}" for name, one in many.items()) + "}"
        )
    ),
    max_leaves=5,
)


@tried(60, 3000)
@given(lines=st.lists(st.tuples(keys, toml).map(" = ".join) | st.text(max_size=20), max_size=4), noise=st.binary(max_size=4))
def test_any_settings_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, lines: list[str], noise: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "caches.toml"
    file.write_bytes("\n".join(["[caches.a]", *lines]).encode("utf-8", "surrogatepass") + b"\n" + noise)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LMCACHE_AGENT_SETTINGS", str(file))
        try:
            settings = Settings.load()
        except SettingsError as error:
            assert str(error).isprintable()  # noqa: PT017  not all raise
            return
    assert settings.caches.keys() <= {"a"} or "caches" in "".join(lines)


# ---- the change log ----

RECORD = ChangeRecord(
    change_id="change-1", recorded_at=now(), cache="c", actor="a", operation="clear", outcome=ChangeOutcome.APPLIED
)
garbage = st.one_of(
    st.integers(0, len(RECORD.model_dump_json()) - 1).map(lambda cut: RECORD.model_dump_json().encode()[:cut]),
    st.binary(max_size=30).filter(lambda raw: b"\n" not in raw),
    st.sampled_from([b"\0" * 100, b"\xff\xfe", b'{"a":', b"[" * 3000, b"nan", b"\r"]),
)


@tried(60, 3000)
@given(before=st.lists(garbage, max_size=3), after=st.lists(garbage, max_size=3))
def test_garbled_lines_of_the_change_log_cost_no_record(
    tmp_path_factory: pytest.TempPathFactory, before: list[bytes], after: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "changes.jsonl"
    path.write_bytes(b"\n".join([*before, RECORD.model_dump_json().encode(), *after]))
    log = ChangeLog(path)
    assert log.records() == [RECORD]
    blank = sum(not line.strip() for line in before + after)
    assert len(log.problems()) == min(len(before + after) - blank, 6)
    assert not any("another version" in one for one in log.problems() if not any(map(_is_json, before + after)))
    log.append(RECORD)
    assert log.records() == [RECORD, RECORD]
    assert log.last_clear("c") == RECORD.recorded_at


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
