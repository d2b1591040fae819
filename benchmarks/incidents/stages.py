"""The processes of an incident, as they run: real servers and engines, and the traffic into them."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import httpx
import numpy as np
from proxied import TOKEN, Proxy, in_front
from serving import serving
from starlette.responses import JSONResponse

from agent_tools.demo.engine.chat_traffic import ChatAnswer, client, send
from agent_tools.demo.engine.tiny_model import Shape
from agent_tools.demo.engine.vllm_server import MODEL, VllmServer, require_vllm
from agent_tools.deployments.server.command_line import Flags
from agent_tools.deployments.server.process import QUIET, ServerProcess, free_port
from agent_tools.errors import LMCacheToolError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB
from agent_tools.workload.replay import _kv_client, replay
from agent_tools.workload.schedule import ReplaySettings

from .beside import last_ranks_store_nothing, look_up_only
from .decoder_page import DecoderPage
from .incident import Engines, Incident, Oldest, Server, Vllm

if TYPE_CHECKING:
    from engine_process import EngineProcess

ROOT = Path(__file__).parents[2]
OLDEST = ROOT / ".oldest-lmcache"
KV_BYTES_PER_TOKEN = 128
SMALL_MODEL = Shape(hidden=512, intermediate=1024, layers=2, heads=4, kv_heads=1)
"""The model of a `Vllm`: 1 KB of KV a token, and so little computation that its requests are many."""
PAUSE = 0.1
"""Seconds between an answer of that model and the client's next request."""
ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""The agents and the server need a core too."""
MAX_L1_MB = 96
"""Most L1 that the module of a server lets anyone ask for."""


class Running:
    """A stage with its traffic: an address for the directory, and what went wrong for those who asked."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        """Of the cache, for `CacheSettings`."""
        self.failures: list[str] = []
        self._halt = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        """Start the traffic, from its beginning."""
        self._halt.clear()
        self._threads = [threading.Thread(target=self._guarded, args=(number,)) for number in range(self.senders)]
        for thread in self._threads:
            thread.start()

    def halt(self) -> None:
        """End the traffic: requests under way are answered, no other is sent."""
        self._halt.set()
        for thread in self._threads:
            thread.join()

    senders = 1

    def recover(self) -> None:
        """Take back what `provoke` did to those who look, so that they can see how it all ended."""

    def send(self, number: int) -> None:
        """Send requests until `halt`."""
        raise NotImplementedError

    def _guarded(self, number: int) -> None:
        try:
            self.send(number)
        except (LMCacheToolError, AssertionError, OSError) as error:
            self.failures.append(f"{type(error).__name__}: {error}")


class RunningServer(Running):
    """One server, and the replay of a log into it."""

    def __init__(self, incident: Incident, seconds: float, folder: Path, stack: ExitStack) -> None:
        assert isinstance(incident.stage, Server)  # noqa: S101
        self._stage, self._folder, self._stack = incident.stage, folder, stack
        self.log, self._seconds, self._clients = incident.traffic(), seconds, incident.clients
        _kv_client()  # imported now, since it takes seconds that would be missing from the traffic
        self.process = self._launched(None)
        stack.callback(lambda: io_loop.run(self.process.stop))
        io_loop.run(self.process.wait_ready)
        for salt, quota in self._stage.quotas_mb.items():
            httpx.put(f"{self.process.http_url}/quota/{salt}", json={"limit_gb": quota / 1024}).raise_for_status()
        readable = not self._stage.module and self._stage.log
        super().__init__(
            {
                "target": self.process.http_url,
                "access_log": self.process.folder / "lookups" if readable else None,
                "economics": self._stage.economics,
            }
        )
        self.proxy: Proxy | None = None
        if self._stage.behind_a_proxy:
            self.settings["target"], self.proxy = stack.enter_context(in_front(self.process.http_url))
            self.settings["headers"] = {"Authorization": f"Bearer {TOKEN}"}
        if self._stage.loaded_elsewhere:
            self.settings["engine"] = stack.enter_context(serving(DecoderPage(self._stage.loaded_elsewhere)))

    def send(self, number: int) -> None:  # noqa: ARG002  one replay has several clients
        if self.log is None:
            return
        pace = max(self.log.duration, 1.0) / self._seconds
        settings = ReplaySettings(
            clients=self._clients, pace=pace, kv_bytes_per_token=KV_BYTES_PER_TOKEN, models=dict(self._stage.engines)
        )
        with last_ranks_store_nothing(self._stage.silent_ranks):
            result = replay(self.log, self.process.rpc_url, settings, stop=self._halt)
        for what in ("corrupt_chunks", "failed_retrieves", "refused_stores"):
            if times := getattr(result, what):
                self.failures.append(f"{times} {what}")

    def restart(self) -> None:
        """As an operator would: the traffic is held back, the server stopped and started on the same ports."""
        self.halt()
        ports = (self.process.http_port, self.process.rpc_port)
        io_loop.run(self.process.stop)
        self.process = self._launched(ports)
        io_loop.run(self.process.wait_ready)
        self.begin()

    def hold_locks(self, prompts: int) -> None:
        """Be a client that looks up the latest prompts of the traffic and never retrieves nor ends; until the stage is over."""
        assert self.log is not None  # noqa: S101
        kv_client = _kv_client()
        connection = kv_client.Connection(self.process.rpc_url, 10, threading.Event())
        self._stack.callback(connection.close)
        engine = kv_client.KVClient(connection, 77, ("replay",), KV_BYTES_PER_TOKEN)
        self._stack.callback(engine.close)
        for number in range(prompts):
            chunks = np.asarray(self.log.request(number), np.int32)
            asked = kv_client.Request(f"held-{number}", 0, "", chunks, len(chunks) * self.log.chunk_size)
            connection.wait(engine._rpc.lookup(engine._key(asked), 1), "lookup")  # noqa: SLF001
            connection.wait(engine._rpc.wait_prefetch_status(asked.id, 10), "wait_prefetch_status")  # noqa: SLF001

    def look_up_only(self, model: str, world_size: int = 1, lookups: int = 60, *, new: bool = False) -> None:
        """Be an engine that looks prompts up and stores nothing: the first ones of the traffic, or some that nobody asked for."""
        assert self.log is not None  # noqa: S101
        shift = int(self.log.chunk_ids.max()) + 1 if new else 0
        prompts = [self.log.request(number % len(self.log)) + shift for number in range(lookups)]
        look_up_only(self.process.rpc_url, model, world_size, [(prompt, self.log.chunk_size) for prompt in prompts])

    def refuse(self) -> None:
        """Let the proxy take no token any more."""
        assert self.proxy is not None  # noqa: S101
        self.proxy.answers = JSONResponse({"error": "token expired"}, 401)

    def recover(self) -> None:
        if self.proxy is not None:
            self.proxy.answers = None

    def _launched(self, ports: tuple[int, int] | None) -> ServerProcess:
        stage = self._stage
        flags: Flags = {
            "--l1-size-gb": stage.l1_mb / 1024,
            "--eviction-policy": "LRU",
            "--supported-transfer-mode": "auto",
            "--metrics-sample-rate": 1.0,
        }
        if stage.module:
            primary = self._folder / f"l1-{free_port()}"
            primary.write_bytes(bytes(int(stage.l1_mb * MB)))
            options = {"arena_folder": str(self._folder), "max_l1_mb": MAX_L1_MB}
            modules = [{"module_path": "agent_tools.server_module", "config": options}]
            if stage.two_groups:
                modules.insert(0, {"module_path": "benchmarks.hybrid_module", "config": {}})
            flags |= {
                "--server-module": [json.dumps(module) for module in modules],
                "--l1-devdax-path": str(primary),
                "--no-l1-use-lazy": True,
                "--shm-name": "",
            }
        if stage.l2 is not None:
            flags["--l2-adapter"] = [json.dumps(stage.l2).replace("FOLDER", str(self._folder / "l2"))]
            (self._folder / "l2").mkdir(exist_ok=True)
        extra = {"PYTHONPATH": str(ROOT)}
        return ServerProcess.launch(flags | dict(stage.flags), self._folder / "logs", ports, extra)


class RunningVllm(RunningServer):
    """One server, a real vLLM in front of it, and agents who talk to it round after round."""

    def __init__(self, incident: Incident, seconds: float, folder: Path, stack: ExitStack) -> None:
        require_vllm()
        super().__init__(incident, seconds, folder, stack)
        assert isinstance(incident.stage, Vllm)  # noqa: S101
        self._chats, self.senders = incident.stage.chats, incident.clients
        with mock.patch.dict(os.environ, ONE_THREAD):
            self.vllm = VllmServer.launch(
                self.process.rpc_url,
                folder / "logs",
                free_port(),
                incident.stage.connector,
                incident.stage.own_cache_tokens,
                SMALL_MODEL,
            )
        stack.callback(lambda: io_loop.run(self.vllm.stop))
        io_loop.run(self.vllm.wait_ready)
        self.settings["engine"] = self.vllm.url

    def send(self, number: int) -> None:
        answers = asyncio.run(self._talk(number))
        self.failures += [answer.error for answer in answers if answer.error is not None]

    async def _talk(self, number: int) -> list[ChatAnswer]:
        """Send this client's share of round after round until `halt`."""
        answers: list[ChatAnswer] = []
        async with client(self.vllm.url) as openai:
            for seed in count():
                for request in self._chats.with_seed(seed).requests():
                    if self._halt.is_set():
                        return answers
                    if request.conversation % self.senders == number:
                        answers += await send(openai, MODEL, [request], pause=PAUSE)
        return answers


