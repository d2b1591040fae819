"""Claims about answers that do not end, trickle in, or are small and become large: given up in bounded time and memory.

An answer that is not given up would run into the time limit of the test.
"""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from agent_tools.errors import LMCacheToolError, NotLMCacheError, OutcomeUnknownError, UnreachableError
from agent_tools.io_loop import io_loop
from agent_tools.wire import http_client as admin_client
from agent_tools.wire.http_client import AdminClient

PACKED = gzip.compress(b" " * 20_000_000, 1)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def endless(writer: asyncio.StreamWriter) -> None:
    """As fast as it is taken."""
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 2**16 + b"\r\n")
        await writer.drain()


async def trickling(writer: asyncio.StreamWriter) -> None:
    """A byte at a time, each within the patience for one."""
    writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def growing(writer: asyncio.StreamWriter) -> None:
    """A few KB that would become 20 MB."""
    writer.write(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(PACKED) + PACKED)
    await writer.drain()


@asynccontextmanager
async def answering(write: Callable[[asyncio.StreamWriter], object]) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await reader.readline():  # else it only came to listen
                await write(writer)  # type: ignore[misc]
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def asked(write: Callable[[asyncio.StreamWriter], object], change: bool) -> LMCacheToolError:
    async def scenario() -> LMCacheToolError:
        async with answering(write) as url:
            admin = AdminClient(url, 0.5)
            try:
                with pytest.raises(LMCacheToolError) as raised:
                    await (admin.change("POST", "/x") if change else admin.read("/x"))
            finally:
                await admin.close()
            return raised.value

    return io_loop.run(scenario)


@pytest.mark.parametrize(
    ("write", "kind"), [(endless, (NotLMCacheError, UnreachableError)), (trickling, UnreachableError), (growing, NotLMCacheError)]
)
def test_a_reading_without_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[asyncio.StreamWriter], object], kind: type[LMCacheToolError]
) -> None:
    monkeypatch.setattr(admin_client, "MOST_BYTES", 2**20)
    assert isinstance(asked(write, change=False), kind)


@pytest.mark.parametrize("write", [endless, trickling, growing])
def test_a_change_whose_answer_does_not_end_may_be_in_force(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[asyncio.StreamWriter], object]
) -> None:
    monkeypatch.setattr(admin_client, "MOST_BYTES", 2**20)
    assert isinstance(asked(write, change=True), OutcomeUnknownError)
