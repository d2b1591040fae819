"""The one event loop on which all I/O runs, and the bridge to it for synchronous callers and for callers on other event loops.

Operations are written once, as coroutines. Event loops never share an HTTP client. A caller that awaits an operation holds no
thread while it waits.
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

    def run(self, operation: Callable[..., Awaitable[T]], *args: Any) -> T:  # noqa: ANN401  passed on unchanged
        """Run an async operation on the I/O loop and wait for it, blocking this thread."""
        future = self._start(operation, args)
        try:
            outcome = future.result()
        except BaseException:
            future.cancel()  # Ctrl-C reached this thread, not the loop
            raise
        return outcome()

    async def arun(self, operation: Callable[..., Awaitable[T]], *args: Any) -> T:  # noqa: ANN401
        """Run an async operation on the I/O loop and await it from any event loop, including the I/O loop.

        Cancelling the caller cancels the operation.
        """
        if asyncio.get_running_loop() is self._loop:
            return await operation(*args)
        outcome = await asyncio.wrap_future(self._start(operation, args))
        return outcome()

    def _start(self, operation: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> "Future[Callable[[], T]]":
        """Hand an operation to the loop and return at once. The portal's own method would wait until the loop takes it."""
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
        """Cancel what is left on the loop and end it while its thread can still run; otherwise the interpreter hangs at exit."""
        portal.call(portal.stop, True)
        self._context.__exit__(None, None, None)


async def _contained(operation: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> Callable[[], T]:
    """Return the outcome as a function for the waiting caller to call.

    A ``SystemExit`` or similar raised on the loop itself would end the loop.
    """
    try:
        result = await operation(*args)
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:  # noqa: BLE001  raised again in the caller
        return partial(_raise, error)
    return lambda: result


def _raise(error: BaseException) -> NoReturn:
    raise error


io_loop = IOLoop()