class RunningOldest(Running):
    """A server 0.4.7, and an engine of its time."""

    def __init__(self, stage: Oldest, folder: Path, stack: ExitStack) -> None:
        if not OLDEST.is_dir():
            raise UnsupportedError("LMCache 0.4.7 is not installed beside the newest: make test-oldest installs it")
        self._stage, self._environment = stage, {"PYTHONPATH": str(OLDEST)}
        flags: Flags = {
            "--l1-size-gb": stage.l1_mb / 1024,
            "--eviction-policy": "LRU",
            "--chunk-size": 64,
            "--shm-name": "",
            "--metrics-sample-rate": 1.0,
        }
        self.process = ServerProcess.launch(flags, folder / "logs", extra=self._environment)
        stack.callback(lambda: io_loop.run(self.process.stop))
        io_loop.run(self.process.wait_ready)
        self._lookups = self.process.folder / "lookups"
        super().__init__({"target": self.process.http_url, "access_log": self._lookups if stage.log else None})

    def begin(self) -> None:
        """Start the engine, and return when its first prompts have been asked for: it takes seconds to start."""
        super().begin()
        while not self._halt.wait(0.1) and not any(file.stat().st_size for file in self._lookups.glob("*.jsonl")):
            pass

    def send(self, number: int) -> None:  # noqa: ARG002
        script = [sys.executable, str(ROOT / "tests/deployments/old_engine.py"), self.process.rpc_url, "1000000", "0.05"]
        environment = {**os.environ, **self._environment, **QUIET}
        engine = subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        while engine.poll() is None and not self._halt.wait(0.1):
            pass
        if engine.poll() is not None:
            self.failures.append(f"the engine ended with {engine.returncode}")
            self._halt.set()
        engine.terminate()
        engine.wait()


