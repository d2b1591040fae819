"""Live growth and shrink of an L1 that is made of devdax arenas (plain files in shared memory will do)."""
# ruff: noqa: SLF001  the private names are checked by `fit` when the module loads

import contextlib
import threading
from collections.abc import Iterator
from typing import Annotated, Any

from lmcache.v1.distributed.error import L1ReconfigureError
from pydantic import Field

from agent_tools.arena_file import MB, page_aligned, reserve

from .options import Body, Options
from .refusal import Refusal


class Arena(Body):
    """One mapped file."""

    path: str
    """Where it was; by now unlinked, unless the server was started with it."""
    bytes: int
    used_bytes: int
    state: str
    """``active``, or ``draining``: takes no more chunks, its memory is freed when the last one leaves."""
    primary: bool
    """Whether it cannot be removed."""


class ArenasStatus(Body):
    """What L1 is made of."""

    total_bytes: int
    """Capacity: active arenas, and memory that is none."""
    fixed_bytes: int
    """What cannot be removed: the smallest size that can be reached."""
    draining_bytes: int
    """Memory on top of the capacity, freed when the last chunks of the arenas that are being drained leave."""
    max_bytes: int | None
    """The operator's limit of the capacity; ``None``: arenas cannot be made here."""
    arenas: list[Arena]


class Resize(Body):
    """The capacity wanted."""

    total_mb: Annotated[float, Field(gt=0)]


class Resized(Body):
    """A change of size that is in force; to undo it, ask for the previous total."""

    previous_bytes: int
    current_bytes: int
    added_bytes: int
    draining_bytes: int


class Arenas:
    """The arenas of a running server. Changes are made one after the other."""

    def __init__(self, context: Any, options: Options) -> None:  # noqa: ANN401  LMCache's MPCacheServerContext
        """Nothing is changed by this."""
        self._storage = context.storage_manager
        self._folder = options.arena_folder
        self._limit = int(options.max_l1_mb * MB) if options.max_l1_mb and options.arena_folder else None
        self._lock = threading.Lock()

    def read(self) -> ArenasStatus:
        """What is there now.

        Raises:
            Refusal: L1 is not made of arenas.
        """
        with _refusals():
            arenas = [_described(status) for status in self._storage.get_l1_devdax_arena_statuses()]
            memory = self._storage._eviction_controllers[0]._l1_manager.get_capacity_bytes_by_backend()
        plain = sum(size for backend, size in memory.items() if backend.value != "devdax")
        active = [arena for arena in arenas if arena.state == "active"]
        return ArenasStatus(
            total_bytes=plain + sum(arena.bytes for arena in active),
            fixed_bytes=plain + sum(arena.bytes for arena in active if arena.primary),
            draining_bytes=sum(arena.bytes for arena in arenas if arena.state != "active"),
            max_bytes=self._limit,
            arenas=arenas,
        )

    def resize(self, wanted: Resize) -> Resized:
        """Bring the capacity to a size, rounded up to whole pages, keeping all chunks.

        Growing adds an arena. Shrinking drains the newest, after adding one for what remains of them: capacity is gone at once,
        memory when their last chunks are evicted.

        Raises:
            Refusal: Beyond the limit, also together with arenas that are still being drained; below what is fixed; or no room in
                the folder. Nothing was changed.
        """
        with self._lock:
            before = self.read()
            target = page_aligned(wanted.total_mb * MB)
            self._check(before, target)
            drained, rest = [], before.total_bytes
            for arena in reversed(before.arenas):
                if rest > target and arena.state == "active" and not arena.primary:
                    drained.append(arena)
                    rest -= arena.bytes
            if rest < target:
                self._check_memory(before, target, drained)
                self._add(target - rest)
            with _refusals():
                for arena in drained:
                    self._storage.remove_l1_devdax_device(arena.path)
            after = self.read()
            return Resized(
                previous_bytes=before.total_bytes,
                current_bytes=after.total_bytes,
                added_bytes=max(target - rest, 0),
                draining_bytes=after.draining_bytes,
            )

    def _check(self, now: ArenasStatus, target: int) -> None:
        if self._limit is None:
            raise Refusal(403, "the operator has named no arena_folder and max_l1_mb in the config of --server-module")
        if target > self._limit and target > now.total_bytes:
            raise Refusal(422, f"L1 may have at most {self._limit / MB:g} MB here (max_l1_mb)")
        if target < now.fixed_bytes:
            raise Refusal(
                422, f"{now.fixed_bytes / MB:g} MB of L1 cannot be removed from a running server; ask for at least that"
            )

    def _check_memory(self, now: ArenasStatus, target: int, drained: list[Arena]) -> None:
        """Refuse a size that takes more memory than the limit, with all arenas that hold chunks until these are evicted."""
        held = now.draining_bytes + sum(arena.bytes for arena in drained if arena.used_bytes)
        if held and target + held > max(self._limit or 0, now.total_bytes + now.draining_bytes):
            raise Refusal(
                409,
                f"{held / MB:g} MB of drained arenas hold chunks until these are evicted; with {target / MB:g} MB L1 would take"
                " more memory than max_l1_mb allows. Ask again later, or clear L1",
            )

    def _add(self, size: int) -> None:
        if self._folder is None:
            raise RuntimeError("`_check` comes first")
        try:
            path = reserve(self._folder, size)
        except OSError as error:
            raise Refusal(507, f"no L1 arena of {size / MB:.1f} MB can be made in {self._folder}: {error.strerror}") from error
        try:
            with _refusals():
                self._storage.add_l1_devdax_device(str(path), size)
        finally:
            path.unlink()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """LMCache's own refusals as ours."""
    try:
        yield
    except L1ReconfigureError as error:
        raise Refusal(error.status_code, f"LMCache refused: {error}") from error
    except ValueError as error:  # with several L1 managers
        raise Refusal(409, f"LMCache refused: {error}") from error


def _described(status: Any) -> Arena:  # noqa: ANN401  LMCache's DevDaxArenaStatus
    return Arena(
        path=status.device_path,
        bytes=status.size_in_bytes,
        used_bytes=status.used_bytes,
        state=status.state.value,
        primary=status.is_primary,
    )
