"""The watch: a look at each cache every few minutes, until it is stopped."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from agent_tools.errors import LMCacheToolError, UnreachableError
from agent_tools.models import Mode
from agent_tools.models.metrics import now
from agent_tools.operations import Operations

from .event import Event, EventKind
from .look import CacheWatch, mode_of
from .webhook import Webhook

MOST_WAITING = 100
"""Events that wait for the webhook; later ones are not sent, and counted."""


@dataclass
class Figures:
    """What a watch counts, for its metrics."""

    looks: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(cache, result) -> looks."""
    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(cache, kind) -> events."""
    last_look: dict[str, float] = field(default_factory=dict)
    """Cache -> when the last look ended, Unix time."""
    departures: dict[str, int] = field(default_factory=dict)
    """Cache -> settings that were not as our changes left them, at the last look."""
    not_sent: int = 0
    """Events that the webhook did not take."""


class Watch:
    """Looks after caches. A cache that cannot be reached, or a webhook that is dead, holds up nothing else."""

    def __init__(  # noqa: PLR0913  all but two by keyword
        self,
        operations: Operations,
        caches: Sequence[str],
        *,
        mode: Mode | None = None,
        every: float = 120.0,
        verify_seconds: float = 300.0,
        webhook: Webhook | None = None,
        say: Callable[[Event], None],
        log: Callable[[str], None],
    ) -> None:
        """Make a watch; nothing is read yet.

        Args:
            operations: Operations on the caches.
            caches: Names of the caches. The name of a fleet stands for each of its servers.
            mode: How much the watch may do; by default what the cache's entry says. See `mode_of`.
            every: Seconds from the beginning of one look to that of the next.
            verify_seconds: Longest wait for the verification of a change, seconds.
            webhook: Where each event is sent.
            say: Called with each event.
            log: Called with one line per look, and with trouble of the webhook.
        """
        self._operations, self._caches, self._mode = operations, tuple(dict.fromkeys(caches)), mode
        self._every, self._verify_seconds = every, verify_seconds
        self._webhook, self._say, self._log = webhook, say, log
        self._watched: dict[str, CacheWatch] = {}
        self._outbox, self._waiting = anyio.create_memory_object_stream[Event](MOST_WAITING)
        self.figures = Figures()

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            UnknownCacheError: The settings have no cache of one of the names.
        """
        for name in self._caches:
            with contextlib.suppress(UnreachableError):  # it may come back
                await self._operations.servers(name)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, self._waiting)
                for name in self._caches:
                    tasks.start_soon(self._follow, name)
        finally:
            for one in self._watched.values():
                one.leave()
            if self._webhook is not None:
                with anyio.CancelScope(shield=True):
                    await self._webhook.close()

    async def _follow(self, name: str) -> None:
        turn = anyio.Lock()  # of a fleet's servers one is changed and verified at a time
        while True:
            began = time.monotonic()
            try:
                servers = await self._operations.servers(name)
            except LMCacheToolError as error:
                self._log(f"{name}: {error}")
                servers = []
            async with anyio.create_task_group() as tasks:
                for server in servers:
                    tasks.start_soon(self._look, server, turn)
            await anyio.sleep(max(self._every - (time.monotonic() - began), 0.0))

    async def _look(self, server: str, turn: anyio.Lock) -> None:
        try:
            watched = await self._watch_of(server)
            result = await watched.look(turn)
        except LMCacheToolError as error:  # the state folder cannot be written: nothing is done without it
            self._tell(Event(at=now(), cache=server, kind=EventKind.FAILED, text=str(error)))
            return
        self.figures.looks[server, result] += 1
        self.figures.last_look[server] = time.time()
        self.figures.departures[server] = watched.departures
        self._log(f"{server}: {watched.mode.value}: {result}")

    async def _watch_of(self, server: str) -> CacheWatch:
        if server not in self._watched:
            entry = (await self._operations.registry.find(server)).settings
            self._watched[server] = CacheWatch(
                self._operations,
                server,
                mode_of(entry, self._mode),
                every=self._every,
                verify_seconds=self._verify_seconds,
                tell=self._tell,
            )
        return self._watched[server]

    def _tell(self, event: Event) -> None:
        self.figures.events[event.cache, event.kind.value] += 1
        self._say(event)
        if self._webhook is None:
            return
        try:
            self._outbox.send_nowait(event)
        except anyio.WouldBlock:
            self.figures.not_sent += 1

    async def _send(self, waiting: MemoryObjectReceiveStream[Event]) -> None:
        async for event in waiting:
            assert self._webhook is not None  # noqa: S101  else nothing waits
            trouble = await self._webhook.send(event)
            if trouble is not None:
                self.figures.not_sent += 1
                self._log(f"an event was not sent: {trouble}")
