"""Claims about when the requests of a replay start, and about the prompts they send."""

import threading
from dataclasses import replace
from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent_tools.workload.access_log import AccessLog, renumber
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.schedule import ReplaySettings, Schedule, builds_on, first_that_fit, turns_before
from agent_tools.workload.tokens import VOCABULARY, marks, prompt


def made(requests: list[list[int]], seconds_apart: float = 1) -> AccessLog:
    ids, _ = renumber(np.array([chunk for request in requests for chunk in request], dtype=np.int64))
    count = len(requests)
    return AccessLog(
        chunk_size=16,
        chunk_ids=ids,
        offsets=np.cumsum([0, *map(len, requests)]),
        tokens=np.array([16 * len(request) for request in requests]),
        timestamps=np.arange(count) * seconds_apart,
        tenants=np.zeros(count, dtype=np.int16),
        models=np.zeros(count, dtype=np.int16),
    )


@given(st.lists(st.lists(st.integers(0, 9), max_size=6, unique=True), max_size=12))
def test_a_request_builds_on_the_first_one_that_had_its_longest_known_prefix(requests: list[list[int]]) -> None:
    owner: dict[int, int] = {}
    expected = []
    for number, request in enumerate(requests):
        expected.append(max([owner[chunk] for chunk in request if chunk in owner], default=-1))
        for chunk in request:
            owner.setdefault(chunk, number)
    assert builds_on(made(requests)).tolist() == expected


def test_requests_are_given_out_in_order_but_not_before_what_they_build_on_has_ended() -> None:
    schedule = Schedule(made([[0], [1], [0, 2]]), ReplaySettings())
    schedule.begin()
    assert [schedule.next_request(), schedule.next_request()] == [0, 1]
    given_out: list[int | None] = []
    other = threading.Thread(target=lambda: given_out.append(schedule.next_request()))
    other.start()
    schedule.ended(1)
    assert given_out == []
    schedule.ended(0)
    other.join()
    assert given_out == [2]
    assert schedule.next_request() is None


def of_sessions(sessions: list[int], seconds: list[float], think: list[float]) -> AccessLog:
    log = made([[number] for number in range(len(sessions))])
    return replace(
        log, timestamps=np.array(seconds), sessions=np.array(sessions, np.int32), think_seconds=np.array(think, np.float64)
    )


def test_a_turn_with_a_think_time_waits_for_the_turn_before_in_its_session() -> None:
    sessions, think = [0, 1, -1, 0, 1, -1, 0], [nan, nan, nan, 1, nan, nan, 1]
    assert turns_before(of_sessions(sessions, list(range(7)), think)).tolist() == [-1, -1, -1, 0, -1, -1, 3]
    assert turns_before(made([[0], [1]])).tolist() == [-1, -1]


def test_a_late_answer_delays_the_sessions_next_turn_and_nobody_elses() -> None:
    # a session of three turns half a second apart, and a stranger in between; the pace makes seconds of hundredths
    log = of_sessions([0, -1, 0, -1, 0], [0, 30, 50, 70, 100], [nan, nan, 50, nan, 50])
    schedule = Schedule(log, ReplaySettings(pace=1000.0))
    schedule.begin()
    assert [schedule.next_request(), schedule.next_request(), schedule.next_request()] == [0, 1, 3]
    schedule.ended(1)
    schedule.ended(3)
    late = schedule.now()
    schedule.ended(0)
    assert schedule.next_request() == 2
    assert schedule.started[2] >= late + 0.05
    ended = schedule.now()
    schedule.ended(2)
    assert schedule.next_request() == 4
    assert schedule.started[4] >= ended + 0.05
    schedule.ended(4)
    assert schedule.next_request() is None


def test_a_turn_that_its_time_limit_forbids_ends_the_replay() -> None:
    log = of_sessions([0, 0], [0, 1_000], [nan, 1_000])
    schedule = Schedule(log, ReplaySettings(pace=1.0, limit_seconds=0.2))
    schedule.begin()
    assert schedule.next_request() == 0
    schedule.ended(0)
    assert schedule.next_request() is None


def test_a_halted_schedule_gives_out_nothing_even_to_those_who_wait() -> None:
    schedule = Schedule(made([[0], [1]], seconds_apart=1_000), ReplaySettings(pace=1.0))
    schedule.begin()
    assert schedule.next_request() == 0
    given_out: list[int | None] = []
    waiting = threading.Thread(target=lambda: given_out.append(schedule.next_request()))
    waiting.start()
    schedule.halted.set()
    waiting.join(timeout=5)
    assert given_out == [None]
    assert np.isnan(schedule.started[1])


@pytest.mark.parametrize("bad", [{"clients": 0}, {"pace": 0}, {"kv_bytes_per_token": 6}, {"limit_seconds": 0}, {"speed": 1}])
def test_settings_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ReplaySettings.model_validate(bad)


def test_the_first_requests_that_fit_arrive_over_the_whole_time() -> None:
    log = made([[number] for number in range(100)], seconds_apart=10)
    part, pace = first_that_fit(log, 5, requests_per_second=20, chunks_per_second=20)
    assert (len(part), part.duration, pace) == (50, 490, 98)
    assert part.chunk_ids.tolist() == list(range(50))


def test_a_log_is_never_slowed_down_to_fill_the_time() -> None:
    log = made([[0], [1]], seconds_apart=1)
    part, pace = first_that_fit(log, 60)
    assert (len(part), pace) == (2, 1.0)


def test_a_time_that_not_one_request_fits_into_is_refused() -> None:
    with pytest.raises(ValueError, match="not even one request fits"):
        first_that_fit(made([[0]]), 0.001)


def test_prompts_repeat_exactly_where_chunk_ids_do() -> None:
    log = AgentTraffic(requests=100).generate()
    prompts: dict[tuple[int, ...], int] = {}
    for number in range(len(log)):
        tokens = prompt(log.request(number), int(log.tokens[number]), 256)
        assert len(tokens) == log.tokens[number]
        assert max(tokens) < VOCABULARY
        for index, chunk in enumerate(log.request(number).tolist()):
            assert prompts.setdefault(tokens[256 * index : 256 * (index + 1)], chunk) == chunk
    assert len(prompts) == log.unique_chunks


def test_prompts_are_the_same_on_every_machine() -> None:
    assert prompt(np.array([0, 70_000], dtype=np.int32), 10, 4) == (15535, 19700, 25679, 30444, 1354, 22563, 18072, 7209, 0, 0)


def test_marks_tell_all_chunks_apart_and_are_never_zero() -> None:
    found = marks(np.arange(1_000_000, dtype=np.int32))
    assert len(np.unique(found)) == 1_000_000
    assert found.all()
