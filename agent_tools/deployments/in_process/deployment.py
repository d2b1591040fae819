"""An LMCache engine inside vLLM or SGLang, reached over the internal API servers of its workers."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NoReturn

from agent_tools.deployments.base import Progress
from agent_tools.deployments.members import agreed, side_by_side, together
from agent_tools.deployments.snapshot import Snapshot
from agent_tools.errors import (
    LMCacheToolError,
    NotLMCacheError,
    OutcomeUnknownError,
    SettingsError,
    UnreachableError,
    UnsupportedError,
)
from agent_tools.models import CacheConfig, CacheEntry, ConfigUpdate, Support, SupportLevel, TenantUsage, WarmResult
from agent_tools.workload.access_log import AccessLog

from .change import FREEZE, HOT_CACHE, Switch, bypass_switch, change_all, change_settings
from .settable import SUPPORT, WITHOUT_SCHEDULER, adapter_support
from .worker import CPU_BACKEND, Worker, WorkerState, config_of

WORST = (SupportLevel.UNSUPPORTED, SupportLevel.RESTART, SupportLevel.LIVE)


def _silent(_: str) -> None:
    """No progress is wanted."""


class EngineDeployment:
    """The workers of one engine (LMCache 0.5.x with ``internal_api_server_enabled``), read as one and changed as one.

    An engine refreshes its counters every 10 s, so a window shorter than that may see nothing. Counts are sums over the workers:
    those of a tensor-parallel engine each look up every prompt. Sizes in the configuration are each worker's own.
    A worker that does not answer is left out of what is read and named in the health; nothing is changed without it.
    """

    backend = "engine"
    owned = False

    def __init__(self, worker_urls: Sequence[str], *, timeout: float = 5.0) -> None:
        """Nothing is called yet.

        Args:
            worker_urls: ``http://host:port`` of each worker, named ``worker0``, ``worker1`` ... in this order. With
                several workers, that of vLLM's scheduler (``internal_api_server_port_start`` itself) too, without which
                min_prefix_length cannot be set.
            timeout: Seconds per call.

        Raises:
            SettingsError: There is no address, one is given twice, or one is not of that form.
        """
        self.workers = {f"worker{rank}": Worker(url.strip(), timeout) for rank, url in enumerate(worker_urls)}
        if not self.workers:
            raise SettingsError("an engine is reached by the address of each of its workers, and there is none")
        if len({worker.url for worker in self.workers.values()}) < len(self.workers):
            raise SettingsError(f"a worker's address is given twice, and would be counted twice: {', '.join(worker_urls)}")

    async def close(self) -> None:
        """Close the connections."""
        for worker in self.workers.values():
            await worker.close()

    # ---- reading ----

    async def snapshot(self) -> Snapshot:
        """From ``/metrics`` and the state of each worker, read side by side; see `members.together`."""
        answers, failures = await side_by_side({name: worker.snapshot() for name, worker in self.workers.items()})
        _raise_strangers(failures)
        return together({name: one for name, one in answers.items() if one is not None}, failures)

    async def version(self) -> str | None:
        """``/lmc_version``; of each where they differ."""
        answers, failures = await side_by_side({name: worker.read("/lmc_version") for name, worker in self.workers.items()})
        _raise_strangers(failures)
        _must_answer(answers, failures)
        return ", ".join(sorted({str(version) for version in answers.values()}))

    async def config(self) -> CacheConfig:
        """In what all workers that answer agree, and where they differ; see `engine_worker.config_of`."""
        states = await self._states()
        return agreed({name: config_of(state) for name, state in _with_cache(states).items()})

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """What can be changed, for every setting; with an update, for those very values on every worker."""
        states, support = await self._states(), dict(SUPPORT)
        roles = {state.meta.get("role") for state in states.values()}
        if "scheduler" not in roles and any(state.meta.get("world_size", 1) > 1 for state in states.values()):
            support["min_prefix_length"] = WITHOUT_SCHEDULER
        if update is not None and update.l2_adapters is not None:
            each = [
                adapter_support(config_of(state).l2_adapters or (), update.l2_adapters) for state in _with_cache(states).values()
            ]
            support["l2_adapters"] = min(each, key=lambda one: WORST.index(one.level))
        return support

    async def restart_command(self, update: ConfigUpdate) -> str | None:  # noqa: ARG002
        """``None``: the engine is started by vLLM or SGLang; `support` names the key of LMCache's configuration."""
        return None

    async def access_log(self, since: float | None = None) -> AccessLog | None:  # noqa: ARG002
        """``None``: an engine keeps no log of its lookups."""
        return None

    async def entries(self, limit: int) -> Sequence[CacheEntry]:  # noqa: ARG002
        """Always refused."""
        raise UnsupportedError("an engine cannot list what it holds; its figures tell how many tokens and chunks that is")

    async def tenants(self) -> Mapping[str, TenantUsage]:
        """Always refused."""
        raise UnsupportedError("an engine keeps no account by tenant; an `lmcache server` does")

    # ---- changing ----

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Change what can be changed live, on all workers or on none."""
        await self._all_states()
        support = await self.support(update)
        for setting in update.known():
            if support[setting].level is not SupportLevel.LIVE:
                raise UnsupportedError(
                    f"{setting} cannot be changed on this running engine: {support[setting].reason}. Nothing was changed"
                )
        await change_all(self.workers, partial(change_settings, update), progress, f"the change of {', '.join(update.known())}")

    async def freeze(self, on: bool, progress: Progress = _silent) -> None:
        """Store nothing more and read L1 alone, or no longer."""
        await self._turn(FREEZE, on, "freezing" if on else "thawing", progress)

    async def hot_cache(self, on: bool, progress: Progress = _silent) -> None:
        """Whether L1 keeps chunks; turning it off drops all it holds."""
        await self._turn(HOT_CACHE, on, f"turning the hot cache {'on' if on else 'off'}", progress)

    async def bypass(self, backend: str, on: bool, progress: Progress = _silent) -> None:
        """Neither read nor write a backend (LMCache's name, e.g. ``LocalDiskBackend``), or do so again."""
        for name, state in _with_cache(await self._all_states()).items():
            _must_have(backend, name, state)
        await self._turn(bypass_switch(backend), on, f"{'bypassing' if on else 'using'} {backend}", progress)

    async def clear(self) -> None:
        """Remove all that is in L1 of every worker, except what requests hold pinned."""
        await self.clear_backend(CPU_BACKEND)

    async def clear_backend(self, backend: str) -> int:
        """Remove all from one backend (LMCache's name) of every worker; returns how many tokens LMCache says that was.

        Raises:
            UnsupportedError: LMCache 0.5.6 can clear L1 only; of others it says that it did, and does nothing.
            OutcomeUnknownError: Some workers were cleared and others did not say so.
        """
        caches = _with_cache(await self._all_states())
        for name, state in caches.items():
            _must_have(backend, name, state)
        if backend != CPU_BACKEND:
            raise UnsupportedError(
                f"LMCache 0.5.6 clears {CPU_BACKEND} only, not {backend}: bypass it, or detach it by a change of l2_adapters."
                " Nothing was removed"
            )
        path = f"/cache/clear?locations={backend}"
        asked = {name: self.workers[name].change("DELETE", path) for name in caches}
        answers, failures = await side_by_side(asked)
        if failures:
            which = "; ".join(f"{name}: {error}" for name, error in failures.items())
            raise OutcomeUnknownError(
                f"clearing {backend} was not confirmed by all workers ({which}); {', '.join(answers) or 'none'} confirmed it"
            )
        return sum(int(answer["num_removed"]) for answer in answers.values())

    async def trim(self, max_used_bytes: int) -> None:
        """Refused unless L1 is that small already."""
        if (await self.snapshot()).l1_used_bytes > max_used_bytes:
            _refuse("an engine removes single entries only by eviction; clear L1 instead")

    async def delete(self, model: str, chunk_hashes: Sequence[str], tenant: str) -> int:  # noqa: ARG002
        """Always refused."""
        _refuse("an engine cannot delete single chunks; clear L1 instead")

    async def delete_prefix(self, model: str, tokens: Sequence[int], tenant: str) -> int:  # noqa: ARG002
        """Always refused."""
        _refuse("an engine cannot delete a single prefix; clear L1 instead")

    async def warm(self, model: str, tokens: Sequence[int], tenant: str) -> WarmResult:  # noqa: ARG002
        """Always refused."""
        _refuse("an engine loads no prefix by itself; send the prompt to vLLM or SGLang once, which stores it")

    async def pin(self, model: str, tokens: Sequence[int], tenant: str, *, pinned: bool) -> int:  # noqa: ARG002
        """Always refused."""
        _refuse("an engine's internal API has no pins; freeze the engine to keep L1 as it is, or use LMCache's coordinator")

    # ---- parts ----

    async def _turn(self, switch: Switch, on: bool, what: str, progress: Progress) -> None:
        caches = _with_cache(await self._all_states())
        await change_all({name: self.workers[name] for name in caches}, partial(switch.set, on), progress, what)

    async def _states(self) -> dict[str, WorkerState]:
        """Of the workers that answer; at least one."""
        return (await self._asked())[0]

    async def _all_states(self) -> dict[str, WorkerState]:
        """Of all workers, as a change needs it."""
        states, failures = await self._asked()
        if failures:
            which = "; ".join(f"{name}: {error}" for name, error in failures.items())
            raise UnreachableError(
                f"a change is made on all workers or on none, and not all answer ({which}); nothing was changed"
            )
        return states

    async def _asked(self) -> tuple[dict[str, WorkerState], dict[str, LMCacheToolError]]:
        states, failures = await side_by_side({name: worker.state() for name, worker in self.workers.items()})
        _raise_strangers(failures)
        _must_answer(states, failures)
        return states, failures


def _with_cache(states: Mapping[str, WorkerState]) -> dict[str, WorkerState]:
    """All but the scheduler.

    Raises:
        UnsupportedError: The scheduler is all there is.
    """
    caches = {name: state for name, state in states.items() if not state.is_scheduler}
    if not caches:
        raise UnsupportedError(
            "only the engine's scheduler answers, which holds no cache: add the address of each worker"
            " (internal_api_server_port_start + 1 + N)"
        )
    return caches


def _must_have(backend: str, name: str, state: WorkerState) -> None:
    if backend not in state.backends:
        raise UnsupportedError(f"{name} has no backend {backend}; it has: {', '.join(state.backends)}. Nothing was changed")


def _raise_strangers(failures: Mapping[str, LMCacheToolError]) -> None:
    """A worker that is gone is left out; an address at which something else answers is a mistake of the operator's."""
    for name, failure in failures.items():
        if isinstance(failure, NotLMCacheError):
            raise NotLMCacheError(f"{name}: {failure}") from failure


def _must_answer(answers: Mapping[str, object], failures: Mapping[str, LMCacheToolError]) -> None:
    if not answers:
        raise UnreachableError(f"no worker of this engine answers: {'; '.join(map(str, failures.values()))}")


def _refuse(why: str) -> NoReturn:
    raise UnsupportedError(f"{why}. Nothing was changed")
