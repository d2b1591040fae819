"""The servers of a fleet as its coordinator lists them now: connected when they come, let go when they leave."""

import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio

from agent_tools.deployments.members import side_by_side
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.errors import LMCacheToolError, OutcomeUnknownError, RefusedError, UnreachableError, UnsupportedError

from .allowed_servers import AllowedServers, told
from .coordinator import Coordinator, Instance

T = TypeVar("T")
LISTED_SECONDS = 1.0
"""How long a list is relied on: an observation asks for it several times."""
PARTING_SECONDS = 60.0
"""How long the connections to a server that left are kept, for calls that wait for its answer."""


@dataclass(frozen=True)
class Listed:
    """The servers of one moment."""

    servers: Mapping[str, ServerDeployment]
    left_out: Mapping[str, LMCacheToolError]
    """Those that may not be called, and why."""


class FleetServers:
    """Keeps one `ServerDeployment` per server, for as long as that is at the same address."""

    def __init__(self, coordinator: Coordinator, allowed: AllowedServers, timeout: float) -> None:
        self._coordinator = coordinator
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
        """As the coordinator listed them within the last second.

        Raises:
            UnreachableError: The coordinator does not answer.
        """
        async with self._listing:
            if self._listed is None or time.monotonic() > self._listed_until:
                self._listed = await self._connected(await self._coordinator.instances())
                self._listed_until = time.monotonic() + LISTED_SECONDS
            return self._listed

    async def some(self) -> Mapping[str, ServerDeployment]:
        """The servers that may be called; raises `UnreachableError` when there are none."""
        listed = await self.now()
        if not listed.servers:
            reasons = "; ".join(f"{name} is left out: {why}" for name, why in listed.left_out.items())
            raise UnreachableError(
                f"this fleet has no server that can be asked ({reasons or 'none is registered'}); nothing was changed"
            )
        return listed.servers

    async def _connected(self, instances: Sequence[Instance]) -> Listed:
        urls: dict[str, str] = {}
        left_out: dict[str, LMCacheToolError] = {}
        # One that was killed and started anew stands there under two names for a while: the later one it is.
        for one in sorted(instances, key=lambda one: one.since):
            url = self._url_or_why(one)
            if isinstance(url, UnsupportedError):
                left_out[told(one.name)] = url
            else:
                urls = {name: known for name, known in urls.items() if known != url} | {one.name: url}
        stay = {name: server for name, server in self._servers.items() if urls.get(name) == server.admin.base_url}
        parted = [server for name, server in self._servers.items() if name not in stay]
        come = {name: ServerDeployment(url, timeout=self._timeout) for name, url in urls.items() if name not in stay}
        self._servers = stay | come
        await self._let_go(parted)
        return Listed(servers=self._servers, left_out=left_out)

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
    """Change all side by side; what was done where is told when one fails, since nothing of it can be taken back.

    Raises:
        OutcomeUnknownError: Some of them failed.
        LMCacheToolError: All of them failed: see `as_one`.
    """
    answers, failures = await side_by_side(asked)
    if failures and not answers:
        raise as_one(failures)
    if failures:
        where = "; ".join(f"not on {name}: {error}" for name, error in sorted(failures.items()))
        raise OutcomeUnknownError(f"{what} on {', '.join(sorted(answers))}, {where}")
    return answers


def as_one(failures: Mapping[str, LMCacheToolError]) -> LMCacheToolError:
    """What every server failed with, as one error: of their kind, where all are of one."""
    told = "; ".join(f"{name}: {error}" for name, error in sorted(failures.items()))
    kinds = {type(error) for error in failures.values()}
    refused = next((error.status for error in failures.values() if isinstance(error, RefusedError)), 0)
    if kinds == {RefusedError}:
        return RefusedError(told, refused)
    if len(kinds) == 1:
        return kinds.pop()(told)
    return OutcomeUnknownError(told) if OutcomeUnknownError in kinds else UnsupportedError(told)
