"""Claims about the one I/O loop: reached from any thread and any loop, never ended by what runs on it, and gone at exit."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import anyio
import pytest

from agent_tools.io_loop import IOLoop, io_loop


async def where() -> tuple[int, int]:
    return threading.get_ident(), id(asyncio.get_running_loop())


def test_sync_and_async_callers_meet_on_the_same_loop() -> None:
    async def caller() -> tuple[int, int]:
        return await io_loop.arun(where)

    here = io_loop.run(where)
    assert here == asyncio.run(caller()) == asyncio.run(caller())
    assert here[0] != threading.get_ident()


def test_what_runs_on_the_loop_may_await_the_loop() -> None:
    assert io_loop.run(io_loop.arun, where) == io_loop.run(where)


def test_arguments_and_results_pass_and_errors_come_back() -> None:
    async def divide(a: int, b: int) -> float:
        return a / b

    assert io_loop.run(divide, 6, 3) == 2
    with pytest.raises(ZeroDivisionError):
        io_loop.run(divide, 6, 0)


def test_many_waits_hold_no_threads_and_pass_together() -> None:
    waiting, together = 0, asyncio.Event()

    async def wait_for_all_the_others() -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 200:
            together.set()
        await together.wait()

    async def all_of_them() -> None:
        await asyncio.gather(*(io_loop.arun(wait_for_all_the_others) for _ in range(200)))

    io_loop.run(where)
    threads = threading.active_count()
    asyncio.run(all_of_them())  # it would never end if one wait held up another
    assert waiting == 200
    assert threading.active_count() <= threads + 2


def test_cancelling_the_awaiting_task_cancels_the_operation() -> None:
    ended = threading.Event()

    async def operation() -> None:
        try:
            await anyio.sleep(60)
        finally:
            ended.set()

    async def caller() -> None:
        task = asyncio.create_task(io_loop.arun(operation))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(caller())
    assert ended.wait(5)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_would_end_a_program_reaches_the_caller_and_leaves_the_loop_running(error: type[BaseException]) -> None:
    async def operation() -> None:
        raise error

    before = io_loop.run(where)
    with pytest.raises(error):
        io_loop.run(operation)
    assert io_loop.run(where) == before


def test_it_starts_once_even_when_many_ask_at_the_same_time() -> None:
    loop, seen = IOLoop(), set()
    threads = [threading.Thread(target=lambda: seen.add(loop.run(where))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1


PROGRAM = """
    import anyio
    from agent_tools.io_loop import io_loop

    async def operation():
        try:
            print("running", flush=True)
            await anyio.sleep({seconds})
        finally:
            print("ended", flush=True)

    {then}
"""


def program(then: str, seconds: float) -> "subprocess.Popen[str]":
    script = textwrap.dedent(PROGRAM.format(then=then, seconds=seconds))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def test_a_program_that_used_it_ends() -> None:
    with program("io_loop.run(operation)", 0) as one:
        assert one.communicate(timeout=20)[0] == "running\nended\n"
        assert one.returncode == 0


def test_a_program_ends_though_an_operation_is_under_way() -> None:
    in_a_thread = "import threading; threading.Thread(target=io_loop.run, args=(operation,), daemon=True).start()"
    with program(f"{in_a_thread}; io_loop.run(anyio.sleep, 0.5)", 60) as one:
        assert one.communicate(timeout=20)[0] == "running\nended\n"


def test_ctrl_c_cancels_the_operation_that_is_waited_for() -> None:
    with program("io_loop.run(operation)", 60) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "running\n"
        one.send_signal(signal.SIGINT)
        assert one.communicate(timeout=20)[0] == "ended\n"


def test_a_busy_io_loop_does_not_hold_up_the_loop_of_its_caller() -> None:
    async def busy() -> None:
        time.sleep(0.5)  # noqa: ASYNC251  the I/O loop itself is kept busy

    async def beats_while_waiting() -> int:
        io_loop_busy = asyncio.ensure_future(io_loop.arun(busy))
        await asyncio.sleep(0.05)
        waiting, beats = asyncio.ensure_future(io_loop.arun(asyncio.sleep, 0)), 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            beats += 1
        await io_loop_busy
        return beats

    assert asyncio.run(beats_while_waiting()) > 10
