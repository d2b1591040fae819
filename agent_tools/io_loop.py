"""The one loop on which all I/O runs, and the bridge to it for sync callers and for callers on any other event loop.

Operations are written once, async. No HTTP client is ever shared between loops, and a caller that waits holds no thread
when it awaits.
"""

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NoReturn, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

T = TypeVar("T")


class IOLoop:
    """A background event loop, started on first use and kept until the process ends."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: AbstractContextManager[BlockingPortal]
        self._lock = threading.Lock()

    def run(self, operation: Callable[..., Awaitable[T]], *args: Any) -> T:  # noqa: ANN401  handed on as they are
        """Run an async operation on the I/O loop and wait for it, blocking this thread."""
        future = self._start(operation, args)
        try:
            outcome = future.result()
        except BaseException:
            future.cancel()  # Ctrl-C reached this thread, not the loop
            raise
        return outcome()

    async def arun(self, operation: Callable[..., Awaitable[T]], *args: Any) -> T:  # noqa: ANN401
        """Run an async operation on the I/O loop and await it from any event loop, this one too; cancelling this cancels it."""
        if asyncio.get_running_loop() is self._loop:
            return await operation(*args)
        outcome = await asyncio.wrap_future(self._start(operation, args))
        return outcome()

    def _start(self, operation: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> "Future[Callable[[], T]]":
        """Hand an operation to the loop without waiting until it is taken, as the portal's own way would."""
        return asyncio.run_coroutine_threadsafe(_contained(operation, args), self._started())

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._context = start_blocking_portal("asyncio", name="lmcache-agent-io")
                portal = self._context.__enter__()
                self._loop = portal.call(asyncio.get_running_loop)
                atexit.register(self._stop, portal)
            return self._loop

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
