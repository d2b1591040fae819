"""The versions of `lmcache server` that we know, and the answers of the older ones in the shape of 0.5.6.

Measured on real servers 0.4.7, 0.5.0, 0.5.4, 0.5.5 and 0.5.6. Older ones lack routes and fields, and give some figures under
other names. Everything else in this folder reads the shape of 0.5.6 alone.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from agent_tools.errors import MissingRouteError, NotLMCacheError, RefusedError, UnsupportedError
from agent_tools.models import L2Adapter
from agent_tools.models.config import UNKNOWN_SETTINGS
from agent_tools.plain import plain
from agent_tools.wire.http_client import AdminClient

from . import policy_api
from .policy_api import PolicyApi

Json = Mapping[str, Any]
Number = tuple[int, int, int]

OLDEST: Number = (0, 4, 7)
NEWEST: Number = (0, 5, 6)
KNOWN = "0.4.7 to 0.5.6"
TOO_OLD = "LMCache{} does not give these figures; upgrade it to 0.4.7 or later. Nothing was changed"
_SINGULAR = {
    "l1_managers": "l1_manager",
    "l1_eviction_controllers": "l1_eviction_controller",
    "store_controllers": "store_controller",
}
"""Fields of ``storage_manager`` in ``/status``, and the single one that 0.5.5 and older have instead."""
NOT_SHOWN = {"***": "unknown: the server does not show its configuration"}
_ADAPTER = re.compile(r"\.(\w+?)_l2_adapter\.")
"""The type of an L2 adapter in its Python repr, which is all that 0.5.5 and older report of its settings."""


@dataclass(frozen=True)
class Release:
    """One version of LMCache, and what it can do."""

    text: str
    """The version as the server gives it, safe to show."""
    number: Number | None
    """Its first three numbers; ``None`` if the text does not start with three."""

    @property
    def known(self) -> bool:
        """Return whether we tested this version, or one before and one after it."""
        return self.number is not None and OLDEST <= self.number <= NEWEST

    @property
    def changes_live(self) -> bool:
        """Return whether the server loads modules and resizes L1 while it runs. Versions up to 0.5.5 do neither."""
        return self._at_least(0, 5, 6)

    @property
    def counts_lookups(self) -> bool:
        """Return whether the server counts lookups, early exits and the tier of a hit. Versions up to 0.5.4 do not."""
        return self._at_least(0, 5, 5)

    @property
    def accounts_tenants(self) -> bool:
        """Return whether ``/quota/{salt}`` gives what a tenant uses. Older ones always answer 0."""
        return self._at_least(0, 5, 2)

    @property
    def has_cache_routes(self) -> bool:
        """Return whether the server has ``/cache/*``. ``/clear-cache`` of 0.5.0 and older drops locked objects too."""
        return self._at_least(0, 5, 1)

    @property
    def note(self) -> str | None:
        """Return what a reader of the figures must know about this version; ``None`` for the newest that we know."""
        if self.number == NEWEST:
            return None
        if not self.known:
            return (
                f"LMCache {self.text} is not among the versions that we know ({KNOWN}). The figures are what was"
                " found, and nobody has tested them; a figure that was not found is unknown, not 0"
            )
        return (
            f"LMCache {self.text} is older than 0.5.6: settings change by a restart only, since live changes need 0.5.6."
            " Predictions come from the model of 0.5.6"
        )

    def _at_least(self, *number: int) -> bool:
        return self.number is None or self.number >= number


VERSION_UNKNOWN = Release("of an unknown version", None)
"""What we say of a server that does not tell its version."""


def release_of(version: object) -> Release:
    """Return the release of an answer of ``/lmc_version``, e.g. ``0.5.6`` or ``0.5.7.dev12+gabc``.

    Raises:
        UnsupportedError: The version is older than 0.4.7.
    """
    if version is None or version == "":
        return VERSION_UNKNOWN
    text = plain(version)
    found = re.match(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})", text)
    number = (int(found[1]), int(found[2]), int(found[3])) if found else None
    if number is not None and number < OLDEST:
        raise UnsupportedError(TOO_OLD.format(f" {text}"))
    return Release(text, number)


class ServerAnswers:
    """The answers of one server, whatever its version, in the shape of 0.5.6."""

    def __init__(self, admin: AdminClient) -> None:
        """Ask nothing yet."""
        self._admin = admin
        self._release: Release | None = None
        self._process: float | None = None
        self._has_policies = True

    async def release(self) -> Release:
        """Return the server's version. It is read before anything else, and again when another process answers.

        Raises:
            UnsupportedError: The server is older than 0.4.7.
            NotLMCacheError: Something else answers.
        """
        if self._release is None:
            try:
                self._release = release_of(await self._admin.read("/lmc_version"))
            except (NotLMCacheError, RefusedError):
                if await self._is_lmcache():
                    return VERSION_UNKNOWN  # asked for again next time
                await self._refuse_the_oldest()
                raise
        return self._release

    def is_of_another_process(self, process_start: float | None) -> bool:
        """Return whether another process answers than before, and forget the version then: an upgrade restarts the server."""
        before, self._process = self._process, process_start
        if before in (None, process_start):
            return False
        self._release = None
        self._has_policies = True
        return True

    async def policies(self) -> PolicyApi | None:
        """Return LMCache's runtime policy API, or ``None`` if this server has none that we know.

        It is not asked again before it restarts if the route is missing, a proxy does not let us read it, or the answer has
        another shape than that of the pull request: then settings change as without it.
        """
        if not self._has_policies:
            return None
        try:
            return policy_api.policy_api(self._admin, await self._admin.read(policy_api.ROUTE))
        except (NotLMCacheError, RefusedError) as error:
            self._has_policies = isinstance(error, RefusedError) and error.status == httpx.codes.SERVICE_UNAVAILABLE
            return None

    async def status(self) -> Json:
        """Return ``/status``. Up to 0.5.5 there is one L1, one eviction and one store controller, and no names for them."""
        await self.release()
        return self._in_todays_shape(await self._admin.read("/status"))

    async def boot(self) -> Json:
        """Return ``/config``, which is ``/conf`` up to 0.5.0: the settings at the start."""
        boot = await self._either("/config", "/conf")
        with self.understood("/config"):
            manager = dict(boot["storage_manager"])
            adapters = (manager.get("l2_adapter_config") or {}).get("adapters", [])
            known = [UNKNOWN_SETTINGS if isinstance(one, str) else one for one in adapters]
            return {**boot, "storage_manager": {**manager, "l2_adapter_config": {"adapters": known}}}

    async def adapters(self) -> Json:
        """Return ``/config/adapters``. It is ``/l2/adapters`` in 0.5.0; 0.4.7 names the types in ``/conf`` alone."""
        try:
            answer = await self._either("/config/adapters", "/l2/adapters")
        except MissingRouteError:
            boot = await self._admin.read("/conf")
            with self.understood("/conf"):
                texts = boot["storage_manager"]["l2_adapter_config"]["adapters"]
                found = [_ADAPTER.search(text) for text in texts]
                return {"adapters": [{"type_name": one[1] if one else "unknown", "tier": "l2"} for one in found]}
        with self.understood("/config/adapters"):
            return {"adapters": [{"tier": "l2", **one} for one in answer["adapters"]]}

    async def adapters_of_status(self) -> tuple[L2Adapter, ...]:
        """Return the L2 adapters as ``/status`` lists them, for a server that does not show its configuration."""
        status = await self.status()
        with self.understood("/status"):
            names = [str(one.get("type")).removesuffix("L2Adapter").lower() for one in status["storage_manager"]["l2_adapters"]]
            return tuple(L2Adapter(type=plain(name or "unknown"), settings=NOT_SHOWN) for name in names)

    @contextlib.contextmanager
    def understood(self, path: str) -> Iterator[None]:
        """Wrap the taking apart of an answer. The error names the version if it is one that we do not know."""
        try:
            with self._admin.understood(path):
                yield
        except NotLMCacheError as error:
            if self._release is None or self._release.known:
                raise
            raise NotLMCacheError(
                f"LMCache {self._release.text} answers in a way that we do not know; we know {KNOWN}. {error}"
            ) from error

    async def _either(self, path: str, older: str) -> Any:  # noqa: ANN401  JSON
        await self.release()
        try:
            return await self._admin.read(path)
        except MissingRouteError:
            return await self._admin.read(older)

    async def _is_lmcache(self) -> bool:
        """Return whether ``/status`` is LMCache's: a proxy may pass it on, and not ``/lmc_version``."""
        with contextlib.suppress(NotLMCacheError, RefusedError):
            status = await self._admin.read("/status")
            return isinstance(status, Mapping) and isinstance(status.get("storage_manager"), Mapping)
        return False

    async def _refuse_the_oldest(self) -> None:
        """Raise `UnsupportedError` if LMCache up to 0.4.4 answers: it has ``/api/status`` in place of ``/status``."""
        with contextlib.suppress(NotLMCacheError):
            await self._admin.read("/api/status")
            raise UnsupportedError(TOO_OLD.format(" older than 0.4.7"))

    def _in_todays_shape(self, status: Any) -> Json:  # noqa: ANN401  JSON
        with self.understood("/status"):
            manager = dict(status["storage_manager"])
            for plural, singular in _SINGULAR.items():
                if plural not in manager and singular in manager:
                    manager[plural] = {"_default": manager[singular]}
            return {**status, "storage_manager": manager}
