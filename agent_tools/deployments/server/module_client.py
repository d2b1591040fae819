"""The client of `agent_tools.server_module`, where an `lmcache server` has loaded it: what it can do there, and its calls."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent_tools.errors import RefusedError
from agent_tools.models import MB, L2Adapter
from agent_tools.wire.http_client import AdminClient

from .reported_adapter import adapter_of

ROUTE = "/agent-tools"
INTERFACE = 1
"""Of the routes, as the module's ``/status`` names it; another one is not spoken to."""

PATIENCE = 15.0
"""Seconds that a change is given: a new eviction thread waits for the old one's sleep, a removal goes through all of L1."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class LiveAdapter:
    """One L2 adapter of a running server."""

    number: int
    """LMCache's; what it is detached by."""
    adapter: L2Adapter
    """As for ``--l2-adapter``, with the eviction in force now."""


@dataclass(frozen=True)
class LiveL2:
    """The L2 side of a running server."""

    adapters: tuple[LiveAdapter, ...]
    prefetch_policy: str | None
    store_policy: str | None
    listed: tuple[L2Adapter, ...] = ()
    """Adapters that the server's operator allows to attach; secrets are shown as ``***``."""

    def lists(self, adapter: L2Adapter) -> bool:
        """Whether the module may attach an adapter. The module decides; it also compares secrets."""
        return any(one.same_store(adapter) for one in self.listed)


@dataclass(frozen=True)
class ServerModule:
    """The module of one server, as its ``/status`` told a moment ago."""

    admin: AdminClient
    parts: frozenset[str]
    """``eviction``, ``l2``, ``arenas``, ``window``, ``entries``: those that work there."""
    read_only: bool
    """Whether its operator lets it change nothing."""
    locked: bool = False
    """Whether it asks for a token that we do not have. It then has no parts for us."""

    def changes(self, part: str) -> bool:
        """Whether the part is there and may change something."""
        return part in self.parts and not self.read_only

    async def put(self, path: str, body: Json) -> Any:  # noqa: ANN401  JSON
        """Change something; the answer holds ``previous``."""
        return await self.admin.change("PUT", f"{ROUTE}/{path}", body, at_least=PATIENCE)

    async def attach(self, adapter: L2Adapter) -> int:
        """Attach an L2 adapter; its number."""
        body = {"type": adapter.type, **adapter.settings}
        answer = await self.admin.change("POST", f"{ROUTE}/l2/adapters", body, at_least=PATIENCE)
        with self.admin.understood(f"{ROUTE}/l2/adapters"):
            return int(answer["id"])

    async def detach(self, number: int) -> None:
        """Detach an L2 adapter when what it is doing has ended."""
        await self.admin.change("DELETE", f"{ROUTE}/l2/adapters/{number}?seconds={0.8 * PATIENCE:g}", at_least=PATIENCE)

    async def remove_down_to(self, used_bytes: int) -> None:
        """Remove chunks of L1 that cannot be hit, where that can be told, then the coldest, until so much is used."""
        with contextlib.suppress(RefusedError):  # there is an L2, say, and the prefix may be there
            await self.admin.change("POST", f"{ROUTE}/entries/remove", {"what": "unreachable"}, at_least=PATIENCE)
        coldest = {"what": "coldest", "until_used_mb": used_bytes / MB}
        await self.admin.change("POST", f"{ROUTE}/entries/remove", coldest, at_least=PATIENCE)

    async def l2(self) -> LiveL2:
        """What is there and in force."""
        answer = await self.admin.read(f"{ROUTE}/l2")
        with self.admin.understood(f"{ROUTE}/l2"):
            return LiveL2(
                adapters=tuple(LiveAdapter(one["id"], _adapter_of(one)) for one in answer["adapters"]),
                prefetch_policy=answer["prefetch_policy"],
                store_policy=answer["store_policy"],
                listed=tuple(adapter_of(one["type"], {k: v for k, v in one.items() if k != "type"}) for one in answer["listed"]),
            )

    async def max_l1_bytes(self) -> int | None:
        """The most L1 that may be asked for; ``None``: L1 is not made of arenas, or its operator named no folder for them."""
        if not self.changes("arenas"):
            return None
        try:
            answer = await self.admin.read(f"{ROUTE}/arenas")
        except RefusedError:
            return None
        with self.admin.understood(f"{ROUTE}/arenas"):
            return answer["max_bytes"]  # type: ignore[no-any-return]


def module_of(admin: AdminClient, status: Json, *, token: bool = False) -> ServerModule | None:
    """Return the module that a server's ``/status`` reports; ``None`` if it has none, or one of another interface.

    Args:
        admin: The server's admin API.
        status: The answer of ``/status``.
        token: Whether we have a token for the module.
    """
    told = status.get("agent_tools")
    if not isinstance(told, Mapping) or told.get("version") != INTERFACE:
        return None
    locked = bool(told.get("needs_token")) and not token
    parts = frozenset[str]() if locked else frozenset[str](told["parts"])
    return ServerModule(admin, parts, bool(told.get("read_only")), locked)


def _adapter_of(told: Json) -> L2Adapter:
    started = adapter_of(told["type"], told["settings"])
    if told["eviction"] is None:
        return started
    now = told["eviction"]
    eviction = {"eviction_policy": now["policy"], "trigger_watermark": now["watermark"], "eviction_ratio": now["ratio"]}
    return L2Adapter(type=started.type, settings={**started.settings, "eviction": eviction})
