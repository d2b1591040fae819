"""An `lmcache server` that someone else started, reached through its admin HTTP API."""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx
from pydantic import SecretStr

from agent_tools.deployments.all_or_nothing import all_or_nothing
from agent_tools.deployments.base import Progress
from agent_tools.deployments.quotas import change_quotas
from agent_tools.deployments.snapshot import Snapshot
from agent_tools.errors import LMCacheToolError, MissingRouteError, RefusedError, SettingsError, UnsupportedError
from agent_tools.models import (
    MB,
    CacheConfig,
    CacheEntry,
    ConfigUpdate,
    L2Adapter,
    Support,
    SupportLevel,
    TenantUsage,
    WarmResult,
)
from agent_tools.models.config import DEFAULT_TENANT, MB_IN_A_GB
from agent_tools.plain import plain
from agent_tools.wire.access import NO_PROXY, Access
from agent_tools.wire.http_client import AdminClient, segment
from agent_tools.wire.prometheus import parsed
from agent_tools.workload.access_log import AccessLog, lookups_since
from agent_tools.workload.chunk_layout import with_world_sizes
from agent_tools.workload.lookup_log import read_lookup_log

from .answers import (
    adapters_of,
    config_of,
    entries_of,
    groups_of,
    resident_entry_of,
    single_ranks_of,
    snapshot_of,
    world_sizes_of,
)
from .chunk_hashes import chunk_hashes
from .coldest import coldest_first
from .command_line import Flags, command_line, flags_of, with_update
from .contents import Shape, delete_from_l1, delete_from_l2, known_shape, look_up, still_found
from .exposition import Exposition, parse_exposition
from .l1_size import change_size
from .live_change import change_settings
from .module_client import ROUTE, LiveL2, ServerModule, module_of
from .settable import SEVERAL_POOLS
from .support import on_older, server_support
from .versions import VERSION_UNKNOWN, Release, ServerAnswers
from .workload_window import WorkloadWindow

MODULE_SECONDS = 1.0
"""Seconds for which the module's state in ``/status`` is reused, because one observation needs it several times."""


T = TypeVar("T")


async def _or_why(answer: Awaitable[T]) -> T | LMCacheToolError:
    """Return an answer, or why a route that is missing or refused gave none: the other answers still have their figures."""
    try:
        return await answer
    except (MissingRouteError, RefusedError) as error:
        return error


async def _or_none(answer: Awaitable[T]) -> T | None:
    found = await _or_why(answer)
    return None if isinstance(found, LMCacheToolError) else found


