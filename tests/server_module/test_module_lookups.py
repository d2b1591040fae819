"""Claims about how lookups are followed, on LMCache's own event bus."""

from collections.abc import Iterator
from typing import Any

import pytest

from agent_tools.server_module.history import ChunkId, History
from agent_tools.server_module.lookups import MAX_PENDING, Lookup, Lookups

pytestmark = pytest.mark.filterwarnings("ignore")  # LMCache uses what OpenTelemetry and Google have deprecated


@pytest.fixture
def bus(lmcache: None) -> Any:
    from lmcache.v1.mp_observability.event_bus import EventBus  # noqa: PLC0415

    return EventBus()


def begin(bus: Any, request: str) -> None:
    publish(bus, "MP_LOOKUP", request, seq_len=600, chunk_hashes=[b"a" * 32, b"b" * 32])


def end(bus: Any, request: str) -> None:
    publish(bus, "MP_LOOKUP_PREFETCH_END", request, model_name="model", cache_salt="salt", l1_hit_tokens=256, l2_hit_tokens=256)


def publish(bus: Any, kind: str, request: str, **metadata: object) -> None:
    from lmcache.v1.mp_observability.event import Event, EventType  # noqa: PLC0415

    bus.publish(Event(EventType[kind], session_id=request, metadata=metadata))
    bus.stop()  # delivers what is queued


def test_a_lookup_is_put_together_from_its_two_events(bus: Any) -> None:
    seen: list[Lookup] = []
    Lookups(bus, 256, [seen.append])
    begin(bus, "1")
    begin(bus, "2")
    end(bus, "2")
    (lookup,) = seen
    assert lookup[1:] == ("model", "salt", 600, [b"a" * 32, b"b" * 32], 1, 1, 0)
    assert lookup.time > 0


def test_lookups_that_never_end_are_forgotten_and_counted(bus: Any) -> None:
    seen: list[Lookup] = []
    lookups = Lookups(bus, 256, [seen.append])
    for number in range(MAX_PENDING + 3):
        begin(bus, str(number))
    begin(bus, "10")
    assert lookups.unfinished == 3 + 1, "three too many, and one begun again"
    end(bus, "0")
    assert (lookups.without_chunks, seen) == (1, [])


def test_the_first_error_ends_the_recording_and_not_the_server(bus: Any) -> None:
    calls: list[Lookup] = []

    def fail(lookup: Lookup) -> None:
        calls.append(lookup)
        raise OSError("no more")

    lookups = Lookups(bus, 256, [fail])
    for request in ("1", "2"):
        begin(bus, request)
        end(bus, request)
    assert lookups.broken == "OSError: no more"
    assert len(calls) == 1
    assert bus.subscriber_exception_counts() == {}


def test_the_past_of_more_chunks_than_the_limit_is_kept_for_those_in_l1(bus: Any) -> None:
    resident = [chunk(number) for number in range(300)]

    def in_l1() -> Iterator[ChunkId]:
        yield from resident

    history = History(bus, 1000, in_l1)
    for number in range(1500):
        history.add(Lookup(number, "model", "salt", 256, [chunk(number).hash], 0, 0))
    assert len(history) <= 1000
    assert all(history.of(one) is not None for one in resident)
    assert history.of(chunk(600)) is None


def chunk(number: int) -> ChunkId:
    return ChunkId("model", "salt", 0, number.to_bytes(32, "big"))
