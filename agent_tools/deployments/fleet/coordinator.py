"""LMCache's coordinator (`lmcache coordinator` 0.5.6) over HTTP: the servers it knows, its key directory, quotas and pins."""

import contextlib
import heapq
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
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
from agent_tools.wire.http_client import AdminClient, segment

PAGE = 10_000
"""Keys or pins per answer; the most the coordinator gives."""
MAX_KEYS = 100_000
"""Keys of a directory that we look through: for each page the coordinator walks all of it."""
RELAYED_SECONDS = 35.0
"""For calls that the coordinator passes on to a server, for which it waits up to 30 s."""


@dataclass(frozen=True)
class Instance:
    """A server as it told the coordinator of itself; whoever can reach the coordinator can tell it anything."""

    name: str
    ip: str
    port: int
    since: float
    """Unix time at which it registered."""


@dataclass(frozen=True)
class Prefix:
    """A prompt prefix, by whose tokens the coordinator finds the chunks."""

    model: str
    tokens: tuple[int, ...]
    tenant: str
    world_size: int
    """Workers that each hold a part of every chunk (tensor x pipeline parallel)."""
    chunk_size: int | None
    """Tokens per chunk on the servers; ``None`` when none of them could be asked."""

    @property
    def body(self) -> dict[str, Any]:
        """As the coordinator takes it."""
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
    """Whether all servers use this storage."""


@dataclass(frozen=True)
class Deletion:
    """What a server answered; in keys, which are chunks x ranks."""

    affected: int
    """Deleted from L1; with tier ``all`` plus those it was told to delete from L2, whether they were there or not."""
    skipped: int
    """Locked in L1; with tier ``all`` plus those that are pinned."""


