"""The verbs that advise: symptoms, recommendations, forecasts, quotas, the report page."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from agent_tools.caches.registry import DEFAULT, Cache
from agent_tools.caches.settings import IN_PROCESS
from agent_tools.deployments.base import Progress, silent
from agent_tools.errors import LMCacheToolError, UnknownCacheError, UnsupportedError, WorkloadError
from agent_tools.models import Advice, Bounds, CacheMetrics, ChangeRecord, ConfigUpdate, SupportLevel, Symptom, Window
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.symptoms import diagnose
from agent_tools.workload.access_log import AccessLog

from .read import Read

if TYPE_CHECKING:
    from agent_tools.prediction.forecast import Forecast
    from agent_tools.prediction.model_kv import ModelKv
    from agent_tools.prediction.size_pricing import Terms
    from agent_tools.prediction.sizing import Sizing
    from agent_tools.recommender.compare import CacheComparison
    from agent_tools.recommender.migration import Migration
    from agent_tools.recommender.quota_advice import TenantQuotas


class Advise(Read):
    """Everything that is said about a cache."""

    async def diagnose(
        self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent
    ) -> tuple[Symptom, ...]:
        """Return what is wrong in a window, worst first."""
        return (await self.diagnosis(cache, window_seconds, progress))[0]

    async def diagnosis(
        self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent
    ) -> tuple[tuple[Symptom, ...], Window]:
        """Return what is wrong, worst first, and the window that was looked at: it never spans a change of settings."""
        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named, window_seconds, progress))
        return await anyio.to_thread.run_sync(diagnose, seen), seen.metrics.window

    async def recommend(
        self,
        cache: str = DEFAULT,
        window_seconds: float | None = None,
        bounds: Bounds | None = None,
        progress: Progress = silent,
        since: float | None = None,
    ) -> Advice:
        """Return what would make the cache better, or why nothing would.

        Args:
            cache: Name of the cache.
            window_seconds: Length of the window.
            bounds: Narrows the operator's bounds.
            progress: Called while waiting.
            since: Start the window at this Unix time instead, if this process has a reading from then.
        """
        from agent_tools.recommender.recommend import recommend

        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named, window_seconds, progress, since), bounds)
        # In a thread: the search takes seconds on a long log.
        self.last_advice[named.name] = advice = await anyio.to_thread.run_sync(recommend, seen)
        return advice

    async def forecast(
        self, cache: str = DEFAULT, instead: ConfigUpdate | None = None, sizes_mb: Sequence[float] | None = None
    ) -> "tuple[Forecast, CacheMetrics]":
        """Return what L1 sizes would give on the requests since L1 was last empty, and what was measured since the start.

        Args:
            cache: Name of the cache.
            instead: Settings to assume in place of those in force.
            sizes_mb: L1 sizes, MB; by default a grid chosen from the log.

        Raises:
            UnsupportedError: There is no access log, so nothing can be predicted.
            WorkloadError: The log, or the settings, cannot be predicted from.
        """
        from agent_tools.recommender.modelled import forecast_of

        seen, _ = await self._logged(cache)
        return await anyio.to_thread.run_sync(forecast_of, seen, instead, sizes_mb), seen.metrics

    async def tenant_quotas(
        self, cache: str = DEFAULT, window_seconds: float | None = None, budget_mb: float | None = None
    ) -> "TenantQuotas":
        """Return the L2 quotas that would give the most hits within a budget, and whether one shared L2 does as well.

        Args:
            cache: Name of the cache.
            window_seconds: Length of the window.
            budget_mb: What the quotas may add up to, MB; by default what they add up to now, else the size of L2.

        Raises:
            UnsupportedError: The access log does not separate tenants, or there is no budget to divide.
        """
        from agent_tools.recommender.tenant_quotas import tenant_quotas

        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named, window_seconds))
        return await anyio.to_thread.run_sync(partial(tenant_quotas, seen, budget_mb=budget_mb))

    async def report(self, cache: str = DEFAULT) -> str:
        """Return one self-contained HTML page: status, advice with its evidence, pictures and the history of changes."""
        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named))
        return await anyio.to_thread.run_sync(_page, seen, await self.changes(cache), await self.log_problems())

    async def size(
        self, cache: str, model: "ModelKv", gpu_free_gb: float | None = None, terms: "Terms | None" = None
    ) -> "Sizing":
        """Return what sizes of the engine's own cache, L1 and L2 would give on the cache's requests if this model served them.

        Args:
            cache: Name of the cache.
            model: KV of the model.
            gpu_free_gb: Memory that each GPU has for KV, GB.
            terms: Speeds and prices; what they lack is ``None`` in the rows.

        Raises:
            UnsupportedError: There is no access log, so nothing can be predicted.
            WorkloadError: The log cannot be predicted from.
        """
        from agent_tools.prediction.sizing import size_for

        _, log = await self._logged(cache)
        return await anyio.to_thread.run_sync(partial(size_for, log, model, gpu_free_gb=gpu_free_gb, terms=terms))

    async def migration(
        self,
        cache: str,
        model: "ModelKv",
        settings: Mapping[str, Any] | None = None,
        *,
        gpu_free_gb: float | None = None,
        port: int = 5555,
    ) -> "Migration":
        """Return the `lmcache server` that would stand in place of LMCache inside an engine.

        Args:
            cache: Name of the cache; its target is ``engine:``.
            model: KV of the model.
            settings: LMCache's configuration; by default what is in force, as far as LMCache tells it.
            gpu_free_gb: Memory that each GPU has for KV, GB.
            port: RPC port for the server.

        Raises:
            UnsupportedError: The cache is not inside an engine, or has no record of its lookups.
            SettingsError: The configuration has a value that LMCache does not take.
        """
        from agent_tools.caches.start_configuration import in_process_settings
        from agent_tools.recommender.migration import migration

        named = await self.registry.find(cache)
        if named.settings.kind != IN_PROCESS:
            raise UnsupportedError(
                f"{cache} is not inside an engine (its target is {named.settings.kind}:), so nothing is to migrate"
            )
        seen, log = await self._logged(cache)
        given = in_process_settings(seen.config) if settings is None else settings
        return await anyio.to_thread.run_sync(partial(migration, given, log, model, gpu_free_gb=gpu_free_gb, port=port))

    async def _logged(self, cache: str) -> "tuple[Observation, AccessLog]":
        """Return what is observed of a cache, and its access log.

        Raises:
            UnsupportedError: There is no access log.
        """
        seen = await self._observe(await self.registry.find(cache))
        if seen.no_log is not None:
            raise UnsupportedError(
                f"nothing can be predicted for {cache}, because it does not give its access log: {seen.no_log}"
            )
        if seen.log is None:
            module = " --server-module agent_tools.server_module, or with" if seen.loads_modules else ""
            raise UnsupportedError(
                f"nothing can be predicted for {cache} without an access log; of an `lmcache server`: start it with{module}"
                " --lookup-hash-log-dir and name that folder as access_log in caches.toml, or wait for the first lookup"
            )
        return seen, seen.log

    async def compare_caches(
        self, caches: Sequence[str], window_seconds: float | None = None, budget_mb: float | None = None
    ) -> "CacheComparison":
        """Return where a megabyte earns most: the L1 sizes that give several caches of one machine the most hits together.

        Args:
            caches: Names of the caches. The caller knows that they share a machine's memory.
            window_seconds: Length of the window.
            budget_mb: Memory to divide, MB; by default what the caches that can be compared have now.

        Raises:
            UnknownCacheError: There is no cache of one of the names.
            UnsupportedError: Fewer than two caches can be compared.
            OutOfBoundsError: The budget does not cover the smallest sizes that the bounds allow.
        """
        from agent_tools.recommender.compare import budget_of, compare_caches

        seen: dict[str, Observation] = {}
        unknown: dict[str, str] = {}
        servers: dict[str, str] = {}

        async def look(name: str) -> None:
            try:
                named = await self.registry.find(name)
                found = await self._observe(named, await self._window(named, window_seconds))
                server = (await self.actor.standing(named)).server
            except UnknownCacheError:
                raise
            except LMCacheToolError as error:
                unknown[name] = str(error)
                return
            if (other := servers.setdefault(server, name)) != name:
                unknown[name] = f"it is the same server as {other}"
            else:
                seen[name] = found

        names = tuple(dict.fromkeys(caches))
        await asyncio.gather(*map(look, names))
        observed = [seen[name] for name in names if name in seen]
        budget = budget_of(observed) if budget_mb is None else budget_mb
        equal = budget / max(len(observed), 1)
        reach = {one.cache: await _reach(await self.registry.find(one.cache), one, equal) for one in observed}
        compare = partial(compare_caches, observed, unknown, reach, budget_mb=budget_mb)
        found = await anyio.to_thread.run_sync(compare)
        shares = [one.model_copy(update={"how": await self._how(one.cache, one.proposed_mb)}) for one in found.caches]
        return found.model_copy(update={"caches": tuple(shares)})

    async def _how(self, cache: str, size_mb: float) -> SupportLevel:
        """Return how the cache's L1 would be given this size."""
        support = await (await self.registry.find(cache)).deployment.support(ConfigUpdate(max_size_mb=size_mb))
        return support["max_size_mb"].level


