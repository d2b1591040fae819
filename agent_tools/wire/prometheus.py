"""The Prometheus text format, read with the checks that data from outside needs."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

MOST = 2.0**63
"""No count or size comes near it."""


LATEST = 253_370_764_800.0
"""Unix time of the year 9999, after which Python has none."""


def samples_of(text: str, wanted: Callable[[str], bool]) -> Iterator[Sample]:
    """The samples of wanted series; the rest of a page of histograms is dropped before the (slow) parser sees it.

    Args:
        text: In the Prometheus exposition format.
        wanted: Whether a line is to be read. Names of tenants and models stand in it, and may hold anything.

    Raises:
        ValueError: It is not in that format, a figure is none that a count or a size can have, or a series stands there twice.
    """
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    # Only \n ends a line: `splitlines` would also cut at what a label may hold.
    lines = "\n".join(line for line in text.split("\n") if wanted(line))
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            series = (sample.name, frozenset(sample.labels.items()))
            if not 0 <= sample.value < MOST:  # which NaN is not
                raise ValueError(f"{sample.name} is {sample.value}, which is no count")
            if series in seen:
                raise ValueError(f"{sample.name} stands there twice with the same labels")
            seen.add(series)
            yield sample


def process_start_of(samples: Iterable[Sample]) -> float | None:
    """Unix time at which the process started."""
    start = next((sample.value for sample in samples if sample.name == "process_start_time_seconds"), None)
    if start is not None and start > LATEST:
        raise ValueError(f"process_start_time_seconds is {start}, which is no time")
    return start
