"""Counts of whole chunks: LMCache 0.5.6 counts objects, of which a chunk has one for each KV rank and object group."""

import threading
from typing import Any

from .layouts import Layouts

Chunk = tuple[str, str, int, bytes]
"""Model, tenant, world size and hash."""


class ChunkCounts:
    """What was stored in L1 and left it since the server started, in chunks; and which chunks lack objects."""

    def __init__(self, event_bus: Any, layouts: Layouts) -> None:  # noqa: ANN401
        """Counts from now on; L1 is empty."""
        from lmcache.v1.mp_observability.event import EventType  # noqa: PLC0415  as in `lookups`

        self.stored = self.evicted = self.failed = 0.0
        self._layouts = layouts
        self._complete = 0
        self._partial: dict[Chunk, int] = {}
        """Objects that are there, of each chunk that lacks others."""
        self._lock = threading.Lock()
        event_bus.subscribe(EventType.L1_WRITE_FINISHED, self._written)
        event_bus.subscribe(EventType.L1_WRITE_FINISHED_AND_READ_RESERVED, self._written)
        event_bus.subscribe(EventType.L1_KEYS_EVICTED, self._removed)
        event_bus.subscribe(EventType.L1_ALLOCATION_FAILED, self._dropped)

    def read(self) -> dict[str, Any]:
        """All counts, as ``/status`` shows them."""
        with self._lock:
            return {
                "stored": self.stored,
                "evicted": self.evicted,
                "failed": self.failed,
                "resident": max(self._complete, 0) + len(self._partial),
                "incomplete": len(self._partial),
            }

    def _written(self, event: Any) -> None:  # noqa: ANN401  LMCache's Event
        with self._lock:
            for key in event.metadata["keys"]:
                chunk, objects = self._chunk(key)
                self.stored += 1 / objects
                here = self._partial.pop(chunk, 0) + 1
                if here < objects:
                    self._partial[chunk] = here
                else:
                    self._complete += 1

    def _removed(self, event: Any) -> None:  # noqa: ANN401  LMCache's Event
        with self._lock:
            for key in event.metadata["keys"]:
                chunk, objects = self._chunk(key)
                self.evicted += 1 / objects
                here = self._partial.pop(chunk, None)
                if here is None:
                    self._complete -= 1
                    here = objects
                if here > 1:
                    self._partial[chunk] = here - 1

    def _dropped(self, event: Any) -> None:  # noqa: ANN401  LMCache's Event
        if event.metadata["during"] == "l1_store":
            with self._lock:
                self.failed += sum(1 / self._chunk(key)[1] for key in event.metadata["keys"])

    def _chunk(self, key: Any) -> tuple[Chunk, int]:  # noqa: ANN401  LMCache's ObjectKey
        """The chunk of an object, and how many objects it has."""
        world_size = key.WorldSizeFromKVRank(key.kv_rank)
        return (key.model_name, key.cache_salt, world_size, key.chunk_hash), self._layouts.objects(key.model_name, world_size)
