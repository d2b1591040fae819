"""Every finished lookup of the server, from two events of LMCache's event bus.

LMCache 0.5.6 (``multiprocess/modules/lookup.py``) publishes MP_LOOKUP with the chunk hashes when a lookup begins, and
MP_LOOKUP_PREFETCH_END with tenant and hits by tier when it has ended. The bus calls us on its own thread, off the path of
requests; were it to fall behind, it drops events and counts them.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MAX_PENDING = 2_000
"""Lookups begun and not ended that are remembered; clients that were killed never end theirs."""


class Lookup(NamedTuple):
    """One finished lookup."""

    time: float
    """Unix time when it began."""
    model: str
    tenant: str
    """Cache salt."""
    tokens: int
    """Length of the prompt, tail included."""
    hashes: Sequence[bytes]
    """LMCache's chained hash of each whole chunk."""
    hit_l1: int
    """Leading chunks found in L1."""
    hit_l2: int
    """Chunks that L2 added to these."""
    world_size: int = 0
    """KV ranks of the engine; 0: not known."""


Consumer = Callable[[Lookup], None]


class Lookups:
    """Puts the two events of a lookup together and hands it to `consumers`. The first error ends it, and is told in `broken`."""

    def __init__(
        self,
        event_bus: Any,  # noqa: ANN401
        chunk_size: int,
        consumers: Sequence[Consumer],
        world_size_of: Callable[[str, str], int] = lambda *_: 0,
    ) -> None:
        """From now on. `chunk_size` in tokens; `world_size_of` tells the KV ranks of a request and model, 0 if it cannot."""
        from lmcache.v1.mp_observability.event import EventType  # noqa: PLC0415  where it is missing, other parts still work

        self.unfinished = 0
        """Lookups that were begun and never ended, or begun again under the same id."""
        self.without_chunks = 0
        """Lookups that ended before any chunk was looked for: shorter than one chunk, or of a model that is not registered."""
        self.broken: str | None = None
        """The error that ended the recording."""
        self._bus, self._chunk_size, self._consumers = event_bus, chunk_size, consumers
        self._world_size_of = world_size_of
        self._pending: dict[str, tuple[float, dict[str, Any]]] = {}
        self._closed = threading.Event()
        event_bus.subscribe(EventType.MP_LOOKUP, self._begun)
        event_bus.subscribe(EventType.MP_LOOKUP_PREFETCH_END, self._ended)

    @property
    def dropped_events(self) -> int:
        """Events that LMCache dropped, of all kinds, before they reached us."""
        return int(self._bus.dropped_events_count())

    def close(self) -> None:
        """Take no more."""
        self._closed.set()

    def _begun(self, event: Any) -> None:  # noqa: ANN401  LMCache's Event
        if self._closed.is_set():
            return
        if event.session_id in self._pending:
            self.unfinished += 1
        elif len(self._pending) >= MAX_PENDING:
            del self._pending[next(iter(self._pending))]
            self.unfinished += 1
        # The session that knows the world size may be there already, and may be gone when the lookup has ended.
        world_size = self._world_size_of(event.session_id, event.metadata.get("model_name", ""))
        self._pending[event.session_id] = (event.timestamp, event.metadata | {"world_size": world_size})

    def _ended(self, event: Any) -> None:  # noqa: ANN401  LMCache's Event
        if self._closed.is_set():
            return
        begun = self._pending.pop(event.session_id, None)
        if begun is None:
            self.without_chunks += 1
            return
        try:
            lookup = self._lookup(*begun, event.metadata)
            world_size = begun[1]["world_size"] or self._world_size_of(event.session_id, lookup.model)
            lookup = lookup._replace(world_size=world_size)
            for consume in self._consumers:
                consume(lookup)
        except Exception as error:
            # The bus would log it again for each lookup to come.
            logging.getLogger(__name__).exception("recording of lookups stopped")
            self.broken = f"{type(error).__name__}: {error}"
            self.close()

    def _lookup(self, time: float, begun: dict[str, Any], ended: dict[str, Any]) -> Lookup:
        return Lookup(
            time=time,
            model=ended["model_name"],
            tenant=ended["cache_salt"],
            tokens=begun["seq_len"],
            hashes=begun["chunk_hashes"],
            hit_l1=ended["l1_hit_tokens"] // self._chunk_size,
            hit_l2=ended["l2_hit_tokens"] // self._chunk_size,
        )
