"""Live changes of in-process LMCache: on all workers or on none. Each change is read back."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import anyio

from agent_tools.deployments.all_or_nothing import all_or_nothing
from agent_tools.deployments.base import Progress
from agent_tools.errors import NotLMCacheError, OutcomeUnknownError, RefusedError, UnreachableError
from agent_tools.models import ConfigUpdate, L2Adapter

from .settable import disk_among
from .worker import CPU_BACKEND, DISK_BACKEND, Worker, WorkerState, config_of

Change = Callable[[Worker, AsyncExitStack], Awaitable[None]]
"""A function that changes one worker and registers how to undo the change."""
SETTLE_SECONDS = 0.5
"""Seconds that requests get to load their hits from a tier before the tier is detached."""
SLOW_SECONDS = 30.0
"""Timeout in seconds for creating or closing a backend, which waits for its own threads."""
NO_DISK = {"local_disk": None, "max_local_disk_size": 0.0}


async def change_all(workers: Mapping[str, Worker], change: Change, progress: Progress, what: str) -> None:
    """Change one worker after the other. If a worker refuses or is gone, undo the change on the workers before it.

    Raises:
        RefusedError: A worker refused the change. Nothing was changed.
        OutcomeUnknownError: The outcome on a worker is unknown. The message names the worker.
    """
    done: list[str] = []
    name = ""
    try:
        async with all_or_nothing() as undo:
            for name, worker in workers.items():
                progress(f"{what} on {name}")
                try:
                    await change(worker, undo)
                except (UnreachableError, NotLMCacheError) as gone:
                    raise RefusedError(f"the worker no longer answers ({gone})", status=0) from gone
                done.append(name)
    except RefusedError as error:
        back = f"; the change was undone on {', '.join(done)}" if done else ""
        raise RefusedError(f"{name} refused {what}: {error}{back}. Nothing was changed", error.status) from error
    except OutcomeUnknownError as error:
        others = f"; {', '.join(done)} had been changed before" if done else ""
        raise OutcomeUnknownError(f"{what} on {name}: {error}{others}") from error


async def change_settings(update: ConfigUpdate, worker: Worker, undo: AsyncExitStack) -> None:
    """Change the settings of an update that in-process LMCache can change live. A scheduler has only `min_prefix_length`."""
    state = await worker.state()
    if update.l2_adapters is not None and not state.is_scheduler:
        await _set_adapters(update.l2_adapters, state, worker, undo)
    if update.min_prefix_length is not None:
        one_chunk = update.min_prefix_length == state.conf["chunk_size"]
        await _set_conf({"min_retrieve_tokens": 0 if one_chunk else update.min_prefix_length}, worker, undo)


async def _set_conf(wanted: Mapping[str, Any], worker: Worker, undo: AsyncExitStack) -> None:
    """Set keys by ``POST /conf``. Use it only for keys that LMCache reads after its start."""
    before = await worker.read("/conf", names=",".join(wanted))
    await worker.change("POST", "/conf", dict(wanted))
    undo.push_async_callback(worker.change, "POST", "/conf", before)
    now = await worker.read("/conf", names=",".join(wanted))
    if now != wanted:
        raise RefusedError(f"LMCache accepted {dict(wanted)} but reads back {now}", status=0)


async def _set_adapters(wanted: tuple[L2Adapter, ...], state: WorkerState, worker: Worker, undo: AsyncExitStack) -> None:
    """Attach or detach the disk tier. See `settable.adapter_support` for the supported changes."""
    if config_of(state).l2_adapters == wanted:
        return
    if CPU_BACKEND not in state.backends:
        raise RefusedError(f"it has no {CPU_BACKEND}; LMCache would create one and crash", status=0)
    disk = disk_among(wanted)
    if disk is None:
        await _detach(worker, undo)
    else:
        settings = {"local_disk": disk.settings["path"], "max_local_disk_size": float(disk.settings["max_capacity_gb"])}
        await _set_conf(settings, worker, undo)
        await _attach(worker, undo)


async def _attach(worker: Worker, undo: AsyncExitStack) -> None:
    answer = await worker.change("POST", "/backends", at_least=SLOW_SECONDS)
    with worker.understood("POST /backends"):
        created = list(answer["created"])
    for name in created:
        undo.push_async_callback(_close, worker, name)
    if created != [DISK_BACKEND] or DISK_BACKEND not in await worker.read("/backends"):
        raise RefusedError(f"LMCache created {created or 'no backend'} instead of a {DISK_BACKEND}", status=0)
    await bypass_switch(DISK_BACKEND).set(False, worker, AsyncExitStack())  # an earlier detach may have left the bypass on


async def _detach(worker: Worker, undo: AsyncExitStack) -> None:
    await _close(worker, DISK_BACKEND)
    undo.push_async_callback(_attach, worker, AsyncExitStack())
    if DISK_BACKEND in await worker.read("/backends"):
        raise RefusedError(f"LMCache reported that it closed {DISK_BACKEND}, but still lists it", status=0)
    await _set_conf(NO_DISK, worker, undo)


async def _close(worker: Worker, backend: str) -> None:
    """Close a backend. Bypass it first: a store into a closed backend crashes the engine (0.5.6)."""
    await worker.change("PUT", _bypass("add", backend))
    await anyio.sleep(SETTLE_SECONDS)
    try:
        await worker.change("DELETE", f"/backends/{backend}", at_least=SLOW_SECONDS)
    except RefusedError:
        await worker.change("PUT", _bypass("remove", backend))
        raise


@dataclass(frozen=True)
class Switch:
    """A switch of in-process LMCache that is on or off."""

    status: str
    """Path that reads the switch."""
    is_on: Callable[[Any], bool]
    """Return from the answer whether the switch is on."""
    on: str
    """Path of the PUT that turns the switch on."""
    off: str
    """Path of the PUT that turns the switch off."""

    async def set(self, on: bool, worker: Worker, undo: AsyncExitStack) -> None:
        """Turn the switch on or off unless it already is, and read it back."""
        if await self._read(worker) == on:
            return
        await worker.change("PUT", self.on if on else self.off)
        undo.push_async_callback(worker.change, "PUT", self.off if on else self.on)
        if await self._read(worker) != on:
            raise RefusedError(f"LMCache accepted {self.on if on else self.off}, but {self.status} shows no change", status=0)

    async def _read(self, worker: Worker) -> bool:
        answer = await worker.read(self.status)
        with worker.understood(self.status):
            return self.is_on(answer)


FREEZE = Switch("/freeze/status", lambda answer: bool(answer["freeze"]), "/freeze/enable", "/freeze/disable")
HOT_CACHE = Switch("/hot_cache/status", lambda answer: bool(answer["hot_cache"]), "/hot_cache/enable", "/hot_cache/disable")


def bypass_switch(backend: str) -> Switch:
    """Return the switch that makes LMCache bypass a backend."""
    return Switch(
        "/bypass/list",
        lambda answer: backend in answer["bypassed_backends"],
        _bypass("add", backend),
        _bypass("remove", backend),
    )


def _bypass(verb: str, backend: str) -> str:
    return f"/bypass/{verb}?backend_name={quote(backend, safe='')}"
