"""The serving engine in front of a cache: its metrics are read, nothing else is asked of it."""

import time

import anyio

from agent_tools.errors import LMCacheToolError
from agent_tools.plain import plain
from agent_tools.wire.http_client import MOST_SAID, AdminClient

from .vllm_metrics import EngineReading, parse_vllm_metrics

READ_AGAIN = 1.0
"""Seconds for which a reading is good: its page is large, and who waits for traffic asks every half second."""


class ServingEngine:
    """The vLLM at one address."""

    def __init__(self, url: str, timeout: float) -> None:
        """Raises `SettingsError` when `url` is not ``http(s)://host[:port]``."""
        self._http = AdminClient(url, timeout)
        self._reading = anyio.Lock()
        self._latest: EngineReading | None = None
        self.trouble: str | None = None
        """Why the last reading failed; ``None`` when it did not."""

    async def reading(self) -> EngineReading | None:
        """Its counters now, or as they were at most `READ_AGAIN` seconds ago; ``None`` (see `trouble`) when it does not answer.

        An engine that is down does not keep anybody from looking after the cache.
        """
        async with self._reading:
            fresh = self._latest is not None and abs(time.time() - self._latest.taken_at) < READ_AGAIN
            if not fresh:
                self._latest = await self._read()
            return self._latest

    async def _read(self) -> EngineReading | None:
        self.trouble = None
        try:
            return parse_vllm_metrics(await self._http.read_text("/metrics"), time.time())
        except LMCacheToolError:
            self.trouble = f"no engine answers at {self._http.base_url}/metrics"
        except (ValueError, KeyError) as error:
            self.trouble = f"{self._http.base_url}/metrics is not that of a vLLM this was made for: {plain(error, MOST_SAID)}"
        return None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()
