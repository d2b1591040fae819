"""The verbs that read: status, metrics, settings, tenants, entries, changes on record."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from agent_tools.caches import observer
from agent_tools.caches.kubernetes import drift
from agent_tools.caches.observer import READ_EVERY
from agent_tools.caches.registry import DEFAULT, Cache
from agent_tools.caches.settings import CacheSettings
from agent_tools.deployments.base import Progress, silent
from agent_tools.deployments.snapshot import metrics_between
from agent_tools.errors import MissingRouteError, RefusedError, SettingsError, UnreachableError, UnsupportedError
from agent_tools.models import (
    CacheConfig,
    CacheEntry,
    CacheMetrics,
    ChangeRecord,
    LMCacheStatus,
    Support,
    Tenant,
    Tenants,
    TenantUsage,
    TokenCounts,
)
from agent_tools.models.start_configuration import Drift, StartConfiguration, StartForm
from agent_tools.recommender.prompts import prompts_of
from agent_tools.recommender.symptoms import diagnose
from agent_tools.recommender.symptoms.rule import ENOUGH_LOOKUPS, enough

from .core import Core

if TYPE_CHECKING:
    from agent_tools.caches.kubernetes import Resource

TOP_ENTRIES = 10
"""Entries listed in a status."""
NO_PROMPTS = "there is no access log, so the lengths of prompts and what of them comes again are unknown"
NO_LOG_READ = "judged by counters alone; `diagnose` also reads the access log"


class Read(Core):
    """Everything that is read."""

    async def caches(self) -> dict[str, CacheSettings]:
        """Return every name a caller may use with the operator's settings for it. Starts nothing and asks nothing."""
        registry = self.registry
        return await anyio.to_thread.run_sync(lambda: {name: registry.settings_of(name) for name in registry.names})

    async def servers(self, cache: str) -> list[str]:
        """Return the names of a fleet's servers as its coordinator knows them now. For a single server, return its own name."""
        return await self.registry.servers(cache)

    async def settings(self, cache: str = DEFAULT) -> CacheConfig:
        """Return the settings in force."""
        return await (await self.registry.find(cache)).deployment.config()

    async def config(self, cache: str = DEFAULT) -> tuple[CacheConfig, Mapping[str, Support]]:
        """Return the settings in force, and for each setting whether and how it can be changed."""
        deployment = (await self.registry.find(cache)).deployment
        config, support = await asyncio.gather(deployment.config(), deployment.support())
        return config, support

    async def export(self, cache: str, form: StartForm) -> StartConfiguration:
        """Return the settings in force as start-up configuration, so that they stay after a restart.

        Raises:
            UnsupportedError: This kind of cache does not start from that form; the message names the forms.
        """
        from agent_tools.caches.start_configuration import start_configuration

        named = await self.registry.find(cache)
        config = await named.deployment.config()
        command = await named.deployment.restart_command(None)
        resource = await anyio.to_thread.run_sync(_resource, named)
        return start_configuration(named.name, named.settings.kind, config, command, form, resource)

    async def drift(self, cache: str = DEFAULT) -> tuple[Drift, ...]:
        """Return where the cache's Kubernetes resource differs from the settings in force. Nothing if it has none."""
        named = await self.registry.find(cache)
        resource = await anyio.to_thread.run_sync(_resource, named)
        return () if resource is None else drift(resource, await named.deployment.config())

    async def version(self, cache: str = DEFAULT) -> str | None:
        """Return LMCache's version, or ``None`` if the cache does not report it."""
        return await (await self.registry.find(cache)).deployment.version()

    async def status(self, cache: str = DEFAULT, *, read_log: bool = True) -> LMCacheStatus:
        """Return what the cache is, its settings, its health, and its figures since its process started.

        Without `read_log` the symptoms rest on counters and histograms alone, and `notes` say so: a long access log takes long to
        read, and the loops over it take long to load.
        """
        named = await self.registry.find(cache)
        readings = await observer.recent(named, await self._changed(named))
        seen, (top_entries, no_entries), version = await asyncio.gather(
            self._observe(named, readings, read_log=read_log), _top_entries(named), named.deployment.version()
        )
        # In a thread: the search through a long log must not hold up other operations.
        symptoms = await anyio.to_thread.run_sync(diagnose, seen)
        return LMCacheStatus(
            timestamp=seen.metrics.window.end,
            instance_id=readings[1].instance_id,
            metrics=metrics_between(None, readings[1]),
            config=seen.config,
            lmcache_version=version,
            backend=named.deployment.backend,
            health=seen.health,
            top_entries=top_entries,
            symptoms=tuple(symptom.code.value for symptom in symptoms),
            symptoms_window=seen.metrics.window,
            notes=({} if named.history.latest is None else dict(named.history.latest.notes))
            | await _drift_note(named, seen.config)
            | ({} if no_entries is None else {"top_entries": no_entries})
            | ({} if read_log else {"symptoms": NO_LOG_READ})
            | ({} if seen.no_log is None else {"access_log": seen.no_log}),
        )

    async def metrics(
        self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent
    ) -> CacheMetrics:
        """Return the figures of a window, or without one the totals since the cache process started."""
        named = await self.registry.find(cache)
        return metrics_between(*await self._figures(named, window_seconds, progress))

    async def tenants(self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent) -> Tenants:
        """Return what each tenant (cache salt), and each model, asked for and was served in a window, and its prompts.

        For tenants also what they occupy, and their quotas.
        """
        named = await self.registry.find(cache)
        readings, (usage, why) = await asyncio.gather(self._figures(named, window_seconds, progress), _usage(named))
        metrics, seen = metrics_between(*readings), await self._observe(named, readings)
        by_tenant, by_model = await anyio.to_thread.run_sync(prompts_of, seen)
        return Tenants(
            window=metrics.window,
            tenants={
                salt: Tenant(
                    tokens=metrics.by_tenant.get(salt, TokenCounts()),
                    prompts=by_tenant.get(salt),
                    usage=usage.get(salt, TenantUsage()),
                )
                for salt in sorted({*usage, *metrics.by_tenant, *by_tenant})
            },
            more=metrics.more_tenants,
            models={
                model: Tenant(tokens=metrics.by_model.get(model, TokenCounts()), prompts=by_model.get(model))
                for model in sorted({*metrics.by_model, *by_model})
            },
            no_prompts=None if seen.log is not None else seen.no_log or NO_PROMPTS,
            no_usage=why,
        )

    async def entries(self, cache: str = DEFAULT, limit: int = 20) -> Sequence[CacheEntry]:
        """Return the most used entries, at most `limit`.

        Raises:
            UnsupportedError: This cache cannot list its entries; the message says what would make it possible.
        """
        return await (await self.registry.find(cache)).deployment.entries(limit)

    async def changes(self, cache: str | None = None) -> list[ChangeRecord]:
        """Return the change log of one cache or of all caches, oldest first. See `log_problems` for lines that cannot be read."""
        latest = None if cache is None else (await self.registry.find(cache)).history.latest
        return await anyio.to_thread.run_sync(self.actor.log.records, cache, latest.server if latest else None)

    async def log_problems(self) -> list[str]:
        """Name the lines of the change log that cannot be read, or only in part, or are dated in the future."""
        return await anyio.to_thread.run_sync(self.actor.log.problems)

    async def change(self, change_id: str) -> list[ChangeRecord]:
        """Return the records of one change, oldest first.

        Raises:
            UnknownChangeError: There is no such change.
        """
        return await anyio.to_thread.run_sync(self.actor.log.story, change_id)

    async def wait_for_traffic(self, cache: str, least_seconds: float, most_seconds: float, progress: Progress = silent) -> float:
        """Wait until a window holds enough lookups for advice, and return its length in seconds.

        Args:
            cache: Name of the cache.
            least_seconds: Wait at least this long.
            most_seconds: Stop waiting after this time, whatever was seen.
            progress: Called while waiting.
        """
        named = await self.registry.find(cache)
        start = await observer.read(named)
        while True:
            metrics = metrics_between(start, await observer.watch(named))
            seconds, lookups = time.time() - start.taken_at, metrics.total_requests
            if seconds >= most_seconds or (seconds >= least_seconds and enough(lookups, metrics, start.chunk_size)):
                return seconds
            seen = f"{metrics.tokens.requested} tokens" if lookups is None else f"{lookups} lookups"
            progress(f"observing {cache}: {seen} in {seconds:.0f} s (at least {ENOUGH_LOOKUPS} lookups and {least_seconds:g} s)")
            await anyio.sleep(READ_EVERY)

    async def steady_seconds(self, cache: str) -> float:
        """Return how many of the last minutes were observed since the last change of settings, in seconds; 0 if too few."""
        named = await self.registry.find(cache)
        start, after = await observer.recent(named, await self._changed(named))
        return 0.0 if start is None else after.taken_at - start.taken_at


