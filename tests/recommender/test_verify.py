"""Claims about verification: what is called better, worse or undecided, and what that rests on."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from observed import CONFIG, QUIET, START, as_served, observation

from agent_tools.models import TokenCounts, Verification, VerificationVerdict, Window
from agent_tools.models.change import Baseline
from agent_tools.models.engine import EngineMetrics, TimeToFirstToken
from agent_tools.models.metrics import utc
from agent_tools.recommender.modelled import MODEL_OFF, hits_since_change, predicted_rate, server_setting
from agent_tools.recommender.verify import LEAST_INTERVALS, verify
from agent_tools.workload.generate import AgentTraffic

AGENTS = AgentTraffic(requests=900, seed=11).generate()


def baseline(rate: float, *, readings: int = 60, noise: float = 0.0, digest: str | None = None, tokens: int = 25_600) -> Baseline:
    """A window of one-second readings with a hit rate of about so much."""
    rates = np.clip(rate + noise * np.random.default_rng(readings).standard_normal(readings), 0, 1)
    intervals = tuple((tokens, int(tokens * one)) for one in rates)
    counts = TokenCounts(requested=sum(i[0] for i in intervals), hit_l1=sum(i[1] for i in intervals))
    window = Window(start=START, end=START + timedelta(seconds=readings))
    return Baseline(
        metrics=QUIET.model_copy(update={"tokens": counts, "window": window}), intervals=intervals, requests_digest=digest
    )


def judged(before: Baseline, after: Baseline, *, in_force: bool = True) -> Verification:
    """The verdict where there is no log for the model to go by."""
    return verify(before, after, in_force=in_force, seen=observation(), old=None)


def test_a_clear_rise_is_better() -> None:
    told = judged(baseline(0.5, noise=0.02), baseline(0.7, noise=0.02))
    assert told.verdict is VerificationVerdict.BETTER
    assert told.gain is not None
    assert told.gain.estimate == pytest.approx(0.2, abs=0.01)
    assert 0.15 < told.gain.lower < told.gain.upper < 0.25
    assert "50." in told.why or "49." in told.why


def test_what_the_engine_measured_is_told() -> None:
    before, after = (at_the_engine(baseline(rate), mean) for rate, mean in ((0.4, 900.0), (0.8, 300.0)))
    assert "time to first token 900 ms (p50 900, p95 900, p99 900) before, 300 ms" in judged(before, after).why
    assert "time to first token" not in judged(baseline(0.4), after).why


def at_the_engine(window: Baseline, mean: float) -> Baseline:
    ttft = TimeToFirstToken(mean=mean, p50=mean, p95=mean, p99=mean)
    counts = {"requests": 9, "prompt_tokens": 9, "computed_tokens": 9, "own_cache_tokens": 0, "lmcache_tokens": 0}
    engine = EngineMetrics(seconds=60, ttft_ms=ttft, **counts)
    return window.model_copy(update={"metrics": window.metrics.model_copy(update={"engine": engine})})


def test_a_clear_fall_is_worse() -> None:
    assert judged(baseline(0.7, noise=0.02), baseline(0.5, noise=0.02)).verdict is VerificationVerdict.WORSE


def test_a_difference_inside_the_noise_is_undecided() -> None:
    told = judged(baseline(0.5, noise=0.3, readings=20), baseline(0.52, noise=0.3, readings=20))
    assert told.verdict is VerificationVerdict.UNDECIDED
    assert "the interval includes zero" in told.why


def test_undecided_says_how_long_a_window_would_have_to_be() -> None:
    told = judged(baseline(0.5, noise=0.3, readings=20), baseline(0.58, noise=0.3, readings=20))
    assert told.verdict is VerificationVerdict.UNDECIDED
    gain = told.gain
    assert gain is not None
    needed = int(told.why.split("about ")[1].split(" s")[0])
    assert needed == pytest.approx(20 * ((gain.upper - gain.lower) / 2 / gain.estimate) ** 2, abs=1)
    assert needed > 20


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_no_difference_at_all_is_undecided(rate: float) -> None:
    assert judged(baseline(rate), baseline(rate)).verdict is VerificationVerdict.UNDECIDED


@pytest.mark.parametrize(("before", "after"), [(LEAST_INTERVALS - 1, 60), (60, LEAST_INTERVALS - 1), (60, 0), (0, 60)])
def test_too_few_readings_are_undecided_whatever_they_say(before: int, after: int) -> None:
    told = judged(baseline(0.1, readings=before), baseline(0.9, readings=after))
    assert told.verdict is VerificationVerdict.UNDECIDED
    assert told.gain is None
    assert "observe for longer" in told.why


def test_settings_that_are_not_in_force_have_proved_nothing() -> None:
    told = judged(baseline(0.5), baseline(0.9), in_force=False)
    assert told.verdict is VerificationVerdict.UNDECIDED
    assert not told.in_force
    assert "does not read back the settings that were set" in told.why


def test_the_same_requests_make_a_pair() -> None:
    assert judged(baseline(0.5, digest="a"), baseline(0.9, digest="a")).paired
    assert not judged(baseline(0.5, digest="a"), baseline(0.9, digest="b")).paired
    assert not judged(baseline(0.5), baseline(0.9)).paired


def test_it_is_the_same_every_time() -> None:
    one, other = (judged(baseline(0.5, noise=0.1), baseline(0.6, noise=0.1)) for _ in range(2))
    assert one == other


def test_other_requests_are_compared_with_what_the_old_setting_would_have_given_on_them() -> None:
    larger = CONFIG.model_copy(update={"max_size_mb": 48})
    seen = as_served(AGENTS, config=larger)
    before = baseline(0.95, digest="another day's requests, easier to cache")
    after = Baseline(metrics=seen.metrics, requests_digest="today's")
    told = verify(before, after, in_force=True, seen=seen, old=server_setting(seen, {"max_size_mb": 16}))
    assert told.verdict is VerificationVerdict.BETTER
    assert told.paired
    assert told.gain is not None
    assert "minus the model's hit rate for the old setting" in told.gain.method


def test_a_cache_that_just_grew_is_judged_by_what_it_then_held() -> None:
    """A small cache just made larger has nothing to evict for a while, so it serves more than one that always was as large."""
    seen = as_served(AGENTS, config=CONFIG.model_copy(update={"max_size_mb": 30}))
    assert seen.log is not None
    times = seen.log.timestamps
    window = Window(start=utc(float(times[500])), end=utc(float(times[560])))
    seen = replace(seen, metrics=seen.metrics.model_copy(update={"window": window}), predicted={})
    old, new = server_setting(seen, {"max_size_mb": 10}), server_setting(seen)
    assert old is not None
    assert new is not None
    rate = hits_since_change(seen, old, new).rate
    asked = int(seen.window_chunks.sum()) * 256
    served = seen.metrics.model_copy(update={"tokens": TokenCounts(requested=asked, hit_l1=int(asked * rate))})
    seen = replace(seen, metrics=served, predicted={})
    assert abs(rate - predicted_rate(seen, new)) > MODEL_OFF
    told = verify(baseline(0.5, readings=1), Baseline(metrics=served), in_force=True, seen=seen, old=old)
    assert told.paired


def test_where_the_model_does_not_explain_what_is_measured_it_is_not_used() -> None:
    seen = as_served(AGENTS, config=CONFIG.model_copy(update={"max_size_mb": 48}))
    tokens = seen.metrics.tokens
    off = TokenCounts(requested=tokens.requested, hit_l1=int(tokens.hit * 0.8))
    object.__setattr__(seen, "metrics", seen.metrics.model_copy(update={"tokens": off}))
    told = verify(baseline(0.5), baseline(0.6), in_force=True, seen=seen, old=server_setting(seen, {"max_size_mb": 16}))
    assert not told.paired
    assert told.gain is not None
    assert "readings" in told.gain.method
