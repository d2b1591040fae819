"""The serving engines in front of a cache. Only their metrics are read."""

import asyncio
import time
from collections.abc import Sequence

import anyio

from agent_tools.errors import LMCacheToolError, RefusedError
from agent_tools.plain import plain
from agent_tools.wire.access import NO_PROXY, Access
from agent_tools.wire.http_client import MOST_SAID, AdminClient
from agent_tools.wire.prometheus import parsed

from .engine_reading import EngineReading, together
from .sglang_metrics import parse_sglang_metrics
from .vllm_metrics import parse_vllm_metrics

READ_AGAIN = 1.0
"""Seconds for which a reading stays fresh: the page is large, and a caller that waits for traffic asks every half second."""
SGLANG = b"sglang:"
"""Begins the names of SGLang's metrics."""


class ServingEngine:
    """The vLLM or SGLang at one address."""

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
        self.trouble: str | None = None
        """Why the last reading failed; ``None`` if it did not fail."""

    async def read(self) -> EngineReading | None:
        """Return the engine's counters; ``None`` (see `trouble`) if it does not answer or is no engine."""
        self.trouble, url = None, self._http.base_url
        try:
            page, now = await self._http.read_bytes("/metrics"), time.time()
            return await parsed(_parse, page, now, url)
        except RefusedError as error:
            self.trouble = plain(error, MOST_SAID)
        except LMCacheToolError:
            self.trouble = f"no engine answers at {url}/metrics: start it, or correct `engine` in caches.toml"
        except (ValueError, KeyError) as error:
            self.trouble = f"{url}/metrics does not look like vLLM 0.32 or later, or like SGLang: {plain(error, MOST_SAID)}"
        return None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


def _parse(page: bytes, taken_at: float, name: str) -> EngineReading:
    parse = parse_sglang_metrics if page.startswith(SGLANG) or b"\n" + SGLANG in page else parse_vllm_metrics
    return parse(page, taken_at, name)


class ServingEngines:
    """All engines in front of one cache."""

    def __init__(self, urls: Sequence[str], timeout: float, access: Access = NO_PROXY) -> None:
        """Prepare the clients; nothing is read yet.

        Args:
            urls: ``http(s)://host[:port][/prefix]`` of each engine.
            timeout: Seconds per call.
            access: What a proxy in front of the engines asks for.

        Raises:
            SettingsError: An address has another form.
        """
        self._engines = [ServingEngine(url, timeout, access) for url in urls]
        self._reading = anyio.Lock()
        self._latest: EngineReading | None = None
        self.trouble: str | None = None
        """Why the last reading failed; ``None`` if it did not fail."""

    async def reading(self) -> EngineReading | None:
        """Return the engines' counters, at most `READ_AGAIN` seconds old; ``None`` (see `trouble`) if one does not answer.

        An engine that is down must not prevent anybody from looking after the cache, so this never raises for it. The sums
        without it would be wrong, so the others' figures are left out too.
        """
        async with self._reading:
            fresh = self._latest is not None and abs(time.time() - self._latest.taken_at) < READ_AGAIN
            if not fresh:
                self._latest = await self._read()
            return self._latest

    async def _read(self) -> EngineReading | None:
        found = await asyncio.gather(*(engine.read() for engine in self._engines))
        self.trouble = self._in_words([engine.trouble for engine in self._engines if engine.trouble])
        answered = [one for reading in found if reading is not None for one in reading.each]
        return together(answered) if self.trouble is None else None

    def _in_words(self, troubles: Sequence[str]) -> str | None:
        if not troubles or len(self._engines) == 1:
            return next(iter(troubles), None)
        missing = f"{len(troubles)} of {len(self._engines)} engines cannot be read, so the figures of all are left out"
        return f"{missing}: {'; '.join(troubles[:3])}"

    async def close(self) -> None:
        """Close the connections."""
        for engine in self._engines:
            await engine.close()
