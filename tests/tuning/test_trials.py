"""Claims about `tune_cache` with small gains: they are tried, kept if they help, undone if not, and all of it is on record."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from real_cache import Play
from tuning import THRASHING, tuned

from agent_tools.caches.registry import Cache
from agent_tools.changes import undone
from agent_tools.deployments.base import silent
from agent_tools.io_loop import io_loop
from agent_tools.models import (
    ActionKind,
    Advice,
    Baseline,
    ChangeRecord,
    ChangeResult,
    ConfigUpdate,
    Gain,
    Mode,
    OptimizationRecommendation,
    Rung,
    Verdict,
    Verification,
    VerificationVerdict,
)
from agent_tools.models.advice import setting_changes
from agent_tools.models.metrics import now
from agent_tools.operations import Operations
from agent_tools.tuning.state import Outcome, TuneContext
from agent_tools.tuning.tune_cache import build_tune_cache

pytestmark = pytest.mark.usefixtures("known_state")
CONTEXT = TuneContext(mode=Mode.AUTO, window_seconds=0, verify_seconds=0.1)


class Offers(Operations):
    """Real operations, but for what real traffic gives only by chance: a small gain, what a trial can show, and how it ends."""

    def __init__(self, real: Operations, gain: float | None, doubt: float | None = 0.0) -> None:
        self.__dict__ |= real.__dict__
        self.gain, self.doubt = gain, doubt
        self.since = now()

    async def changes(self, cache: str | None = None) -> list[ChangeRecord]:
        """Without those of other tests."""
        return [one for one in await super().changes(cache) if one.recorded_at >= self.since]

    async def recommend(self, cache: str = "default", *_: Any, **__: Any) -> Advice:
        seen, (config, support) = await super().recommend(cache), await self.config(cache)
        update = ConfigUpdate(eviction_watermark=0.85)
        gain = Gain(lower=-0.01, estimate=0.01, upper=0.03, method="a test")
        trial = OptimizationRecommendation.model_validate(
            {
                "priority": "medium",
                "category": "l1_too_small",
                "title": "a small gain",
                "description": "",
                "risk": "",
                "expected_impact": "",
                "implementation_effort": "",
                "action": ActionKind.RECONFIGURE,
                "update": update,
                "changes": setting_changes(update, config.known(), support),
                "rung": Rung.ACCESS_LOG,
                "gain": gain,
                "confidence": "high",
                "confidence_reasons": (),
                "cost": "",
                "undo": "",
                "verification": "",
                "within_bounds": True,
            }
        )
        return seen.model_copy(update={"verdict": Verdict.DO_NOTHING, "trial": trial})

    async def trial_doubt(self, cache: str, before: Baseline) -> float:
        return await super().trial_doubt(cache, before) if self.doubt is None else self.doubt

    async def try_out(self, change: ChangeResult, before: Baseline, *rest: Any) -> Verification:
        if self.gain is None:
            return await super().try_out(change, before, *rest)
        gain = Gain(lower=self.gain - 0.01, estimate=self.gain, upper=self.gain + 0.01, interval_percent=95, method="a test")
        verdict = VerificationVerdict.BETTER if self.gain > 0 else VerificationVerdict.WORSE
        found = await super().try_out(change, before, *rest)
        return found.model_copy(update={"verdict": verdict, "gain": gain})


def watermark(cache: Cache) -> float | None:
    return io_loop.run(cache.deployment.config).eviction_watermark


def outcomes(operations: Operations, change_id: str) -> list[str]:
    return [one.outcome.value for one in io_loop.run(operations.change, change_id)]


def test_a_trial_that_helps_is_kept(operations: Operations, cache: Cache) -> None:
    report = tuned(Offers(operations, 0.02), CONTEXT)
    assert report.outcome is Outcome.IMPROVED, report.summary
    assert watermark(cache) == 0.85
    assert report.change is not None
    assert report.change.plan.predicted is not None
    assert report.change.plan.predicted.estimate == 0.01


@pytest.mark.parametrize(
    ("doubt", "why"),
    [
        (0.02, "s the model's error is uncertain by 2.0 points, which is more than the trial may gain: observe for longer"),
        (None, "there were too few requests in"),
    ],
)
def test_a_trial_that_could_show_nothing_is_not_begun(
    operations: Operations, cache: Cache, doubt: float | None, why: str
) -> None:
    report = tuned(Offers(operations, 0.02, doubt), CONTEXT)
    assert report.outcome is Outcome.DO_NOTHING
    assert "It is not tried now, because" in report.summary
    assert why in report.summary
    assert watermark(cache) == 0.8


def test_a_trial_that_does_harm_is_undone(operations: Operations, cache: Cache) -> None:
    report = tuned(Offers(operations, -0.02), CONTEXT)
    assert report.outcome is Outcome.ROLLED_BACK
    worse = "the trial made the cache worse: -2.0 points (95 % interval -3.0 points to -1.0 points). It was undone"
    assert worse in report.summary
    assert watermark(cache) == 0.8
    assert report.change is not None
    assert outcomes(operations, report.change.change_id) == ["started", "applied", "kept_unverified", "undone"]


def test_a_trial_without_an_answer_is_undone_and_says_so(operations: Operations, cache: Cache) -> None:
    """No traffic comes, so nothing is measured."""
    report = tuned(Offers(operations, None), CONTEXT)
    assert report.outcome is Outcome.ROLLED_BACK
    assert "the trial did not show that it helps: too few requests to judge yet. It was undone" in report.summary
    assert watermark(cache) == 0.8


def test_a_trial_that_was_undone_is_not_repeated_until_a_day_has_passed(
    operations: Operations, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = Offers(operations, -0.02)
    first = tuned(offers, CONTEXT)
    assert first.outcome is Outcome.ROLLED_BACK
    assert first.change is not None
    again = tuned(offers, CONTEXT)
    assert again.outcome is Outcome.DO_NOTHING
    assert f"not tried now, because {first.change.change_id} changed the same and was undone at" in again.summary
    assert again.change is None
    monkeypatch.setattr(undone, "now", lambda: now() + timedelta(days=1, minutes=1))
    assert tuned(offers, CONTEXT).outcome is Outcome.ROLLED_BACK


def test_what_was_undone_from_other_values_or_of_other_settings_is_tried(operations: Operations, cache: Cache) -> None:
    offers = Offers(operations, 0.02)
    for update in ({"eviction_ratio": 0.3}, {"eviction_watermark": 0.9, "eviction_ratio": 0.3}):
        change = io_loop.run(offers.configure, "default", ConfigUpdate.model_validate(update), "a test", "test")
        assert change is not None
        io_loop.run(offers.undo, "default", change.change_id, "test")
    change = io_loop.run(offers.configure, "default", ConfigUpdate(eviction_watermark=0.9), "a test", "test")
    other = io_loop.run(offers.configure, "default", ConfigUpdate(eviction_watermark=0.7), "a test", "test")
    assert other is not None
    io_loop.run(offers.undo, "default", other.change_id, "test")  # a change from 0.9, not from 0.8
    io_loop.run(offers.configure, "default", ConfigUpdate(eviction_watermark=0.8), "a test", "test")
    assert tuned(offers, CONTEXT).outcome is Outcome.IMPROVED


def test_a_person_approves_a_trial_as_a_trial(operations: Operations, cache: Cache) -> None:
    graph = build_tune_cache(operations=Offers(operations, 0.02)).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    asked = graph.invoke({}, config, context=CONTEXT.model_copy(update={"mode": Mode.APPROVE}))["__interrupt__"]
    (request,) = asked[0].value["action_requests"]
    assert request["description"].startswith(
        "Try a small gain (undone unless it helps) on default: eviction_watermark 0.8 -> 0.85"
    )
    assert watermark(cache) == 0.8


def test_in_mode_recommend_nothing_is_tried(operations: Operations, cache: Cache) -> None:
    report = tuned(Offers(operations, 0.02), CONTEXT.model_copy(update={"mode": Mode.RECOMMEND}))
    assert report.outcome is Outcome.DO_NOTHING
    assert report.plan is not None
    assert watermark(cache) == 0.8


def test_a_change_by_somebody_else_ends_the_trial_and_is_left_alone(operations: Operations, cache: Cache) -> None:
    class Meddles(Offers):
        async def try_out(self, change: ChangeResult, before: Baseline, *rest: Any) -> Verification:
            await cache.deployment.apply(ConfigUpdate(eviction_watermark=0.7), silent)
            return await super().try_out(change, before, *rest)

    report = tuned(Meddles(operations, None), CONTEXT)
    assert report.outcome is Outcome.KEPT_UNDECIDED
    assert "settings were changed by somebody else" in report.summary
    assert watermark(cache) == 0.7


@pytest.mark.long
def test_a_trial_is_measured_on_real_traffic(operations: Operations, cache: Cache, play: Play) -> None:
    """The gain is large here, so that a few seconds show it; whether they suffice for a verdict is left to chance."""
    log = THRASHING.select(slice(0, 200))
    traffic = threading.Thread(target=lambda: [play(log, pace=log.duration / 8) for _ in range(3)])
    traffic.start()
    try:
        before = io_loop.run(operations.baseline, "default", 9.0)
        doubt = io_loop.run(operations.trial_doubt, "default", before)
        change = io_loop.run(operations.configure, "default", ConfigUpdate(max_size_mb=48), "a trial", "test")
        assert change is not None
        said: list[str] = []
        found = io_loop.run(operations.try_out, change, before, 12.0, said.append)
    finally:
        traffic.join()
    assert found.verdict is not VerificationVerdict.WORSE, found.why
    assert found.gain is not None
    assert found.gain.estimate > 0.02
    assert doubt < 0.2
    assert found.paired
    assert any("blocks of requests" in one for one in said)