def _page(seen: Observation, changes: Sequence[ChangeRecord], log_problems: Sequence[str]) -> str:
    """Return the report of one observation. Without a usable access log the report leaves out the predictions."""
    from agent_tools.recommender.modelled import forecast_of
    from agent_tools.recommender.recommend import recommend
    from agent_tools.report.page import html_report

    try:
        forecast = None if seen.log is None else forecast_of(seen)
    except WorkloadError:
        forecast = None
    return html_report(recommend(seen), seen.metrics, forecast=forecast, changes=changes, log_problems=log_problems)


async def _reach(cache: Cache, seen: Observation, equal_mb: float) -> tuple[float, float]:
    """Return the smallest and the largest L1, MB, that the bounds allow and that can be set as the bounds allow."""
    from agent_tools.recommender.compare import limits

    size, restart = seen.config.max_size_mb or 0.0, cache.settings.bounds.allow_restart or not cache.deployment.owned
    can = {SupportLevel.LIVE, SupportLevel.RESTART} if restart else {SupportLevel.LIVE}

    async def reached(wanted: float) -> float:
        if wanted == size or not wanted:
            return size
        support = await cache.deployment.support(ConfigUpdate(max_size_mb=wanted))
        return wanted if support["max_size_mb"].level in can else size

    least, most = limits(seen, equal_mb)
    return await reached(least), await reached(most)
