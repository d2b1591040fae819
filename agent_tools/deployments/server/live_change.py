"""Several live changes of one server as one: when one of them is refused, those before it are taken back."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from agent_tools.deployments.base import Progress
from agent_tools.errors import UnsupportedError
from agent_tools.models import ConfigUpdate, EvictionPolicy, L2Adapter
from agent_tools.plain import plain

from .command_line import L1_POLICIES, has_secret
from .module_client import LiveAdapter, ServerModule

NO_EVICTION = {"policy": "noop"}
"""What an L2 adapter without an eviction block does."""


async def change_settings(
    module: ServerModule, update: ConfigUpdate, policy: EvictionPolicy | None, progress: Progress, undo: AsyncExitStack
) -> None:
    """Eviction, L2 policies and L2 adapters, as far as the update names them. `policy` is the one of L1 in force."""
    await _put(module, "eviction", _l1_eviction(update, policy), undo)
    await _put(module, "l2/policies", {"prefetch": update.l2_prefetch_policy, "store": update.l2_store_policy}, undo)
    if update.l2_adapters is not None:
        change = adapter_change((await module.l2()).adapters, update.l2_adapters)
        if isinstance(change, str):
            raise UnsupportedError(f"{change}; another change of the adapters came first. Nothing was changed")
        await change.carry_out(module, progress, undo)


def _l1_eviction(update: ConfigUpdate, now: EvictionPolicy | None) -> dict[str, Any]:
    policy = update.eviction_policy
    if update.auto_eviction and policy is None and now is EvictionPolicy.NOOP:
        policy = EvictionPolicy.LRU  # LMCache's usual one
    return {
        "policy": None if policy is None else L1_POLICIES[policy],
        "watermark": update.eviction_watermark,
        "ratio": update.eviction_ratio,
    }


async def _put(module: ServerModule, path: str, wanted: dict[str, Any], undo: AsyncExitStack) -> None:
    given = {name: value for name, value in wanted.items() if value is not None}
    if given:
        answer = await module.put(path, given)
        before = answer["previous"] or NO_EVICTION
        undo.push_async_callback(module.put, path, {name: before[name] for name in given if name in before})


@dataclass(frozen=True)
class AdapterChange:
    """How the L2 adapters of a running server become others."""

    detached: tuple[LiveAdapter, ...]
    attached: tuple[L2Adapter, ...]
    retuned: tuple[tuple[LiveAdapter, L2Adapter], ...]
    """(as it is, as it is to be): another eviction."""

    async def carry_out(self, module: ServerModule, progress: Progress, undo: AsyncExitStack) -> None:
        """Detach last: what an adapter in memory held is not brought back by attaching it again."""
        for adapter in self.attached:
            progress(f"attaching an L2 adapter {plain(adapter.type)}")
            undo.push_async_callback(module.detach, await module.attach(adapter))
        for old, new in self.retuned:
            await _put(module, f"l2/adapters/{old.number}/eviction", _eviction_of(new), undo)
        for old in self.detached:
            progress(f"detaching the L2 adapter {plain(old.adapter.type)}")
            await module.detach(old.number)
            undo.push_async_callback(_attach_again, module, old.adapter)


def adapter_change(live: Sequence[LiveAdapter], wanted: Sequence[L2Adapter]) -> AdapterChange | str:
    """How to get from the adapters there are to those wanted; or why that needs a restart, in words."""
    kept: dict[int, L2Adapter] = {}
    attached: list[L2Adapter] = []
    for adapter in wanted:
        here = next((one for one in live if one.number not in kept and one.adapter.same_store(adapter)), None)
        if here is None:
            attached.append(adapter)
        elif here.adapter.size_mb != adapter.size_mb:
            return "the capacity of an L2 adapter is fixed when it is attached"
        elif here.adapter.eviction and not adapter.eviction:
            return "an L2 adapter that evicts cannot be made to have no eviction at all; policy noop evicts nothing"
        else:
            kept[here.number] = adapter
    if list(wanted) != [*(kept[one.number] for one in live if one.number in kept), *attached]:
        return "the order of L2 adapters is that in which they were attached"
    return AdapterChange(
        detached=tuple(one for one in live if one.number not in kept),
        attached=tuple(attached),
        retuned=tuple(
            (one, kept[one.number]) for one in live if one.number in kept and kept[one.number].eviction != one.adapter.eviction
        ),
    )


def _eviction_of(adapter: L2Adapter) -> dict[str, Any]:
    block = adapter.eviction or {}
    return {
        "policy": block.get("eviction_policy"),
        "watermark": block.get("trigger_watermark"),
        "ratio": block.get("eviction_ratio"),
    }


async def _attach_again(module: ServerModule, adapter: L2Adapter) -> None:
    if has_secret(adapter):
        raise UnsupportedError(f"the L2 adapter {plain(adapter.type)} has secrets, which are kept nowhere: attach it by hand")
    await module.attach(adapter)