class ServerDeployment:
    """An `lmcache server` 0.5.x at an admin address (its ``--http-port``)."""

    backend = "lmcache server"
    owned = False

    def __init__(  # noqa: PLR0913  one for each setting of the operator's
        self,
        base_url: str,
        *,
        access_log: Path | None = None,
        arena_folder: Path | None = None,
        timeout: float = 5.0,
        transport: httpx.AsyncBaseTransport | None = None,
        token: SecretStr | None = None,
        access: Access = NO_PROXY,
        most_mb: float | None = None,
    ) -> None:
        """Prepare the connection, without calling anything yet.

        Args:
            base_url: ``http://host:port`` of the admin API, or ``https://host/prefix`` behind a proxy.
            access_log: The folder of the server's ``--lookup-hash-log-dir``, if this machine can read it.
            arena_folder: A folder on the server's host for live L1 growth, usually ``/dev/shm``.
            timeout: Seconds per call.
            transport: The HTTP transport. The default is plain HTTP.
            token: Token for the server's module (``token_env`` of its config).
            access: What a proxy in front of the server asks for.
            most_mb: Memory that L1 may take while arenas are drained, MB. ``None`` means any.
        """
        self.admin = AdminClient(base_url, timeout, transport, token, access=access)
        self._answers = ServerAnswers(self.admin)
        self._has_token = token is not None
        self._access_log = access_log
        self._arena_folder = arena_folder
        self._most_mb = most_mb
        self._last_log: tuple[list[tuple[str, int]], AccessLog] | None = None
        self._window = WorkloadWindow(self.admin)
        self._module: ServerModule | None = None
        self._module_until = 0.0
        self._world_sizes: dict[str, set[int]] = {}
        """World sizes with which engines registered each model, since we first read the server: chunks outlive their engines."""
        self._groups: dict[str, int] = {}
        """The most object groups of each model, where the module tells them."""

    async def close(self) -> None:
        """Close the connections."""
        await self.admin.close()

    async def snapshot(self) -> Snapshot:
        """Return the snapshot from ``/status`` and ``/metrics``, read side by side."""
        release = await self._answers.release()
        asked_at = _now()
        status, page = await asyncio.gather(self._answers.status(), _or_why(self.admin.read_bytes("/metrics")))
        taken_at = _now()
        exposition = await self._exposition(page, release)
        if self._answers.is_of_another_process(exposition.process_start):
            release = await self._answers.release()
            exposition = await self._exposition(page, release)
        with self._answers.understood("/status"):
            for model, sizes in single_ranks_of(exposition, status["chunk_size"]).items():
                self._world_sizes.setdefault(model, sizes)
            self._remember_world_sizes(status)
            found = snapshot_of(asked_at, taken_at, status, exposition, release)
        return found if isinstance(page, bytes) else replace(found, no_counters=str(page))

    async def _exposition(self, page: bytes | LMCacheToolError, release: Release) -> Exposition:
        with self._answers.understood("/metrics"):
            text = page if isinstance(page, bytes) else b""
            return await parsed(partial(parse_exposition, splits_hits=release.counts_lookups), text)

    def _remember_world_sizes(self, status: Mapping[str, Any]) -> None:
        for model, sizes in world_sizes_of(status).items():
            self._world_sizes.setdefault(model, set()).update(sizes)
        self._groups |= groups_of(status)

    async def world_sizes(self) -> Mapping[str, set[int]]:
        """Return the world sizes of each model whose engine is registered, or was since we first read the server."""
        status = await self._answers.status()
        with self._answers.understood("/status"):
            self._remember_world_sizes(status)
        return self._world_sizes

    async def version(self) -> str | None:
        """Return LMCache's version (``/lmc_version``), or ``None`` if the server does not tell it."""
        release = await self._answers.release()
        return None if release is VERSION_UNKNOWN else release.text

    async def module(self) -> ServerModule | None:
        """Return the server's `agent_tools.server_module`, at most one second old, or ``None`` if the server runs without it."""
        if time.monotonic() > self._module_until:
            status = await self._answers.status()
            with self._answers.understood("/status"):
                self._module = module_of(self.admin, status, token=self._has_token)
            self._module_until = time.monotonic() + MODULE_SECONDS
        return self._module

    async def config(self) -> CacheConfig:
        """Return the settings from ``/status`` (in force), ``/config`` (at the start), the module and the tenants' quotas."""
        status, boot, quotas, l2 = await asyncio.gather(
            self._answers.status(), _or_none(self._answers.boot()), _or_none(self.admin.read("/quota")), self._l2()
        )
        adapters = tuple(one.adapter for one in l2.adapters) if l2 is not None else await self._adapters()
        with self._answers.understood("/status, /config, /quota"):
            return config_of(status, boot or {}, adapters, quotas, l2)

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """Return for every setting how it can be changed. With an update, return how it can be changed to these values."""
        module, release, policies, status = await asyncio.gather(
            self.module(), self._answers.release(), self._answers.policies(), self._answers.status()
        )
        l2 = await self._l2()
        adapters = await self._adapters() if l2 is None else [one.adapter for one in l2.adapters]
        support = await server_support(self.admin, module, self._arena_folder, adapters, self.tenants, update)
        if policies is not None and l2 is not None:
            support = {**support, **policies.support(update or CacheConfig(), l2.adapters)}
        with self._answers.understood("/status"):
            several = len(status["storage_manager"]["l1_managers"]) > 1
        support = {**support, **SEVERAL_POOLS} if several else support
        return support if release.changes_live else on_older(release, support, update)

    async def restart_command(self, update: ConfigUpdate | None) -> str | None:
        """Return the command line with the update. Settings that ``/config`` does not report get LMCache's defaults."""
        flags = await self._flags_now()
        return command_line(flags if update is None else with_update(flags, update))

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Change settings live, all or none. Other settings of a server that we do not own need a restart by the operator."""
        support = await self.support(update)
        for setting in update.known():
            if support[setting].level is not SupportLevel.LIVE:
                raise UnsupportedError(
                    f"{setting} cannot be changed while this server runs: {support[setting].reason}."
                    f" Nothing was changed. The operator can restart the server as: {await self.restart_command(update)}"
                )
        module = await self.module()
        async with all_or_nothing() as undo:
            if update.max_size_mb is not None:
                await change_size(self.admin, module, self._arena_folder, update.max_size_mb, progress, undo, self._most_mb)
            if update.tenant_quotas_mb is not None:
                quotas = (await self.config()).tenant_quotas_mb or {}
                await change_quotas(self.admin, quotas, update.tenant_quotas_mb, progress, undo)
            rest = await self._change_policies(update, undo)
            if module is not None:
                await change_settings(module, rest, (await self.config()).eviction_policy, progress, undo)

    async def _change_policies(self, update: ConfigUpdate, undo: AsyncExitStack) -> ConfigUpdate:
        """Change by LMCache's own API what it can change. Return the update without it."""
        policies, l2 = await self._answers.policies(), await self._l2()
        if policies is None or l2 is None:
            return update
        done = await policies.change(update, l2.adapters, undo)
        return update.model_copy(update=dict.fromkeys(done))

    async def entries(self, limit: int) -> Sequence[CacheEntry]:
        """Return the chunks of L1 with the most hits, from the module. Without it, list an ``s3`` L2."""
        module = await self.module()
        if module is not None and "entries" in module.parts:
            answer = await self.admin.read(f"{ROUTE}/entries/top", limit=min(limit, 1000))
            with self.admin.understood(f"{ROUTE}/entries/top"):
                return [resident_entry_of(entry, answer["chunk_size"]) for entry in answer["top"]]
        try:
            page = await self.admin.read("/cache/objects", tier="l2", page_size=5000)  # a chunk has several
        except (RefusedError, MissingRouteError) as error:
            if not (await self._answers.release()).changes_live:
                raise UnsupportedError(f"this server cannot list its entries ({error}); that needs LMCache 0.5.6") from error
            raise UnsupportedError(
                f"this server cannot list its entries ({error}): without our module, LMCache lists only entries of s3 L2"
                " adapters; start the server with --server-module agent_tools.server_module to list the entries of L1"
            ) from error
        with self.admin.understood("/cache/objects"):
            return entries_of(page["entries"])[:limit]

    async def clear(self) -> None:
        """Clear L1 (``POST /cache/clear``). Locked objects stay.

        Raises:
            UnsupportedError: The server is 0.5.0 or older. Its ``/clear-cache`` also drops what requests hold locked.
        """
        release = await self._answers.release()
        if not release.has_cache_routes:
            raise UnsupportedError(
                f"LMCache {release.text} clears L1 only together with what requests hold locked, so we do not: upgrade"
                " it, or restart it to empty L1. Nothing was changed"
            )
        await self.admin.change("POST", "/cache/clear", {"tier": "l1"})

    async def delete(self, model: str, chunk_hashes: Sequence[str], tenant: str) -> int:
        """Delete chunks from L1, on every rank and in every object group. Return the number of chunks; locked objects stay.

        Raises:
            UnsupportedError: The world size of the model is not known. Nothing was deleted.
        """
        return await delete_from_l1(self.admin, await self._shape(model, "deleted"), chunk_hashes, tenant)

    async def _shape(self, model: str, what: str) -> Shape:
        """Return how the chunks of a model are stored. `what` is what is not done to them if that is not known.

        Raises:
            UnsupportedError: That is not known, or this version of LMCache has no routes for single chunks.
        """
        await self._check_names_chunks(what)
        sizes = await self.world_sizes()
        return known_shape(model, sizes, self._groups, what)

    async def _check_names_chunks(self, what: str) -> None:
        release = await self._answers.release()
        if not release.has_cache_routes:
            raise UnsupportedError(
                f"LMCache {release.text} has no routes to look for, load or delete single chunks: upgrade it. Nothing was {what}"
            )

    async def trim(self, max_used_bytes: int) -> None:
        """Delete chunks that cannot be hit, then the least recently used chunks, until L1 holds at most `max_used_bytes`.

        The module deletes in the order in which LMCache itself would evict. Without the module, the order comes from the lookup
        log.
        """
        now = await self.snapshot()
        if now.l1_used_bytes <= max_used_bytes or not now.resident_objects:
            return
        module = await self.module()
        if module is not None and module.changes("entries"):
            await module.remove_down_to(max_used_bytes)
            return
        await self._check_names_chunks("removed")
        log = await self._logged(None)
        if log is None or log.hashes is None:
            raise UnsupportedError(
                "only the lookup-hash log shows which entries are least recently used: start the server with"
                " --lookup-hash-log-dir and set access_log in caches.toml to that folder, or clear the whole cache instead"
            )
        tenants = {tenant for _, tenant in now.tokens if tenant is not None} or {""}
        # Most of the coldest chunks were evicted long ago. Deleting them again does nothing, and LMCache does not count it.
        sizes, used = await self.world_sizes(), now.l1_used_bytes
        named = coldest_first(log)
        cold = [(model, chunk) for model, chunk in named if model in sizes]
        strangers = sorted({model for model, _ in named} - sizes.keys())
        while used > max_used_bytes and cold:
            objects = now.objects_per_chunk or max(max(one) for one in sizes.values())
            per_chunk = used / max(now.resident_objects, 1) * objects
            surplus = max(int(-(-(used - max_used_bytes) // per_chunk)), 1)
            some, cold = cold[:surplus], cold[surplus:]
            for model in {model for model, _ in some}:
                hashes = [chunk for owner, chunk in some if owner == model]
                # The log has no tenants, so we try each tenant.
                for tenant in sorted(tenants):
                    await self.delete(model, hashes, tenant)
            now = await self.snapshot()
            used = now.l1_used_bytes
        if used > max_used_bytes:
            raise UnsupportedError(
                f"L1 still holds {used / MB:.1f} MB after all chunks were deleted that the lookup-hash log names. The rest is"
                " older than the log, locked by requests, or of models whose world size is unknown because none of their engines"
                f" is registered ({', '.join(map(plain, strangers)) or 'none'}). Clear the whole cache instead"
            )

    async def warm(self, model: str, tokens: Sequence[int], tenant: str, patience: float = 30.0) -> WarmResult:
        """Load a prefix from L2 into L1, all ranks and object groups of it, and wait for it at most `patience` seconds."""
        shape = await self._shape(model, "loaded")
        result = await look_up(self.admin, shape, tokens, tenant, patience)
        if not result.chunks:
            message = "the prefix is shorter than one chunk, so there is nothing to load"
        elif result.found < result.chunks:
            message = f"{result.found} of {result.chunks} chunks are now in L1; L2 does not hold the others, or L1 has no room"
        else:
            message = f"{result.found} of {result.chunks} chunks are now in L1"
        return WarmResult(requested_chunks=result.chunks, found_chunks=result.found, message=message)

    async def delete_prefix(self, model: str, tokens: Sequence[int], tenant: str) -> int:
        """Delete a prefix's chunks from L2 and L1, on every rank and in every object group. This needs an installed LMCache.

        Return the number of chunks that were in L1. LMCache does not count what an L2 deleted; see `still_found`.
        """
        shape, config = await self._shape(model, "deleted"), await self.config()
        if config.chunk_size is None or not config.stable_hashes:
            raise UnsupportedError(
                f"the chunk hashes of {self.admin.base_url} cannot be computed from tokens, because it runs with --hash-algorithm"
                f" {plain(config.hash_algorithm)}; delete chunks by their hash instead. Nothing was deleted"
            )
        hashes = await anyio.to_thread.run_sync(chunk_hashes, list(tokens), config.chunk_size, config.hash_algorithm)
        if not hashes:
            return 0
        await delete_from_l2(self.admin, shape, hashes, tenant)  # first, or a lookup loads them into L1 again
        return await delete_from_l1(self.admin, shape, hashes, tenant)

    async def still_found(self, model: str, tokens: Sequence[int], tenant: str) -> tuple[int | None, str]:
        """Return how many chunks of a prefix a lookup finds, or ``None`` and why that could not be checked."""
        return await still_found(self.admin, await self._shape(model, "checked"), tokens, tenant, patience=10.0)

    async def pin(self, model: str, tokens: Sequence[int], tenant: str, *, pinned: bool) -> int:  # noqa: ARG002
        """Raise `UnsupportedError`, because only LMCache's coordinator has pins."""
        raise UnsupportedError(
            'an `lmcache server` has no pins, but LMCache\'s coordinator has: add it to caches.toml as target = "fleet:..."'
        )

    async def tenants(self) -> Mapping[str, TenantUsage]:
        """Return the usage of all tenants with a quota or with requests, from ``/quota``."""
        quotas, now = await asyncio.gather(self.admin.read("/quota"), self.snapshot())
        with self.admin.understood("/quota"):
            salts = {*quotas["users"], *(tenant or DEFAULT_TENANT for _, tenant in now.tokens)}
            routes = [f"/quota/{segment(salt)}" for salt in sorted(salts)]
        answers = await asyncio.gather(*map(self.admin.read, routes))
        release = await self._answers.release()
        with self.admin.understood("/quota/{salt}"):
            return {
                "" if one["cache_salt"] == DEFAULT_TENANT else one["cache_salt"]: TenantUsage(
                    l2_mb=one["current_usage_gb"] * MB_IN_A_GB if release.accounts_tenants else None,
                    quota_mb=one["limit_gb"] * MB_IN_A_GB if one["exists"] else None,
                )
                for one in answers
            }

    async def access_log(self, since: float | None = None) -> AccessLog | None:
        """Return the lookups since a Unix time, from the module's workload window or from the lookup-hash log.

        The window comes first if it reaches back to `since`, then the lookup-hash log, then the part that the window holds.
        ``None`` before the first lookup, or if the server has no module and caches.toml has no access_log.

        Raises:
            RefusedError, MissingRouteError: The server has the window and does not give it, and there is no lookup-hash log.
        """
        module = await self.module()
        if module is None or "window" not in module.parts:
            return await self._logged(since)
        window = await _or_why(self._window.log())
        if isinstance(window, LMCacheToolError) or not self._window.reaches(since):
            logged = await self._logged(since)
            if logged is not None:
                return logged
        if isinstance(window, LMCacheToolError):
            raise window
        return await lookups_since(window, since)

    async def _logged(self, since: float | None) -> AccessLog | None:
        if self._access_log is None:
            return None
        log = await anyio.to_thread.run_sync(self._read_log, self._access_log)
        if log is not None:
            log = await anyio.to_thread.run_sync(
                with_world_sizes, log, {m: sorted(s) for m, s in (await self.world_sizes()).items()}
            )
        return await lookups_since(log, since)

    def _read_log(self, folder: Path) -> AccessLog | None:
        """Return the log in a folder, or ``None`` before the first lookup. Read the files again only if they have grown."""
        files = sorted((file.name, file.stat().st_size) for file in folder.glob("lookup_hashes_*.jsonl*"))
        if not files:
            if not folder.is_dir():
                raise SettingsError(
                    f"the access_log folder {folder} does not exist on this machine; name the folder of the server's"
                    " --lookup-hash-log-dir, or leave access_log out"
                )
            return None
        if self._last_log is None or self._last_log[0] != files:
            self._last_log = files, read_lookup_log(folder)
        return self._last_log[1]

    async def _flags_now(self) -> Flags:
        """Return the server's start flags, updated with the changes that its module has made since."""
        boot, config = await asyncio.gather(self._answers.boot(), self.config())
        with self._answers.understood("/config"):
            return flags_of(boot, config)

    async def _adapters(self) -> tuple[L2Adapter, ...]:
        """Return the L2 adapters with the settings of their start, which are unknown where the server does not show them."""
        boot, live = await asyncio.gather(_or_none(self._answers.boot()), _or_none(self._answers.adapters()))
        if boot is None or live is None:
            return await self._answers.adapters_of_status()
        with self._answers.understood("/config, /config/adapters"):
            return adapters_of(boot, live)

    async def _l2(self) -> LiveL2 | None:
        """Return L2 as it is now: from the module, and from LMCache's runtime policy API where the server has it."""
        module, policies = await asyncio.gather(self.module(), self._answers.policies())
        found = await module.l2() if module is not None and "l2" in module.parts else None
        if policies is None:
            return found
        told = policies.l2(await self._adapters() if found is None else [one.adapter for one in found.adapters])
        return replace(found or told, prefetch_policy=told.prefetch_policy, store_policy=told.store_policy)


def _now() -> float:
    """Return the Unix time in microsecond precision, like datetimes, so that a reading falls into the window it starts."""
    return round(time.time(), 6)
