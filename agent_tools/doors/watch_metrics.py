"""The figures of a watch for Prometheus, on a port of this machine: what `serve` shows of the changes, and what the watch did."""

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from agent_tools.errors import SettingsError
from agent_tools.io_loop import io_loop
from agent_tools.operations import Operations
from agent_tools.watching.watch import Figures

from .own_metrics import own_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"


@contextmanager
def watch_metrics(operations: Operations, figures: Figures, port: int) -> "Iterator[int]":
    """Serve ``/metrics`` on loopback, and yield the port: a free one if `port` is 0.

    Raises:
        SettingsError: The port is taken.
    """
    registry = CollectorRegistry()
    registry.register(_Figures(operations, figures))
    try:
        server, thread = start_http_server(port, HOST, registry)
    except OSError as error:
        raise SettingsError(f"--metrics-port {port} cannot be listened on: {error.strerror or error}") from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Figures(Collector):
    """Reads the change log and the watch's counts at each scrape."""

    def __init__(self, operations: Operations, figures: Figures) -> None:
        self._operations, self._figures = operations, figures

    def describe(self) -> Iterable[Metric]:
        return ()  # the registry would else collect once when this is registered

    def collect(self) -> Iterable[Metric]:
        yield from io_loop.run(own_registry, self._operations).collect()
        seen = self._figures
        looks = CounterMetricFamily("lmcache_agent_watch_looks", "Looks at a cache, by result", labels=("cache", "result"))
        for key, count in [*seen.looks.items()]:
            looks.add_metric(key, count)
        events = CounterMetricFamily("lmcache_agent_watch_events", "Events told, by kind", labels=("cache", "kind"))
        for key, count in [*seen.events.items()]:
            events.add_metric(key, count)
        last = GaugeMetricFamily(
            "lmcache_agent_watch_last_look_timestamp_seconds", "When the last look ended, Unix time", labels=("cache",)
        )
        for cache, instant in [*seen.last_look.items()]:
            last.add_metric((cache,), instant)
        departures = GaugeMetricFamily(
            "lmcache_agent_watch_departures", "Settings that are not as our changes left them", labels=("cache",)
        )
        for cache, number in [*seen.departures.items()]:
            departures.add_metric((cache,), number)
        not_sent = CounterMetricFamily("lmcache_agent_watch_events_not_sent", "Events that the webhook did not take")
        not_sent.add_metric((), seen.not_sent)
        yield from (looks, events, last, departures, not_sent)
