"""A client of LMCache's coordinator (`lmcache coordinator` 0.5.6): its servers, its key directory, its quotas and its pins."""

import contextlib
import heapq
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx

from agent_tools.deployments.base import Progress
from agent_tools.deployments.quotas import change_quotas
from agent_tools.errors import (
    NotLMCacheError,
    OutcomeUnknownError,
    RefusedError,
    UnknownCacheError,
    UnreachableError,
    UnsupportedError,
)
from agent_tools.models import MB, CacheEntry, TenantUsage
from agent_tools.models.config import DEFAULT_TENANT, MB_IN_A_GB
from agent_tools.plain import plain
from agent_tools.wire.access import NO_PROXY, Access
from agent_tools.wire.http_client import AdminClient, segment

PAGE = 10_000
"""Keys or pins per answer, the coordinator's maximum."""
MAX_KEYS = 100_000
"""Most keys of a directory that we read. The coordinator walks its whole directory for each page."""
WORLD_SIZE_BITS = 24
"""Bits of a key's ``kv_rank`` below its world size (`ObjectKey.ComputeKVRank`)."""
RELAYED_SECONDS = 35.0
"""Timeout in seconds for calls that the coordinator relays to a server. The coordinator itself waits up to 30 s."""


@dataclass(frozen=True)
class Instance:
    """A server as it registered with the coordinator. Anyone who can reach the coordinator can register anything."""

    name: str
    ip: str
    port: int
    since: float
    """Unix time in seconds at which the server registered."""


@dataclass(frozen=True)
class Prefix:
    """A prompt prefix. The coordinator finds its chunks by the token ids."""

    model: str
    tokens: tuple[int, ...]
    tenant: str
    world_size: int
    """Workers that each hold a part of every chunk (tensor x pipeline parallel)."""
    chunk_size: int | None
    """Tokens per chunk on the servers. ``None`` if no server answered."""

    @property
    def body(self) -> dict[str, Any]:
        """Return the JSON body for the coordinator."""
        return {
            "model_name": self.model,
            "world_size": self.world_size,
            "token_ids": list(self.tokens),
            "cache_salt": self.tenant,
        }


@dataclass(frozen=True)
class Placement:
    """One copy of a chunk."""

    server: str
    tier: str
    """``l1`` or ``l2``."""
    shared: bool
    """Whether all servers share this storage."""


@dataclass
class Chunk:
    """One chunk of a prefix, as the directory knows it."""

    keys: int = 0
    """Keys by which the coordinator names it: one for each rank, in each object group in which it is known to be stored."""
    copies: list[Placement] = field(default_factory=list)
    """Where it is; empty if it is not stored."""


@dataclass(frozen=True)
class Deletion:
    """A server's answer to a deletion, in keys. A chunk has one key for each rank and object group."""

    affected: int
    """Keys deleted from L1. With tier ``all``, plus the keys requested to delete from L2, whether L2 had them or not."""
    skipped: int
    """Keys locked in L1. With tier ``all``, plus the pinned keys."""


