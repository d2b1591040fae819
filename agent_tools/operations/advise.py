"""The verbs that advise: symptoms, recommendations, forecasts, quotas, the report page."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from agent_tools.caches.registry import DEFAULT
from agent_tools.deployments.base import Progress, silent
from agent_tools.errors import UnsupportedError, WorkloadError
from agent_tools.models import Advice, Bounds, CacheMetrics, ChangeRecord, ConfigUpdate, Symptom, Window
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.symptoms import diagnose

from .read import Read

if TYPE_CHECKING:
    from agent_tools.prediction.forecast import Forecast
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

        named = await self.registry.find(cache)
        seen = await self._observe(named)
        if seen.log is None:
            raise UnsupportedError(
                f"nothing can be predicted for {cache} without an access log; of an `lmcache server`: start it with"
                " --server-module agent_tools.server_module, or with --lookup-hash-log-dir and name that folder as access_log in"
                " caches.toml, or wait for the first lookup"
            )
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
