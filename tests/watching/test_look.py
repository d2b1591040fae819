"""Claims about one look: what others did is noticed, what a restart lost is set again or offered, what was begun is finished."""

from dataclasses import replace
from pathlib import Path

import pytest
from cut_short import change_cut_short
from watched import START, Caches, Looks, Restartable

from agent_tools.caches.settings import CacheSettings
from agent_tools.changes import actor
from agent_tools.changes.log import stories
from agent_tools.io_loop import io_loop
from agent_tools.models import ChangeOutcome, ConfigUpdate, Mode
from agent_tools.operations import Operations
from agent_tools.tuning.state import TuneContext
from agent_tools.watching.look import CacheWatch, mode_of

SET = ConfigUpdate(eviction_watermark=0.6)


def set_by_us(operations: Operations) -> str:
    change = io_loop.run(operations.configure, "prod", SET, "a test", "test")
    assert change is not None
    return change.change_id


def watermark(operations: Operations) -> float | None:
    return io_loop.run(operations.settings, "prod").eviction_watermark


def of_the_watch(operations: Operations) -> list[list[ChangeOutcome]]:
    """The outcomes of each change that a watch made."""
    log = stories(io_loop.run(operations.changes, "prod"))
    return [[one.outcome for one in story] for story in log if story[0].actor.startswith("watch")]


def test_a_live_change_that_a_restart_lost_is_set_again_once(prod: Restartable, on: Caches) -> None:
    operations = on(prod.url)
    looks, old = Looks(operations), watermark(operations)
    assert looks.look()[1] == []
    ours = set_by_us(operations)
    assert looks.look()[1] == [], "our own change is nobody else's"
    prod.restart()
    assert watermark(operations) == old
    result, told = looks.look()
    assert result == "set again what a restart lost"
    assert watermark(operations) == 0.6
    assert [text.partition(":")[0] for text in told] == ["found", "offered", "changed"], (
        "what is found is told before what is done"
    )
    assert "was started again" in told[0]
    assert ours in told[1]
    assert looks.look()[1] == []
    looks.leave()
    other = Looks(on(prod.url))  # a watch that starts anew, as after a restart of its own
    assert other.look()[1] == []
    assert of_the_watch(operations) == [[ChangeOutcome.STARTED, ChangeOutcome.APPLIED]]
    other.leave()


