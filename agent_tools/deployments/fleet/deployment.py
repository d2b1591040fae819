"""A fleet: LMCache's coordinator and the `lmcache server`s it knows, told as one cache."""

import asyncio
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network

from agent_tools.deployments.all_or_nothing import all_or_nothing
from agent_tools.deployments.base import Progress
from agent_tools.deployments.members import agreed, side_by_side, together
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.snapshot import Snapshot
from agent_tools.errors import UnknownCacheError, UnsupportedError
from agent_tools.models import SETTINGS, CacheConfig, CacheEntry, ConfigUpdate, Support, SupportLevel, TenantUsage, WarmResult
from agent_tools.workload.access_log import AccessLog

from .allowed_servers import AllowedServers
from .coordinator import Coordinator
from .prefix import deleted, pinned_or_not, prefix_of, warmed
from .quotas import check_quotas, quota_support
from .servers import FleetServers, as_one, done_on_all

ONE_BY_ONE = Support(
    level=SupportLevel.UNSUPPORTED,
    reason="a fleet's servers are changed one by one: use tune_fleet, or name one of them as <fleet>/<server>",
)


class FleetDeployment:
    """All servers of one coordinator that the operator allows to be called."""

    backend = "fleet"
    owned = False

    def __init__(
        self,
        coordinator_url: str,
        *,
        networks: Sequence[IPv4Network | IPv6Network],
        addresses: Mapping[str, str] = {},
        timeout: float = 5.0,
    ) -> None:
        """Nothing is called yet.

        Args:
            coordinator_url: ``http://host:port`` of `lmcache coordinator`.
            networks: Where servers may be called; all others are left out and named in the health.
            addresses: Advertised ``ip`` or ``ip:port`` -> ``host:port`` under which we reach it.
            timeout: Seconds per call.
        """
        self._coordinator = Coordinator(coordinator_url, timeout)
        self._known = FleetServers(self._coordinator, AllowedServers(networks, addresses), timeout)

    async def close(self) -> None:
        """Close all connections."""
        await self._known.close()
        await self._coordinator.close()

    async def members(self) -> dict[str, ServerDeployment]:
        """The servers that the coordinator knows and the operator allows, by name; as they were within the last second."""
        return dict((await self._known.now()).servers)

    async def member(self, name: str) -> ServerDeployment:
        """One server.

        Raises:
            UnknownCacheError: There is none of that name, or it may not be called; lists those there are.
        """
        roster = await self._known.now()
        if name in roster.servers:
            return roster.servers[name]
        there = ", ".join(sorted(roster.servers)) or "none"
        why = f"; {name} is left out: {roster.left_out[name]}" if name in roster.left_out else ""
        raise UnknownCacheError(f"this fleet has no server named {name!r}; it has: {there}{why}")

    async def snapshot(self) -> Snapshot:
        """The sum of all servers; those that do not answer or may not be called are named in the health."""
        roster = await self._known.now()
        answers, failures = await side_by_side({name: server.snapshot() for name, server in roster.servers.items()})
        return together(answers, {**roster.left_out, **failures})

    async def version(self) -> str | None:
        """LMCache's version; all of them, where servers differ."""
        answers, _ = await side_by_side({name: server.version() for name, server in (await self.members()).items()})
        return ", ".join(sorted({version for version in answers.values() if version is not None})) or None

    async def config(self) -> CacheConfig:
        """What the servers agree in, their differences, and the quotas of the whole fleet."""
        servers = await self._known.some()
        (answers, failures), quotas = await asyncio.gather(
            side_by_side({name: server.config() for name, server in servers.items()}), self._coordinator.quotas()
        )
        if not answers:
            raise as_one(failures)
        # A server's own quotas are another table.
        own = {name: config.model_copy(update={"tenant_quotas_mb": None}) for name, config in answers.items()}
        return agreed(own).model_copy(update={"tenant_quotas_mb": quotas})

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """Quotas are live; all else is set on each server."""
        support = dict.fromkeys(SETTINGS, ONE_BY_ONE)
        wanted = None if update is None else update.tenant_quotas_mb
        support["tenant_quotas_mb"] = quota_support(await self._coordinator.default_quota(), wanted)
        return support

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Set the fleet's quotas, all or none; the update's are all that are wanted."""
        for setting in update.known():
            if setting != "tenant_quotas_mb":
                raise UnsupportedError(f"{setting} cannot be changed on a fleet: {ONE_BY_ONE.reason}. Nothing was changed")
        wanted = update.tenant_quotas_mb or {}
        check_quotas(wanted)
        now = await self._coordinator.quotas()
        async with all_or_nothing() as undo:
            await self._coordinator.change_quotas(now, wanted, progress, undo)

    async def restart_command(self, update: ConfigUpdate) -> str | None:  # noqa: ARG002
        """None: each server has its own."""
        return None

    async def entries(self, limit: int) -> Sequence[CacheEntry]:
        """The chunks with most accesses on all servers, with where they are; from the coordinator's key directory.

        It knows of servers that run with ``--coordinator-event-reporting``. Each rank's part of a chunk is an entry.
        """
        return await self._coordinator.top_entries(limit)

    async def tenants(self) -> Mapping[str, TenantUsage]:
        """By the coordinator's account of all servers together."""
        return await self._coordinator.usage()

    async def clear(self) -> None:
        """Clear L1 of every server."""
        await done_on_all("L1 was cleared", {name: server.clear() for name, server in (await self._known.some()).items()})

    async def trim(self, max_used_bytes: int) -> None:  # noqa: ARG002
        """Always refused."""
        names = ", ".join(sorted(await self.members())) or "none now"
        raise UnsupportedError(
            f"the servers of a fleet are trimmed one by one: name one as <fleet>/<server> ({names}). Nothing was removed"
        )

    async def delete(self, model: str, chunk_hashes: Sequence[str], tenant: str) -> int:
        """From L1 of every server."""
        servers = await self._known.some()
        deleted = {name: server.delete(model, chunk_hashes, tenant) for name, server in servers.items()}
        return sum((await done_on_all("the chunks were deleted", deleted)).values())

    async def warm(self, model: str, tokens: Sequence[int], tenant: str, patience: float = 30.0) -> WarmResult:
        """Load a prefix from L2 into L1 of every server; at most `patience` seconds."""
        servers = await self._known.some()
        prefix = await prefix_of(servers, model, tokens, tenant)
        return await warmed(self._coordinator, servers, prefix, patience)

    async def pin(self, model: str, tokens: Sequence[int], tenant: str, *, pinned: bool) -> int:
        """Keep a prefix in L2, on all servers; L1 has no pins. Returns how many chunks are pinned, or were set free.

        What is pinned already is not pinned again. One unpin takes one pin off each chunk: what another program, or a longer
        prefix, has pinned too stays so.
        """
        return await pinned_or_not(self._coordinator, await prefix_of(await self.members(), model, tokens, tenant), pinned=pinned)

    async def delete_prefix(self, model: str, tokens: Sequence[int], tenant: str) -> int:
        """Remove a prefix from L1 and L2 of every server; returns how many chunks are gone.

        Chunks that are pinned stay in L2, and in L1 before an L2; those that requests hold locked stay in L1. A server with
        several L2 adapters deletes from its first.

        Raises:
            UnsupportedError: All of it is pinned, or it is shorter than a chunk.
            OutcomeUnknownError: One of the servers did not delete it; says which did.
        """
        servers = await self._known.some()
        return await deleted(self._coordinator, servers, await prefix_of(servers, model, tokens, tenant))

    async def access_log(self, since: float | None = None) -> AccessLog | None:  # noqa: ARG002
        """None: each server has its own."""
        return None
