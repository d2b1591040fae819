"""Claims about servers whose clients chose very many names of tenants and models."""

import time
from collections.abc import Callable, Iterator, Sequence

import anyio
import anyio.to_thread
import pytest

from agent_tools.caches.history import KEPT, MOST_SERIES, History
from agent_tools.deployments.counters import MOST_MODELS, MOST_TENANTS
from agent_tools.deployments.server.exposition import parse_exposition
from agent_tools.deployments.snapshot import Snapshot, metrics_between
from agent_tools.models import Health
from agent_tools.wire import prometheus
from agent_tools.wire.long_page import tables_of_long_page
from agent_tools.wire.series_table import SeriesTable

HEAD = "process_start_time_seconds 5.0\nlmcache_mp_event_bus_dropped_events_total 0.0\n"


def page(tenants: int, tokens: int = 256, models: int = 1) -> str:
    """Each tenant requests `tokens` and hits half of them."""
    series = [
        f'lmcache_mp_lookup_{kind}_tokens_total{{cache_salt="salt-{tenant}",model_name="m-{tenant % models}"}} {count}.0'
        for kind, count in (("requested", tokens), ("hit_l1", tokens // 2))
        for tenant in range(tenants)
    ]
    return HEAD + "\n".join(series) + "\n"


def snapshot(text: str, taken_at: float = 10.0) -> Snapshot:
    seen = parse_exposition(text)
    return Snapshot(
        asked_at=taken_at,
        taken_at=taken_at,
        process_start=seen.process_start,
        instance_id=None,
        counters=seen.counters,
        tokens=seen.tokens,
        unlisted=seen.unlisted,
        l1_used_bytes=0,
        l1_total_bytes=1,
        resident_objects=0,
        objects_per_chunk=None,
        chunk_size=256,
        health=Health(healthy=True),
    )


def test_totals_stay_exact_and_the_rest_is_one_named_sum() -> None:
    metrics = metrics_between(None, snapshot(page(6_000, models=200)))
    assert (metrics.tokens.requested, metrics.tokens.hit) == (6_000 * 256, 6_000 * 128)
    for named, more, listed, all_names in (
        (metrics.by_tenant, metrics.more_tenants, MOST_TENANTS, 6_000),
        (metrics.by_model, metrics.more_models, MOST_MODELS, 200),
    ):
        assert (len(named), more.count) == (listed, all_names - listed)
        assert sum(one.requested for one in named.values()) + more.tokens.requested == metrics.tokens.requested
        assert sum(one.hit for one in named.values()) + more.tokens.hit == metrics.tokens.hit


def test_new_names_neither_displace_listed_ones_nor_look_like_a_restart() -> None:
    before, after = snapshot(page(600)), snapshot(page(5_000, tokens=512), 20.0)
    assert after.follows(before)
    window = metrics_between(before, after)
    assert not window.window.counters_reset
    assert window.tokens.requested == 5_000 * 512 - 600 * 256
    assert window.by_tenant["salt-0"].requested == 256


def test_a_long_page_is_read_as_prometheus_client_reads_it() -> None:
    names = [
        "",
        "plain",
        "é",
        'a\\"b',
        "back\\\\slash",
        "new\\nline",
        "},{",
        "x=1, y",
        "# HELP",
        ",model_name=",
        "a b  c",
        "tab\\tx",
    ]
    lines = [f'requested_total{{cache_salt="{name}",model_name="m",}} {n}.5' for n, name in enumerate(names)]
    lines += ["bare_total 3", "empty_total{} 5", 'spaced_total{a="b"}  4 1700000000', 'later_total{a="b"} 4 1700000000', ""]
    lines += ['# HELP x of "a" \\ b', "# TYPE x counter", 'other_order_total{model_name="m",cache_salt="a"} 1e3\r']
    for _ in range(len(lines)):
        lines = lines[7:] + lines[:7]  # each line begins a piece once, and ends one
        assert samples(tables_of_long_page, lines) == samples(prometheus._tables_of_page, lines)


def samples(read: Callable[..., Iterator[SeriesTable]], lines: Sequence[str]) -> list[tuple[str, list[tuple[str, str]], float]]:
    tables = read("\n".join(lines).encode(), lambda line: line != "" and line[0] != "#")
    return sorted((one.name, sorted(one.labels.items()), one.value) for table in tables for one in table.samples())


@pytest.mark.parametrize(
    "line",
    [
        'a_total{b="c} 1',
        'a_total{b="c"',
        'a_total{b="c"}',
        'a_total{b="c"} x',
        'a_total{b="c"} 1 2 3',
        'a_total{b="c"1',
        'a_total{b="c" d="e"} 1',
        'a_total{b="c",b="e"} 1',
        'a_total{b="c"}{d="e"} 1',
        'a_total{"c"} 1',
        "a_total",
        "a_total{ 1",
        "a_total 1 2 3",
        'a_total{b="c\\"} 1',
    ],
)
def test_a_long_page_with_a_broken_line_is_refused(line: str) -> None:
    whole = ['a_total{b="d"} 1', line, 'a_total{b="f"} 1']
    with pytest.raises(ValueError, match=r"a_total.*not in the Prometheus format|could not convert"):
        [*tables_of_long_page("\n".join(whole).encode(), lambda line: line.startswith("a_total"))]


@pytest.mark.parametrize("second", ['a_total{b="c",d="e"} 2', 'a_total{d="e",b="c"} 2'])
def test_a_series_that_a_long_page_has_twice_is_refused_wherever_it_stands(second: str) -> None:
    between = "".join(f'a_total{{b="{number}"}} 1\n' for number in range(20_000))
    page = f'a_total{{b="c",d="e"}} 1\n{between}'
    assert len(page) > prometheus.LONG
    assert sum(len(table.values) for table in prometheus.tables_of(page, lambda line: line.startswith("a_total"))) == 20_001
    with pytest.raises(ValueError, match="a_total appears twice"):
        [*prometheus.tables_of(f"{page}{second}\n", lambda line: line.startswith("a_total"))]


def test_the_loop_goes_on_while_a_long_page_is_read() -> None:
    text = page(50_000)

    async def scenario() -> tuple[float, float]:
        longest, began = 0.0, time.monotonic()
        async with anyio.create_task_group() as group:
            done = anyio.Event()

            async def read() -> None:
                await anyio.to_thread.run_sync(parse_exposition, text)
                done.set()

            group.start_soon(read)
            while not done.is_set():
                asleep = time.monotonic()
                await anyio.sleep(0.01)
                longest = max(longest, time.monotonic() - asleep)
        return longest, time.monotonic() - began

    longest, whole = anyio.run(scenario)
    assert longest < max(0.5 * whole, 0.25)


def test_the_history_of_a_cache_with_many_tenants_is_bounded() -> None:
    history, one = History(), snapshot(page(MOST_TENANTS))
    for _ in range(KEPT):
        history.add(one)
    assert sum(len(kept.tokens) for kept in history._snapshots) <= MOST_SERIES
