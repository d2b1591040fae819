"""The one loop on which all I/O runs, and the bridge to it for sync callers and for callers on any other event loop.

Operations are written once, async. No HTTP client is ever shared between loops, and a caller that waits holds no thread
when it awaits.
"""

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NoReturn, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

T = TypeVar("T")


class IOLoop:
    """A background event loop, started on first use and kept until the process ends."""

    def __init__(self) -> None:
        self._portal: BlockingPortal | None = None
        self._context: AbstractContextManager[BlockingPortal]
        self._lock = threading.Lock()

    def run(self, operation: Callable[..., Awaitable[T]], *args: Any) -> T:  # noqa: ANN401  handed on as they are
        """Run an async operation on the I/O loop and wait for it, blocking this thread."""
        future = self._started().start_task_soon(_contained, operation, args)
        try:
            outcome: Callable[[], T] = future.result()
        except BaseException:
            future.cancel()  # Ctrl-C reached this thread, not the loop
            raise
        return outcome()

    async def arun(self, operation: Callable[..., Awaitable[T]], *args: Any) -> T:  # noqa: ANN401
        """Run an async operation on the I/O loop and await it from any event loop; cancelling this cancels it."""
        outcome: Callable[[], T] = await asyncio.wrap_future(self._started().start_task_soon(_contained, operation, args))
        return outcome()

    def _started(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None:
                self._context = start_blocking_portal("asyncio", name="lmcache-agent-io")
                self._portal = self._context.__enter__()
                atexit.register(self._stop, self._portal)
            return self._portal

    def _stop(self, portal: BlockingPortal) -> None:
        """End the loop while its thread can still run, cancelling what is left on it; else the interpreter hangs as it exits."""
        portal.call(portal.stop, True)
        self._context.__exit__(None, None, None)


async def _contained(operation: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> Callable[[], T]:
    """The outcome, to be called by who waits for it: a ``SystemExit`` or the like, raised on the loop, would end the loop."""
    try:
        result = await operation(*args)
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:  # noqa: BLE001  handed on
        return partial(_raise, error)
    return lambda: result


def _raise(error: BaseException) -> NoReturn:
    raise error


io_loop = IOLoop()
