"""One look at one cache: finish what was begun, notice what others did, set again what a restart lost, and tune."""

import json
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from agent_tools.caches.settings import CacheSettings
from agent_tools.changes.log import stories
from agent_tools.errors import BusyError, CooldownError, LMCacheToolError, UnknownChangeError
from agent_tools.models import (
    Advice,
    CacheMetrics,
    ChangeOutcome,
    ChangeResult,
    ConfigUpdate,
    Mode,
    OptimizationRecommendation,
    Severity,
    Symptom,
    SymptomCode,
    VerificationVerdict,
)
from agent_tools.models.metrics import now
from agent_tools.models.standing import Departure
from agent_tools.operations import Operations
from agent_tools.recommender.symptoms.rule import ENOUGH_LOOKUPS
from agent_tools.tuning.nodes import ACTOR as TUNES
from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache

from .drift import findings, happened, left_to_others
from .event import Event, EventKind, Finding, Findings
from .memory import Memory, Seen

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

ACTOR = "watch"
PROGRAM = "lmcache-agent watch"
"""Name of this program in the change log."""
LEAST = 30.0
"""Shortest window, seconds, if the looks are that far apart."""
FALL = 0.10
"""Smallest fall of the token hit rate between two looks that is told, as a share: smaller ones are told by their symptoms."""
UNTOLD = {SymptomCode.NOTHING_WRONG, SymptomCode.NO_DATA, SymptomCode.RESTARTED}
QUIET = {Severity.INFO, Severity.LOW}
Tell = Callable[[Event], None]


def mode_of(entry: CacheSettings, asked: Mode | None) -> Mode:
    """Return the mode in which a cache is watched: as asked, else the entry's `max_mode` if it states one, else approve.

    `max_mode` caps what is asked. A watch acts on its own only where somebody wrote ``auto``.
    """
    stated = entry.max_mode if "max_mode" in entry.model_fields_set else Mode.APPROVE
    return min(asked or stated, entry.max_mode, key=list(Mode).index)