class Coordinator:
    """The typed routes of one coordinator. A coordinator stores no KV itself."""

    def __init__(self, url: str, timeout: float, access: Access = NO_PROXY) -> None:
        """Prepare the connection. Raise `SettingsError` if `url` is not ``http://host:port``."""
        self._admin = AdminClient(url, timeout, access=access)

    async def close(self) -> None:
        """Close the connections."""
        await self._admin.close()

    async def instances(self) -> list[Instance]:
        """Return all registered servers that still send heartbeats (``GET /instances``)."""
        answer = await self._read("/instances")
        with self._understood("/instances"):
            return [
                Instance(str(one["instance_id"]), str(one["ip"]), int(one["http_port"]), float(one["registration_time"]))
                for one in answer["instances"]
            ]

    async def quotas(self) -> dict[str, float]:
        """Return the fleet's L2 quotas in MB by salt. The key of the empty salt is `DEFAULT_TENANT`."""
        usage = await self.usage()
        return {tenant or DEFAULT_TENANT: one.quota_mb for tenant, one in usage.items() if one.quota_mb is not None}

    async def default_quota(self) -> float | None:
        """Return the L2 quota in MB of tenants without their own quota, or ``None`` if they have no limit."""
        answer = await self._read("/quota/config")
        with self._understood("/quota/config"):
            return None if answer["default_limit_gb"] is None else _mb(answer["default_limit_gb"])

    async def usage(self) -> dict[str, TenantUsage]:
        """Return each tenant's usage on all servers together, and its quota (``GET /quota`` for both tiers)."""
        l1, l2 = await self._read("/quota", tier="l1"), await self._read("/quota", tier="l2")
        with self._understood("/quota"):
            in_l1 = {one["cache_salt"]: _mb(one["usage_gb"]) for one in l1["by_cache_salt"]}
            in_l2 = {one["cache_salt"]: _mb(one["usage_gb"]) for one in l2["by_cache_salt"]}
            quotas = {one["cache_salt"]: _mb(one["quota_limit_gb"]) for one in l2["by_cache_salt"] if one["quota_exists"]}
            return {
                tenant: TenantUsage(l1_mb=in_l1.get(tenant, 0), l2_mb=in_l2.get(tenant, 0), quota_mb=quotas.get(tenant))
                for tenant in sorted({*in_l1, *in_l2})
            }

    async def change_quotas(
        self, now: Mapping[str, float], wanted: Mapping[str, float], progress: Progress, undo: AsyncExitStack
    ) -> None:
        """Set and remove the quotas that differ (``PUT`` and ``DELETE /quota/{salt}``). Register how to undo each step."""
        try:
            await change_quotas(self._admin, now, wanted, progress, undo)
        except UnreachableError as error:
            raise OutcomeUnknownError(
                f"the coordinator at {self._admin.base_url} stopped answering while we set quotas; some quotas may be in force."
                " Read the configuration when the coordinator is back"
            ) from error

    async def top_entries(self, limit: int) -> list[CacheEntry]:
        """Return the entries with the most accesses, with their servers and tiers (``GET /directory/keys``)."""
        best: list[Mapping[str, Any]] = []
        async for keys in self._keys("list the entries of one server as <fleet>/<server>"):
            best = heapq.nlargest(limit, [*best, *keys], key=lambda one: one["access_count"])
        with self._understood("/directory/keys"):
            return [_entry(one) for one in best]

    async def world_sizes(self, model: str) -> set[int]:
        """Return the world sizes of a model's keys (``GET /directory/keys``). Chunks outlive the engines that stored them."""
        found: set[int] = set()
        async for keys in self._keys(f"start an engine of {plain(model)}, which tells its world size. Nothing was changed"):
            found |= {key["key"]["kv_rank"] >> WORLD_SIZE_BITS for key in keys if key["key"]["model_name"] == model}
        return found

    async def _keys(self, instead: str) -> AsyncIterator[list[Mapping[str, Any]]]:
        """Yield the keys of the directory page by page.

        Raises:
            UnsupportedError: There are too many. The message says what to do `instead`.
        """
        offset, total = 0, 1
        while offset < total:
            page = await self._read("/directory/keys", offset=offset, limit=PAGE)
            with self._understood("/directory/keys"):
                total, keys, offset = page["total"], page["keys"], offset + PAGE
            yield keys
            if total > MAX_KEYS:
                raise UnsupportedError(
                    f"the fleet holds {total:,} entries, too many to list, because its coordinator walks all of them for every"
                    f" {PAGE:,}; {instead}"
                )

    async def chunks(self, prefix: Prefix) -> dict[str, Chunk]:
        """Return the whole chunks of a prefix by hash, in order (``POST /directory/lookup``)."""
        with self._speaking():
            answer = await self._admin.change("POST", "/directory/lookup", prefix.body)
        with self._understood("/directory/lookup"):
            found: dict[str, Chunk] = {}
            for one in answer["results"]:
                chunk = found.setdefault(one["key"]["chunk_hash_hex"], Chunk())
                chunk.keys += 1
                chunk.copies += [Placement(at["instance_id"], at["tier"], at["shared"]) for at in one["placements"]]
            return found

    async def pinned(self, prefix: Prefix) -> set[str]:
        """Return the hashes of all pinned chunks of the prefix's model, world size and tenant (``GET /cache/pins``)."""
        hashes: set[str] = set()
        offset, total = 0, 1
        while offset < total:
            page = await self._read("/cache/pins", cache_salt=prefix.tenant, model_name=prefix.model, offset=offset, limit=PAGE)
            with self._understood("/cache/pins"):
                total, offset = page["total"] if page["pins"] else 0, offset + PAGE
                keys = [one["key"] for one in page["pins"]]
                # For the empty salt the coordinator lists the pins of all tenants.
                hashes |= {
                    key["chunk_hash_hex"]
                    for key in keys
                    if key["cache_salt"] == prefix.tenant and key["kv_rank"] >> WORLD_SIZE_BITS == prefix.world_size
                }
        return hashes

    async def pin(self, prefix: Prefix, *, pinned: bool) -> None:
        """Pin or unpin a prefix (``POST`` or ``DELETE /cache/pins``). The coordinator counts pins: two pins need two unpins."""
        with self._speaking():
            await self._admin.change("POST" if pinned else "DELETE", "/cache/pins", prefix.body)

    async def delete(self, server: str, prefix: Prefix, tier: str) -> Deletion:
        """Delete a prefix on one server (``POST /cache/delete``). With tier ``all``, pinned chunks stay."""
        body = {**prefix.body, "instance_id": server, "tier": tier, "force": False}
        with _relayed("deleted"), self._speaking():
            answer = await self._admin.change("POST", "/cache/delete", body, at_least=RELAYED_SECONDS)
        with self._understood("/cache/delete"):
            return Deletion(int(answer["affected"]), int(answer["skipped"]))

    async def prefetch(self, server: str, prefix: Prefix) -> str | None:
        """Start a prefetch on one server (``POST /cache/prefetches``). Return its id, or ``None`` if there is nothing to load."""
        body = {**prefix.body, "instance_id": server}
        with _relayed("loaded"), self._speaking():
            answer = await self._admin.change("POST", "/cache/prefetches", body, at_least=RELAYED_SECONDS)
        with self._understood("/cache/prefetches"):
            return None if answer["status"] == "noop" else str(answer["request_id"])

    async def prefetched(self, server: str, request_id: str) -> tuple[int, int] | None:
        """Return the found and the requested keys of a finished prefetch, or ``None`` while it is in progress.

        The server reports the end of a prefetch only once.

        Raises:
            OutcomeUnknownError: The server does not know the prefetch, or is gone.
        """
        try:
            answer = await self._read(f"/cache/prefetches/{segment(server)}/{segment(request_id)}")
        except RefusedError as error:
            raise OutcomeUnknownError(
                f"it is unknown whether the server loaded the prefix ({error}): a server reports the end of a prefetch only once,"
                " and forgets it in a restart. Warm the prefix again; the server loads only the missing chunks"
            ) from error
        with self._understood("/cache/prefetches"):
            return None if answer["status"] != "completed" else (int(answer["found_keys"]), int(answer["total_keys"]))

    async def _read(self, path: str, **params: Any) -> Any:  # noqa: ANN401  JSON
        with self._speaking():
            return await self._admin.read(path, **params)

    @contextlib.contextmanager
    def _understood(self, path: str) -> Iterator[None]:
        with self._speaking(), self._admin.understood(path):
            yield

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turn connection errors into errors that name the coordinator."""
        url = self._admin.base_url
        try:
            yield
        except UnreachableError as error:
            why = str(error.__cause__) or type(error.__cause__).__name__
            raise UnreachableError(
                f"LMCache's coordinator did not answer at {url} ({why}). Nothing was changed. Start `lmcache coordinator` there,"
                " or correct the fleet's address in caches.toml"
            ) from error
        except NotLMCacheError as error:
            raise NotLMCacheError(
                f"the program at {url} is not a coordinator of LMCache 0.5.6, or lacks this route; set the fleet's target to the"
                " --port of `lmcache coordinator` (default 9300) as fleet:http://host:port. Nothing was changed"
            ) from error


@contextlib.contextmanager
def _relayed(done: str) -> Iterator[None]:
    """Turn the coordinator's errors about a relayed call into our errors."""
    try:
        yield
    except RefusedError as error:
        if error.status == httpx.codes.NOT_FOUND:
            raise UnknownCacheError(f"the server has left the fleet; nothing was {done} there") from error
        if error.status != httpx.codes.BAD_GATEWAY:
            raise
        if "'503 " in str(error):  # the coordinator does not relay the server's own message
            raise UnsupportedError(
                f"no engine has registered this model's KV layout with the server, so nothing was {done} there; start the engine"
            ) from error
        if "connection attempts failed" in str(error):
            raise UnreachableError(f"the coordinator cannot reach the server; nothing was {done} there") from error
        raise OutcomeUnknownError(f"it is unknown whether anything was {done} there: {error}") from error


def _entry(one: Mapping[str, Any]) -> CacheEntry:
    """Return an entry from one of the ``keys`` of ``GET /directory/keys``."""
    key, placements = one["key"], one["placements"]
    salt, group, rank = key["cache_salt"], key["object_group_id"], key["kv_rank"]
    return CacheEntry(
        entry_id=f"{key['model_name']}@{rank:08x}@{key['chunk_hash_hex']}@{group}@{salt}",
        prefix_hash=key["chunk_hash_hex"],
        token_count=one["num_tokens"] or None,
        size_mb=max((p["size_bytes"] for p in placements), default=0) / MB or None,
        hit_count=one["access_count"],
        placements=tuple(f"{'all' if p['shared'] else p['instance_id']} ({p['tier']})" for p in placements),
    )


def _mb(gb: float) -> float:
    """Return MB, rounded. LMCache stores whole bytes, so 3.3 MB read back one byte smaller, which is not another quota."""
    return round(gb * MB_IN_A_GB, 5)
