"""An `lmcache server` reached over its admin HTTP API, started by somebody else."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import httpx

from agent_tools.deployments.all_or_nothing import all_or_nothing
from agent_tools.deployments.base import Progress
from agent_tools.deployments.quotas import change_quotas
from agent_tools.deployments.snapshot import Snapshot
from agent_tools.errors import RefusedError, UnsupportedError
from agent_tools.models import CacheConfig, CacheEntry, ConfigUpdate, L2Adapter, Support, SupportLevel, TenantUsage, WarmResult
from agent_tools.models.config import DEFAULT_TENANT, MB_IN_A_GB
from agent_tools.wire.http_client import AdminClient, segment
from agent_tools.workload.access_log import AccessLog, lookups_since
from agent_tools.workload.lookup_log import read_lookup_log

from .answers import adapters_of, config_of, entry_of, resident_entry_of, snapshot_of
from .chunk_hashes import chunk_hashes
from .coldest import coldest_first
from .command_line import Flags, command_line, flags_of, with_update
from .exposition import parse_exposition
from .l1_size import change_size
from .live_change import change_settings
from .module_client import ROUTE, LiveL2, ServerModule, module_of
from .support import server_support
from .workload_window import WorkloadWindow

MODULE_SECONDS = 1.0
"""How long what ``/status`` told of the module is relied on: an observation asks for it several times."""
DELETE_BATCH = 5000
"""Keys per ``DELETE /cache/objects``; LMCache takes at most 10,000."""
KV_RANK = 0x01000100
"""LMCache's ``kv_rank`` of a worker alone in its world."""


