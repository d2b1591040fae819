"""Read the Prometheus text format and check every figure.

A client of the cache chooses names of tenants and models, and so decides how many series a page has. Pages of ordinary length
are parsed by prometheus_client. It takes about ten times as long per line as the pattern that reads longer pages here.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import anyio.to_thread
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

T = TypeVar("T")
MOST = 2.0**63
"""Every count and size is below this."""
LATEST = 253_370_764_800.0
"""Unix time at the end of the year 9998; Python's `datetime` ends a year later."""
LONG_TEXT = 2**18
"""A page of more characters is parsed in a thread."""
LONG_PAGE = 2_000
"""A page with more wanted lines is read by `_samples_of_long_page`."""
_LABEL = re.compile(r'([a-zA-Z_]\w*)="([^"\\]*(?:\\.[^"\\]*)*)"(?:,|$)', re.ASCII)
_ESCAPED = re.compile(r'\\([\\n"])')


def samples_of(text: str, wanted: Callable[[str], bool]) -> Iterator[Sample]:
    """Return the samples of the wanted series.

    Args:
        text: A page in the Prometheus exposition format.
        wanted: Whether to read a line. The line holds names of tenants and models, which may contain anything.

    Raises:
        ValueError: The page is not in that format, a value is not a valid count or size (negative, infinite or not a number),
            or a series appears twice.
    """
    # Split at \n only: `splitlines` would also split at characters that a label may contain.
    lines = [line for line in text.split("\n") if wanted(line)]
    read = _samples_of_long_page if len(lines) > LONG_PAGE else _samples_of_page
    seen: set[int] = set()  # hashes, since the series themselves would take hundreds of MB
    for sample in read(lines):
        series = hash((sample.name, frozenset(sample.labels.items())))
        if not 0 <= sample.value < MOST:  # also true for NaN
            raise ValueError(f"{sample.name} is {sample.value}, which is not a count")
        if series in seen:
            raise ValueError(f"{sample.name} appears twice with the same labels")
        seen.add(series)
        yield sample


def _samples_of_page(lines: list[str]) -> Iterator[Sample]:
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        yield from family.samples


def _samples_of_long_page(lines: list[str]) -> Iterator[Sample]:
    for line in filter(None, map(str.strip, lines)):
        if not line.startswith("#"):
            yield _sample(line)


def _sample(line: str) -> Sample:
    name, braced, rest = line.partition("{")
    if not braced:
        name, _, figures = line.partition(" ")
        return Sample(name, {}, _value(figures, line))
    inside, _, figures = rest.rpartition("}")
    labels, end = {}, 0
    for label in _LABEL.finditer(inside):
        if label.start() != end or label[1] in labels:
            break
        labels[label[1]] = _unescaped(label[2])
        end = label.end()
    if end != len(inside):
        raise ValueError(f"the labels of {name} are not in the Prometheus format")
    return Sample(name.strip(), labels, _value(figures, line))


def _value(figures: str, line: str) -> float:
    """The value of a line; a time may follow it."""
    parts = figures.split()
    if not 1 <= len(parts) <= 2:
        raise ValueError(f"{line.partition('{')[0]} has no single value")
    return float(parts[0])


def _unescaped(label: str) -> str:
    return _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], label) if "\\" in label else label


async def parsed(parse: Callable[..., T], text: str, *arguments: object) -> T:
    """Parse a page: in a thread if it is long, since clients decide how many series there are and others share the loop.

    A short page is parsed at once, so that many agents that poll hold no threads.
    """
    if len(text) <= LONG_TEXT:
        return parse(text, *arguments)
    return await anyio.to_thread.run_sync(parse, text, *arguments)


def process_start_of(samples: Iterable[Sample]) -> float | None:
    """Return the Unix time at which the process started, or `None` if the page does not say."""
    start = next((sample.value for sample in samples if sample.name == "process_start_time_seconds"), None)
    if start is not None and start > LATEST:
        raise ValueError(f"process_start_time_seconds is {start}, which is not a time")
    return start
