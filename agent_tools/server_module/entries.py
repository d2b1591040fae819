"""The chunks in L1: which are hit most, which cannot be hit, and their removal."""
# ruff: noqa: SLF001  the private names are checked by `fit` when the module loads

import heapq
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.error import L1Error
from pydantic import Field, model_validator

from .eviction import controller_of
from .history import ChunkId, History
from .options import Body, Options
from .policies import order
from .refusal import Refusal

BATCH = 500
"""Objects removed at once: LMCache serves nobody meanwhile."""


class Entry(Body):
    """One chunk in L1, all its parts together (a part per KV rank and object group)."""

    chunk_hash: str
    """LMCache's chained hash, hexadecimal."""
    model: str
    tenant: str
    world_size: int
    """KV ranks of the engine that stored it."""
    bytes: int
    objects: int
    """LMCache's objects of it that are there: one for each KV rank and object group, if it is complete."""
    hits: int | None
    """Lookups that found it; ``None``, as the times: not known."""
    stored: float | None
    """When it came into L1."""
    last_hit: float | None
    reachable: bool | None
    """Whether the chunks before it are in L1 as well; it cannot be hit without them. ``None``: not known."""


class EntriesStatus(Body):
    """What is in L1."""

    chunk_size: int
    """Tokens per chunk."""
    chunks: int
    objects: int
    bytes: int
    unreachable_chunks: int
    """Chunks that cannot be hit until what came before them is stored again."""
    unreachable_bytes: int
    reach_unknown: str | None
    """Why nothing is called unreachable, if so."""
    top: list[Entry]
    """Most hits first."""


class TopEntries(Body):
    """The chunks of L1 hit most, without a look at all the others."""

    chunk_size: int
    """Tokens per chunk."""
    top: list[Entry]
    """Most hits first; whether they are reachable is not told. Of chunks stored since the module was loaded."""


class Removal(Body):
    """What to remove; exactly one of the three is given."""

    what: Literal["coldest", "unreachable"]
    objects: Annotated[int, Field(gt=0)] | None = None
    """So many of the coldest objects .."""
    until_used_mb: Annotated[float, Field(ge=0)] | None = None
    """.. or as many as L1 holds above this."""
    manager: str | None = None
    """Tag of the L1 manager; needed when there are several."""

    @model_validator(mode="after")
    def _one(self) -> "Removal":
        given = [value for value in (self.objects, self.until_used_mb) if value is not None]
        if len(given) != (self.what == "coldest"):
            raise ValueError("the coldest are removed by `objects` or `until_used_mb`, the unreachable ones all")
        return self


class Removed(Body):
    """What was removed. It cannot be undone."""

    entries_before: int
    """Objects."""
    entries_after: int
    removed: int
    locked: int
    """Left alone because they were being read or written."""
    freed_bytes: int
    seconds: float


class _Chunk(NamedTuple):
    bytes: int
    keys: tuple[Any, ...]


_Chunks = dict[ChunkId, _Chunk]