class ServerDeployment:
    """An `lmcache server` 0.5.x at an admin address (its ``--http-port``)."""

    backend = "lmcache server"
    owned = False

    def __init__(
        self,
        base_url: str,
        *,
        access_log: Path | None = None,
        arena_folder: Path | None = None,
        timeout: float = 5.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Nothing is called yet.

        Args:
            base_url: ``http://host:port`` of the admin API.
            access_log: The folder of the server's ``--lookup-hash-log-dir``, if we can read it.
            arena_folder: A folder on the server's own host for live L1 growth, usually ``/dev/shm``.
            timeout: Seconds per call.
            transport: What carries the calls; plain HTTP when not given.
        """
        self.admin = AdminClient(base_url, timeout, transport)
        self._access_log = access_log
        self._arena_folder = arena_folder
        self._last_log: tuple[list[tuple[str, int]], AccessLog] | None = None
        self._window = WorkloadWindow(self.admin)
        self._module: ServerModule | None = None
        self._module_until = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self.admin.close()

    async def snapshot(self) -> Snapshot:
        """From ``/status`` and ``/metrics``, read side by side."""
        asked_at = _now()
        status, text = await asyncio.gather(self.admin.read("/status"), self.admin.read_text("/metrics"))
        with self.admin.understood("/metrics"):
            exposition = parse_exposition(text)
        with self.admin.understood("/status"):
            return snapshot_of(asked_at, _now(), status, exposition)

    async def version(self) -> str | None:
        """``/lmc_version``."""
        return str(await self.admin.read("/lmc_version"))

    async def module(self) -> ServerModule | None:
        """The server's `agent_tools.server_module`, as it was within the last second; ``None`` when it was started without."""
        if time.monotonic() > self._module_until:
            status = await self.admin.read("/status")
            with self.admin.understood("/status"):
                self._module = module_of(self.admin, status)
            self._module_until = time.monotonic() + MODULE_SECONDS
        return self._module

    async def config(self) -> CacheConfig:
        """From ``/status`` (live values), ``/config`` (boot values of what cannot change), the module and the tenants' quotas."""
        status, boot, adapters, quotas, l2 = await asyncio.gather(
            self.admin.read("/status"),
            self.admin.read("/config"),
            self.admin.read("/config/adapters"),
            self.admin.read("/quota"),
            self._l2(),
        )
        with self.admin.understood("/status, /config, /config/adapters, /quota"):
            return config_of(status, boot, adapters, quotas, l2)

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """What can be changed, for every setting; with an update, for those very values."""
        module, adapters = await asyncio.gather(self.module(), self._adapters())
        return await server_support(self.admin, module, self._arena_folder, adapters, self.tenants, update)

    async def restart_command(self, update: ConfigUpdate) -> str | None:
        """The exact command line with the update; settings that ``/config`` does not report stay at LMCache's defaults."""
        return command_line(with_update(await self._flags_now(), update))

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Change what can be changed live, all or nothing; all else of a server we do not own are start-up flags."""
        support = await self.support(update)
        for setting in update.known():
            if support[setting].level is not SupportLevel.LIVE:
                raise UnsupportedError(
                    f"{setting} cannot be changed on this running server: {support[setting].reason}."
                    f" Nothing was changed. Its operator can restart it as: {await self.restart_command(update)}"
                )
        module = await self.module()
        async with all_or_nothing() as undo:
            if update.max_size_mb is not None:
                await change_size(self.admin, module, self._arena_folder, update.max_size_mb, progress, undo)
            if update.tenant_quotas_mb is not None:
                quotas = (await self.config()).tenant_quotas_mb or {}
                await change_quotas(self.admin, quotas, update.tenant_quotas_mb, progress, undo)
            if module is not None:
                await change_settings(module, update, (await self.config()).eviction_policy, progress, undo)

    async def entries(self, limit: int) -> Sequence[CacheEntry]:
        """The chunks of L1 with most hits, by the module; without it objects of the primary L2 adapter, if that is ``s3``."""
        module = await self.module()
        if module is not None and "entries" in module.parts:
            answer = await self.admin.read(f"{ROUTE}/entries/top", limit=min(limit, 1000))
            with self.admin.understood(f"{ROUTE}/entries/top"):
                return [resident_entry_of(entry, answer["chunk_size"]) for entry in answer["top"]]
        try:
            page = await self.admin.read("/cache/objects", tier="l2", page_size=min(limit, 5000))
        except RefusedError as error:
            raise UnsupportedError(
                f"LMCache cannot list its entries here ({error}): by itself it lists those of s3 L2 adapters only; start it with"
                " --server-module agent_tools.server_module to list those of L1"
            ) from error
        with self.admin.understood("/cache/objects"):
            return [entry_of(entry) for entry in page["entries"][:limit]]

    async def clear(self) -> None:
        """``POST /cache/clear``: L1 only; locked objects stay."""
        await self.admin.change("POST", "/cache/clear", {"tier": "l1"})

    async def delete(self, model: str, chunk_hashes: Sequence[str], tenant: str) -> int:
        """``DELETE /cache/objects`` on L1; returns how many objects LMCache says it deleted. Locked ones stay."""
        deleted = 0
        for start in range(0, len(chunk_hashes), DELETE_BATCH):
            keys = [
                {
                    "chunk_hash_hex": h.removeprefix("0x"),
                    "model_name": model,
                    "kv_rank": KV_RANK,
                    "object_group_id": 0,
                    "cache_salt": tenant,
                }
                for h in chunk_hashes[start : start + DELETE_BATCH]
            ]
            answer = await self.admin.change("DELETE", "/cache/objects", {"keys": keys, "tier": "l1"})
            with self.admin.understood("/cache/objects"):
                deleted += int(answer["deleted"])
        return deleted

    async def trim(self, max_used_bytes: int) -> None:
        """Delete chunks that cannot be hit, then least recently used ones, until L1 holds at most `max_used_bytes`.

        By the module, in the order in which LMCache itself would evict; without it least recently used ones by the lookup log.
        """
        now = await self.snapshot()
        if now.l1_used_bytes <= max_used_bytes or not now.resident_objects:
            return
        module = await self.module()
        if module is not None and module.changes("entries"):
            await module.remove_down_to(max_used_bytes)
            return
        log = await self._logged(None)
        if log is None or log.hashes is None:
            raise UnsupportedError(
                "which entries are least recently used is only known from the lookup-hash log: start the server with"
                " --lookup-hash-log-dir and name that folder in the directory, or clear the whole cache instead"
            )
        per_object = now.l1_used_bytes / now.resident_objects
        surplus = int(-(-(now.l1_used_bytes - max_used_bytes) // per_object))
        tenants = {labels[1] for labels in now.tokens} or {""}
        # Most of the coldest chunks were evicted long ago: deleting them again does nothing and counts as nothing.
        cold = coldest_first(log)
        while surplus > 0 and cold:
            some, cold = cold[:surplus], cold[surplus:]
            for model in {model for model, _ in some}:
                hashes = [chunk for owner, chunk in some if owner == model]
                # The log has no tenant, so each is tried.
                surplus -= sum([await self.delete(model, hashes, tenant) for tenant in sorted(tenants)])

    async def warm(self, model: str, tokens: Sequence[int], tenant: str, patience: float = 30.0) -> WarmResult:
        """``POST /cache/prefetches``, then poll until done; at most `patience` seconds."""
        body = {"model_name": model, "world_size": 1, "token_ids": list(tokens), "cache_salt": tenant}
        submitted = await self.admin.change("POST", "/cache/prefetches", body)
        with self.admin.understood("/cache/prefetches"):
            noop = submitted["status"] == "noop"
            request = "" if noop else segment(str(submitted["request_id"]))
        if noop:
            return WarmResult(requested_chunks=0, found_chunks=0, message="the prefix is shorter than one chunk: nothing to load")
        with anyio.move_on_after(patience):
            while True:
                # The completed answer is given once; a second poll would be a 404.
                answer = await self.admin.read(f"/cache/prefetches/{request}")
                with self.admin.understood("/cache/prefetches"):
                    if answer["status"] == "completed":
                        found, total = int(answer["found_keys"]), int(answer["total_keys"])
                        return WarmResult(
                            requested_chunks=total, found_chunks=found, message=f"{found} of {total} chunks are now in L1"
                        )
                await anyio.sleep(0.05)
        raise UnsupportedError(f"LMCache had not loaded the prefix after {patience:g} s; it may still do so")

    async def delete_prefix(self, model: str, tokens: Sequence[int], tenant: str) -> int:
        """By hashes computed with LMCache's own hasher, which must be installed here; returns how many objects were deleted."""
        config = await self.config()
        if config.chunk_size is None or not config.stable_hashes:
            raise UnsupportedError(
                f"the names of chunks on {self.admin.base_url} cannot be computed from tokens (--hash-algorithm"
                f" {config.hash_algorithm}); nothing was deleted"
            )
        hashes = await anyio.to_thread.run_sync(chunk_hashes, list(tokens), config.chunk_size, config.hash_algorithm)
        return await self.delete(model, hashes, tenant)

    async def pin(self, model: str, tokens: Sequence[int], tenant: str, *, pinned: bool) -> int:  # noqa: ARG002
        """Always refused."""
        raise UnsupportedError(
            'an `lmcache server` by itself has no pins; LMCache\'s coordinator has: name it as target = "fleet:..."'
        )

    async def tenants(self) -> Mapping[str, TenantUsage]:
        """From ``/quota``: those with a quota, and those that have sent requests."""
        quotas, now = await asyncio.gather(self.admin.read("/quota"), self.snapshot())
        with self.admin.understood("/quota"):
            salts = {*quotas["users"], *(tenant or DEFAULT_TENANT for _, tenant in now.tokens)}
            routes = [f"/quota/{segment(salt)}" for salt in sorted(salts)]
        answers = await asyncio.gather(*map(self.admin.read, routes))
        with self.admin.understood("/quota/{salt}"):
            return {
                "" if one["cache_salt"] == DEFAULT_TENANT else one["cache_salt"]: TenantUsage(
                    l2_mb=one["current_usage_gb"] * MB_IN_A_GB, quota_mb=one["limit_gb"] * MB_IN_A_GB if one["exists"] else None
                )
                for one in answers
            }

    async def access_log(self, since: float | None = None) -> AccessLog | None:
        """The module's workload window if it holds all since then, else the lookup-hash log, else what the window holds.

        ``None`` before the first lookup, and where the server has no module and the operator named no folder for the log.
        """
        module = await self.module()
        if module is None or "window" not in module.parts:
            return await self._logged(since)
        window = await self._window.log()
        if not self._window.reaches(since):
            logged = await self._logged(since)
            if logged is not None:
                return logged
        return await lookups_since(window, since)

    async def _logged(self, since: float | None) -> AccessLog | None:
        if self._access_log is None:
            return None
        return await lookups_since(await anyio.to_thread.run_sync(self._read_log, self._access_log), since)

    def _read_log(self, folder: Path) -> AccessLog | None:
        """The log in a folder, read again only if it has grown; ``None`` before the first lookup was written."""
        files = sorted((file.name, file.stat().st_size) for file in folder.glob("lookup_hashes_*.jsonl*"))
        if not files:
            return None
        if self._last_log is None or self._last_log[0] != files:
            self._last_log = files, read_lookup_log(folder)
        return self._last_log[1]

    async def _flags_now(self) -> Flags:
        """Those it was started with, with what its module has changed since."""
        boot, config = await asyncio.gather(self.admin.read("/config"), self.config())
        with self.admin.understood("/config"):
            return flags_of(boot, config)

    async def _adapters(self) -> Sequence[L2Adapter]:
        l2 = await self._l2()
        if l2 is not None:
            return [one.adapter for one in l2.adapters]
        boot, live = await asyncio.gather(self.admin.read("/config"), self.admin.read("/config/adapters"))
        with self.admin.understood("/config, /config/adapters"):
            return adapters_of(boot, live)

    async def _l2(self) -> LiveL2 | None:
        module = await self.module()
        return await module.l2() if module is not None and "l2" in module.parts else None


def _now() -> float:
    """Unix time to the microsecond, as datetimes are: a reading must not fall out of the window that begins with it."""
    return round(time.time(), 6)
