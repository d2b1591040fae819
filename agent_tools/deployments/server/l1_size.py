"""Change L1's size on a running server. Either we or the server's module create the arenas on its host."""

from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from agent_tools.arena_file import page_aligned
from agent_tools.deployments.base import Progress
from agent_tools.errors import RefusedError, UnsupportedError
from agent_tools.models import MB, Support, SupportLevel
from agent_tools.wire.http_client import AdminClient

from .arenas import Arenas, arenas_of, resize
from .module_client import ServerModule
from .settable import ABOVE_LIMIT, ARENAS, BELOW_PRIMARY, DRAM, MODULE_ARENAS, NO_FOLDER


async def size_support(admin: AdminClient, module: ServerModule | None, folder: Path | None, wanted_mb: float | None) -> Support:
    """Return how L1's size can be changed.

    Args:
        admin: The server's admin API.
        module: The server's module, if there is one.
        folder: A folder on the server's host in which we create arenas. Without it, the module creates them, if allowed.
        wanted_mb: The wanted size, MB. ``None`` means any size.
    """
    try:
        now = await arenas_of(admin)
    except RefusedError as error:
        if error.status not in {httpx.codes.FORBIDDEN, httpx.codes.NOT_IMPLEMENTED}:
            raise
        return Support(level=SupportLevel.RESTART, reason=f"whether L1 can grow while the server runs is not known: {error}")
    return Support(level=SupportLevel.RESTART, reason=DRAM) if now is None else await _with_arenas(now, module, folder, wanted_mb)


async def _with_arenas(now: Arenas, module: ServerModule | None, folder: Path | None, wanted_mb: float | None) -> Support:
    most = await module.max_l1_bytes() if module is not None and folder is None else None
    if folder is None and most is None:
        return Support(level=SupportLevel.RESTART, reason=NO_FOLDER)
    if wanted_mb is not None and page_aligned(wanted_mb * MB) < now.primary:
        return Support(level=SupportLevel.RESTART, reason=BELOW_PRIMARY.format(now.primary / MB))
    if most is None:
        return Support(level=SupportLevel.LIVE, reason=ARENAS.format(folder))
    if wanted_mb is not None and wanted_mb * MB > max(most, now.total):
        return Support(level=SupportLevel.RESTART, reason=ABOVE_LIMIT.format(most / MB))
    return Support(level=SupportLevel.LIVE, reason=MODULE_ARENAS.format(most / MB))


async def change_size(
    admin: AdminClient,
    module: ServerModule | None,
    folder: Path | None,
    size_mb: float,
    progress: Progress,
    undo: AsyncExitStack,
    most_mb: float | None = None,
) -> None:
    """Change L1's size, and register in `undo` how to restore it. Call this only if `size_support` returns live.

    `most_mb` is the memory that L1 may take with arenas that are being drained; the module has a limit of its own.
    """
    if folder is not None:
        now = await arenas_of(admin)
        if now is None:
            raise UnsupportedError(f"max_size_mb cannot be changed: {DRAM}. Nothing was changed")
        await resize(admin, now, folder, page_aligned(size_mb * MB), progress, None if most_mb is None else most_mb * MB)
        undo.push_async_callback(change_size, admin, None, folder, now.total / MB, progress, AsyncExitStack())
    elif module is not None:
        progress(f"resizing L1 to {size_mb:.1f} MB")
        answer = await module.put("arenas", {"total_mb": size_mb})
        undo.push_async_callback(module.put, "arenas", {"total_mb": answer["previous_bytes"] / MB})
