"""What LMCache does not keep about a chunk: its predecessor, how often it was hit, when it was stored and last used."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .lookups import Lookup


class ChunkId(NamedTuple):
    """What makes a chunk: the same prefix under another model, tenant or world size is another one."""

    model: str
    tenant: str
    world_size: int
    hash: bytes

    @classmethod
    def of(cls, key: Any) -> "ChunkId":  # noqa: ANN401  LMCache's ObjectKey
        """The chunk that an object belongs to."""
        return cls(key.model_name, key.cache_salt, key.WorldSizeFromKVRank(key.kv_rank), key.chunk_hash)


class Past:
    """The past of one chunk, in little memory."""

    __slots__ = ("hits", "keys", "parent", "stored", "used")

    def __init__(self, parent: bytes | None) -> None:
        """Of a chunk that was first asked for just now, after `parent` (``None``: a prompt begins with it)."""
        self.parent = parent
        self.hits = 0
        self.keys: tuple[Any, ...] = ()
        """LMCache's keys of the objects it was last stored as; whether they are still there is not known here."""
        self.stored: float | None = None
        self.used: float | None = None


class History:
    """The past of at most `limit` chunks; when there are more, of those that are in L1."""

    def __init__(self, event_bus: Any, limit: int, resident: Callable[[], Iterable[ChunkId]]) -> None:  # noqa: ANN401
        """From now on. `resident` gives the chunks in L1."""
        from lmcache.v1.mp_observability.event import EventType  # noqa: PLC0415  as in `lookups`

        self._limit, self._resident = limit, resident
        self._tables: dict[tuple[str, str, int], dict[bytes, Past]] = {}
        self._size = 0
        self._lock = threading.Lock()
        # What is stored by an engine, and what is loaded from L2.
        event_bus.subscribe(EventType.L1_WRITE_FINISHED, self._stored)
        event_bus.subscribe(EventType.L1_WRITE_FINISHED_AND_READ_RESERVED, self._stored)

    def add(self, lookup: Lookup) -> None:
        """Count a lookup."""
        hit = lookup.hit_l1 + lookup.hit_l2
        with self._lock:
            if self._size + len(lookup.hashes) > self._limit:
                self._prune()
            table = self._tables.setdefault((lookup.model, lookup.tenant, lookup.world_size), {})
            parent = None
            for position, chunk in enumerate(lookup.hashes):
                past = table.get(chunk)
                if past is None:
                    past = table[chunk] = Past(parent)
                    self._size += 1
                if position < hit:
                    past.hits += 1
                    past.used = lookup.time
                parent = chunk

    def of(self, chunk: ChunkId) -> Past | None:
        """The past of a chunk; ``None`` when it is not known."""
        table = self._tables.get(chunk[:3])
        return None if table is None else table.get(chunk.hash)

    def hottest_first(self) -> Iterator[tuple[ChunkId, Past]]:
        """All chunks, those hit most first, whether they are in L1 or not; of equal ones those used last."""
        with self._lock:
            known = [
                (past.hits, past.used or 0.0, owner, chunk)
                for owner, table in self._tables.items()
                for chunk, past in table.items()
            ]
        known.sort(reverse=True)
        for _, _, owner, chunk in known:
            past = self.of(ChunkId(*owner, chunk))
            if past is not None:
                yield ChunkId(*owner, chunk), past

    def __len__(self) -> int:
        return self._size

    def _stored(self, event: Any) -> None:  # noqa: ANN401  LMCache's Event
        with self._lock:
            for key in event.metadata["keys"]:
                past = self.of(ChunkId.of(key))
                if past is not None:
                    past.stored = event.timestamp
                    past.keys = (key,) if key in past.keys else (*past.keys, key)

    def _prune(self) -> None:
        """Forget chunks that are not in L1; of the others, if they are too many, those first met longest ago."""
        kept: dict[tuple[str, str, int], dict[bytes, Past]] = {}
        known = [(chunk, past) for chunk in self._resident() if (past := self.of(chunk)) is not None]
        for chunk, past in known[-self._limit // 2 :]:
            kept.setdefault(chunk[:3], {})[chunk.hash] = past
        self._tables, self._size = kept, sum(map(len, kept.values()))