async def _usage(cache: Cache) -> tuple[Mapping[str, TenantUsage], str | None]:
    """Return the quotas and the usage of tenants, or why nothing is known of them."""
    try:
        return await cache.deployment.tenants(), None
    except (MissingRouteError, RefusedError, UnsupportedError) as error:
        return {}, str(error)


def _resource(cache: Cache) -> "Resource | None":
    """Return the Kubernetes resource of a cache, or ``None`` if the operator named none."""
    from agent_tools.caches.kubernetes import read_resource

    return None if cache.settings.kubernetes is None else read_resource(cache.settings.kubernetes)


async def _drift_note(cache: Cache, config: CacheConfig) -> dict[str, str]:
    """Return a note for the status where the resource is not what is in force, or cannot be read."""
    try:
        resource = await anyio.to_thread.run_sync(_resource, cache)
    except (SettingsError, UnreachableError) as error:
        return {"kubernetes": str(error)}
    found = () if resource is None else drift(resource, config)
    said = "; ".join(f"{one.setting} is {one.in_force} and {one.spec} in the resource" for one in found)
    return {"kubernetes": f"{said}: the next pod starts with the resource's values; see `export`"} if found else {}


async def _top_entries(cache: Cache) -> tuple[tuple[CacheEntry, ...] | None, str | None]:
    """Return the most used entries, or why they are unknown."""
    try:
        return tuple(await cache.deployment.entries(TOP_ENTRIES)), None
    except UnsupportedError as error:
        return None, str(error)
