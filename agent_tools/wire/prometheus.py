"""Read the Prometheus text format and check every figure. Pages of ordinary length are parsed by prometheus_client."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import anyio.to_thread
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from .distinct import Distinct, hashes_of_rows
from .long_page import tables_of_long_page
from .series_table import SeriesTable

T = TypeVar("T")
MOST = 2.0**63
"""Every count and size is below this."""
LATEST = 253_370_764_800.0
"""Unix time at the end of the year 9998; Python's `datetime` ends a year later."""
LONG = 2**18
"""A page of more bytes is parsed in a thread, by `tables_of_long_page`."""
Page = bytes | str
"""A page in the Prometheus exposition format."""


def tables_of(page: Page, wanted: Callable[[str], bool]) -> Iterator[SeriesTable]:
    """Return the wanted series by columns. Series of one name may come in several tables.

    Args:
        page: The page. What is not UTF-8 is replaced.
        wanted: Whether to read a line, by how it starts.

    Raises:
        ValueError: The page is not in that format, a value is not a valid count or size (negative, infinite or not a number),
            or a series appears twice, which shows at the end.
    """
    seen: defaultdict[tuple[str, tuple[str, ...]], Distinct] = defaultdict(Distinct)
    page = page.encode() if isinstance(page, str) else page
    for table in tables_of_long_page(page, wanted) if len(page) > LONG else _tables_of_page(page, wanted):
        counts = (table.values >= 0) & (table.values < MOST)  # false for NaN
        if not counts.all():
            raise ValueError(f"{table.name} is {table.values[~counts][0]}, which is not a count")
        names = sorted(table.labels)
        seen[table.name, tuple(names)].add(hashes_of_rows([*map(table.hashes, names)], len(table.values)))
        yield table
    for (name, _), series in seen.items():
        if len(series) < series.added:
            raise ValueError(f"{name} appears twice with the same labels")


def samples_of(page: Page, wanted: Callable[[str], bool]) -> Iterator[Sample]:
    """Return the wanted series one by one; see `tables_of`."""
    for table in tables_of(page, wanted):
        yield from table.samples()


def _tables_of_page(page: bytes, wanted: Callable[[str], bool]) -> Iterator[SeriesTable]:
    # Split at \n only: `splitlines` would also split at characters that a label may contain.
    lines = "\n".join(line for line in page.decode(errors="replace").split("\n") if wanted(line))
    for family in text_string_to_metric_families(f"{lines}\n"):
        for sample in family.samples:
            yield SeriesTable(
                sample.name, {name: [value] for name, value in sample.labels.items()}, np.array([sample.value], float)
            )


async def parsed(parse: Callable[..., T], page: bytes, *arguments: object) -> T:
    """Parse a page: in a thread if it is long, since clients decide how many series there are and others share the loop.

    A short page is parsed at once, so that many agents that poll hold no threads.
    """
    if len(page) <= LONG:
        return parse(page, *arguments)
    return await anyio.to_thread.run_sync(parse, page, *arguments)


def process_start_of(tables: Iterable[SeriesTable]) -> float | None:
    """Return the Unix time at which the process started, or `None` if the page does not say."""
    start = next((float(table.values[0]) for table in tables if table.name == "process_start_time_seconds"), None)
    if start is not None and start > LATEST:
        raise ValueError(f"process_start_time_seconds is {start}, which is not a time")
    return start
