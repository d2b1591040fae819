"""Grow and shrink L1 live: LMCache maps plain files as Device-DAX arenas (``/reconfigure/dax/l1``)."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import httpx

from agent_tools.arena_file import reserve
from agent_tools.deployments.base import Progress
from agent_tools.errors import MissingRouteError, RefusedError, UnsupportedError
from agent_tools.models import MB
from agent_tools.wire.http_client import AdminClient

ROUTE = "/reconfigure/dax/l1"


@contextlib.asynccontextmanager
async def arena_file(folder: Path, size: int) -> AsyncIterator[Path]:
    """Yield a file with `size` reserved bytes. The file is unlinked on leaving; the server must have mapped it by then.

    Raises:
        UnsupportedError: The folder is missing, not writable, or too full.
    """
    try:
        # In a worker thread, since reserving gigabytes takes seconds.
        path = await anyio.to_thread.run_sync(reserve, folder, size)
    except OSError as error:
        raise UnsupportedError(f"cannot create an L1 arena of {size / MB:.1f} MB in {folder}: {error.strerror}") from error
    try:
        yield path
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(path.unlink)


@dataclass(frozen=True)
class Arenas:
    """The arenas of L1, without arenas that are being drained."""

    primary: int
    """Bytes of the primary arena. It cannot be removed, so L1 cannot become smaller live."""
    others: tuple[tuple[str, int], ...]
    """Path and bytes of each other arena, the oldest first."""
    held: int = 0
    """Bytes of arenas that are being drained. They keep their memory until their last chunk is evicted."""
    full: frozenset[str] = frozenset()
    """Paths of the arenas that hold chunks."""

    @property
    def total(self) -> int:
        """Return the bytes of all arenas."""
        return self.primary + sum(size for _, size in self.others)


async def arenas_of(admin: AdminClient) -> Arenas | None:
    """Return the arenas of a server's L1, or ``None`` if its L1 has no arenas."""
    try:
        status = await admin.read(f"{ROUTE}/status")
    except MissingRouteError:  # up to 0.5.5
        return None
    except RefusedError as error:
        # LMCache 0.5.6 answers 409 if L1 is plain DRAM, and 500 with several L1 managers or after any internal error.
        if error.status == httpx.codes.CONFLICT or (error.status == httpx.codes.INTERNAL_SERVER_ERROR and await _several(admin)):
            return None
        raise
    with admin.understood(f"{ROUTE}/status"):
        active = [arena for arena in status["arenas"] if arena["state"] == "active"]
        return Arenas(
            primary=sum(arena["size_in_bytes"] for arena in active if arena["is_primary"]),
            others=tuple((arena["device_path"], arena["size_in_bytes"]) for arena in active if not arena["is_primary"]),
            held=sum(arena["size_in_bytes"] for arena in status["arenas"] if arena["state"] != "active"),
            full=frozenset(arena["device_path"] for arena in active if arena["used_bytes"]),
        )


async def _several(admin: AdminClient) -> bool:
    """Return whether the server has more than one L1 manager."""
    status = await admin.read("/status")
    with admin.understood("/status"):
        return len(status["storage_manager"]["l1_managers"]) > 1


async def resize(
    admin: AdminClient, arenas: Arenas, folder: Path, target: int, progress: Progress, most: float | None = None
) -> None:
    """Change the sum of the active arenas to `target` bytes (page aligned).

    To grow L1, add an arena. To shrink L1, add an arena for the remainder and drain the newest of the other arenas. A drained
    arena loses its capacity at once, and frees its memory when its last chunk is evicted.

    Args:
        admin: The server's admin API.
        arenas: The arenas now.
        folder: For the new arena.
        target: Bytes.
        progress: Called at each step.
        most: Bytes of memory that L1 may take, with arenas that are being drained. ``None`` means any.

    Raises:
        UnsupportedError: The folder is too full, or L1 would take too much memory. Nothing was changed.
    """
    total, drained = arenas.total, []
    for path, size in reversed(arenas.others):
        if total > target:
            drained.append((path, size))
            total -= size
    if total < target:
        _check_memory(arenas, target, sum(size for path, size in drained if path in arenas.full), most)
        progress(f"adding an L1 arena of {(target - total) / MB:.1f} MB")
        await _add(admin, folder, target - total)
    for path, size in drained:
        progress(f"draining an L1 arena of {size / MB:.1f} MB")
        await admin.change("POST", f"{ROUTE}/remove", {"device_path": path, "mode": "drain"})


def _check_memory(arenas: Arenas, target: int, drained: int, most: float | None) -> None:
    held = arenas.held + drained
    if most is not None and held and target + held > max(most, arenas.total + arenas.held):
        raise UnsupportedError(
            f"{held / MB:.1f} MB of drained arenas hold chunks until these are evicted; with {target / MB:.1f} MB L1 would take"
            f" more memory than {most / MB:.1f} MB, the operator's bound of max_size_mb. Try again later, or clear L1."
            " Nothing was changed"
        )


async def _add(admin: AdminClient, folder: Path, size: int) -> None:
    async with arena_file(folder, size) as path:
        await admin.change("POST", f"{ROUTE}/add", {"device_path": str(path), "size": size})
