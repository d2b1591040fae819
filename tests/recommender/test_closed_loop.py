"""Claims about advice that was followed: the next look is calm, or what it advises then is predicted strictly better."""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from observed import CONFIG, as_served, observation
from real_logs import conversations, log_of

from agent_tools.models import ActionKind, Advice, Bounds, CacheConfig, L2Adapter, SymptomCode, TokenCounts, Verdict
from agent_tools.recommender.modelled import predicted_rate, server_setting
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.recommend import recommend
from agent_tools.recommender.refusals import refusals
from agent_tools.recommender.symptoms import diagnose
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

STEPS = 5
L2 = L2Adapter(type="mock", settings={"max_size_gb": 24 / 1024})
TRAFFIC = st.builds(
    AgentTraffic,
    requests=st.integers(60, 300),
    conversations=st.integers(2, 60),
    turns=st.integers(1, 10),
    tool_tokens=st.sampled_from([100, 600, 1500, 4000]),
    tenants=st.integers(1, 3),
    spread=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
SETTINGS = st.fixed_dictionaries(
    {
        "max_size_mb": st.sampled_from([1.0, 4.0, 8.0, 16.0, 40.0]),
        "eviction_watermark": st.sampled_from([0.4, 0.8, 0.9, 0.95]),
        "eviction_ratio": st.sampled_from([0.05, 0.2, 0.5]),
        "l2_adapters": st.sampled_from([(), (), (L2,)]),
    }
)
BOUNDS = st.builds(
    Bounds,
    max_size_mb=st.sampled_from([None, 16.0, 64.0]),
    trial_mb=st.sampled_from([0.0, 8.0]),
    l2_adapter=st.sampled_from([None, L2]),
    allow_restart=st.booleans(),
)


def rate(log: AccessLog, config: CacheConfig) -> float:
    seen = observation(log, config=config)
    setting = server_setting(seen)
    assert setting is not None
    return predicted_rate(seen, setting)


def followed(log: AccessLog, config: CacheConfig, bounds: Bounds) -> list[tuple[CacheConfig, Advice]]:
    """Look, do as advised (trials too, as in mode auto), and look again: each setting with the advice that it got.

    The last advice is to do nothing and to try nothing, unless it is still otherwise after `STEPS` changes.
    """
    looks: list[tuple[CacheConfig, Advice]] = []
    while len(looks) <= STEPS:
        advice = recommend(as_served(log, config=config, bounds=bounds))
        looks.append((config, advice))
        best = advice.best or advice.trial
        if best is None:
            break
        assert best.update is not None, "dropping entries once is no setting, and never the best"
        config = CacheConfig.model_validate(config.model_dump() | best.update.known())
    return looks


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(traffic=TRAFFIC, start=SETTINGS, bounds=BOUNDS)
def test_advice_that_is_followed_gets_strictly_better_and_ends(
    traffic: AgentTraffic, start: dict[str, object], bounds: Bounds
) -> None:
    log = traffic.generate()
    looks = followed(log, CONFIG.model_copy(update=start), bounds)
    configs, rates = [config for config, _ in looks], [rate(log, config) for config, _ in looks]
    assert all(config not in configs[:number] for number, config in enumerate(configs)), "a cycle"
    for (_, advice), before, after in zip(looks, rates, rates[1:], strict=False):
        best = advice.best or advice.trial
        assert best is not None
        assert best.gain is not None
        assert best.gain.estimate > 0, "nothing is advised without a predicted gain"
        assert advice.best is None or best.gain.lower > 0
        assert after > before, "it is better once it is there"
    last = looks[-1][1]
    assert (last.best or last.trial) is None, f"still advising after {STEPS} changes: {configs}"


def frozen(*chunks: range, **options: object) -> Observation:
    """A cache with 512 chunks of L1 and a watermark of 95 % that stopped storing."""
    config = CONFIG.model_copy(update={"eviction_watermark": 0.95, "eviction_ratio": 0.05})
    seen = as_served(log_of(*chunks), config=config, **options)
    assert seen.metrics.failed_stores
    assert not seen.metrics.evictions
    return seen


OLD = conversations(24, 20)
NEW = [range(480, 540)] * 80


def test_a_cache_that_froze_and_loses_hits_by_it_is_frozen() -> None:
    (worst, *_) = diagnose(frozen(*OLD, *NEW))
    assert worst.code is SymptomCode.WATERMARK_TOO_HIGH
    assert "a lower one would add +" in worst.summary


def test_a_cache_that_keeps_what_is_asked_for_is_not_called_frozen() -> None:
    """All that comes again is in L1; the prompts whose stores fail come once."""
    once = [range(1000 + 60 * i, 1060 + 60 * i) for i in range(20)]
    seen = frozen(*OLD, *(part for pair in zip(OLD, once, strict=False) for part in pair), *OLD)
    assert SymptomCode.WATERMARK_TOO_HIGH not in {symptom.code for symptom in diagnose(seen)}
    assert recommend(seen).verdict is Verdict.DO_NOTHING


def test_without_a_log_nobody_knows_what_a_frozen_cache_costs() -> None:
    seen = replace(frozen(*OLD, *NEW), log=None)
    (symptom,) = [one for one in diagnose(seen) if one.code is SymptomCode.WATERMARK_TOO_HIGH]
    assert symptom.severity.value == "medium"
    assert recommend(seen).recommendations == ()


def test_dropping_entries_is_advised_with_the_gain_that_the_model_predicts() -> None:
    advice = recommend(frozen(*OLD, *NEW))
    (relief,) = [one for one in advice.recommendations if one.action is ActionKind.OPTIMIZE]
    assert relief.gain is not None
    assert relief.gain.lower > 0
    assert "until L1 is full again" in relief.expected_impact
    assert advice.best is not None
    assert advice.best.action is ActionKind.RECONFIGURE


def test_a_setting_that_refuses_prompts_says_whose_and_what_would_end_it() -> None:
    """Prompts of 80 chunks fit into the fifth of 512 chunks that is free now, and not into a twentieth."""
    huge = [range(10_000 + 80 * i, 10_080 + 80 * i) for i in range(40)]
    small = [range(20 * (i % 15), 20 * (i % 15) + 20) for i in range(120)]
    log = log_of(*(part for i in range(40) for part in (*small[3 * i : 3 * i + 3], huge[i])))
    tenants = (log.chunks_per_request == 80).astype("int16")
    log = replace(log, tenants=tenants, tenant_names=("chat", "crawler"))
    seen = as_served(log, config=CONFIG)
    high = server_setting(seen, {"eviction_watermark": 0.95, "eviction_ratio": 0.05})
    assert high is not None
    refused = refusals(seen, high)
    assert refused is not None
    assert refused.tenants[0] == "crawler"
    assert (refused.largest, refused.of) == (80, 160)
    assert refused.enough_mb is not None
    assert refused.enough_mb * 32 * 0.05 >= 80, "one chunk takes a 32nd of a MB"
    assert "it works by refusing prompts" in str(refused)
    default = server_setting(seen, {"max_size_mb": 400.0})
    assert default is not None
    assert refusals(seen, default) is None


def test_the_same_window_gets_the_same_advice() -> None:
    log = AgentTraffic(requests=400, seed=11).generate()
    seen = as_served(log)
    again = replace(
        seen, predicted={}, metrics=seen.metrics.model_copy(update={"tokens": TokenCounts(**seen.metrics.tokens.model_dump())})
    )
    assert [one.update for one in recommend(seen).recommendations] == [one.update for one in recommend(again).recommendations]
