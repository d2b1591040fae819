"""The engine demo: `tune_cache` tunes a vLLM's too small cache while agents work, then the same requests run again."""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import anyio
import numpy as np

from agent_tools.caches.observer import READ_EVERY
from agent_tools.caches.registry import DEFAULT, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.embedded import EmbeddedDeployment
from agent_tools.deployments.server.process import ServerProcess, free_port
from agent_tools.deployments.start_options import EmbeddedOptions
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Bounds, CacheMetrics, Mode
from agent_tools.models.engine import TimeToFirstToken
from agent_tools.operations import Operations
from agent_tools.tuning.state import TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache

from .chat_traffic import ChatAnswer, ChatRequest, ChatTraffic, client, send
from .tiny_model import Shape
from .vllm_server import BLOCK, LMCACHES_OWN, MODEL, SHAPE, Connector, VllmServer, require_vllm

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SMALL = 0.5
"""Size of the first L1, as a share of the size that would hold the whole workload."""
OWN = 1 / 3
"""Size of the engine's own prefix cache (L0), likewise. vLLM has this cache on unless it is told otherwise."""
ROOM = 2.0
"""The operator's bound on L1, as a multiple of the size that would hold the whole workload."""
WARM_UP = ChatTraffic(conversations=2, turns=2, seed=-1)
"""Requests that do not count: the engine's first requests take longer than all later ones."""

Say = Callable[[str], None]
OnAnswer = Callable[[str, ChatAnswer], None]
"""Called with (name of the phase, the answer to one of its requests)."""


@dataclass
class Phase:
    """The requests of one part of the demo, and their figures."""

    name: str
    answers: list[ChatAnswer] = field(default_factory=list)
    metrics: CacheMetrics | None = None
    """Figures from the counters of LMCache and of the engine."""

    @property
    def ttft(self) -> TimeToFirstToken:
        """Return the time to first token as the client measured it.

        Raises:
            ValueError: No request was answered.
        """
        return ttft_of(self.answers)

    @property
    def seconds(self) -> float:
        """Return the seconds from the first request to the end of the last one."""
        return max(one.started + one.total for one in self.answers) - self.answers[0].started

    @property
    def errors(self) -> list[str]:
        """Return the errors of the requests that failed."""
        return [one.error for one in self.answers if one.error is not None]


@dataclass(frozen=True)
class EngineDemoResult:
    """The result of the demo."""

    before: Phase
    during: Phase
    """Other conversations, sent until the change was made."""
    after: Phase | None
    """The requests of `before` again; ``None`` if nothing was changed."""
    changed_at: float | None
    """Unix time of the change; ``None`` if nothing was changed."""
    report: TuneReport
    page: str
    """The HTML report."""


def ttft_of(answers: Sequence[ChatAnswer]) -> TimeToFirstToken:
    """Return mean and percentiles over the requests that had a first token.

    Raises:
        ValueError: No request had a first token.
    """
    seconds = [one.ttft for one in answers if one.ttft is not None]
    if not seconds:
        raise ValueError(f"no request was answered: {answers[0].error if answers else 'no request was sent'}")
    p50, p95, p99 = (1e3 * float(np.percentile(seconds, share)) for share in (50, 95, 99))
    return TimeToFirstToken(mean=1e3 * float(np.mean(seconds)), p50=p50, p95=p95, p99=p99)


def settings_for(traffic: ChatTraffic, state_folder: Path, small: float = SMALL) -> Settings:
    """Return settings with one private server that has too small an L1, and with the vLLM that will use it.

    Args:
        traffic: The requests that will be sent.
        state_folder: Folder of the change log and of both servers' logs.
        small: Size of the first L1, as a share of what would hold all of the traffic. L1 cannot shrink below it live.
    """
    footprint_mb = traffic.tokens * Shape().kv_bytes_per_token / MB
    cache = CacheSettings(
        embedded=EmbeddedOptions(l1_size_mb=round(footprint_mb * small)),
        bounds=Bounds(max_size_mb=round(footprint_mb * ROOM)),
        engine=f"http://127.0.0.1:{free_port()}",
        cooldown_seconds=0,
    )
    return Settings(caches={DEFAULT: cache}, state_folder=state_folder)


