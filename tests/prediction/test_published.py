"""Excerpts made by ourselves in the public formats, small enough to count by hand, and the published figures on whole traces."""

import json
from pathlib import Path

import pytest
from random_logs import trace

from agent_tools.workload.readers import read_trace
from benchmarks.published import CHECKED, figures, reuses_of_the_top

MOONCAKE = [
    # three chats behind one system prompt of two blocks, and one request alone; times in ms, blocks of 512 tokens
    (0, 2200, [0, 1, 2, 3, 4]),
    (400, 1500, [0, 1, 5]),
    (900, 2700, [0, 1, 2, 3, 6, 7]),
    (1300, 600, [8, 9]),
    (2100, 2048, [0, 1, 5, 10]),
]
"""(timestamp, input_length, hash_ids). Whole blocks: 4, 2, 5, 1, 4, so 16. Found again: 0, 2, 4, 0, 2, so 8: block 5 was not
whole the first time, and counts as new the second."""
BAILIAN = [
    # a conversation of two turns and a stranger; times in s, blocks of 16 tokens
    {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 48, "output_length": 20, "type": "text", "turn": 1,
     "hash_ids": [1, 2, 3]},
    {"chat_id": 2, "parent_chat_id": -1, "timestamp": 1.5, "input_length": 33, "output_length": 9, "type": "text", "turn": 1,
     "hash_ids": [4, 5, 6]},
    {"chat_id": 3, "parent_chat_id": 1, "timestamp": 2.0, "input_length": 80, "output_length": 9, "type": "text", "turn": 2,
     "hash_ids": [1, 2, 3, 7, 8]},
]  # fmt: skip
"""Whole blocks: 3, 2, 5, so 10, of which 3 are found again."""


def test_a_mooncake_excerpt_counted_by_hand(tmp_path: Path) -> None:
    lines = [{"timestamp": time, "input_length": length, "output_length": 9, "hash_ids": ids} for time, length, ids in MOONCAKE]
    (tmp_path / "excerpt.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    log = read_trace(tmp_path / "excerpt.jsonl")
    assert (log.chunk_size, log.duration) == (512, pytest.approx(2.1))
    ideal, of_three, of_fifty, _ = figures(log)
    assert ideal.ours == pytest.approx(8 / 16)
    assert of_three.ours == of_fifty.ours == 1


def test_a_qwen_bailian_excerpt_counted_by_hand(tmp_path: Path) -> None:
    (tmp_path / "excerpt.jsonl").write_text("".join(json.dumps(line) + "\n" for line in BAILIAN), encoding="utf-8")
    log = read_trace(tmp_path / "excerpt.jsonl")
    assert (log.chunk_size, log.duration) == (16, pytest.approx(2.0))
    assert figures(log)[0].ours == pytest.approx(3 / 10)
    assert reuses_of_the_top(log) == pytest.approx(1 / 3)  # one of the seven blocks is the top tenth; three come again once
    assert reuses_of_the_top(log, 3 / 7) == 1


@pytest.mark.parametrize("kind", CHECKED)
def test_the_command_prints_figures_near_the_published_ones(kind: str) -> None:
    for one in figures(trace(f"mooncake_{kind}"), kind):
        if one.published is not None:
            assert one.ours == pytest.approx(one.published, abs=0.03), one.name  # the paper rounds, and Fig. 9 is read off
