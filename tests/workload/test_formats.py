"""Claims about the formats of recorded requests: told apart by content, read with their units, refused in a sentence."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from agent_tools.errors import WorkloadError
from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.workload.readers import read_trace

zstandard = pytest.importorskip("zstandard")


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text(lines(*records), encoding="utf-8")
    return path


def mooncake(*ids: int, at: float = 0, tokens: int | None = None, **more: Any) -> dict[str, Any]:
    length = 512 * len(ids) if tokens is None else tokens
    return {"timestamp": at, "input_length": length, "output_length": 10, "hash_ids": list(ids)} | more


def bailian(*ids: int, at: float, tokens: int) -> dict[str, Any]:
    record = {"chat_id": 1, "parent_chat_id": -1, "timestamp": at, "input_length": tokens, "output_length": 5, "type": "text"}
    return record | {"turn": 1, "hash_ids": list(ids)}


def weka(path: Path, *requests: dict[str, Any], scope: str = "local") -> Path:
    conversation = {"id": "c", "models": ["m"], "block_size": 64, "hash_id_scope": scope, "requests": list(requests)}
    path.write_text(json.dumps(conversation, indent=1), encoding="utf-8")  # over many lines, as such files are
    return path


def turn(t: float, *ids: int) -> dict[str, Any]:
    return {"t": t, "type": "s", "model": "m", "in": 64 * len(ids) + 5, "out": 3, "hash_ids": list(ids)}


# ---- traces of block ids ----


def test_bailians_seconds_and_mooncakes_milliseconds_are_the_same_requests(tmp_path: Path) -> None:
    ids = [(1, 2), (1, 2, 3), (4,)]
    times = [0.5, 61.25, 7000.0]
    seconds = written(tmp_path / "a", *(bailian(*one, at=at, tokens=16 * len(one)) for one, at in zip(ids, times, strict=True)))
    ms = written(
        tmp_path / "b", *(mooncake(*one, at=1000 * at, tokens=16 * len(one)) for one, at in zip(ids, times, strict=True))
    )
    first, second = read_trace(seconds), read_trace(ms, chunk_size=16)
    assert first.timestamps.tolist() == second.timestamps.tolist() == times
    assert first.chunk_ids.tolist() == second.chunk_ids.tolist()
    assert (first.chunk_size, first.source, second.source) == (16, "Qwen-Bailian trace", "Mooncake trace")
    assert "seconds" in first.assumed[0]
    assert "milliseconds" in second.assumed[0]


def test_a_person_can_say_the_unit_and_an_implausible_rate_is_told(tmp_path: Path) -> None:
    file = written(tmp_path / "a", *(mooncake(number, at=number / 10) for number in range(100)))
    assert "not plausible" in read_trace(file, chunk_size=512).remarks[0]
    log = read_trace(file, chunk_size=512, time_unit="s")
    assert (log.duration, log.remarks) == (9.9, ())
    with pytest.raises(WorkloadError, match="weeks is no unit of time"):
        read_trace(file, time_unit="weeks")


def test_a_hole_in_the_times_is_told(tmp_path: Path) -> None:
    file = written(tmp_path / "a", *(mooncake(number, at=1000 * number + (10**9 if number > 50 else 0)) for number in range(100)))
    assert "the clock jumped, or the log has a hole" in read_trace(file, chunk_size=512).remarks[-1]


@pytest.mark.parametrize(
    "requests",
    [
        [(1, 2, 2, 3)] * 3,
        [(100 + number, 2, 3, 4) for number in range(9)],
        [(1, 2, 3, 4), (2, 3, 1, 4), (3, 2, 1, 4), (5, 2, 3, 4)],
    ],
    ids=["twice in a request", "behind another first block", "in any order"],
)
def test_ids_of_single_blocks_are_refused_and_chained_when_asked(tmp_path: Path, requests: list[tuple[int, ...]]) -> None:
    file = written(tmp_path / "a", *(mooncake(*one, at=at) for at, one in enumerate(requests)))
    with pytest.raises(WorkloadError, match=r"do not stand for prefixes: .* --chain|do not stand for prefixes: .*\(--chain\)"):
        read_trace(file)
    log = read_trace(file, chain=True)
    prefixes = {one[: depth + 1] for one in requests for depth in range(4)}
    assert log.unique_chunks == len(prefixes)
    assert "ids stand for single blocks and were chained" in log.assumed
    hit_rate_curve(log)  # keeps the contract of a log


def test_chaining_ids_that_stand_for_prefixes_changes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path / "a", mooncake(1, 2, 3), mooncake(1, 2, 4), mooncake(5))
    assert read_trace(file, chain=True).chunk_ids.tolist() == read_trace(file).chunk_ids.tolist()


def test_the_same_number_at_two_depths_is_two_blocks(tmp_path: Path) -> None:
    file = written(tmp_path / "a", mooncake(1, 2, 3), mooncake(1, 4, 2), mooncake(1, 4, 2))
    log = read_trace(file)
    assert log.chunk_ids.tolist() == [0, 1, 2, 0, 3, 4, 0, 3, 4]
    assert log.remarks == ("an id at two depths of a prompt was counted as two blocks",)


def test_ids_may_have_all_of_64_bits(tmp_path: Path) -> None:
    big = 2**64 - 1
    log = read_trace(written(tmp_path / "a", mooncake(big, big - 1), mooncake(big, 2**63)))
    assert log.chunk_ids.tolist() == [0, 1, 0, 2]


def test_dynamos_aliases_are_read(tmp_path: Path) -> None:
    record = {"created_time": 1500, "input_tokens": 1024, "output_tokens": 8, "hash_ids": [1, 2]}
    log = read_trace(written(tmp_path / "a", record, record | {"created_time": 3000}), chunk_size=512)
    assert (log.tokens.tolist(), log.timestamps.tolist()) == ([1024, 1024], [1.5, 3.0])


def test_turns_with_a_pause_follow_the_answer_before_them(tmp_path: Path) -> None:
    session = {"session_id": "s", "input_length": 1024, "output_length": 100, "hash_ids": [1, 2]}
    later = session | {"input_length": 1536, "hash_ids": [1, 2, 3], "delay": 2500}
    file = written(tmp_path / "a", session | {"timestamp": 1000}, later, later)
    log = read_trace(file, chunk_size=512)
    assert log.timestamps.tolist() == [1.0, 1 + 100 * 0.02 + 2.5, 1 + 2 * (100 * 0.02 + 2.5)]
    assert log.sessions is not None
    assert log.think_seconds is not None
    assert log.think_seconds.tolist()[1:] == [2.5, 2.5]
    assert any("closed loop" in one for one in log.assumed)
    assert hit_rate_curve(log).ceiling() == pytest.approx((2 + 3) / 8)


def test_a_session_may_be_one_line(tmp_path: Path) -> None:
    turns = [{"timestamp": 1, "input_length": 512, "hash_ids": [1]}, {"timestamp": 9, "input_length": 1024, "hash_ids": [1, 2]}]
    log = read_trace(written(tmp_path / "a", {"session_id": "s", "turns": turns}))
    assert log.tokens.tolist() == [512, 1024]
    assert log.timestamps.tolist() == pytest.approx([0.001, 0.009])


def test_turns_in_one_line_may_pause_instead_of_having_a_time(tmp_path: Path) -> None:
    turns = [{"timestamp": 1000, "input_length": 512, "output_length": 50, "hash_ids": [1]}]
    turns += [{"delay": 2500, "input_length": 1024, "output_length": 50, "hash_ids": [1, 2]}]
    log = read_trace(written(tmp_path / "a", {"session_id": "s", "turns": turns}, {"turns": turns, "model": "m"}))
    assert log.timestamps.tolist() == pytest.approx([1.0, 1.0, 4.5, 4.5])  # an answer of 50 tokens takes a second
    assert log.think_seconds is not None
    assert log.think_seconds.tolist()[2:] == [2.5, 2.5]
    assert log.sessions is not None
    assert len(set(log.sessions.tolist())) == 2
    assert set(log.model_names) == {"", "m"}
    bad = {"session_id": "s", "turns": [*turns, {"delay": 1, "input_length": 512}]}
    with pytest.raises(WorkloadError, match=r"line 1: no hash_ids - at `\$.turns\[2\]`"):
        read_trace(written(tmp_path / "b", bad))


def test_a_line_without_a_time_and_without_a_session_is_broken(tmp_path: Path) -> None:
    whole = mooncake(1, 2)
    del whole["timestamp"]
    file = written(tmp_path / "a", mooncake(1, 2), whole)
    with pytest.raises(WorkloadError, match=r"line 2: no timestamp \(or created_time\), and no session_id"):
        read_trace(file)


# ---- Weka ----


def test_a_conversation_is_a_file_and_its_local_ids_mean_nothing_elsewhere(tmp_path: Path) -> None:
    weka(tmp_path / "1.json", turn(0, 1, 2), turn(5, 1, 2, 3))
    weka(tmp_path / "2.json", turn(0, 1, 2))
    log = read_trace(tmp_path)
    assert (len(log), log.chunk_size, log.unique_chunks, log.model_names) == (3, 64, 5, ("m",))
    weka(tmp_path / "1.json", turn(0, 1, 2), turn(5, 1, 2, 3), scope="global")
    weka(tmp_path / "2.json", turn(0, 1, 2), scope="global")
    assert read_trace(tmp_path).unique_chunks == 3


def test_requests_of_nested_sub_agents_count_and_share_the_conversations_ids(tmp_path: Path) -> None:
    inner = {"t": 2.0, "type": "subagent", "requests": [turn(2.5, 1, 7)]}
    outer = {"t": 1.0, "type": "subagent", "requests": [turn(1.5, 1, 2, 8), inner]}
    log = read_trace(weka(tmp_path / "1.json", turn(0, 1, 2), outer, turn(9, 1, 2, 3)))
    assert log.timestamps.tolist() == [0, 1.5, 2.5, 9]
    assert log.unique_chunks == 5
    assert log.remarks == ("the requests of 2 sub-agents were counted with their conversation's",)


def test_a_conversation_that_was_cut_is_told(tmp_path: Path) -> None:
    whole = weka(tmp_path / "1.json", turn(0, 1, 2)).read_text()
    (tmp_path / "1.json").write_text(whole[:-9])
    with pytest.raises(WorkloadError, match=r"1\.json is no whole JSON document .* it was cut"):
        read_trace(tmp_path / "1.json")


# ---- packed files, folders ----


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gzip", "zstd"])
def test_packed_files_are_unpacked_whatever_their_name(tmp_path: Path, pack: Any) -> None:
    first, second = lines(mooncake(1, 2, tokens=1025)).encode(), lines(mooncake(1, 3, at=1)).encode()
    file = tmp_path / "trace"
    file.write_bytes(pack(first) + pack(second))
    assert read_trace(file, chunk_size=512).chunk_ids.tolist() == [0, 1, 0, 2]
    file.write_bytes(pack(first) + pack(second)[:-4])
    with pytest.raises(WorkloadError, match=r"was cut short|damaged"):
        read_trace(file, chunk_size=512)


def test_a_folder_is_one_trace(tmp_path: Path) -> None:
    written(tmp_path / "2.jsonl", mooncake(1, 3, at=5))
    (tmp_path / "1.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines(mooncake(1, 2, tokens=1025)).encode()))
    assert read_trace(tmp_path, chunk_size=512).chunk_ids.tolist() == [0, 1, 0, 2]


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    written(tmp_path / "1.jsonl", mooncake(1, 2))
    written(tmp_path / "2.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    with pytest.raises(WorkloadError, match=r"mixes formats: 1 of a Mooncake trace \(1\.jsonl\), 1 of chat requests"):
        read_trace(tmp_path)


@pytest.mark.parametrize("header", ["TIMESTAMP,ContextTokens,GeneratedTokens", "Timestamp,Model,Request tokens,Response tokens"])
def test_lengths_alone_are_no_trace(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n1,2,3\n")
    with pytest.raises(WorkloadError, match="states only the lengths of requests"):
        read_trace(tmp_path / "a.csv")


# ---- LMCache's chunk statistics ----


def recorded(number: int, *hashes: int, at: float = 1.76e9) -> dict[str, Any]:
    return {"timestamp": at + number, "lookup_id": f"req-{number}", "chunk_hashes": [hex(one) for one in hashes]}


def test_the_last_chunk_counts_only_where_another_request_goes_on_behind_it(tmp_path: Path) -> None:
    file = written(tmp_path / "any name", recorded(0, 0xA1, 0xB2), recorded(1, 0xA1, 0xB2, 0xC), recorded(2, 0xD))
    log = read_trace(file)
    assert log.chunks_per_request.tolist() == [2, 2, 0]
    assert log.chunk_size == 256
    assert any("LMCache's default" in one for one in log.assumed)
    assert "the last chunk of a request is only started, unless another request goes on behind it" in log.assumed


def engine_line(number: int, tokens: int, own: int, hit: int) -> str:
    return (
        f"INFO Reqid: req-{number}, Total tokens {tokens}, Inference Engine computed tokens: {own}, LMCache hit tokens: {hit},"
        f" need to load: {max(0, hit - own)}\n"
    )


def test_the_engines_log_tells_tokens_chunk_size_and_what_was_measured(tmp_path: Path) -> None:
    file = written(tmp_path / "a", recorded(0, 1, 2), recorded(1, 1, 2, 3), recorded(2, 9))
    log_file = tmp_path / "engine.log"
    log_file.write_text("starting\n" + engine_line(0, 128, 0, 0) + engine_line(1, 130, 16, 128) + engine_line(2, 64, 0, 0))
    log = read_trace(file, engine_log=log_file)
    assert (log.chunk_size, log.tokens.tolist(), log.chunks_per_request.tolist()) == (64, [128, 130, 64], [2, 2, 1])
    assert "39.8% of the prompt tokens were in LMCache, 5.0% in the engine's own cache, and LMCache saved 34.8%" in log.remarks[0]
    with pytest.raises(WorkloadError, match="do not fit chunks of 128 tokens"):
        read_trace(file, engine_log=log_file, chunk_size=128)
    log_file.write_text(engine_line(77, 128, 0, 0))
    with pytest.raises(WorkloadError, match="only 0 of the 3 recorded requests stand in the engine's log"):
        read_trace(file, engine_log=log_file)
    log_file.write_text("nothing\n")
    with pytest.raises(WorkloadError, match="has no line of LMCache for a request"):
        read_trace(file, engine_log=log_file)


def test_files_of_two_processes_with_different_seeds_are_not_joined(tmp_path: Path) -> None:
    for process in (1, 2):
        prompts = [recorded(n, *(1000 * process + one for one in range(30)), at=1.76e9 + 1000 * process) for n in range(3)]
        written(tmp_path / f"chunk_hashes_{1760000000 + process}_000000.jsonl", *prompts)
    with pytest.raises(WorkloadError, match=r"2 groups that have no chunk hash in common .*PYTHONHASHSEED"):
        read_trace(tmp_path)
    assert len(read_trace(tmp_path / "chunk_hashes_1760000001_000000.jsonl")) == 3


def test_rotated_files_of_one_process_are_one_log_and_the_newest_may_end_in_half_a_line(tmp_path: Path) -> None:
    written(tmp_path / "chunk_hashes_1760000000_000000.jsonl", *(recorded(n, *range(1, 30)) for n in range(2)))
    newest = tmp_path / "chunk_hashes_1760000500_000001.jsonl"
    newest.write_text(lines(recorded(5, *range(1, 30))) + json.dumps(recorded(6, 1))[:-8])
    assert len(read_trace(tmp_path)) == 3
    with pytest.raises(WorkloadError, match="line 2"):
        read_trace(newest)


def test_a_clock_that_was_set_back_is_told(tmp_path: Path) -> None:
    log = read_trace(written(tmp_path / "a", recorded(100, 1, 2), recorded(0, 1, 2, 3)))
    assert "the clock was set back 1 times" in log.remarks[0]
