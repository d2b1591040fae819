"""The verbs that judge a change: what was before, what is since, and a trial."""

import time
from collections.abc import Sequence
from functools import partial

import anyio
import anyio.to_thread

from agent_tools.caches import observer
from agent_tools.caches.observer import READ_EVERY
from agent_tools.caches.registry import Cache
from agent_tools.changes.read_back import not_in_force
from agent_tools.deployments.base import Progress, silent
from agent_tools.deployments.snapshot import metrics_between
from agent_tools.errors import UnknownChangeError
from agent_tools.models import ChangeOutcome, ChangeRecord, ChangeResult, Verification, VerificationVerdict
from agent_tools.models.change import Baseline
from agent_tools.models.rights import Right
from agent_tools.workload.access_log import lookups_since

from .read import Read

MEDDLED = "Somebody changed other settings while the change was being verified, so nothing is known; verify it again"
NOT_NOTED = "The change log does not hold this verdict, since the caller's token does not give the right to change."
LOOK_EVERY = 5.0
"""Seconds between two looks at a trial."""


class Verify(Read):
    """Everything that judges a change."""

    async def baseline(self, cache: str, window_seconds: float | None = None, progress: Progress = silent) -> Baseline:
        """Return what the cache did in a window, to be compared with what it does after a change."""
        named = await self.registry.find(cache)
        readings = await self._window(named, window_seconds, progress)
        since = metrics_between(*readings).window.start.timestamp()
        return observer.baseline(named, readings, (await observer.log_or_why(named, since))[0])

    async def verify(self, change: ChangeResult, before: Baseline, patience: float, progress: Progress = silent) -> Verification:
        """Watch the cache until it has been asked for as many tokens as before the change, and compare.

        Args:
            change: The applied change.
            before: What the cache did before the change.
            patience: Longest wait, seconds. If it runs out, the verdict may be "undecided".
            progress: Called while waiting.
        """
        named = await self.registry.find(change.plan.cache)
        story = await anyio.to_thread.run_sync(self.actor.log.story, change.change_id, limiter=self._log_readers)
        found = await self._verify(named, story, before, patience, progress)
        await self.actor.note_verification(change.change_id, found)
        return found

    async def verify_change(
        self, change_id: str, patience: float, cache: str | None = None, progress: Progress = silent
    ) -> Verification:
        """Verify a change that is on record, also one that another process made.

        The change is compared with the figures recorded when it was made. The traffic since the change counts as far as this
        process has read the cache since; the rest is waited for. The verdict goes on record, unless the caller may only read:
        whoever waits too briefly finds a change undecided, and must not put that in the place of another's verdict.

        Args:
            change_id: The change.
            patience: Longest wait for as many tokens as before the change, seconds.
            cache: Name of the cache; by default the change log names it.
            progress: Called while waiting.

        Raises:
            UnknownChangeError: There is no such change of settings, it is not in force, or nothing was recorded to compare with.
        """
        record = await self._record_of(change_id, cache)
        named = await self.registry.find(record.cache)
        wrong = not_in_force(record.changes, await named.deployment.config())
        if not record.changes or wrong is not None:
            why = f"the cache reads {wrong}" if wrong else "it changed no setting"
            raise UnknownChangeError(f"{change_id} is not in force on {named.name}, so it cannot be verified: {why}")
        if record.baseline is None:
            raise UnknownChangeError(
                f"{change_id} was recorded without figures from before it (by an earlier version), so there is nothing to compare"
                " with; undo it and set it again, then verify that change"
            )
        story = [one for one in await self.change(change_id) if one.cache == record.cache]
        found = await self._verify(named, story, record.baseline, patience, progress)
        if Right.CHANGE not in self.registry.settings.rights_of(self.caller):
            return found.model_copy(update={"why": f"{found.why} {NOT_NOTED}"})
        await self.actor.note_verification(record.change_id, found)
        return found

    async def _verify(
        self, named: Cache, story: Sequence[ChangeRecord], before: Baseline, patience: float, progress: Progress
    ) -> Verification:
        from agent_tools.recommender.modelled import server_setting
        from agent_tools.recommender.verify import settings_moved, verify

        record, config = story[0], await named.deployment.config()
        start = (await self._window(named))[0] or await observer.read(named)
        wanted, deadline = before.metrics.tokens.requested, time.monotonic() + patience
        while True:
            served = metrics_between(start, await observer.watch(named)).tokens.requested
            progress(f"verifying: {served} of {wanted} tokens seen since the change")
            if served >= wanted > 0 or time.monotonic() >= deadline:
                break
            await anyio.sleep(READ_EVERY)
        readings = (start, await observer.read(named))
        seen = await self._observe(named, readings)
        changed = next((one.recorded_at.timestamp() for one in story if one.outcome is ChangeOutcome.APPLIED), None)
        judge = partial(
            verify,
            before,
            observer.baseline(named, readings, await lookups_since(seen.log, start.taken_at)),
            in_force=not_in_force(record.changes, seen.config) is None,
            seen=seen,
            old=server_setting(seen, {one.setting: one.old for one in record.changes}),
            changed_at=None if settings_moved(record, seen.config) else changed,
            predicted=record.predicted,
        )
        found = await anyio.to_thread.run_sync(judge)
        found = found.model_copy(update={"change_id": record.change_id})
        if config.known() != seen.config.known():
            found = found.model_copy(update={"verdict": VerificationVerdict.UNDECIDED, "why": f"{MEDDLED}. {found.why}"})
        return found

    async def trial_doubt(self, cache: str, before: Baseline) -> float:
        """Return the smallest gain that a trial after a window could show, as token hit rate; see `recommender.trial.doubt`."""
        from agent_tools.recommender.trial import doubt

        named, window = await self.registry.find(cache), before.metrics.window
        start = window.start.timestamp()
        readings = await self._window(named, since=None if window.lifetime else start)
        seen = (await self._observe(named, readings)).during(window)
        return await anyio.to_thread.run_sync(doubt, seen, named.history.served(start, window.end.timestamp()))

    async def try_out(self, change: ChangeResult, before: Baseline, patience: float, progress: Progress = silent) -> Verification:
        """Watch a change of small expected gain until a sequential test decides whether it helps. See `recommender.trial`.

        Args:
            change: The applied change.
            before: What the cache did before the change, in a window that this process has observed.
            patience: Longest wait, seconds. If it runs out, the verdict is "undecided".
            progress: Called while waiting.
        """
        from agent_tools.recommender.modelled import server_setting
        from agent_tools.recommender.trial import look

        named, record = await self.registry.find(change.plan.cache), await self._record_of(change.change_id)
        start = (await self._window(named))[0] or await observer.read(named)
        deadline, look_at = time.monotonic() + patience, time.monotonic() + LOOK_EVERY
        earlier = named.history.served(before.metrics.window.start.timestamp(), before.metrics.window.end.timestamp())
        while True:
            over = time.monotonic() >= deadline
            after = await observer.watch(named)
            if over or time.monotonic() >= look_at:
                seen = await self._observe(named, (start, after))
                held = not_in_force(record.changes, seen.config) is None and named.history.unchanged_since(start)
                old = server_setting(seen, {one.setting: one.old for one in record.changes})
                served = named.history.served(start.taken_at, after.taken_at)
                judge = partial(look, seen, old, before, earlier, served, in_force=held)
                found = await anyio.to_thread.run_sync(judge)
                progress(f"trial: {found.why}")
                if over or found.verdict is not VerificationVerdict.UNDECIDED or not held:
                    break
                look_at = time.monotonic() + LOOK_EVERY
            await anyio.sleep(READ_EVERY)
        found = found.model_copy(update={"change_id": record.change_id, "predicted": record.predicted})
        await self.actor.note_verification(record.change_id, found)
        return found