class Entries:
    """The contents of L1, as far as one can tell."""

    def __init__(self, context: Any, options: Options) -> None:  # noqa: ANN401  LMCache's MPCacheServerContext
        """Keeps the past of chunks from now on."""
        self._context = context
        self._controllers = context.storage_manager._eviction_controllers
        self.history = History(context.event_bus, options.tracked_chunks, self._resident)
        self._lock = threading.Lock()

    def read(self, top: int) -> EntriesStatus:
        """Totals, and the `top` entries."""
        chunks = self._chunks()
        unknown = self._reach_unknown(chunks)
        cut_off = set() if unknown else self._cut_off(chunks)
        best = heapq.nlargest(top, chunks, key=self._rank)
        return EntriesStatus(
            chunk_size=self._context.chunk_size,
            chunks=len(chunks),
            objects=sum(len(chunk.keys) for chunk in chunks.values()),
            bytes=sum(chunk.bytes for chunk in chunks.values()),
            unreachable_chunks=len(cut_off),
            unreachable_bytes=sum(chunks[chunk].bytes for chunk in cut_off),
            reach_unknown=unknown,
            top=[self._entry(chunk, chunks[chunk], None if unknown else chunk not in cut_off) for chunk in best],
        )

    def top(self, limit: int) -> TopEntries:
        """The `limit` entries hit most; at a cost that does not depend on how much is in L1."""
        tables = [controller._l1_manager._objects for controller in self._controllers]
        top: list[Entry] = []
        for chunk, past in self.history.hottest_first():
            objects = [state for key in past.keys for table in tables if (state := table.get(key)) is not None]
            if objects:
                size = sum(state.memory_obj.get_size() for state in objects)
                top.append(self._entry(chunk, _Chunk(size, past.keys), None))
            if len(top) == limit:
                break
        return TopEntries(chunk_size=self._context.chunk_size, top=top)

    def remove(self, removal: Removal) -> Removed:
        """Remove chunks from L1; those that are in use are left.

        Raises:
            Refusal: Unreachable ones cannot be told.
        """
        with self._lock:
            started, l1 = time.perf_counter(), controller_of(self._controllers, removal.manager)._l1_manager
            before, used = len(l1._objects), l1.get_memory_usage()[0]
            keys = self._coldest(removal) if removal.what == "coldest" else self._unreachable(l1)
            removed = locked = 0
            while batch := list(islice(keys, BATCH)):
                results = list(l1.delete(batch).values())
                removed += results.count(L1Error.SUCCESS)
                locked += results.count(L1Error.KEY_IS_LOCKED)
            return Removed(
                entries_before=before,
                entries_after=len(l1._objects),
                removed=removed,
                locked=locked,
                freed_bytes=max(used - l1.get_memory_usage()[0], 0),
                seconds=time.perf_counter() - started,
            )

    def _coldest(self, removal: Removal) -> Iterator[Any]:
        """Objects in the order in which the policy would evict them; by last hit when it follows no order."""
        controller = controller_of(self._controllers, removal.manager)
        l1 = controller._l1_manager
        resident = dict.fromkeys(_objects(l1))
        keys = order(controller._eviction_policy)
        if keys is None:
            keys = sorted(resident, key=self._last_sign)
        return islice((key for key in keys if key in resident), self._how_many(removal, l1, len(resident)))

    @staticmethod
    def _how_many(removal: Removal, l1: Any, resident: int) -> int:  # noqa: ANN401
        if removal.objects is not None:
            return removal.objects
        used = l1.get_memory_usage()[0]
        surplus = used - (removal.until_used_mb or 0) * 2**20
        return int(-(-max(surplus, 0) * resident // used)) if used else 0

    def _unreachable(self, l1: Any) -> Iterator[Any]:  # noqa: ANN401
        chunks = self._chunks(l1)
        unknown = self._reach_unknown(chunks)
        if unknown:
            raise Refusal(409, unknown)
        return iter([key for chunk in self._cut_off(chunks) for key in chunks[chunk].keys])

    def _reach_unknown(self, chunks: _Chunks) -> str | None:
        """Why it cannot be told which chunks are unreachable; ``None`` when it can."""
        if len(self._controllers) > 1:
            return "there are several L1 managers, and a prefix may lie across them"
        if self._context.storage_manager.get_l2_usages_by_type():
            return "the prefix of a chunk may be in L2, whose contents LMCache does not list"
        kinds = {
            (key.model_name, ObjectKey.WorldSizeFromKVRank(key.kv_rank)) for chunk in chunks.values() for key in chunk.keys[:1]
        }
        for model, world_size in kinds:
            try:
                windows = self._context.layout_desc_registry.find_attn_desc(model, world_size).num_chunks_in_sw
            except ValueError:
                return f"no engine is registered for model {model} now, so its attention windows are not known"
            if all(window > 0 for window in windows):
                return f"model {model} has only sliding-window attention, which needs no whole prefix"
        return None

    def _cut_off(self, chunks: _Chunks) -> set[ChunkId]:
        """Chunks of which one that came before is not in L1. Where that is not known, a chunk counts as reachable."""
        reachable: dict[ChunkId, bool] = {}
        for chunk in chunks:
            path = []
            while chunk not in reachable:
                path.append(chunk)
                past = self.history.of(chunk)
                if chunk not in chunks:
                    reachable[chunk] = False
                elif past is None or past.parent is None:
                    reachable[chunk] = True
                else:
                    chunk = chunk._replace(hash=past.parent)  # noqa: PLW2901  the walk from a chunk to the beginning
                    continue
            for one in path:
                reachable[one] = reachable[chunk]
        return {chunk for chunk in chunks if not reachable[chunk]}

    def _chunks(self, *managers: Any) -> _Chunks:  # noqa: ANN401
        """The objects of L1, put together to chunks."""
        chunks: _Chunks = {}
        for l1 in managers or [controller._l1_manager for controller in self._controllers]:
            for key, state in _objects(l1).items():
                chunk = ChunkId.of(key)
                known = chunks.get(chunk, _Chunk(0, ()))
                chunks[chunk] = _Chunk(known.bytes + state.memory_obj.get_size(), (*known.keys, key))
        return chunks

    def _resident(self) -> Iterator[ChunkId]:
        for controller in self._controllers:
            for key in _objects(controller._l1_manager):
                yield ChunkId.of(key)

    def _entry(self, chunk: ChunkId, parts: _Chunk, reachable: bool | None) -> Entry:
        past = self.history.of(chunk)
        return Entry(
            chunk_hash=chunk.hash.hex(),
            model=chunk.model,
            tenant=chunk.tenant,
            world_size=chunk.world_size,
            bytes=parts.bytes,
            objects=len(parts.keys),
            hits=past.hits if past else None,
            stored=past.stored if past else None,
            last_hit=past.used if past else None,
            reachable=reachable,
        )

    def _rank(self, chunk: ChunkId) -> tuple[int, float]:
        past = self.history.of(chunk)
        return (past.hits, past.used or 0.0) if past else (-1, 0.0)

    def _last_sign(self, key: Any) -> float:  # noqa: ANN401  LMCache's ObjectKey
        past = self.history.of(ChunkId.of(key))
        return max(past.used or 0.0, past.stored or 0.0) if past else 0.0


def _objects(l1: Any) -> dict[Any, Any]:  # noqa: ANN401  LMCache's L1Manager
    """Its resident objects at this moment."""
    with l1._lock:
        return dict(l1._objects)
