"""An `lmcache server` reached over its admin HTTP API, started by somebody else."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import numpy as np

from agent_tools.errors import RefusedError, UnsupportedError
from agent_tools.models import (
    MB,
    SETTINGS,
    CacheConfig,
    CacheEntry,
    ConfigUpdate,
    Support,
    SupportLevel,
    WarmResult,
)
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.lookup_log import read_lookup_log

from .admin_client import AdminClient
from .arenas import arenas_of, page_aligned, resize
from .base import Progress
from .exposition import parse_exposition
from .readings import adapters_of, config_of, entry_of, snapshot_of
from .server_command import L1_POLICIES, Flags, command_line, flags_of, with_update
from .settable import ARENAS, BELOW_PRIMARY, DRAM, NO_FOLDER, NOT_A_SETTING, POLICY_REFUSED, SUPPORT
from .snapshot import Snapshot
from .trim import coldest_first

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

    async def config(self) -> CacheConfig:
        """From ``/status`` (live values), ``/config`` (boot values of what cannot change) and the tenants' quotas."""
        paths = ("/status", "/config", "/config/adapters", "/quota")
        answers = await asyncio.gather(*(self.admin.read(path) for path in paths))
        with self.admin.understood(", ".join(paths)):
            return config_of(*answers)

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """What can be changed, for every setting; with an update, for those very values."""
        wanted = update or None
        support = {setting: SUPPORT.get(setting, NOT_A_SETTING) for setting in SETTINGS}
        support["max_size_mb"] = await self._size_support(wanted.max_size_mb if wanted else None)
        if wanted is not None and wanted.eviction_policy is not None and wanted.eviction_policy not in L1_POLICIES:
            support["eviction_policy"] = Support(level=SupportLevel.UNSUPPORTED, reason=POLICY_REFUSED)
        return support

    async def restart_command(self, update: ConfigUpdate) -> str | None:
        """The exact command line with the update; settings that ``/config`` does not report stay at LMCache's defaults."""
        return command_line(with_update(await self._boot_flags(), update))

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Change the L1 size live; all other settings of a server we do not own are start-up flags."""
        support = await self.support(update)
        for setting in update.known():
            if support[setting].level is not SupportLevel.LIVE:
                raise UnsupportedError(
                    f"{setting} cannot be changed on this running server: {support[setting].reason}."
                    f" Nothing was changed. Its operator can restart it as: {await self.restart_command(update)}"
                )
        now = await arenas_of(self.admin)
        if update.max_size_mb is not None and self._arena_folder is not None and now is not None:
            await resize(self.admin, now, self._arena_folder, page_aligned(update.max_size_mb * MB), progress)

    async def entries(self, limit: int) -> Sequence[CacheEntry]:
        """Objects of the primary L2 adapter; LMCache lists no other tier, and of the adapters only ``s3``."""
        try:
            page = await self.admin.read("/cache/objects", tier="l2", page_size=min(limit, 5000))
        except RefusedError as error:
            raise UnsupportedError(
                f"LMCache cannot list its entries here ({error}); it lists s3 L2 adapters only, and never L1"
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
            deleted += answer["deleted"]
        return deleted

    async def trim(self, max_used_bytes: int) -> None:
        """Delete least recently used chunks, by the access log, until L1 holds at most `max_used_bytes`."""
        now = await self.snapshot()
        if now.l1_used_bytes <= max_used_bytes or not now.resident_objects:
            return
        log = await self.access_log()
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
        if submitted["status"] == "noop":
            return WarmResult(requested_chunks=0, found_chunks=0, message="the prefix is shorter than one chunk: nothing to load")
        with anyio.move_on_after(patience):
            while True:
                # The completed answer is given once; a second poll would be a 404.
                answer = await self.admin.read(f"/cache/prefetches/{submitted['request_id']}")
                if answer["status"] == "completed":
                    found, total = answer["found_keys"], answer["total_keys"]
                    return WarmResult(
                        requested_chunks=total, found_chunks=found, message=f"{found} of {total} chunks are now in L1"
                    )
                await anyio.sleep(0.05)
        raise UnsupportedError(f"LMCache had not loaded the prefix after {patience:g} s; it may still do so")

    async def access_log(self, since: float | None = None) -> AccessLog | None:
        """The server's lookup-hash log, read in a worker thread; ``None`` when the operator named no folder for it."""
        if self._access_log is None:
            return None
        return await anyio.to_thread.run_sync(self._log_since, self._access_log, since)

    def _log_since(self, folder: Path, since: float | None) -> AccessLog | None:
        """The log in a folder, read again only if it has grown; ``None`` before the first lookup was written."""
        files = sorted((file.name, file.stat().st_size) for file in folder.glob("lookup_hashes_*.jsonl*"))
        if not files:
            return None
        if self._last_log is None or self._last_log[0] != files:
            self._last_log = files, read_lookup_log(folder)
        log = self._last_log[1]
        return log if since is None else log.select(np.flatnonzero(log.timestamps >= since))

    async def _boot_flags(self) -> Flags:
        boot, adapters = await asyncio.gather(self.admin.read("/config"), self.admin.read("/config/adapters"))
        with self.admin.understood("/config"):
            return flags_of(boot, adapters_of(boot, adapters))

    async def _size_support(self, wanted_mb: float | None) -> Support:
        now = await arenas_of(self.admin)
        if now is None:
            return Support(level=SupportLevel.RESTART, reason=DRAM)
        if self._arena_folder is None:
            return Support(level=SupportLevel.RESTART, reason=NO_FOLDER)
        if wanted_mb is not None and page_aligned(wanted_mb * MB) < now.primary:
            return Support(level=SupportLevel.RESTART, reason=BELOW_PRIMARY.format(now.primary / MB))
        return Support(level=SupportLevel.LIVE, reason=ARENAS.format(self._arena_folder))


def _now() -> float:
    """Unix time to the microsecond, as datetimes are: a reading must not fall out of the window that begins with it."""
    return round(time.time(), 6)
