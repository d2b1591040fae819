"""A fleet: LMCache's coordinator and the `lmcache server`s that it knows, as one cache."""

import asyncio
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network

from pydantic import SecretStr

from agent_tools.deployments.all_or_nothing import all_or_nothing
from agent_tools.deployments.base import Progress
from agent_tools.deployments.members import agreed, side_by_side, together
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.snapshot import Snapshot
from agent_tools.errors import SettingsError, UnknownCacheError, UnsupportedError
from agent_tools.models import SETTINGS, CacheConfig, CacheEntry, ConfigUpdate, Support, SupportLevel, TenantUsage, WarmResult
from agent_tools.plain import plain
from agent_tools.wire.access import NO_PROXY, Access
from agent_tools.workload.access_log import AccessLog

from .allowed_servers import AllowedServers
from .coordinator import Coordinator
from .prefix import deleted, pinned_or_not, prefixes_of, warmed
from .quotas import check_quotas, quota_support
from .servers import FleetServers, as_one, done_on_all

ONE_BY_ONE = Support(
    level=SupportLevel.UNSUPPORTED,
    reason="the servers of a fleet are changed one by one: use tune_fleet, or name one server as <fleet>/<server>",
)


class FleetDeployment:
    """All servers of one coordinator that the operator's settings allow to call."""

    backend = "fleet"
    owned = False

    def __init__(
        self,
        coordinator_url: str,
        *,
        networks: Sequence[IPv4Network | IPv6Network],
        addresses: Mapping[str, str] = {},
        timeout: float = 5.0,
        access: Access = NO_PROXY,
        token: SecretStr | None = None,
    ) -> None:
        """Prepare the connections, without calling anything yet.

        Args:
            coordinator_url: ``http://host:port`` of `lmcache coordinator`.
            networks: Networks in which servers may be called. Other servers are left out and named in the health.
            addresses: Maps a registered ``ip`` or ``ip:port`` to the ``host:port`` at which the server is reachable, or to the
                URL of a proxy in front of it.
            timeout: Seconds per call.
            access: What the proxy asks for, in front of the coordinator and of the servers whose URL `addresses` gives.
            token: Token of the servers' module. Only servers whose host and port `addresses` gives get it.

        Raises:
            SettingsError: An address is wrong, or no server would get the token.
        """
        allowed = AllowedServers(networks, addresses)
        if token is not None and not allowed.operators_servers:
            raise SettingsError(
                "module_token of a fleet goes only to servers whose host and port `addresses` gives, and it gives none: map the"
                " servers in caches.toml, or remove the token"
            )
        self._coordinator = Coordinator(coordinator_url, timeout, access)
        self._known = FleetServers(self._coordinator, allowed, timeout, access, token)

    async def close(self) -> None:
        """Close all connections."""
        await self._known.close()
        await self._coordinator.close()

    async def members(self) -> dict[str, ServerDeployment]:
        """Return the coordinator's servers that the operator allows, by name. The list is at most one second old."""
        return dict((await self._known.now()).servers)

    async def member(self, name: str) -> ServerDeployment:
        """Return one server.

        Raises:
            UnknownCacheError: No server has this name, or it may not be called. The message lists the known servers.
        """
        roster = await self._known.now()
        if name in roster.servers:
            return roster.servers[name]
        there = ", ".join(sorted(roster.servers)) or "none"
        why = f"; {plain(name)} is left out: {roster.left_out[name]}" if name in roster.left_out else ""
        raise UnknownCacheError(f"this fleet has no server named {plain(name)!r}; it has: {there}{why}")

    async def snapshot(self) -> Snapshot:
        """Return the sum of all servers. The health names servers that do not answer or may not be called."""
        roster = await self._known.now()
        answers, failures = await side_by_side({name: server.snapshot() for name, server in roster.servers.items()})
        return together(answers, {**roster.left_out, **failures})

    async def version(self) -> str | None:
        """Return LMCache's version. If the servers differ, return all versions."""
        answers, _ = await side_by_side({name: server.version() for name, server in (await self.members()).items()})
        return ", ".join(sorted({version for version in answers.values() if version is not None})) or None

    async def config(self) -> CacheConfig:
        """Return the settings on which the servers agree, their differences, and the quotas of the whole fleet."""
        servers = await self._known.some()
        (answers, failures), quotas = await asyncio.gather(
            side_by_side({name: server.config() for name, server in servers.items()}), self._coordinator.quotas()
        )
        if not answers:
            raise as_one(failures)
        # Each server also has its own quota table, which is not the fleet's.
        own = {name: config.model_copy(update={"tenant_quotas_mb": None}) for name, config in answers.items()}
        return agreed(own).model_copy(update={"tenant_quotas_mb": quotas})

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """Return that quotas can be changed live. All other settings belong to the servers."""
        support = dict.fromkeys(SETTINGS, ONE_BY_ONE)
        wanted = None if update is None else update.tenant_quotas_mb
        support["tenant_quotas_mb"] = quota_support(await self._coordinator.default_quota(), wanted)
        return support

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Set the fleet's quotas, all or none. Quotas that the update does not list are removed."""
        for setting in update.known():
            if setting != "tenant_quotas_mb":
                raise UnsupportedError(f"{setting} cannot be changed on a fleet: {ONE_BY_ONE.reason}. Nothing was changed")
        wanted = update.tenant_quotas_mb or {}
        check_quotas(wanted)
        now = await self._coordinator.quotas()
        async with all_or_nothing() as undo:
            await self._coordinator.change_quotas(now, wanted, progress, undo)

    async def restart_command(self, update: ConfigUpdate | None) -> str | None:  # noqa: ARG002
        """Return ``None``, because each server has its own command line."""
        return None

    async def entries(self, limit: int) -> Sequence[CacheEntry]:
        """Return the entries with the most accesses on all servers, with their servers and tiers.

        They come from the coordinator's key directory, which knows only servers with ``--coordinator-event-reporting``. Each
        rank's part of a chunk is one entry.
        """
        return await self._coordinator.top_entries(limit)

    async def tenants(self) -> Mapping[str, TenantUsage]:
        """Return each tenant's usage on all servers together, from the coordinator."""
        return await self._coordinator.usage()

    async def clear(self) -> None:
        """Clear L1 of every server."""
        await done_on_all("L1 was cleared", {name: server.clear() for name, server in (await self._known.some()).items()})

    async def trim(self, max_used_bytes: int) -> None:  # noqa: ARG002
        """Raise `UnsupportedError`, because servers are trimmed one by one."""
        names = ", ".join(sorted(await self.members())) or "none now"
        raise UnsupportedError(
            f"a fleet cannot be trimmed as a whole; trim one server as <fleet>/<server> ({names}). Nothing was removed"
        )

    async def delete(self, model: str, chunk_hashes: Sequence[str], tenant: str) -> int:
        """Delete chunks from L1 of every server. Return the number of deleted objects."""
        servers = await self._known.some()
        deleted = {name: server.delete(model, chunk_hashes, tenant) for name, server in servers.items()}
        return sum((await done_on_all("the chunks were deleted", deleted)).values())

    async def warm(self, model: str, tokens: Sequence[int], tenant: str, patience: float = 30.0) -> WarmResult:
        """Load a prefix from L2 into L1 of every server, within `patience` seconds."""
        servers = await self._known.some()
        prefixes = await prefixes_of(self._coordinator, servers, model, tokens, tenant)
        return await warmed(self._coordinator, servers, prefixes, patience)

    async def pin(self, model: str, tokens: Sequence[int], tenant: str, *, pinned: bool) -> int:
        """Pin or unpin a prefix in L2 of all servers; L1 has no pins. Return how many chunks are pinned, or were unpinned.

        A prefix that is already pinned is not pinned again. One unpin removes one pin of each chunk. A chunk that another
        program, or a longer prefix, has also pinned stays pinned.
        """
        prefixes = await prefixes_of(self._coordinator, await self.members(), model, tokens, tenant)
        return await pinned_or_not(self._coordinator, prefixes, pinned=pinned)

    async def delete_prefix(self, model: str, tokens: Sequence[int], tenant: str) -> int:
        """Remove a prefix from L1 and L2 of every server. Return the number of removed chunks.

        Pinned chunks stay in L2, and on a server with L2 also in L1. Chunks that requests lock stay in L1. A server with several
        L2 adapters deletes only from the first.

        Raises:
            UnsupportedError: All chunks are pinned, the prefix is shorter than a chunk, or the model's world size is unknown.
            OutcomeUnknownError: A server did not delete the prefix. The message names the servers that did.
        """
        servers = await self._known.some()
        prefixes = await prefixes_of(self._coordinator, servers, model, tokens, tenant)
        return await deleted(self._coordinator, servers, prefixes)

    async def still_found(self, model: str, tokens: Sequence[int], tenant: str) -> tuple[int | None, str]:
        """Return the most chunks of a prefix that a lookup finds on a server, or ``None`` if some could not be checked."""
        servers = await self._known.some()
        answers, failures = await side_by_side({n: server.still_found(model, tokens, tenant) for n, server in servers.items()})
        found = max((chunks for chunks, _ in answers.values() if chunks is not None), default=0)
        unchecked = {name: why for name, (chunks, why) in answers.items() if chunks is None} | failures
        if unchecked and not found:
            return None, "; ".join(f"{name}: {why}" for name, why in sorted(unchecked.items()))
        return found, ""

    async def access_log(self, since: float | None = None) -> AccessLog | None:  # noqa: ARG002
        """Return ``None``, because each server has its own access log."""
        return None
