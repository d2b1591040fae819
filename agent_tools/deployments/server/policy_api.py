"""LMCache's own runtime policy API, for servers that have it: policies, watermark and ratio change live without our module.

Made from LMCache's pull request 4382 (``GET`` and ``PATCH /config/policies``), which no release up to 0.5.6 holds. It was tested
against a stand-in made from that pull request, and not run against a real server. The API does not change the class of an
eviction policy and attaches no L2 adapters; our module still does that, where it is there.
"""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx

from agent_tools.errors import RefusedError
from agent_tools.models import CacheConfig, ConfigUpdate, L2Adapter, Support, SupportLevel
from agent_tools.models.config import UNKNOWN_SETTINGS
from agent_tools.wire.http_client import AdminClient

from .live_change import AdapterChange, adapter_change
from .module_client import LiveAdapter, LiveL2

ROUTE = "/config/policies"
LIVE = Support(
    level=SupportLevel.LIVE,
    reason="LMCache's runtime policy API changes it, and no key is lost (made from its pull request 4382; seen on no release)",
)
STORE_POLICIES, PREFETCH_POLICIES = ("default", "skip_l1"), ("default", "retain")
"""The policies that our settings name."""
_SELECTORS = {"l2_store_policy": "store_policy", "l2_prefetch_policy": "prefetch_policy"}
_TUNABLES = {"eviction_watermark": "trigger_watermark", "eviction_ratio": "eviction_ratio"}

Json = Mapping[str, Any]


@dataclass(frozen=True)
class PolicyApi:
    """The runtime policies of one server, as ``GET /config/policies`` reported them a moment ago."""

    admin: AdminClient
    answer: Json

    @property
    def capabilities(self) -> Json:
        """What is in force, and what can change."""
        return self.answer["capabilities"]  # type: ignore[no-any-return]

    def live(self) -> dict[str, Support]:
        """Return the settings that the API changes on this server."""
        selectors = [ours for ours, theirs in _SELECTORS.items() if self.capabilities[theirs]["hot_swappable"]]
        tunables = self.capabilities["l1_eviction"]["runtime_tunables"]
        return dict.fromkeys((*selectors, *(ours for ours, theirs in _TUNABLES.items() if theirs in tunables)), LIVE)

    def support(self, wanted: CacheConfig | ConfigUpdate, live: Sequence[LiveAdapter]) -> dict[str, Support]:
        """Return what the API changes: to these values, as far as they are given.

        Args:
            wanted: The wanted values.
            live: The L2 adapters as they are now.
        """
        found = self.live()
        if wanted.l2_adapters is not None and _retuned(wanted.l2_adapters, live):
            found["l2_adapters"] = LIVE
        return found

    def l2(self, started: Sequence[L2Adapter]) -> LiveL2:
        """Return L2 as it is now.

        Args:
            started: The adapters of the server's start, in the order of its command line. If others are there now, their
                settings are unknown.
        """
        entries = self.capabilities["l2_eviction"]
        if [one.type for one in started] != [entry["adapter_name"] for entry in entries]:
            started = [L2Adapter(type=entry["adapter_name"], settings=UNKNOWN_SETTINGS) for entry in entries]
        return LiveL2(
            adapters=tuple(
                LiveAdapter(entry["adapter_id"], _now(one, entry)) for one, entry in zip(started, entries, strict=True)
            ),
            prefetch_policy=_known(self.capabilities["prefetch_policy"]["current"], PREFETCH_POLICIES),
            store_policy=_known(self.capabilities["store_policy"]["current"], STORE_POLICIES),
        )

    async def change(self, update: ConfigUpdate, live: Sequence[LiveAdapter], undo: AsyncExitStack) -> frozenset[str]:
        """Change in one step what the API changes. Return the names of the settings that it has changed.

        Args:
            update: The wanted values; settings that are not the API's are left alone.
            live: The L2 adapters as they are now.
            undo: Gets the step that puts the former values back, unless somebody else changed the policies since.

        Raises:
            RefusedError: The policies changed since they were read, or LMCache refuses a value. Nothing was changed.
        """
        known, now = update.known(), self._in_force()
        names = self.live().keys() & known.keys()
        wanted, before = (_body({name: values[name] for name in names}) for values in (known, now))
        retuned = () if update.l2_adapters is None else _retuned(update.l2_adapters, live)
        if retuned:
            wanted["l2_eviction"] = [_tuned(old.number, new) for old, new in retuned]
            before["l2_eviction"] = [_tuned(old.number, old.adapter) for old, _ in retuned]
        if wanted:
            version = await self._patch(wanted, self.answer["version"])
            undo.push_async_callback(self._patch, before, version)
        return frozenset({*names, *(["l2_adapters"] if retuned else [])})

    def _in_force(self) -> dict[str, Any]:
        tunables = self.capabilities["l1_eviction"]["runtime_tunables"]
        selected = {ours: self.capabilities[theirs]["current"] for ours, theirs in _SELECTORS.items()}
        return selected | {ours: tunables[theirs]["current"] for ours, theirs in _TUNABLES.items() if theirs in tunables}

    async def _patch(self, body: Json, version: int) -> int:
        """Send a change that holds only for this version of the policies. Return the new version."""
        try:
            answer = await self.admin.change("PATCH", ROUTE, {"expected_version": version, **body})
        except RefusedError as error:
            if error.status != httpx.codes.CONFLICT:
                raise
            raise RefusedError(
                f"somebody else changed the policies of {self.admin.base_url} since they were read; nothing of this change was"
                " made. Read the configuration and ask again",
                error.status,
            ) from error
        with self.admin.understood(ROUTE):
            return int(answer["version"])


