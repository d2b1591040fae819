"""Claims about symptoms: for each, when it speaks and when it must not."""

from collections.abc import Callable

import pytest
from observed import CHUNK_SIZE, CONFIG, observation
from real_logs import conversations, log_of

from agent_tools.models import Health, Rung, Severity, Symptom, SymptomCode, TokenCounts
from agent_tools.recommender import symptoms
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.symptoms import diagnose

Rule = Callable[[Observation], Symptom | None]
NEW = log_of(*conversations(50, 8))
"""No prefix twice."""
AGAIN = log_of(*conversations(50, 8), *conversations(50, 8))
"""Every prefix twice: at best half of the tokens are found."""
NO_HITS = TokenCounts(requested=1000 * CHUNK_SIZE)
ALL_HITS = TokenCounts(requested=800 * CHUNK_SIZE, hit_l1=400 * CHUNK_SIZE)


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        (symptoms.eviction_dead, observation(health=Health(healthy=False, problems=("the L1 eviction thread is dead",)))),
        (symptoms.counters_incomplete, observation(dropped_events=1)),
        (symptoms.counters_incomplete, observation(dropped_events=None, total_requests=None)),
        (symptoms.no_data, observation(total_requests=19)),
        (symptoms.no_data, observation(total_requests=None)),
        (symptoms.no_data, observation(tokens=TokenCounts())),
        (symptoms.short_prompts, observation(total_requests=20, short_prompts=10)),
        (symptoms.request_larger_than_l1, observation(log_of(range(513)))),
        (symptoms.watermark_too_high, observation(failed_stores=1, evictions=0, utilization_percent=79)),
        (symptoms.stores_fail, observation(failed_stores=1, stored_chunks=99)),
        (symptoms.nothing_to_reuse, observation(NEW, tokens=NO_HITS)),
        (symptoms.nothing_to_reuse, observation(tokens=NO_HITS)),
        (symptoms.l1_too_small, observation(AGAIN, tokens=NO_HITS, evictions=1)),
        (symptoms.l1_too_small, observation(AGAIN, tokens=NO_HITS, failed_stores=1)),
        (symptoms.evicts_unjudged, observation(evictions=1)),
    ],
)
def test_a_symptom_speaks(rule: Rule, seen: Observation) -> None:
    told = rule(seen)
    assert told is not None
    assert told.summary
    assert told.evidence or told.code is SymptomCode.COUNTERS_INCOMPLETE


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        (symptoms.eviction_dead, observation()),
        (symptoms.counters_incomplete, observation()),
        (symptoms.no_data, observation(total_requests=20)),
        (symptoms.no_data, observation(total_requests=20, short_prompts=20, tokens=TokenCounts())),
        (symptoms.short_prompts, observation(total_requests=20, short_prompts=9)),
        (symptoms.short_prompts, observation(total_requests=0, short_prompts=0)),
        (symptoms.request_larger_than_l1, observation(log_of(range(512)))),
        (symptoms.request_larger_than_l1, observation()),
        (symptoms.watermark_too_high, observation(failed_stores=1, evictions=1, utilization_percent=79)),
        (symptoms.watermark_too_high, observation(failed_stores=1, evictions=0, utilization_percent=80)),
        (symptoms.watermark_too_high, observation(failed_stores=0, evictions=0, utilization_percent=79)),
        (symptoms.stores_fail, observation(failed_stores=1, stored_chunks=100)),
        (symptoms.stores_fail, observation(failed_stores=0)),
        (symptoms.nothing_to_reuse, observation(AGAIN, tokens=NO_HITS)),
        (symptoms.nothing_to_reuse, observation(tokens=NO_HITS, evictions=1)),
        (symptoms.nothing_to_reuse, observation(tokens=NO_HITS, failed_stores=1)),
        (symptoms.nothing_to_reuse, observation(tokens=TokenCounts())),
        (symptoms.l1_too_small, observation(AGAIN, tokens=ALL_HITS, evictions=1)),
        (symptoms.l1_too_small, observation(AGAIN, tokens=NO_HITS)),
        (symptoms.l1_too_small, observation(tokens=NO_HITS, evictions=1)),
        (symptoms.evicts_unjudged, observation(NEW, evictions=1)),
        (symptoms.evicts_unjudged, observation()),
    ],
)
def test_a_symptom_does_not_speak(rule: Rule, seen: Observation) -> None:
    assert rule(seen) is None


def test_a_healthy_cache_has_nothing_wrong() -> None:
    (only,) = diagnose(observation(AGAIN, tokens=ALL_HITS))
    assert (only.code, only.severity) == (SymptomCode.NOTHING_WRONG, Severity.INFO)
    assert "50.0%" in only.summary


def test_the_worst_comes_first() -> None:
    sick = Health(healthy=False, problems=("the L1 eviction thread is dead",))
    told = diagnose(observation(AGAIN, health=sick, failed_stores=10, stored_chunks=90, tokens=NO_HITS, evictions=1))
    order = list(Severity)
    assert [symptom.severity for symptom in told] == sorted((symptom.severity for symptom in told), key=order.index, reverse=True)
    assert told[0].code is SymptomCode.EVICTION_DEAD


def test_what_only_a_log_can_tell_rests_on_the_log() -> None:
    told = {
        symptom.code: symptom.rung for symptom in diagnose(observation(AGAIN, tokens=NO_HITS, evictions=1, failed_stores=500))
    }
    assert told[SymptomCode.L1_TOO_SMALL] is Rung.ACCESS_LOG
    assert told[SymptomCode.STORES_FAIL] is Rung.COUNTERS


def test_without_a_log_it_says_how_to_get_one() -> None:
    (only,) = diagnose(observation(evictions=7))
    assert only.code is SymptomCode.EVICTS_UNJUDGED
    assert "--lookup-hash-log-dir" in only.summary


def test_a_log_of_other_times_is_no_evidence_for_this_window() -> None:
    seen = observation(AGAIN, tokens=NO_HITS, evictions=1)
    assert seen.log is not None
    later = observation(AGAIN, tokens=NO_HITS, evictions=1)
    object.__setattr__(later, "log", log_of(*conversations(50, 8)))  # at second 0 of 1970
    assert later.rung is Rung.COUNTERS
    assert later.curve is None


def test_a_cache_of_unknown_size_or_chunks_is_not_called_too_small() -> None:
    unknown = CONFIG.model_copy(update={"max_size_mb": None})
    assert symptoms.request_larger_than_l1(observation(log_of(range(513)), config=unknown)) is None
    assert symptoms.request_larger_than_l1(observation(log_of(range(513)), kv_bytes_per_token=None)) is None
