"""Claims about what any answers of a server come to: figures that can be, or an error of ours; no crash and no wrong figure.

The answers are those of a real server (`recorded_answers`), broken in one or more places: a number that is none, a part that is
missing or of another kind, a count below zero, a page cut short.
"""

import asyncio
import copy
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from recorded_answers import ANSWERS, METRICS

from agent_tools.deployments.counters import Counters, TokenCounters
from agent_tools.deployments.in_process.exposition import parse_in_process_exposition
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.exposition import parse_exposition
from agent_tools.deployments.server.workload_window import _decoded
from agent_tools.deployments.snapshot import Snapshot, metrics_between
from agent_tools.errors import LMCacheToolError
from agent_tools.models import CacheConfig, CacheMetrics
from agent_tools.wire import prometheus
from agent_tools.wire.long_page import tables_of_long_page
from agent_tools.wire.series_table import SeriesTable

ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        2**63,
        10**400,
        0.5,
        -0.0,
        1e308,
        math.nan,
        math.inf,
        "",
        "7",
        "\ud800",
        "NaN",
        [],
        {},
        [None],
        {"a": 1},
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a JSON value."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


PLACES = [(route, *place) for route, answer in ANSWERS.items() if route != "/metrics" for place in places(answer)]


def broken(where: list[tuple[Any, ...]], what: list[Any]) -> dict[str, Any]:
    """The answers with other values there; ``...`` takes a value out."""
    answers = copy.deepcopy(ANSWERS)
    for place, value in zip(where, what, strict=False):
        at: Any = answers
        try:
            for key in place[:-1]:
                at = at[key]
            if value is ...:
                del at[place[-1]]
            else:
                at[place[-1]] = copy.deepcopy(value)  # a later place may lie in it
        except (KeyError, IndexError, TypeError):
            continue  # an earlier one took it away
    return answers


def read(answers: dict[str, Any]) -> tuple[Snapshot, CacheConfig]:
    """What a deployment makes of them."""

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/reconfigure/dax/l1/status":
            return httpx.Response(409, json={"error": "L1 is not devdax-backed"})
        told = answers.get(path, ...)
        if told is ...:
            return httpx.Response(404)
        return httpx.Response(200, text=told if path == "/metrics" and isinstance(told, str) else json.dumps(told))

    async def both() -> tuple[Snapshot, CacheConfig]:
        server = ServerDeployment("http://127.0.0.1:9", transport=httpx.MockTransport(answer))
        try:
            await server.support()
            return await server.snapshot(), await server.config()
        finally:
            await server.close()

    return asyncio.run(both())


def check(metrics: CacheMetrics) -> None:
    """Figures that can be: what was dumped reads back, and no count or size lies below zero."""
    again = CacheMetrics.model_validate(json.loads(metrics.model_dump_json()))
    figures = [(name, value) for name, value in again if isinstance(value, int | float) and not isinstance(value, bool)]
    assert all(math.isfinite(value) and value >= 0 for _, value in figures), figures
    assert metrics.tokens.hit <= metrics.tokens.requested


@tried(60, 3000)
@given(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3), st.lists(st.just(...) | ODD, min_size=3, max_size=3))
def test_answers_broken_anywhere_are_figures_that_can_be_or_an_error(where: list[tuple[Any, ...]], what: list[Any]) -> None:
    try:
        snapshot, config = read(broken(where, what))
    except LMCacheToolError:
        return
    check(metrics_between(None, snapshot))
    assert CacheConfig.model_validate(json.loads(config.model_dump_json())) == config


# ---- the counters ----

values = st.sampled_from(
    ["0", "-0", "1", "-1", "1.5", "NaN", "+Inf", "-Inf", "1e400", "9e18", "1e300", "0x10", "", "7 1700000000", "1_0"]
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def escaped(name: str) -> str:
    return name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


SERIES = [line.partition("{")[0] for line in METRICS.split("\n") if "{cache_salt" in line]


@tried(60, 3000)
@given(st.dictionaries(names, st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), max_size=6))
def test_every_tenant_is_counted_whatever_it_is_called(tenants: dict[str, tuple[int, int]]) -> None:
    lines = ["lmcache_mp_event_bus_dropped_events_total 0.0"]
    for salt, (requested, hit) in tenants.items():
        labels = f'{{cache_salt="{escaped(salt)}",model_name="m"}}'
        lines += [
            f"lmcache_mp_lookup_requested_tokens_total{labels} {requested}",
            f"lmcache_mp_lookup_hit_l1_tokens_total{labels} {hit}",
        ]
    read = parse_exposition("\n".join(lines))
    assert {salt: (one.requested, one.hit_l1) for (_, salt), one in read.tokens.items()} == tenants


@tried(60, 3000)
@given(st.lists(st.tuples(st.sampled_from(SERIES), st.sampled_from("ab"), values), max_size=8))
def test_counters_that_cannot_be_are_refused(samples: list[tuple[str, str, str]]) -> None:
    text = "\n".join(f'{name}{{cache_salt="{salt}",model_name="m"}} {value}' for name, salt, value in samples)
    try:
        read = parse_exposition(text)
        engine = parse_in_process_exposition(
            text.replace("lmcache_mp_l1_write_chunks_total", "lmcache:local_cache_usage"), 256, 1
        )
    except ValueError:
        return
    assert len({(name, salt) for name, salt, _ in samples}) == len(samples), "none stands there twice"
    counts = [*vars(read.counters).values(), *(count for one in read.tokens.values() for count in asdict(one).values())]
    assert all(math.isfinite(count) and 0 <= count < 2**64 for count in counts)
    assert engine.l1_used_bytes >= 0