def own_cache_tokens(traffic: ChatTraffic) -> int:
    """Return the size of the engine's own prefix cache, tokens: a share of the workload, but never less than a prompt needs."""
    longest = max(one.longest_prompt for one in (traffic, WARM_UP))
    return max(int(OWN * traffic.tokens), longest + 4 * BLOCK)


@asynccontextmanager
async def engine_on_a_cache(
    settings: Settings,
    say: Say,
    connector: Connector = LMCACHES_OWN,
    own_cache_tokens: int | None = None,
    shape: Shape = SHAPE,
) -> AsyncIterator["EngineOnACache"]:
    """Run both servers of settings from `settings_for`, warmed up. Both are stopped at the end in any case.

    Args:
        settings: The settings; see `settings_for`.
        say: Called with one sentence for each server that is started.
        connector: See `VllmServer.launch`.
        own_cache_tokens: See `VllmServer.launch`.
        shape: See `VllmServer.launch`.

    Raises:
        UnsupportedError: vLLM or LMCache is not installed.
        RefusedError: One of the servers ended while starting.
    """
    require_vllm()
    operations = Operations(Registry(settings))
    try:
        deployment = operations.registry.get(DEFAULT).deployment
        assert isinstance(deployment, EmbeddedDeployment)  # noqa: S101  the settings define it so
        server = await io_loop.arun(deployment.started)
        say(f"`lmcache server` runs at {server.http_url}; log: {server.log}")
        async with _vllm(settings, server, say, connector, own_cache_tokens, shape) as vllm, client(vllm.url) as openai:
            engine = EngineOnACache(operations, vllm, openai)
            await engine.warm_up()
            yield engine
    finally:
        with anyio.CancelScope(shield=True):
            await io_loop.arun(operations.close)


@asynccontextmanager
async def _vllm(
    settings: Settings, server: ServerProcess, say: Say, connector: Connector, own_cache_tokens: int | None, shape: Shape
) -> AsyncIterator[VllmServer]:
    url = settings.caches[DEFAULT].engine
    assert url is not None  # noqa: S101  the settings define it so
    vllm = VllmServer.launch(
        server.rpc_url, settings.state_folder / "logs", int(url.rpartition(":")[2]), connector, own_cache_tokens, shape
    )
    try:
        say(f"vLLM creates a model of random weights and loads it; log: {vllm.log}")
        began = time.monotonic()
        await vllm.wait_ready()
        say(f"vLLM answers at {url}, after {time.monotonic() - began:.0f} s")
        yield vllm
    finally:
        await vllm.stop()


