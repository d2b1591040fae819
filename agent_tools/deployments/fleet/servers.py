"""Keep connections to the servers that a fleet's coordinator lists: open them when servers join, close them when they leave."""

import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio
from pydantic import SecretStr

from agent_tools.deployments.members import side_by_side
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.errors import LMCacheToolError, OutcomeUnknownError, RefusedError, UnreachableError, UnsupportedError
from agent_tools.wire.access import NO_PROXY, Access

from .allowed_servers import AllowedServers, shown_name
from .coordinator import Coordinator, Instance

T = TypeVar("T")
LISTED_SECONDS = 1.0
"""Seconds for which a list is reused, because one observation needs it several times."""
PARTING_SECONDS = 60.0
"""Seconds to keep the connections to a server that left, for calls that still wait for its answer."""


@dataclass(frozen=True)
class Listed:
    """The servers at one moment."""

    servers: Mapping[str, ServerDeployment]
    left_out: Mapping[str, LMCacheToolError]
    """The reason for each server that may not be called, by name."""


class FleetServers:
    """Keep one `ServerDeployment` per server while the server stays at the same address."""

    def __init__(
        self,
        coordinator: Coordinator,
        allowed: AllowedServers,
        timeout: float,
        access: Access = NO_PROXY,
        token: SecretStr | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._access = access
        self._token = token
        self._allowed = allowed
        self._timeout = timeout
        self._servers: dict[str, ServerDeployment] = {}
        self._parted: list[tuple[float, ServerDeployment]] = []
        self._listed: Listed | None = None
        self._listed_until = 0.0
        self._listing = anyio.Lock()

    async def close(self) -> None:
        """Close all connections."""
        servers = [*self._servers.values(), *(server for _, server in self._parted)]
        self._servers, self._parted, self._listed = {}, [], None
        for server in servers:
            await server.close()

    async def now(self) -> Listed:
        """Return the coordinator's list, at most one second old.

        Raises:
            UnreachableError: The coordinator does not answer.
        """
        async with self._listing:
            if self._listed is None or time.monotonic() > self._listed_until:
                self._listed = await self._connected(await self._coordinator.instances())
                self._listed_until = time.monotonic() + LISTED_SECONDS
            return self._listed

    async def some(self) -> Mapping[str, ServerDeployment]:
        """Return the servers that may be called. Raise `UnreachableError` if there are none."""
        listed = await self.now()
        if not listed.servers:
            reasons = "; ".join(f"{name} is left out: {why}" for name, why in listed.left_out.items())
            raise UnreachableError(
                f"this fleet has no server that can be called ({reasons or 'no server is registered'}). Nothing was changed"
            )
        return listed.servers

    async def _connected(self, instances: Sequence[Instance]) -> Listed:
        urls: dict[str, str] = {}
        left_out: dict[str, LMCacheToolError] = {}
        # A server that was killed and restarted is listed under two names for a while. The later name is valid.
        for one in sorted(instances, key=lambda one: one.since):
            url = self._url_or_why(one)
            if isinstance(url, UnsupportedError):
                left_out[shown_name(one.name)] = url
            else:
                urls = {name: known for name, known in urls.items() if known != url} | {one.name: url}
        stay = {name: server for name, server in self._servers.items() if urls.get(name) == server.admin.base_url}
        parted = [server for name, server in self._servers.items() if name not in stay]
        come = {name: self._connection(url) for name, url in urls.items() if name not in stay}
        self._servers = stay | come
        await self._let_go(parted)
        return Listed(servers=self._servers, left_out=left_out)

    def _connection(self, url: str) -> ServerDeployment:
        """Connect to a server. Only an address that the operator named gets a secret, never an address that was registered."""
        access = self._access if self._allowed.is_operators_url(url) else NO_PROXY
        token = self._token if url in self._allowed.operators_servers else None
        return ServerDeployment(url, timeout=self._timeout, token=token, access=access)

    def _url_or_why(self, instance: Instance) -> str | UnsupportedError:
        try:
            return self._allowed.url(instance)
        except UnsupportedError as error:
            return error

    async def _let_go(self, parted: Sequence[ServerDeployment]) -> None:
        now = time.monotonic()
        late = [server for since, server in self._parted if now - since > PARTING_SECONDS]
        self._parted = [(since, server) for since, server in self._parted if now - since <= PARTING_SECONDS]
        self._parted += [(now, server) for server in parted]
        for server in late:
            await server.close()


async def done_on_all(what: str, asked: Mapping[str, Awaitable[T]]) -> dict[str, T]:
    """Change all servers side by side. If some fail, the error names the changed servers, because the change cannot be undone.

    Raises:
        OutcomeUnknownError: Some servers failed.
        LMCacheToolError: All servers failed. See `as_one`.
    """
    answers, failures = await side_by_side(asked)
    if failures and not answers:
        raise as_one(failures)
    if failures:
        where = "; ".join(f"not on {name}: {error}" for name, error in sorted(failures.items()))
        raise OutcomeUnknownError(f"{what} on {', '.join(sorted(answers))}, {where}")
    return answers


def as_one(failures: Mapping[str, LMCacheToolError]) -> LMCacheToolError:
    """Return the failures of all servers as one error. It has their class if they all have the same class."""
    reasons = "; ".join(f"{name}: {error}" for name, error in sorted(failures.items()))
    kinds = {type(error) for error in failures.values()}
    refused = next((error.status for error in failures.values() if isinstance(error, RefusedError)), 0)
    if kinds == {RefusedError}:
        return RefusedError(reasons, refused)
    if len(kinds) == 1:
        return kinds.pop()(reasons)
    return OutcomeUnknownError(reasons) if OutcomeUnknownError in kinds else UnsupportedError(reasons)
