"""The operator's names -> deployments. Agents pass names, never addresses, so a prompt cannot make us call an arbitrary host."""

import importlib.util
import logging
from dataclasses import dataclass, field
from functools import cache

import anyio

from agent_tools.deployments.base import Deployment
from agent_tools.deployments.fleet.deployment import FleetDeployment
from agent_tools.deployments.in_process.deployment import EngineDeployment
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.embedded import EmbeddedDeployment
from agent_tools.deployments.simulated.deployment import SimulatedDeployment
from agent_tools.errors import SettingsError, UnknownCacheError
from agent_tools.serving.engine import ServingEngine

from .history import History
from .settings import CacheSettings, Settings

DEFAULT = "default"
EMBEDDED = "embedded:"
SIMULATED = "simulated:"

log = logging.getLogger(__name__)


@dataclass
class Cache:
    """One named cache: its deployment, what the operator allows, and what was read of it so far."""

    name: str
    settings: CacheSettings
    deployment: Deployment
    engine: ServingEngine | None = None
    """The serving engine in front of it, whose metrics are read."""
    history: History = field(default_factory=History)
    watched: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while one of those that wait for traffic reads for all of them."""


class Registry:
    """The caches of one process. Deployments are made on first use and kept, so an embedded server is started once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._caches: dict[str, Cache] = {}
        self._servers: dict[str, Cache] = {}
        """Those of fleets, which close them."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names a caller may use."""
        return tuple(sorted({DEFAULT, *self.settings.caches}))

    def settings_of(self, name: str) -> CacheSettings:
        """What the operator set for a cache, or what is taken for ``default`` where the operator set nothing."""
        return self.settings.caches.get(name) or _default_settings()

    def get(self, name: str) -> Cache:
        """The cache of that name.

        Raises:
            UnknownCacheError: There is none; the message lists those there are.
            SettingsError: Its target is not one we know.
            UnsupportedError: It is embedded and lmcache is not installed.
        """
        if name not in self.names:
            raise UnknownCacheError(f"there is no cache named {name!r}; the operator's directory has: {', '.join(self.names)}")
        if name not in self._caches:
            settings = self.settings_of(name)
            engine = ServingEngine(settings.engine, settings.timeout_seconds) if settings.engine else None
            self._caches[name] = Cache(name, settings, self._connect(settings), engine)
        return self._caches[name]

    async def find(self, name: str) -> Cache:
        """The cache of that name; ``FLEET/SERVER`` is one server of a fleet, as its coordinator knows it now.

        Raises:
            UnknownCacheError: There is none; the message lists those there are.
            UnreachableError: The fleet's coordinator does not answer.
        """
        fleet_name, _, server = name.partition("/")
        if name in self.names or fleet_name not in self.names or not server:
            return self.get(name)
        fleet = self.get(fleet_name)
        if not isinstance(fleet.deployment, FleetDeployment):
            raise UnknownCacheError(f"{fleet_name} is no fleet, so there is no {name!r}; it is one cache: {fleet_name}")
        deployment = await fleet.deployment.member(server)
        known = self._servers.get(name)
        if known is None or known.deployment is not deployment:
            settings = fleet.settings.model_copy(update={"target": deployment.admin.base_url})
            known = self._servers[name] = Cache(name, settings, deployment)
        return known

    async def servers(self, name: str) -> list[str]:
        """The names of all servers of a fleet, as its coordinator knows them now; that of the cache itself if it is none."""
        deployment = (await self.find(name)).deployment
        if not isinstance(deployment, FleetDeployment):
            return [name]
        return [f"{name}/{server}" for server in sorted(await deployment.members())]

    async def close(self) -> None:
        """Close every deployment that was used; embedded servers are stopped."""
        while self._caches:
            _, one = self._caches.popitem()
            await one.deployment.close()
            if one.engine is not None:
                await one.engine.close()

    def _connect(self, settings: CacheSettings) -> Deployment:
        if settings.target == EMBEDDED:
            return EmbeddedDeployment(settings.embedded, self.settings.state_folder / "logs")
        if settings.target == SIMULATED:
            return SimulatedDeployment(settings.simulated)
        if settings.target.startswith(("http://", "https://")):
            return ServerDeployment(
                settings.target,
                access_log=settings.access_log,
                arena_folder=settings.arena_folder,
                timeout=settings.timeout_seconds,
            )
        if settings.kind == "engine":
            return EngineDeployment(settings.place.split(","), timeout=settings.timeout_seconds)
        if settings.kind == "fleet":
            return FleetDeployment(
                settings.place, networks=settings.networks, addresses=settings.addresses, timeout=settings.timeout_seconds
            )
        raise SettingsError(
            f"target {settings.target!r} is not http://host:port, engine:http://host:port, fleet:http://host:port, {EMBEDDED} or"
            f" {SIMULATED}"
        )


@cache
def _default_settings() -> CacheSettings:
    """Of ``default`` where the operator named none; that it is simulated is said once."""
    if importlib.util.find_spec("lmcache") is not None:
        return CacheSettings()
    log.warning("lmcache is not installed and the directory names no cache: `default` is simulated, no figure of it is real")
    return CacheSettings(target=SIMULATED)