class Coordinator:
    """The routes of one coordinator, typed. It keeps no L1 and serves no KV: it knows, deletes and passes on."""

    def __init__(self, url: str, timeout: float) -> None:
        """Nothing is called yet. Raises `SettingsError` when `url` is not ``http://host:port``."""
        self._admin = AdminClient(url, timeout)

    async def close(self) -> None:
        """Close the connections."""
        await self._admin.close()

    async def instances(self) -> list[Instance]:
        """``GET /instances``: all that have registered and still send heartbeats."""
        answer = await self._read("/instances")
        with self._understood("/instances"):
            return [
                Instance(str(one["instance_id"]), str(one["ip"]), int(one["http_port"]), float(one["registration_time"]))
                for one in answer["instances"]
            ]

    async def quotas(self) -> dict[str, float]:
        """L2 quotas of the fleet by salt, MB; that of the empty salt is under `DEFAULT_TENANT`."""
        usage = await self.usage()
        return {tenant or DEFAULT_TENANT: one.quota_mb for tenant, one in usage.items() if one.quota_mb is not None}

    async def default_quota(self) -> float | None:
        """The L2 quota of tenants without one of their own, MB; ``None`` when they may take what they like."""
        answer = await self._read("/quota/config")
        with self._understood("/quota/config"):
            return None if answer["default_limit_gb"] is None else _mb(answer["default_limit_gb"])

    async def usage(self) -> dict[str, TenantUsage]:
        """``GET /quota`` of both tiers: what each tenant has on all servers together, and its quota."""
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
        """``PUT`` and ``DELETE /quota/{salt}`` where quotas differ; each step can be taken back."""
        try:
            await change_quotas(self._admin, now, wanted, progress, undo)
        except UnreachableError as error:
            raise OutcomeUnknownError(
                f"the coordinator at {self._admin.base_url} went away while quotas were set; some may be in force: read the"
                " configuration when it is back"
            ) from error

    async def top_entries(self, limit: int) -> list[CacheEntry]:
        """The chunks' parts with most accesses, with the servers and tiers they are in (``GET /directory/keys``)."""
        best: list[Mapping[str, Any]] = []
        offset, total = 0, 1
        while offset < total:
            page = await self._read("/directory/keys", offset=offset, limit=PAGE)
            with self._understood("/directory/keys"):
                total, offset = page["total"], offset + PAGE
                best = heapq.nlargest(limit, [*best, *page["keys"]], key=lambda one: one["access_count"])
            if total > MAX_KEYS:
                raise UnsupportedError(
                    f"the fleet holds {total:,} entries, and its coordinator would walk through all of them for every {PAGE:,};"
                    " list those of one server instead, named as <fleet>/<server>"
                )
        with self._understood("/directory/keys"):
            return [_entry(one) for one in best]

    async def placements(self, prefix: Prefix) -> dict[str, list[Placement]]:
        """Where each whole chunk of a prefix is, by hash, in order; nowhere if it is not stored (``POST /directory/lookup``)."""
        with self._speaking():
            answer = await self._admin.change("POST", "/directory/lookup", prefix.body)
        with self._understood("/directory/lookup"):
            found: dict[str, list[Placement]] = {}
            for one in answer["results"]:
                places = [Placement(place["instance_id"], place["tier"], place["shared"]) for place in one["placements"]]
                found.setdefault(one["key"]["chunk_hash_hex"], []).extend(places)
            return found

    async def pinned(self, prefix: Prefix) -> set[str]:
        """Hashes of all pinned chunks of the model and tenant of a prefix (``GET /cache/pins``)."""
        hashes: set[str] = set()
        offset, total = 0, 1
        while offset < total:
            page = await self._read("/cache/pins", cache_salt=prefix.tenant, model_name=prefix.model, offset=offset, limit=PAGE)
            with self._understood("/cache/pins"):
                total, offset = page["total"] if page["pins"] else 0, offset + PAGE
                keys = [one["key"] for one in page["pins"]]
                # Asked for the empty salt, it lists all.
                hashes |= {key["chunk_hash_hex"] for key in keys if key["cache_salt"] == prefix.tenant}
        return hashes

    async def pin(self, prefix: Prefix, *, pinned: bool) -> None:
        """``POST`` or ``DELETE /cache/pins``. Pins are counted: what was pinned twice stays pinned after one unpin."""
        with self._speaking():
            await self._admin.change("POST" if pinned else "DELETE", "/cache/pins", prefix.body)

    async def delete(self, server: str, prefix: Prefix, tier: str) -> Deletion:
        """``POST /cache/delete`` on one server; pinned chunks are left out when `tier` is ``all``."""
        body = {**prefix.body, "instance_id": server, "tier": tier, "force": False}
        with _relayed("deleted"), self._speaking():
            answer = await self._admin.change("POST", "/cache/delete", body, at_least=RELAYED_SECONDS)
        with self._understood("/cache/delete"):
            return Deletion(int(answer["affected"]), int(answer["skipped"]))

    async def prefetch(self, server: str, prefix: Prefix) -> str | None:
        """``POST /cache/prefetches`` to one server; the id to ask for, ``None`` when there is nothing to load."""
        body = {**prefix.body, "instance_id": server}
        with _relayed("loaded"), self._speaking():
            answer = await self._admin.change("POST", "/cache/prefetches", body, at_least=RELAYED_SECONDS)
        with self._understood("/cache/prefetches"):
            return None if answer["status"] == "noop" else str(answer["request_id"])

    async def prefetched(self, server: str, request_id: str) -> tuple[int, int] | None:
        """(found, asked for) of a prefetch that has ended, given once; ``None`` while it is under way.

        Raises:
            OutcomeUnknownError: The server does not know it (any more), or is gone.
        """
        try:
            answer = await self._read(f"/cache/prefetches/{segment(server)}/{segment(request_id)}")
        except RefusedError as error:
            raise OutcomeUnknownError(
                f"whether it has loaded the prefix is not known ({error}): a server tells the end of a prefetch once, and forgets"
                " it in a restart; warm again, which loads only what is missing"
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
        """Say of what does not answer, or not as a coordinator, that it is the coordinator that was asked."""
        url = self._admin.base_url
        try:
            yield
        except UnreachableError as error:
            why = str(error.__cause__) or type(error.__cause__).__name__
            raise UnreachableError(
                f"LMCache's coordinator did not answer at {url} ({why}); nothing was changed. Start `lmcache coordinator` there"
                " or correct the fleet's address"
            ) from error
        except NotLMCacheError as error:
            raise NotLMCacheError(
                f"what answers at {url} is no coordinator of LMCache 0.5.6, or one without this route; name the --port of"
                " `lmcache coordinator` (9300 unless given) as fleet:http://host:port. Nothing was changed"
            ) from error


@contextlib.contextmanager
def _relayed(done: str) -> Iterator[None]:
    """What the coordinator says of a server that it could not ask, or that refused it."""
    try:
        yield
    except RefusedError as error:
        if error.status == httpx.codes.NOT_FOUND:
            raise UnknownCacheError(f"it has left the fleet since it was listed; nothing was {done} there") from error
        if error.status != httpx.codes.BAD_GATEWAY:
            raise
        if "'503 " in str(error):  # the server's own words do not get through
            raise UnsupportedError(
                f"no engine is registered there with this model's KV layout, without which nothing is {done}"
            ) from error
        if "connection attempts failed" in str(error):
            raise UnreachableError(f"the coordinator does not reach it; nothing was {done} there") from error
        raise OutcomeUnknownError(f"whether anything was {done} there is not known: {error}") from error


def _entry(one: Mapping[str, Any]) -> CacheEntry:
    """One of ``keys`` of ``GET /directory/keys``."""
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
    """LMCache keeps whole bytes: 3.3 MB come back one byte smaller, which is no other quota."""
    return round(gb * MB_IN_A_GB, 5)