class RunningEngines(Running):
    """Engine workers; each serves the same prompts, over and over."""

    def __init__(self, incident: Incident, folder: Path, stack: ExitStack) -> None:
        assert isinstance(incident.stage, Engines)  # noqa: S101
        self._stage = incident.stage
        self.senders = len(self._stage.configs)
        self.engines = [self._launched(number, folder, stack) for number in range(self.senders)]
        for engine in self.engines:
            engine.ready()
        super().__init__({"target": "engine:" + ",".join(engine.url for engine in self.engines)})

    def send(self, number: int) -> None:
        while not self._halt.is_set():
            for prompt in self._stage.prompts:
                self.engines[number].play(prompt)
                if self._halt.wait(0.05):
                    return

    def _launched(self, number: int, folder: Path, stack: ExitStack) -> "EngineProcess":
        from engine_process import EngineProcess  # noqa: PLC0415  of the tests, beside which a run puts us

        config = json.loads(json.dumps(dict(self._stage.configs[number])).replace("FOLDER", str(folder)))
        environment = {"PYTHONHASHSEED": self._stage.hash_seeds[number]} if self._stage.hash_seeds else {}
        for path, source in self._stage.stand_ins.items():
            (folder / "modules" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "modules" / path).write_text(source)
        if self._stage.stand_ins:
            environment["PYTHONPATH"] = str(folder / "modules")
        with mock.patch.dict(os.environ, environment):
            engine = EngineProcess(free_port(), **config)
        stack.callback(engine.stop)
        return engine


@contextlib.contextmanager
def staged(incident: Incident, seconds: float) -> Iterator[tuple[Running, list[str]]]:
    """The incident's processes, and a list that afterwards names the files they left in shared memory; all are ended."""
    left: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lmcache-incident-", dir="/dev/shm") as name:
        folder = Path(name)
        with ExitStack() as stack:
            if isinstance(incident.stage, Vllm):
                running: Running = RunningVllm(incident, seconds, folder, stack)
            elif isinstance(incident.stage, Server):
                running = RunningServer(incident, seconds, folder, stack)
            elif isinstance(incident.stage, Oldest):
                running = RunningOldest(incident.stage, folder, stack)
            else:
                running = RunningEngines(incident, folder, stack)
            stack.callback(running.halt)
            yield running, left
        left += [file.name for file in folder.iterdir() if file.name.startswith("lmcache-l1")]
