"""In-process LMCache inside vLLM or SGLang, reached through the internal API servers of its workers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import anyio.to_thread

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
from agent_tools.plain import plain
from agent_tools.wire.access import NO_PROXY, Access
from agent_tools.workload.access_log import AccessLog, lookups_since

from .change import FREEZE, HOT_CACHE, Switch, bypass_switch, change_all, change_settings
from .lookup_record import LookupRecord, bytes_of_chunk
from .ranks import once_per_engine, ranks_answering
from .settable import SUPPORT, WITHOUT_SCHEDULER, adapter_support
from .worker import CPU_BACKEND, Worker, WorkerState, config_of

WORST = (SupportLevel.UNSUPPORTED, SupportLevel.RESTART, SupportLevel.LIVE)


def _silent(_: str) -> None:
    """Ignore progress."""


class InProcessDeployment:
    """In-process LMCache in all workers of one engine (LMCache 0.5.x with ``internal_api_server_enabled``), as one cache.

    LMCache refreshes its counters every 10 s, so a shorter window may show nothing. Counts are those of one rank of each engine,
    because every rank counts every prompt; bytes are sums over all workers (see `ranks`). Sizes in the configuration are per
    worker.
    Reading leaves out a worker that does not answer, and names it in the health. A change needs all workers.
    """

    backend = "engine"
    owned = False

    def __init__(
        self,
        worker_urls: Sequence[str],
        *,
        access_log: Path | None = None,
        timeout: float = 5.0,
        access: Access = NO_PROXY,
    ) -> None:
        """Prepare the connections, without calling anything yet.

        Args:
            worker_urls: ``http://host:port`` of each worker. The workers are named ``worker0``, ``worker1`` ... in this order.
                With several workers, add the address of vLLM's scheduler (``internal_api_server_port_start`` itself); without
                it min_prefix_length cannot be set.
            access_log: Folder in which the scheduler's chunk statistics record lookups (``chunk_statistics_file_output_dir``), if
                this machine can read it.
            timeout: Seconds per call.
            access: What a proxy in front of the workers asks for.

        Raises:
            SettingsError: There is no address, an address is given twice, or an address is not ``http://host:port``.
        """
        self._record = None if access_log is None else LookupRecord(access_log)
        self.workers = {f"worker{rank}": Worker(url.strip(), timeout, access) for rank, url in enumerate(worker_urls)}
        if not self.workers:
            raise SettingsError("in-process LMCache needs the address of each worker, and none is given: engine:http://host:port")
        if len({worker.url for worker in self.workers.values()}) < len(self.workers):
            raise SettingsError(f"a worker's address is given twice: {', '.join(worker_urls)}; give each address once")

    async def close(self) -> None:
        """Close the connections."""
        for worker in self.workers.values():
            await worker.close()

    # ---- reading ----

    async def snapshot(self) -> Snapshot:
        """Return the sum of all workers, from ``/metrics`` and the state of each worker. See `members.together`."""
        alone = len(self.workers) == 1
        answers, failures = await side_by_side({name: worker.snapshot(alone=alone) for name, worker in self.workers.items()})
        _raise_strangers(failures)
        readings = {name: one for name, one in answers.items() if one is not None}
        members = once_per_engine(readings, {name: self.workers[name].meta for name in readings})
        total = together(members, failures)
        per_chunk = total.objects_per_chunk
        return replace(total, objects_per_chunk=None if per_chunk is None else per_chunk * ranks_answering(members))

    async def version(self) -> str | None:
        """Return LMCache's version from ``/lmc_version``. If the workers differ, return all versions."""
        answers, failures = await side_by_side({name: worker.read("/lmc_version") for name, worker in self.workers.items()})
        _raise_strangers(failures)
        _must_answer(answers, failures)
        return ", ".join(sorted({str(version) for version in answers.values()}))

    async def config(self) -> CacheConfig:
        """Return the settings on which all answering workers agree, and the differences. See `worker.config_of`."""
        states = await self._states()
        return agreed({name: config_of(state) for name, state in _with_cache(states).items()})

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """Return for every setting how it can be changed. With an update, check these values on every worker."""
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

    async def restart_command(self, update: ConfigUpdate | None) -> str | None:  # noqa: ARG002
        """Return ``None``, because vLLM or SGLang starts in-process LMCache. `support` names the configuration keys."""
        return None

    async def access_log(self, since: float | None = None) -> AccessLog | None:
        """Return the lookups since a Unix time, from the scheduler's chunk statistics; ``None`` without a record of them.

        See `lookup_record`. `chunk_bytes` is the size of a chunk on one worker, like the sizes in the configuration.
        """
        if self._record is None:
            return None
        states = await self._states()
        state = next(iter(_with_cache(states).values()))
        log = await anyio.to_thread.run_sync(self._record.read, int(state.conf["chunk_size"]), bytes_of_chunk(state.meta))
        return await lookups_since(log, since)

    async def entries(self, limit: int) -> Sequence[CacheEntry]:  # noqa: ARG002
        """Raise `UnsupportedError`, because in-process LMCache cannot list its entries."""
        raise UnsupportedError("in-process LMCache cannot list its entries; read the metrics for the number of chunks")

    async def tenants(self) -> Mapping[str, TenantUsage]:
        """Raise `UnsupportedError`, because in-process LMCache does not count by tenant."""
        raise UnsupportedError("in-process LMCache does not count by tenant; use an `lmcache server`, which does")

    # ---- changing ----

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Change settings live, on all workers or on none."""
        await self._all_states()
        support = await self.support(update)
        for setting in update.known():
            if support[setting].level is not SupportLevel.LIVE:
                raise UnsupportedError(
                    f"{setting} cannot be changed while the engine runs: {support[setting].reason}. Nothing was changed"
                )
        await change_all(self.workers, partial(change_settings, update), progress, f"the change of {', '.join(update.known())}")

    async def freeze(self, on: bool, progress: Progress = _silent) -> None:
        """Freeze or thaw LMCache. Frozen, it stores nothing and reads only L1."""
        await self._turn(FREEZE, on, "freezing" if on else "thawing", progress)

    async def hot_cache(self, on: bool, progress: Progress = _silent) -> None:
        """Turn the hot cache on or off. Off, L1 drops all chunks and keeps no new ones."""
        await self._turn(HOT_CACHE, on, f"turning the hot cache {'on' if on else 'off'}", progress)

    async def bypass(self, backend: str, on: bool, progress: Progress = _silent) -> None:
        """Bypass a backend (LMCache's name, e.g. ``LocalDiskBackend``), or use it again. LMCache ignores a bypassed backend."""
        for name, state in _with_cache(await self._all_states()).items():
            _must_have(backend, name, state)
        await self._turn(bypass_switch(backend), on, f"{'bypassing' if on else 'using'} {backend}", progress)

    async def clear(self) -> None:
        """Remove all chunks from L1 of every worker, except chunks that requests pin."""
        await self.clear_backend(CPU_BACKEND)

    async def clear_backend(self, backend: str) -> int:
        """Remove all chunks from one backend (LMCache's name) of every worker. Return the removed tokens, by LMCache's count.

        Raises:
            UnsupportedError: The backend is not L1. LMCache 0.5.6 reports success for other backends but does nothing.
            OutcomeUnknownError: Some workers confirmed the clear and others did not.
        """
        caches = _with_cache(await self._all_states())
        for name, state in caches.items():
            _must_have(backend, name, state)
        if backend != CPU_BACKEND:
            raise UnsupportedError(
                f"LMCache 0.5.6 can clear only {CPU_BACKEND}, not {backend}; bypass {backend}, or detach it by changing"
                " l2_adapters. Nothing was removed"
            )
        path = f"/cache/clear?locations={backend}"
        asked = {name: self.workers[name].change("DELETE", path) for name in caches}
        answers, failures = await side_by_side(asked)
        if failures:
            which = "; ".join(f"{name}: {error}" for name, error in failures.items())
            raise OutcomeUnknownError(
                f"not all workers confirmed the clear of {backend} ({which}); {', '.join(answers) or 'no worker'} confirmed it."
                " Read the metrics before you try again"
            )
        return sum(int(answer["num_removed"]) for answer in answers.values())

    async def trim(self, max_used_bytes: int) -> None:
        """Do nothing if L1 already holds at most `max_used_bytes`, and raise `UnsupportedError` otherwise."""
        if (await self.snapshot()).l1_used_bytes > max_used_bytes:
            _refuse("in-process LMCache removes single entries only by eviction; clear L1 instead")

    async def delete(self, model: str, chunk_hashes: Sequence[str], tenant: str) -> int:  # noqa: ARG002
        """Raise `UnsupportedError`, because in-process LMCache cannot delete single chunks."""
        _refuse("in-process LMCache cannot delete single chunks; clear L1 instead")

    async def delete_prefix(self, model: str, tokens: Sequence[int], tenant: str) -> int:  # noqa: ARG002
        """Raise `UnsupportedError`, because in-process LMCache cannot delete a single prefix."""
        _refuse("in-process LMCache cannot delete a single prefix; clear L1 instead")

    async def still_found(self, model: str, tokens: Sequence[int], tenant: str) -> tuple[int | None, str]:  # noqa: ARG002
        """Say that the internal API has no lookup."""
        return None, "in-process LMCache has no lookup for other programs"

    async def warm(self, model: str, tokens: Sequence[int], tenant: str) -> WarmResult:  # noqa: ARG002
        """Raise `UnsupportedError`, because in-process LMCache loads a prefix only for a request."""
        _refuse("in-process LMCache loads a prefix only for a request; send the prompt to vLLM or SGLang once")

    async def pin(self, model: str, tokens: Sequence[int], tenant: str, *, pinned: bool) -> int:  # noqa: ARG002
        """Raise `UnsupportedError`, because the internal API has no pins."""
        _refuse("in-process LMCache has no pins; freeze it to keep L1 as it is, or use LMCache's coordinator")

    # ---- parts ----

    async def _turn(self, switch: Switch, on: bool, what: str, progress: Progress) -> None:
        caches = _with_cache(await self._all_states())
        await change_all({name: self.workers[name] for name in caches}, partial(switch.set, on), progress, what)

    async def _states(self) -> dict[str, WorkerState]:
        """Return the states of the workers that answer. At least one must answer."""
        return (await self._asked())[0]

    async def _all_states(self) -> dict[str, WorkerState]:
        """Return the states of all workers. A change needs all of them."""
        states, failures = await self._asked()
        if failures:
            which = "; ".join(f"{name}: {error}" for name, error in failures.items())
            raise UnreachableError(
                f"a change needs all workers, and some do not answer ({which}); start them or correct the addresses. Nothing was"
                " changed"
            )
        return states

    async def _asked(self) -> tuple[dict[str, WorkerState], dict[str, LMCacheToolError]]:
        states, failures = await side_by_side({name: worker.state() for name, worker in self.workers.items()})
        _raise_strangers(failures)
        _must_answer(states, failures)
        return states, failures


def _with_cache(states: Mapping[str, WorkerState]) -> dict[str, WorkerState]:
    """Return the states of all members except the scheduler.

    Raises:
        UnsupportedError: Only the scheduler answers.
    """
    caches = {name: state for name, state in states.items() if not state.is_scheduler}
    if not caches:
        raise UnsupportedError(
            "only the engine's scheduler answers, and it holds no cache: add the address of each worker"
            " (internal_api_server_port_start + 1 + N)"
        )
    return caches


def _must_have(backend: str, name: str, state: WorkerState) -> None:
    if backend not in state.backends:
        there = ", ".join(map(plain, state.backends))
        raise UnsupportedError(f"{name} has no backend {backend}; it has: {there}. Nothing was changed")


def _raise_strangers(failures: Mapping[str, LMCacheToolError]) -> None:
    """Raise `NotLMCacheError` if something else answers at a worker's address, because that is a wrong setting."""
    for name, failure in failures.items():
        if isinstance(failure, NotLMCacheError):
            raise NotLMCacheError(f"{name}: {failure}") from failure


def _must_answer(answers: Mapping[str, object], failures: Mapping[str, LMCacheToolError]) -> None:
    if not answers:
        raise UnreachableError(f"no worker of this engine answered: {'; '.join(map(str, failures.values()))}")


def _refuse(why: str) -> NoReturn:
    raise UnsupportedError(f"{why}. Nothing was changed")
