"""The verbs that change settings: plan, apply, undo."""

import contextlib
import time

import anyio
import anyio.to_thread

from agent_tools.caches import observer
from agent_tools.caches.registry import DEFAULT, Cache
from agent_tools.caches.settings import IN_PROCESS
from agent_tools.deployments.base import Progress, silent
from agent_tools.errors import LMCacheToolError, NothingToChangeError, StalePlanError
from agent_tools.models import Bounds, CacheConfig, ChangeRecord, ChangeResult, ConfigUpdate, Plan
from agent_tools.models.change import Baseline
from agent_tools.models.standing import Standing

from .core import Core
from .read import _resource


class Change(Core):
    """Every change of settings, and its undo."""

    async def plan(
        self,
        cache: str,
        wanted: CacheConfig | ConfigUpdate,
        reason: str,
        bounds: Bounds | None = None,
        fingerprint: str | None = None,
    ) -> Plan:
        """Return what has to change for the cache to be as wanted, and what that costs. Changes nothing. See `Actor.plan`.

        Args:
            cache: Name of the cache.
            wanted: Any subset of the settings.
            reason: Why; goes into the change log.
            bounds: Narrows the operator's bounds.
            fingerprint: Fingerprint of an earlier plan that this plan must equal.

        Raises:
            NothingToChangeError: The cache already is as wanted.
            StalePlanError: The cache changed since the earlier plan was made, or that plan was for other settings.
        """
        named = await self.registry.find(cache)
        plan = await self.actor.plan(named, wanted, reason, bounds)
        if plan.needs_restart and named.settings.kind == IN_PROCESS:
            plan = plan.model_copy(update={"command": _variables_of(await named.deployment.config(), plan.update)})
        if plan.command is not None and named.settings.kubernetes is not None:
            plan = plan.model_copy(update={"command": await anyio.to_thread.run_sync(_patch_of, named, plan.command)})
        if fingerprint not in (None, plan.fingerprint):
            raise StalePlanError(
                f"{cache} is not, or no longer, as the plan with fingerprint {fingerprint} found it, or that plan is for other"
                " settings; read the cache and plan anew. Nothing was changed"
            )
        return plan

    async def predicted_plan(self, cache: str, wanted: CacheConfig | ConfigUpdate, reason: str) -> Plan:
        """Return a plan with the gain that the model predicts for it on the requests seen so far, if it can predict one."""
        from agent_tools.recommender.modelled import gain_of_update

        plan, named = await self.plan(cache, wanted, reason), await self.registry.find(cache)
        with contextlib.suppress(LMCacheToolError):  # a log that cannot be read keeps nobody from planning
            seen = await self._observe(named, await self._window(named))
            predicted = await anyio.to_thread.run_sync(gain_of_update, seen, plan.update)
            plan = plan.model_copy(update={"predicted": predicted})
        return plan

    async def apply(self, plan: Plan, actor: str, progress: Progress = silent, before: Baseline | None = None) -> ChangeResult:
        """Carry out a plan. See `Actor.apply`.

        Args:
            plan: The plan.
            actor: Who asks; goes into the change log.
            progress: Called while waiting.
            before: What the cache did before the change, recorded with it for `verify_change`. By default the last minutes, as
                far as they were read, else the counters since the cache process started.
        """
        named = await self._changeable(plan.cache)
        before = before or await self._lately(named)
        return await self._changed_now(named, await self.actor.apply(named, plan, self._who(actor), progress, baseline=before))

    async def configure(
        self,
        cache: str,
        wanted: CacheConfig | ConfigUpdate,
        reason: str,
        actor: str,
        *,
        bounds: Bounds | None = None,
        fingerprint: str | None = None,
        progress: Progress = silent,
    ) -> ChangeResult | None:
        """Plan and apply in one call. Return ``None`` if the cache already is as wanted."""
        try:
            plan = await self.plan(cache, wanted, reason, bounds, fingerprint)
        except NothingToChangeError:
            return None
        return await self.apply(plan, actor, progress)

    async def undo(
        self, cache: str | None, change_id: str, actor: str, progress: Progress = silent, reason: str = ""
    ) -> ChangeResult:
        """Undo a change by its id. Without `cache`, the change log names the cache. See `Actor.undo`."""
        name = cache or (await self._record_of(change_id)).cache
        named = await self._changeable(name)
        return await self._changed_now(named, await self.actor.undo(named, change_id, self._who(actor), progress, reason))

    async def _lately(self, cache: Cache) -> Baseline | None:
        """Return what the cache did in the last minutes, or ``None`` if nothing was read of that."""
        seen = observer.baseline(cache, await observer.recent(cache, await self._changed(cache)), None)
        return seen if seen.metrics.tokens.requested and not seen.metrics.window.lifetime else None

    async def _changed_now(self, cache: Cache, result: ChangeResult) -> ChangeResult:
        """Read the cache right after a change, so that the next window can start there."""
        cache.history.settings_read(result.config, time.time())
        with contextlib.suppress(LMCacheToolError):  # the change is made and on record, whatever this reading says
            await observer.read(cache)
        return result

    async def check_cooldown(self, cache: str) -> None:
        """Raise `CooldownError` while the last change of the cache is too recent."""
        await self.actor.check_cooldown(await self.registry.find(cache))

    async def standing(self, cache: str = DEFAULT) -> Standing:
        """Return the server process, the settings in force, and which of them are not as our changes left them."""
        return await self.actor.standing(await self.registry.find(cache))

    async def settle(self, cache: str) -> ChangeRecord | None:
        """Record what became of a last change whose process ended before it could record that. See `Actor.settle`."""
        return await self.actor.settle(await self._changeable(cache))


def _variables_of(config: CacheConfig, update: ConfigUpdate) -> str | None:
    """Return the environment variables with which an engine starts with an update; ``None`` if it has none for it."""
    from agent_tools.caches.start_configuration import in_process_settings, variables

    now, then = (in_process_settings(one) for one in (config, config.model_copy(update=update.known())))
    return " ".join(variables({key: value for key, value in then.items() if value != now.get(key)})) or None


def _patch_of(cache: Cache, command: str) -> str:
    """Return a restart as a patch of the cache's resource."""
    from agent_tools.caches.arguments import arguments_of, pairs_of
    from agent_tools.caches.kubernetes import merge_patch, patch_command

    resource = _resource(cache)
    assert resource is not None  # noqa: S101  asked for where the operator named one
    return patch_command(merge_patch(pairs_of(arguments_of(command)), resource)[0], resource)