class CacheWatch:
    """The watch over one cache. Every change goes through `Operations`, whose log, locks and cool-down hold here too."""

    def __init__(
        self, operations: Operations, cache: str, mode: Mode, *, every: float, verify_seconds: float, tell: Tell
    ) -> None:
        self._operations = operations.called_by(None, PROGRAM)
        self._graph: CompiledStateGraph[Any, Any, Any, Any] = build_tune_cache(operations=self._operations).compile()
        self._memory = Memory(operations.registry.settings.state_folder, cache)
        self._tell = tell
        self._every, self._verify_seconds = every, verify_seconds
        self._rate: float | None = None
        self.cache, self.mode = cache, mode
        self.departures = 0
        """Settings that were not as our changes left them, at the last look."""

    async def look(self, turn: anyio.Lock) -> str:
        """Look once, act within the mode, and tell what is new. Return in a few words what came of it.

        `turn` is held while this watch acts, so that of several caches that share it one is changed at a time.

        Raises:
            RecordError: The state folder cannot be written, so nothing was done.
        """
        if not await anyio.to_thread.run_sync(self._memory.alone):
            return "another watch looks after this cache; standing by"
        seen = await anyio.to_thread.run_sync(self._memory.load)
        found = Findings(seen.told, self._say)
        result = "failed"
        try:
            seconds = await self._observed()
            async with turn:
                if self.mode is Mode.AUTO:
                    await self._finish()
                departures, seen = await self._noticed(seen)
                lost = tuple(one for one in departures if one.lost)
                found.add(*findings(departures, await self._becomes(lost)))
                again = lost and self.mode is Mode.AUTO
                result = await self._set_again(lost, found) if again else await self._tune(seconds, found)
        except LMCacheToolError as error:
            found.add(Finding(f"error {error.code}", EventKind.FAILED, str(error)))
        await self._remember(seen, found)
        return result

    def leave(self) -> None:
        """Let another watch look after the cache."""
        self._memory.leave()

    async def _observed(self) -> float:
        """Wait for enough traffic for advice, at most until the next look. Return the length of the window, seconds."""
        return await self._operations.wait_for_traffic(self.cache, min(LEAST, self._every), self._every)

    async def _remember(self, seen: Seen, found: Findings) -> None:
        if not found.failed and any(key.startswith("error ") for key in seen.told):
            self._say(EventKind.FOUND, "the cache can be looked after again")
        try:
            await self._save(seen.model_copy(update={"told": found.keys}))
        except LMCacheToolError as error:
            found.add(Finding(f"error {error.code}", EventKind.FAILED, str(error)))

    async def _save(self, seen: Seen) -> None:
        await anyio.to_thread.run_sync(self._memory.save, seen)

    def _say(self, kind: EventKind, text: str, change_id: str | None = None) -> None:
        self._tell(Event(at=now(), cache=self.cache, kind=kind, text=text, change_id=change_id))

    async def _finish(self) -> None:
        """Settle a change that a killed process left open, and judge the last change of a watch that nobody has judged."""
        try:
            settled = await self._operations.settle(self.cache)
        except BusyError:  # somebody is at work, so nothing is left to finish
            return
        if settled is not None:
            held = "is" if settled.outcome is ChangeOutcome.APPLIED else "is not"
            said = f"the process that began {settled.change_id} ended before its end was on record; the change {held} in force"
            self._say(EventKind.FOUND, said, settled.change_id)
        last = next((story for story in stories(await self._operations.changes(self.cache)) if story[0].changes), None)
        if last is None or last[-1].outcome not in (ChangeOutcome.APPLIED, ChangeOutcome.FOUND_WORSE):
            return
        first = last[0]
        if first.undoes is not None or not first.actor.startswith(TUNES) or PROGRAM not in first.actor:
            return
        try:
            judged = await self._operations.verify_change(first.change_id, self._verify_seconds, self.cache)
        except UnknownChangeError:  # not in force any more, or nothing to compare with
            return
        if judged.verdict is not VerificationVerdict.WORSE:
            self._say(EventKind.VERIFIED, f"{judged.verdict.value}: {judged.why}", first.change_id)
            return
        undone = await self._operations.undo(self.cache, first.change_id, ACTOR, reason="it made the cache worse")
        self._say(EventKind.UNDONE, f"{undone.message}, because: {judged.why}", first.change_id)

    async def _noticed(self, seen: Seen) -> tuple[tuple[Departure, ...], Seen]:
        """Tell what happened since the last look. Return what is not as our changes left it, and what this look saw.

        What it saw is saved at once: a watch that is killed while it acts must not take an override for a loss later.
        """
        began = now().timestamp()
        standing = await self._operations.standing(self.cache)
        for text in happened(seen, standing, await self._operations.changes(self.cache)):
            self._rate = None
            self._say(EventKind.FOUND, text)
        departures = left_to_others(seen, standing.departures)
        self.departures = len(departures)
        saw = {
            "at": began,
            "server": standing.server,
            "config": standing.config,
            "overridden": tuple(one.key for one in departures if not one.lost),
        }
        seen = seen.model_copy(update=saw)
        await self._save(seen)
        return departures, seen

    async def _becomes(self, lost: tuple[Departure, ...]) -> str:
        """Return what becomes of changes that a restart lost."""
        if self.mode is Mode.AUTO:
            return "; it is set again within the bounds, after the cool-down"
        if (await self._operations.registry.find(self.cache)).settings.max_mode is not Mode.AUTO:
            return "; a person can have an agent set it again, with their approval"
        values = " ".join(shlex.quote(f"{one.setting}={_written(one.ours)}") for one in lost)
        return f"; to set it again: lmcache-agent set -c {shlex.quote(self.cache)} {values}"

    async def _set_again(self, lost: tuple[Departure, ...], found: Findings) -> str:
        """Set what a restart lost. A value that cannot be set live is left to the operator."""
        try:
            await self._operations.check_cooldown(self.cache)
        except CooldownError:
            return "cooling down before lost changes are set again"
        reason = f"a restart lost {', '.join(sorted({one.change_id for one in lost}))}"
        plan = await self._operations.plan(self.cache, _update(lost), reason)
        if plan.needs_restart:
            text = f"what a restart lost cannot be set live: {plan}"
            more = f". To set it, {plan.for_the_operator}" if plan.command else ""
            found.add(Finding(f"offer {plan.update.known()}", EventKind.OFFERED, text + more))
            return "offered"
        done = await self._operations.apply(plan, ACTOR)
        self._say(EventKind.CHANGED, f"set again what a restart lost: {plan}", done.change_id)
        return "set again what a restart lost"

    async def _tune(self, seconds: float, found: Findings) -> str:
        """Run `tune_cache` in the mode of this watch. Approve becomes recommend: the person is told, and asked elsewhere.

        Advice rests on all that was observed since the last change, minutes at most: more requests make it surer.
        """
        self._compare(await self._operations.metrics(self.cache, seconds))
        if self.mode is Mode.AUTO:
            try:
                await self._operations.check_cooldown(self.cache)
            except CooldownError:
                return "cooling down after the last change"
        mode = Mode.RECOMMEND if self.mode is Mode.APPROVE else self.mode
        window = max(seconds, await self._operations.steady_seconds(self.cache))
        context = TuneContext(cache=self.cache, mode=mode, window_seconds=window, verify_seconds=self._verify_seconds)
        report: TuneReport | None = None
        async for step in self._graph.astream({}, context=context, stream_mode="updates"):
            for update in step.values():
                if update and "tune_advice" in update:
                    found.add(*_of_symptoms(Advice.model_validate(update["tune_advice"]).symptoms))
                if update and "tune_change" in update:
                    change = ChangeResult.model_validate(update["tune_change"])
                    self._say(EventKind.CHANGED, change.message, change.change_id)
                if update and "tune_report" in update:
                    report = TuneReport.model_validate(update["tune_report"])
        assert report is not None  # noqa: S101  the graph always ends in its report
        if report.advice is None:
            found.add(*_of_symptoms(await self._operations.diagnose(self.cache, seconds)))
        found.add(*self._told_of(report))
        return report.outcome.value.replace("_", " ")

    def _compare(self, metrics: CacheMetrics) -> None:
        """Tell a fall of the hit rate that no change of settings explains."""
        rate, lookups = metrics.tokens.hit_rate, metrics.total_requests
        if rate is None or (lookups is not None and lookups < ENOUGH_LOOKUPS):
            return
        if self._rate is not None and self._rate - rate >= FALL:
            text = f"the token hit rate fell from {self._rate:.1%} to {rate:.1%} between two looks: the traffic changed"
            self._say(EventKind.FOUND, text)
        self._rate = rate

    def _told_of(self, report: TuneReport) -> list[Finding]:
        """Tell what a run did, and return what lasts: offers and failures."""
        change_id = report.change.change_id if report.change else None
        kinds = {
            Outcome.IMPROVED: EventKind.VERIFIED,
            Outcome.KEPT_UNDECIDED: EventKind.VERIFIED,
            Outcome.ROLLED_BACK: EventKind.UNDONE,
            Outcome.OPTIMIZED: EventKind.CHANGED,
        }
        if report.outcome in kinds:
            self._rate = None
            self._say(kinds[report.outcome], report.summary, change_id)
        elif report.outcome is Outcome.FAILED:
            return [Finding("error tune", EventKind.FAILED, report.summary)]
        elif report.plan is not None and report.advice is not None:
            return [self._offer(report, report.advice.best or report.advice.trial)]
        return []

    def _offer(self, report: TuneReport, best: OptimizationRecommendation | None) -> Finding:
        assert report.plan is not None  # noqa: S101  asked before
        what = "a small gain can be tried" if report.advice and report.advice.trial else "a change would help"
        gain = f" ({best.expected_impact})" if best else ""
        how = report.plan.for_the_operator or f"lmcache-agent tune -c {self.cache}"
        text = f"{what}: {report.plan}{gain}. To make it, {how}"
        return Finding(f"offer {', '.join(sorted(report.plan.update.known()))}", EventKind.OFFERED, text)


def _written(value: object) -> str:
    """Return a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _update(lost: tuple[Departure, ...]) -> ConfigUpdate:
    return ConfigUpdate.model_validate({one.setting: one.ours for one in lost})


def _of_symptoms(symptoms: tuple[Symptom, ...]) -> list[Finding]:
    told = [one for one in symptoms if one.code not in UNTOLD and one.severity not in QUIET]
    return [Finding(f"symptom {one.code.value}", EventKind.FOUND, f"{one.code.value}: {one.summary}") for one in told]
