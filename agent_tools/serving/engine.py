"""The serving engine in front of a cache. Only its metrics are read."""

import time

import anyio
import anyio.to_thread

from agent_tools.errors import LMCacheToolError, RefusedError
from agent_tools.plain import plain
from agent_tools.wire.access import NO_PROXY, Access
from agent_tools.wire.http_client import MOST_SAID, AdminClient
from agent_tools.wire.prometheus import parsed

from .vllm_metrics import EngineReading, parse_vllm_metrics

READ_AGAIN = 1.0
"""Seconds for which a reading stays fresh: the page is large, and a caller that waits for traffic asks every half second."""


class ServingEngine:
    """The vLLM at one address."""

    def __init__(self, url: str, timeout: float, access: Access = NO_PROXY) -> None:
        """Prepare the client; nothing is read yet.

        Args:
            url: ``http(s)://host[:port][/prefix]``.
            timeout: Seconds per call.
            access: What a proxy in front of the engine asks for.

        Raises:
            SettingsError: `url` has another form.
        """
        self._http = AdminClient(url, timeout, access=access)
        self._reading = anyio.Lock()
        self._latest: EngineReading | None = None
        self.trouble: str | None = None
        """Why the last reading failed; ``None`` if it did not fail."""

    async def reading(self) -> EngineReading | None:
        """Return the engine's counters, at most `READ_AGAIN` seconds old; ``None`` (see `trouble`) if it does not answer.

        An engine that is down must not prevent anybody from looking after the cache, so this never raises for it.
        """
        async with self._reading:
            fresh = self._latest is not None and abs(time.time() - self._latest.taken_at) < READ_AGAIN
            if not fresh:
                self._latest = await self._read()
            return self._latest

    async def _read(self) -> EngineReading | None:
        self.trouble = None
        try:
            text, now = await self._http.read_text("/metrics"), time.time()
            return await parsed(parse_vllm_metrics, text, now)
        except RefusedError as error:
            self.trouble = plain(error, MOST_SAID)
        except LMCacheToolError:
            self.trouble = f"no engine answers at {self._http.base_url}/metrics: start it, or correct `engine` in caches.toml"
        except (ValueError, KeyError) as error:
            self.trouble = f"{self._http.base_url}/metrics does not look like vLLM 0.32 or later: {plain(error, MOST_SAID)}"
        return None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()