def test_advice_rests_on_all_that_was_seen_since_the_last_change(
    prod: Restartable, on: Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations, windows = on(prod.url), []

    def noted(**given: object) -> TuneContext:
        windows.append(given["window_seconds"])
        return TuneContext.model_validate(given)

    monkeypatch.setattr("agent_tools.watching.look.TuneContext", noted)
    cache = operations.registry.get("prod")
    now = io_loop.run(cache.deployment.snapshot)
    cache.history.add(replace(now, asked_at=now.asked_at - 200, taken_at=now.taken_at - 200))
    looks = Looks(operations)
    looks.look()
    looks.leave()
    assert windows == [pytest.approx(200, abs=30)]


def test_after_a_restart_with_other_settings_nothing_is_set_again(prod: Restartable, on: Caches) -> None:
    """The operator started it differently: that is a decision, and no loss."""
    operations = on(prod.url)
    set_by_us(operations)
    prod.restart()
    io_loop.run(on(prod.url, "theirs").configure, "prod", ConfigUpdate(eviction_watermark=0.7), "their way", "them")
    looks = Looks(operations)
    _, told = looks.look()
    assert watermark(operations) == 0.7
    assert any("was started again with eviction_watermark 0.7" in text for text in told)
    assert of_the_watch(operations) == []


async def _die(*_: object) -> str:
    raise RuntimeError


def test_what_others_have_overridden_is_no_loss_whatever_later_restarts_start_with(
    prod: Restartable, on: Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations, theirs = on(prod.url), on(prod.url, "theirs")
    set_by_us(operations)
    looks = Looks(operations)
    prod.restart()
    assert looks.look()[0] == "set again what a restart lost"
    io_loop.run(theirs.configure, "prod", ConfigUpdate(eviction_watermark=0.5), "by hand", "them")
    with monkeypatch.context() as killed:  # stands for a kill while the watch acts
        killed.setattr(CacheWatch, "_tune", _die)
        with pytest.raises(RuntimeError):
            looks.look()
    assert "somebody else set eviction_watermark 0.5" in looks.events[-1].text
    for mode in (Mode.AUTO, Mode.APPROVE):
        looks.leave()
        prod.restart()
        looks = Looks(on(prod.url), mode)  # a watch that starts anew remembers it too
        told = looks.look()[1] + looks.look()[1]
        assert watermark(operations) == START.eviction_watermark
        assert any("was started again with eviction_watermark 0.8" in text for text in told) is (mode is Mode.AUTO), "told once"
        assert not any("a restart lost" in text for text in told)
    assert len(of_the_watch(operations)) == 1
    set_by_us(operations)  # ours again, so a restart loses it
    looks.look()
    prod.restart()
    assert any("a restart lost eviction_watermark 0.6" in text for text in looks.look()[1])


def test_without_the_mode_auto_a_lost_change_is_offered_with_the_command(prod: Restartable, on: Caches) -> None:
    operations = on(prod.url)
    set_by_us(operations)
    prod.restart()
    looks = Looks(operations, Mode.APPROVE)
    _, told = looks.look()
    assert watermark(operations) != 0.6
    (offer,) = [text for text in told if text.startswith("offered: a restart lost")]
    assert "lmcache-agent set -c prod eviction_watermark=0.6" in offer
    assert looks.look()[1] == [], "it is told once"


def test_the_cool_down_holds_for_a_lost_change_too(prod: Restartable, on: Caches) -> None:
    operations = on(prod.url, cooldown_seconds=600)
    set_by_us(operations)
    prod.restart()
    looks = Looks(operations)
    assert "cooling down" in looks.look()[0]
    assert watermark(operations) != 0.6


def test_a_change_by_somebody_else_is_told_and_left_alone(prod: Restartable, on: Caches) -> None:
    operations, theirs = on(prod.url), on(prod.url, "theirs")
    looks = Looks(operations)
    looks.look()
    io_loop.run(theirs.configure, "prod", ConfigUpdate(eviction_ratio=0.4), "by hand", "them")  # never changed by us
    _, told = looks.look()
    assert any("changed by somebody else: eviction_ratio" in text for text in told)
    set_by_us(operations)
    looks.look()
    io_loop.run(theirs.configure, "prod", ConfigUpdate(eviction_watermark=0.5), "by hand", "them")  # against a change of ours
    _, told = looks.look()
    assert any("somebody else set eviction_watermark 0.5" in text for text in told)
    assert watermark(operations) == 0.5
    assert looks.look()[1] == []


def test_a_change_that_kill_9_cut_short_is_settled_judged_and_not_made_again(
    prod: Restartable, on: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_cut_short(prod.url, tmp_path / "state")
    operations = on(prod.url)
    looks = Looks(operations)
    looks.look()
    (story,) = stories(io_loop.run(operations.changes, "prod"))
    assert [one.outcome for one in story] == [ChangeOutcome.STARTED], "a request of the killed process may still be under way"
    monkeypatch.setattr(actor, "LONGEST_DELAY", 0.0)
    _, told = looks.look()
    assert any("ended before its end was on record; the change is in force" in text for text in told)
    assert any(text.startswith("verified: undecided") for text in told)
    assert looks.look()[1] == []
    (story,) = stories(io_loop.run(operations.changes, "prod"))
    assert [one.outcome.value for one in story] == ["started", "applied", "kept_unverified"]
    assert watermark(operations) == 0.6


def test_a_cache_that_does_not_answer_is_told_once_and_so_is_its_return(prod: Restartable, on: Caches) -> None:
    operations = on(prod.url, timeout_seconds=1)
    looks = Looks(operations)
    looks.look()
    ports = prod.process.http_port, prod.process.rpc_port
    io_loop.run(prod.process.stop)
    assert [text.partition(":")[0] for text in looks.look()[1]] == ["failed"]
    assert looks.look() == ("failed", [])
    prod.process = prod._started(ports)
    _, told = looks.look()
    assert any("was started again" in text for text in told)
    assert any("can be looked after again" in text for text in told)


def test_of_two_watches_one_stands_by_and_takes_over(prod: Restartable, on: Caches) -> None:
    first, second = Looks(on(prod.url)), Looks(on(prod.url))
    first.look()
    assert "standing by" in second.look()[0]
    first.leave()
    assert "standing by" not in second.look()[0]
    assert "standing by" in first.look()[0]


@pytest.mark.parametrize(
    ("entry", "asked", "mode"),
    [
        ({}, None, Mode.APPROVE),
        ({}, Mode.AUTO, Mode.AUTO),
        ({"max_mode": "auto"}, None, Mode.AUTO),
        ({"max_mode": "observe"}, None, Mode.OBSERVE),
        ({"max_mode": "approve"}, Mode.AUTO, Mode.APPROVE),
        ({"max_mode": "auto"}, Mode.OBSERVE, Mode.OBSERVE),
    ],
)
def test_it_acts_alone_only_where_somebody_wrote_auto(entry: dict[str, str], asked: Mode | None, mode: Mode) -> None:
    assert mode_of(CacheSettings.model_validate(entry), asked) is mode
