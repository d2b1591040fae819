"""Live L1 growth and shrink: LMCache maps plain files as Device-DAX arenas (``/reconfigure/dax/l1``)."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import httpx

from agent_tools.arena_file import reserve
from agent_tools.deployments.base import Progress
from agent_tools.errors import RefusedError, UnsupportedError
from agent_tools.models import MB
from agent_tools.wire.http_client import AdminClient

ROUTE = "/reconfigure/dax/l1"


@contextlib.asynccontextmanager
async def arena_file(folder: Path, size: int) -> AsyncIterator[Path]:
    """A file of `size` bytes, all of it reserved; unlinked on leaving, by when the server has to have mapped it.

    Raises:
        UnsupportedError: The folder is missing, not writable, or has no room for it.
    """
    try:
        # In a worker thread, since reserving gigabytes takes seconds.
        path = await anyio.to_thread.run_sync(reserve, folder, size)
    except OSError as error:
        raise UnsupportedError(f"no L1 arena of {size / MB:.1f} MB can be made in {folder}: {error.strerror}") from error
    try:
        yield path
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(path.unlink)


@dataclass(frozen=True)
class Arenas:
    """The arenas that L1 is made of now, those being drained left out."""

    primary: int
    """Bytes of the primary arena, which cannot be removed: the smallest size that can be reached live."""
    others: tuple[tuple[str, int], ...]
    """(path, bytes) of each other one, oldest first."""

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self.primary + sum(size for _, size in self.others)


async def arenas_of(admin: AdminClient) -> Arenas | None:
    """The arenas of a server's L1; ``None`` when its L1 is not made of arenas."""
    try:
        status = await admin.read(f"{ROUTE}/status")
    except RefusedError as error:
        # 409 when L1 is plain DRAM; 500 with more than one L1 manager (0.5.6), and whenever something breaks.
        if error.status == httpx.codes.CONFLICT or (error.status == httpx.codes.INTERNAL_SERVER_ERROR and await _several(admin)):
            return None
        raise
    with admin.understood(f"{ROUTE}/status"):
        active = [arena for arena in status["arenas"] if arena["state"] == "active"]
        return Arenas(
            primary=sum(arena["size_in_bytes"] for arena in active if arena["is_primary"]),
            others=tuple((arena["device_path"], arena["size_in_bytes"]) for arena in active if not arena["is_primary"]),
        )


async def _several(admin: AdminClient) -> bool:
    """Whether the server has more than one L1 manager."""
    status = await admin.read("/status")
    with admin.understood("/status"):
        return len(status["storage_manager"]["l1_managers"]) > 1


async def resize(admin: AdminClient, arenas: Arenas, folder: Path, target: int, progress: Progress) -> None:
    """Bring the sum of active arenas to `target` bytes (page aligned).

    Growing adds an arena. Shrinking adds one for the remainder, then drains the newest of the others: their capacity is gone at
    once, their memory when their last chunk is evicted.

    Raises:
        UnsupportedError: The folder has no room; nothing was changed.
    """
    total, drained = arenas.total, []
    for path, size in reversed(arenas.others):
        if total > target:
            drained.append((path, size))
            total -= size
    if total < target:
        progress(f"adding an L1 arena of {(target - total) / MB:.1f} MB")
        await _add(admin, folder, target - total)
    for path, size in drained:
        progress(f"draining an L1 arena of {size / MB:.1f} MB")
        await admin.change("POST", f"{ROUTE}/remove", {"device_path": path, "mode": "drain"})


async def _add(admin: AdminClient, folder: Path, size: int) -> None:
    async with arena_file(folder, size) as path:
        await admin.change("POST", f"{ROUTE}/add", {"device_path": str(path), "size": size})