def policy_api(admin: AdminClient, answer: Json) -> PolicyApi:
    """Return the API of a server from the answer of ``GET /config/policies``.

    Raises:
        NotLMCacheError: The answer has another shape than that of the pull request.
    """
    api = PolicyApi(admin, answer)
    with admin.understood(ROUTE):
        int(answer["version"])
        api.live(), api.l2(()), api._in_force()  # noqa: SLF001  all that is read later
        return api


def _now(adapter: L2Adapter, entry: Json) -> L2Adapter:
    """Return an adapter with the eviction in force."""
    if not entry["eviction_enabled"]:
        return adapter
    now = {name: one["current"] for name, one in entry["runtime_tunables"].items()}
    eviction = {**(adapter.eviction or {}), "eviction_policy": entry["policy"], **now}
    return L2Adapter(type=adapter.type, settings={**adapter.settings, "eviction": eviction})


def _body(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of our settings in the form of a ``PATCH``."""
    body = {theirs: values[ours] for ours, theirs in _SELECTORS.items() if ours in values}
    tunables = {theirs: values[ours] for ours, theirs in _TUNABLES.items() if ours in values}
    return body | ({"l1_eviction": {"tunables": tunables}} if tunables else {})


def _retuned(wanted: Sequence[L2Adapter], live: Sequence[LiveAdapter]) -> Sequence[tuple[LiveAdapter, L2Adapter]]:
    """Return the adapters that get another watermark or ratio. Nothing if more than these would change."""
    change = adapter_change(live, wanted)
    if not isinstance(change, AdapterChange) or change.attached or change.detached:
        return ()
    return change.retuned if all(_policy(old.adapter) == _policy(new) for old, new in change.retuned) else ()


def _known(policy: str, names: Sequence[str]) -> str | None:
    """Return a policy, or ``None`` for one that we have no name for."""
    return policy if policy in names else None


def _policy(adapter: L2Adapter) -> object:
    return (adapter.eviction or {}).get("eviction_policy")


def _tuned(number: int, adapter: L2Adapter) -> dict[str, Any]:
    block = adapter.eviction or {}
    return {"adapter_id": number, "tunables": {name: block[name] for name in _TUNABLES.values() if name in block}}
