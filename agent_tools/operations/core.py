"""What every verb needs: the caches, the actor that changes them, and who asks."""

import copy
from functools import partial

import anyio
import anyio.to_thread
from typing_extensions import Self

from agent_tools.caches import observer
from agent_tools.caches.registry import Cache, Registry
from agent_tools.changes.actor import Actor
from agent_tools.changes.permission import check_permitted, check_right
from agent_tools.deployments.base import Progress, silent
from agent_tools.errors import UnknownChangeError
from agent_tools.models import Advice, Bounds, ChangeRecord
from agent_tools.models.rights import Right
from agent_tools.plain import plain
from agent_tools.recommender.observation import Observation

LOG_READERS = 4
"""Threads that read the change log at once, so that many agents need no more of them."""


class Core:
    """What the verbs share."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.actor = Actor(registry.settings.state_folder)
        self._log_readers = anyio.CapacityLimiter(LOG_READERS)
        self.approved_by: str | None = None
        """Who approved the changes made with this; ``None`` if nobody was asked. See `approved`."""
        self.caller: str | None = None
        """Who asks, as a door authenticated them; see `called_by`."""
        self.last_advice: dict[str, Advice] = {}
        """Cache -> the last advice that was given, for our own metrics. Shared with the copies for callers and approvers."""
        self.program: str | None = None
        """The program that asks, as it calls itself."""

    def approved(self, by: str | None) -> Self:
        """Return the same operations for changes that a person approved.

        Only a host that asked a person may call this. `by` is the name that the host authenticated; ``None`` if nobody was asked.
        """
        approved = copy.copy(self)
        approved.approved_by = by
        return approved

    def called_by(self, caller: str | None, program: str | None = None) -> Self:
        """Return the same operations for one caller: with the rights of their token, and their name in the change log.

        Args:
            caller: The name that a door authenticated. A caller who is named already stays the caller, so that nobody gets the
                rights of another by naming them.
            program: What the caller's program calls itself, e.g. the name of an MCP client. It is recorded, never trusted.
        """
        called = copy.copy(self)
        called.caller, called.program = self.caller or caller, program or self.program
        return called

    async def close(self) -> None:
        """Close all connections and stop embedded servers."""
        await self.registry.close()

    async def _changeable(self, cache: str, right: Right = Right.CHANGE) -> Cache:
        """Find a cache that is about to be changed, if caller and operator permit that; see `check_permitted`."""
        settings = self.registry.settings
        check_right(settings.rights_of(self.caller), right, self.caller, self.approved_by)
        named = await self.registry.find(cache)
        check_permitted(named, settings.approver_names, self.approved_by)
        return named

    def _who(self, actor: str) -> str:
        asked = f", asked by {self.caller}" if self.caller not in (None, self.approved_by) else ""
        program = f", with {plain(self.program)}" if self.program else ""
        approved = "" if self.approved_by is None else f", approved by {self.approved_by}"
        return actor + asked + program + approved

    async def _record_of(self, change_id: str, cache: str | None = None) -> ChangeRecord:
        """Return the first record of a change.

        Raises:
            UnknownChangeError: There is no such change, or several caches have one and `cache` does not say which.
        """
        story = await anyio.to_thread.run_sync(self.actor.log.story, change_id)
        of_caches = {record.cache: record for record in reversed(story) if cache in (None, record.cache)}
        if not of_caches:
            raise UnknownChangeError(f"{change_id} is a change of {story[0].cache}, not of {cache}")
        if len(of_caches) > 1:
            raise UnknownChangeError(f"{', '.join(sorted(of_caches))} each have a change {change_id}; say which cache is meant")
        return next(iter(of_caches.values()))

    async def _figures(self, cache: Cache, seconds: float | None, progress: Progress) -> observer.Readings:
        """Return the readings of a window. Without a length these are the totals since the start, and say so."""
        return (None, await observer.read(cache)) if seconds is None else await self._window(cache, seconds, progress)

    async def _window(
        self, cache: Cache, seconds: float | None = None, progress: Progress = silent, since: float | None = None
    ) -> observer.Readings:
        """Return the readings of a window that spans no change of settings; see `observer.window`."""
        return await observer.window(cache, seconds, progress, since, await self._changed(cache))

    async def _changed(self, cache: Cache) -> float | None:
        """Return the Unix time at which settings were last changed through us, by the change log."""
        server = (cache.history.latest or await observer.read(cache)).server
        last = partial(self.actor.log.last_change_of_settings, *cache.on_record(server))
        changed = await anyio.to_thread.run_sync(last, limiter=self._log_readers)
        return changed.timestamp() if changed else None

    async def _observe(
        self,
        cache: Cache,
        readings: observer.Readings | None = None,
        bounds: Bounds | None = None,
        *,
        read_log: bool = True,
    ) -> Observation:
        """Observe the cache; see `observer.observe`. Lookups before our last clear are left out."""
        server = (cache.history.latest or await observer.read(cache)).server
        last = partial(self.actor.log.last_clear, *cache.on_record(server))
        cleared = await anyio.to_thread.run_sync(last, limiter=self._log_readers)
        return await observer.observe(cache, cleared.timestamp() if cleared else None, readings, bounds, read_log=read_log)