@tried(60, 3000)
@given(st.integers(0, len(ANSWERS["/metrics"])))
def test_a_page_cut_short_counts_less_or_is_refused(cut: int) -> None:
    whole = parse_exposition(ANSWERS["/metrics"])
    try:
        part = parse_exposition(ANSWERS["/metrics"][:cut])
    except ValueError:
        return
    for mine, all_of_it in zip(vars(part.counters).values(), vars(whole.counters).values(), strict=True):
        assert mine <= all_of_it


LABELS = ['{a="', '",b="', '"} 1', "} ", *'{}="\\, 1a', "\\n", '\\"', "\\\\"]
fragments = st.sampled_from([*LABELS, "\r", "é", "\u2028", "1e3", "NaN", "# "])
lines_of_a_page = st.builds("".join, st.tuples(st.sampled_from(SERIES[:3]), st.lists(fragments, max_size=8).map("".join)))


@tried(300, 20_000)
@given(st.lists(lines_of_a_page, max_size=6))
def test_a_long_page_is_read_like_a_short_one_or_refused(lines: list[str]) -> None:
    """prometheus_client takes some lines that no exporter writes, so what it reads may be refused. Nothing is read otherwise."""
    page = "\n".join(lines).encode()
    try:
        found = sorted(map(repr, rows_of(tables_of_long_page(page, wanted))))
    except ValueError:
        return
    assert found == sorted(map(repr, rows_of(prometheus._tables_of_page(page, wanted))))


def wanted(line: str) -> bool:
    return line.startswith("lmcache_mp")


def rows_of(tables: Iterable[SeriesTable]) -> list[tuple[str, list[tuple[str, str]], float]]:
    return [(one.name, sorted(one.labels.items()), float(one.value)) for table in tables for one in table.samples()]


# ---- windows between readings ----

RECORDED = read(ANSWERS)[0]
readings = st.tuples(st.floats(0, 4e9), st.floats(0, 4e9) | st.none(), st.tuples(*[st.integers(0, 2**40)] * 5))


@tried(60, 3000)
@given(readings, readings)
def test_of_any_two_readings_the_window_has_figures_that_can_be(one: Any, other: Any) -> None:
    """Whatever clocks do, whatever was reset: a counter that went down is a restart, never a figure below zero."""
    taken = []
    for at, start, (lookups, requested, hit, stored, evicted) in (one, other):
        counters = Counters(lookups=lookups, stored_chunks=stored, evictions=evicted)
        tokens = {("m", ""): TokenCounters(requested=requested, hit_l1=hit)}
        taken.append(
            Snapshot(
                **vars(RECORDED)
                | {"asked_at": at, "taken_at": at, "process_start": start, "counters": counters, "tokens": tokens}
            )
        )
    metrics = metrics_between(*taken)
    check(metrics)
    assert metrics.window.start <= metrics.window.end


# ---- the module's window ----

COLUMNS = {"time": "<f8", "tokens": "<i8", "chunks": "<i4", "tenant": "<i2", "model": "<i2", "recorded": "<i4"}
GOOD: dict[str, Any] = {
    "chunk_size": 256,
    "hashes": np.arange(24, dtype=np.uint8).tobytes(),
    "chunk_ids": np.array([0, 1, 2, 0], "<i4").tobytes(),
    "tenants": ["a", "b"],
    "models": ["m"],
    "columns": {
        name: np.array(
            {"time": [1, 2], "tokens": [600, 600], "tenant": [0, 1], "model": [0, 0]}.get(name, [2, 2]), kind
        ).tobytes()
        for name, kind in COLUMNS.items()
    },
}


@tried(60, 3000)
@given(st.data())
def test_a_window_whose_columns_do_not_fit_together_is_refused(data: st.DataObject) -> None:
    """What computes with a log looks up chunks without asking whether they are there: a wrong one would read foreign memory."""
    answer = msgspec.msgpack.decode(msgspec.msgpack.encode(GOOD))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(
            st.sampled_from(
                [("chunk_size",), ("hashes",), ("chunk_ids",), ("tenants",), *(("columns", name) for name in COLUMNS)]
            )
        )
        at = answer["columns"] if place[0] == "columns" else answer
        old = at[place[-1]]
        at[place[-1]] = data.draw(st.binary(max_size=24) if isinstance(old, bytes) and data.draw(st.booleans()) else ODD)
    try:
        log = _decoded(answer)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return
    assert log.offsets[0] == 0
    assert (np.diff(log.offsets) >= 0).all()
    assert log.offsets[-1] == len(log.chunk_ids)
    assert ((log.chunk_ids >= 0) & (log.chunk_ids < len(log.hashes if log.hashes is not None else ()))).all()
    assert len(log.tokens) == len(log.timestamps) == len(log.tenants) == len(log.models) == len(log.offsets) - 1
    assert (log.tenants < len(log.tenant_names)).all()
    assert (log.models < len(log.model_names)).all()
    assert np.isfinite(log.timestamps).all()
    assert log.chunk_size > 0


def test_a_good_window_is_read() -> None:
    assert len(_decoded(GOOD)) == 2
    with pytest.raises(ValueError, match="its columns are inconsistent"):
        _decoded(GOOD | {"chunk_ids": np.array([0, 1, 2, 3], "<i4").tobytes()})