@dataclass(frozen=True)
class EngineOnACache:
    """A running vLLM, and operations on the cache it uses."""

    operations: Operations
    vllm: VllmServer
    openai: "AsyncOpenAI"

    async def warm_up(self) -> None:
        """Send some requests that do not count, then empty the cache."""
        await send(self.openai, MODEL, WARM_UP.requests())
        await self.clear("after the warm-up")

    async def clear(self, why: str) -> None:
        """Empty L1 and the engine's own cache. Earlier requests no longer count for predictions."""
        await io_loop.arun(self.operations.clear, DEFAULT, "demo", why)
        await self.vllm.empty_own_cache()

    async def send(
        self, name: str, requests: Sequence[ChatRequest], on_answer: OnAnswer, clients: int = 1, pause: float = 0.0
    ) -> Phase:
        """Send requests, and read the cache and the engine meanwhile; see `chat_traffic.send`."""
        phase = Phase(name)
        start = (await self.metrics()).window.end.timestamp()
        async with self.watched():
            phase.answers = await send(
                self.openai, MODEL, requests, clients=clients, pause=pause, on_answer=lambda answer: on_answer(name, answer)
            )
            await anyio.sleep(1.2)  # until all counters include the last request
        phase.metrics = await self.metrics(start)
        return phase

    async def metrics(self, since: float | None = None) -> CacheMetrics:
        """Return the figures since a Unix time, or since the server started."""
        return await io_loop.arun(self.operations.metrics, DEFAULT, None if since is None else time.time() - since)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Take readings all the time. They show the speed of the engine and the clock of evictions."""

        async def watch() -> None:
            while True:
                await anyio.sleep(READ_EVERY)
                await self.metrics()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            yield
            tasks.cancel_scope.cancel()


async def run_demo(traffic: ChatTraffic, settings: Settings, say: Say, on_answer: OnAnswer) -> EngineDemoResult:
    """Run the whole demo. In any case both servers are stopped, and only their logs and the change log remain.

    Args:
        traffic: The agents' requests, sent twice.
        settings: Settings from `settings_for`.
        say: Called with one sentence for each thing that happens.
        on_answer: Called with each answer.
    """
    async with engine_on_a_cache(settings, say, own_cache_tokens=own_cache_tokens(traffic)) as engine:
        began = time.time()
        before = await engine.send("before", traffic.requests(), on_answer)
        run = _Tuning(engine, traffic, say, on_answer)
        await run.run(time.time() - began)
        page = await io_loop.arun(engine.operations.report, DEFAULT)
        return EngineDemoResult(before, run.during, run.after, run.changed_at, run.report(), page)


class _Tuning:
    """Runs `tune_cache`, and the agents meanwhile."""

    def __init__(self, engine: EngineOnACache, traffic: ChatTraffic, say: Say, on_answer: OnAnswer) -> None:
        self._engine, self._traffic, self._say, self._on_answer = engine, traffic, say, on_answer
        self._report: dict[str, Any] = {}
        self._after_is_done = anyio.Event()
        self.during = Phase("during")
        self.after: Phase | None = None
        self.changed_at: float | None = None

    def report(self) -> TuneReport:
        """Return the report of the graph."""
        return TuneReport.model_validate(self._report)

    async def run(self, window_seconds: float) -> None:
        """Run the graph in mode auto on the requests so far, while the agents continue."""
        graph = build_tune_cache(operations=self._engine.operations).compile(name="tune_cache")
        context = TuneContext(mode=Mode.AUTO, window_seconds=window_seconds, verify_seconds=2 * window_seconds)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._agents)
            stream = graph.astream({"tune_reason": "time to first token"}, context=context, stream_mode=["custom", "values"])
            async for kind, event in cast("AsyncIterator[tuple[str, Any]]", stream):
                if kind == "values":
                    self._report = event.get("tune_report", self._report)
                    continue
                if event["step"] != "verify":
                    self._say(event["message"])
                if event["message"].startswith("applied"):
                    self.changed_at = time.time()
            if self.changed_at is not None:
                await self._after_is_done.wait()
            tasks.cancel_scope.cancel()

    async def _agents(self) -> None:
        """Send other conversations until the change, then the requests of `before` again from an empty L1.

        After that, send others until the graph ends.
        """
        others = self._other_conversations()
        while self.changed_at is None:
            self.during.answers += await self._send(next(others))
        await self._engine.clear("both passes start with empty caches, so that they can be compared")
        self.after = await self._engine.send("after", self._traffic.requests(), self._on_answer)
        self._after_is_done.set()
        for request in others:
            await self._send(request)

    async def _send(self, request: ChatRequest) -> list[ChatAnswer]:
        return await send(self._engine.openai, MODEL, [request], on_answer=lambda answer: self._on_answer("during", answer))

    def _other_conversations(self) -> Iterator[ChatRequest]:
        for seed in count(self._traffic.seed + 1):
            yield from self._traffic.with_seed(seed).requests()
