"""The registry of the operator's caches by name. Agents pass names, never addresses, so no prompt makes us call other hosts."""

import importlib.util
import logging
import uuid
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import anyio
import anyio.to_thread

from agent_tools.deployments.base import Deployment
from agent_tools.errors import SettingsError, UnknownCacheError
from agent_tools.plain import plain
from agent_tools.serving.engine import ServingEngines

from .history import History
from .own_bounds import with_own_bounds
from .settings import FILE_NAME, CacheSettings, Settings

if TYPE_CHECKING:
    from agent_tools.deployments.fleet.deployment import FleetDeployment

DEFAULT = "default"
EMBEDDED = "embedded:"
SIMULATED = "simulated:"
FLEET = "fleet"

log = logging.getLogger(__name__)


@dataclass
class Cache:
    """One named cache: its deployment, the operator's settings, and the readings so far."""

    name: str
    settings: CacheSettings
    deployment: Deployment
    engine: ServingEngines | None = None
    """The serving engines that use the cache, if their metrics are read."""
    history: History = field(default_factory=History)
    watched: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while one of the callers that wait for traffic reads for all of them."""
    instance: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Tells a private cache from those of the same name in other processes."""

    def on_record(self, server: str | None) -> tuple[str | None, str | None]:
        """Return the name and the server by which the change log knows this cache.

        Each process has a private cache of its own, so a change under the name alone was made in another cache.
        """
        return (None, f"{self.name}-{self.instance}") if self.settings.private else (self.name, server)


class Registry:
    """The caches of one process. A deployment is made on first use and kept, so an embedded server starts once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._allowed: dict[str, CacheSettings] = {}
        self._caches: dict[str, Cache] = {}
        self._servers: dict[str, Cache] = {}
        """Servers of fleets. Their fleets close them."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that a caller may use."""
        return tuple(sorted({DEFAULT, *self.settings.caches}))

    def settings_of(self, name: str) -> CacheSettings:
        """Return what the operator set for a cache. Defaults fill in for what they did not set (see `own_bounds`)."""
        if name not in self._allowed:  # once: the bounds must not move while the cache grows
            self._allowed.setdefault(name, with_own_bounds(self.settings.caches.get(name) or _default_settings()))
        return self._allowed[name]

    def get(self, name: str) -> Cache:
        """Return the cache of that name.

        Raises:
            UnknownCacheError: There is no such cache. The message lists the names, and says which settings file was read.
            SettingsError: The cache's target is of no known kind.
            UnsupportedError: The cache is embedded and lmcache is not installed.
        """
        if name not in self.names:
            raise UnknownCacheError(
                f"there is no cache named {plain(name)!r}; the caches are: {', '.join(self.names)}. {_where_from()}"
            )
        if name not in self._caches:
            settings = self.settings_of(name)
            engine = None
            if urls := settings.all_engines:
                engine = ServingEngines(urls, settings.timeout_seconds, settings.engine_access())
            self._caches[name] = Cache(name, settings, self._connect(settings), engine)
        return self._caches[name]

    async def find(self, name: str) -> Cache:
        """Return the cache of that name. ``FLEET/SERVER`` is one server of a fleet, as its coordinator knows it now.

        Raises:
            UnknownCacheError: There is no such cache. The message lists the names.
            UnreachableError: The fleet's coordinator does not answer.
        """
        if name in self.names and name not in self._allowed:
            await anyio.to_thread.run_sync(self.settings_of, name)  # it reads files
        fleet_name, _, server = name.partition("/")
        if name in self.names or fleet_name not in self.names or not server:
            return self.get(name)
        fleet = self.get(fleet_name)
        if fleet.settings.kind != FLEET:
            raise UnknownCacheError(f"{fleet_name} is not a fleet, so there is no {plain(name)!r}; use the name {fleet_name}")
        deployment = await cast("FleetDeployment", fleet.deployment).member(server)
        known = self._servers.get(name)
        if known is None or known.deployment is not deployment:
            settings = fleet.settings.model_copy(update={"target": deployment.admin.base_url})
            known = self._servers[name] = Cache(name, settings, deployment)
        return known

    async def servers(self, name: str) -> list[str]:
        """Return the names of a fleet's servers, as its coordinator knows them now. For a single server, return its own name."""
        cache = await self.find(name)
        if cache.settings.kind != FLEET:
            return [name]
        return [f"{name}/{server}" for server in sorted(await cast("FleetDeployment", cache.deployment).members())]

    async def close(self) -> None:
        """Close every deployment that was used. Embedded servers stop."""
        while self._caches:
            _, one = self._caches.popitem()
            await one.deployment.close()
            if one.engine is not None:
                await one.engine.close()

    def _connect(self, settings: CacheSettings) -> Deployment:  # a kind is imported when the first cache of it is used
        if settings.target == EMBEDDED:
            from agent_tools.deployments.server.embedded import EmbeddedDeployment

            allowed = settings.bounds.l2_adapter
            return EmbeddedDeployment(
                settings.embedded,
                self.settings.state_folder / "logs",
                attachable=() if allowed is None else (allowed,),
                most_mb=settings.bounds.max_size_mb,
            )
        if settings.target == SIMULATED:
            from agent_tools.deployments.simulated.deployment import SimulatedDeployment

            return SimulatedDeployment(settings.simulated)
        if settings.target.startswith(("http://", "https://")):
            from agent_tools.deployments.server.deployment import ServerDeployment

            return ServerDeployment(
                settings.target,
                access_log=settings.access_log,
                arena_folder=settings.arena_folder,
                timeout=settings.timeout_seconds,
                token=settings.token_of_module(),
                access=settings.access(),
                most_mb=settings.bounds.max_size_mb,
            )
        if settings.kind == "engine":
            from agent_tools.deployments.in_process.deployment import InProcessDeployment

            return InProcessDeployment(
                settings.place.split(","),
                access_log=settings.access_log,
                timeout=settings.timeout_seconds,
                access=settings.access(),
            )
        if settings.kind == FLEET:
            from agent_tools.deployments.fleet.deployment import FleetDeployment

            return FleetDeployment(
                settings.place,
                networks=settings.networks,
                addresses=settings.addresses,
                timeout=settings.timeout_seconds,
                access=settings.access(),
                token=settings.token_of_module(),
            )
        raise SettingsError(
            f"target {settings.target!r} is not http://host:port, engine:http://host:port, fleet:http://host:port, {EMBEDDED} or"
            f" {SIMULATED}"
        )


@cache
def _default_settings() -> CacheSettings:
    """Return the settings of ``default`` if the operator did not set it. Warn once if it is simulated."""
    if importlib.util.find_spec("lmcache") is not None:
        return CacheSettings()
    log.warning("lmcache is not installed and the settings name no cache `default`: it is simulated, none of its figures is real")
    return CacheSettings(target=SIMULATED)


def _where_from() -> str:
    """Say which settings file was read, or where one would be read from."""
    file, here = Settings.file(), Path(FILE_NAME)
    if file.is_file():
        return f"Settings were read from {file}"
    hint = f"; the {FILE_NAME} in the working directory is not read unless you name it: --settings {FILE_NAME}"
    return f"No settings file was found; one would be read from {file}{hint if here.is_file() else ''}"
