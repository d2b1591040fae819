"""A real vLLM on this machine's CPU in a child process: an OpenAI server whose KV goes to a running `lmcache server`.

Nothing here imports vllm: it is another program, started with our own interpreter.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import httpx

from agent_tools.child_process import environment, python_command
from agent_tools.deployments.server.process import GUARD
from agent_tools.errors import RefusedError, UnreachableError, UnsupportedError

from .tiny_model import Shape

MODEL = "tiny"
"""Name of the model, as clients request it."""
CONTEXT = 8192
"""Longest prompt with its answer, tokens. One step computes at most as many, so each prompt is computed in one step."""
RUN = "from agent_tools.demo.engine.vllm_process import main; main(*sys.argv[1:3], sys.argv[3:])"
"""What the child process runs; its arguments are a folder, the shape of the model as JSON, and the flags of vLLM."""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "DO_NOT_TRACK": "1",
    "LMCACHE_LOG_LEVEL": "WARNING",
    "VLLM_SERVER_DEV_MODE": "1",
}
"""1 GB for vLLM's own KV, no telemetry, no downloads, warnings only, and ``POST /reset_prefix_cache``."""
FLAGS = (
    "--served-model-name", MODEL, "--host", "127.0.0.1", "--dtype", "bfloat16",
    "--max-num-batched-tokens", str(CONTEXT), "--max-num-seqs", "4", "--enforce-eager", "--disable-uvicorn-access-log",
    "--enable-prompt-tokens-details",
)  # fmt: skip
PATIENCE = 10.0
"""Longest wait for the stores of requests that have ended, seconds."""
BLOCK = 128
"""Tokens of a block of vLLM's KV memory on a CPU."""

Connector = Mapping[str, float | str]
SHAPE = Shape()
LMCACHES_OWN: Connector = {}
"""Settings of the connector. Settings that are not named have LMCache's defaults."""


def require_vllm() -> None:
    """Raise `UnsupportedError` if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UnsupportedError("vLLM is not installed in this environment: `make demo-engine` installs it in a separate one")


class VllmServer:
    """A started vLLM. If its owner ends for any reason, vLLM and its child processes end too, and its folder is removed."""

    def __init__(self, guard: "subprocess.Popen[bytes]", folder: Path, log: Path, port: int) -> None:
        self._guard = guard
        self._folder = folder
        self.log = log
        self.url = f"http://127.0.0.1:{port}"
        """Base URL. ``/v1`` is the OpenAI API; ``/metrics`` has the engine's figures."""

    @classmethod
    def launch(
        cls,
        rpc_url: str,
        log_folder: Path,
        port: int,
        connector: Connector = LMCACHES_OWN,
        own_cache_tokens: int | None = None,
        shape: Shape = SHAPE,
    ) -> "VllmServer":
        """Start vLLM with a model of random weights and return at once. `wait_ready` waits until it answers.

        Args:
            rpc_url: RPC address of the `lmcache server`, ``tcp://host:port``.
            log_folder: Folder for vLLM's log.
            port: Port to listen on, on loopback.
            connector: Settings of LMCache's connector in vLLM, e.g. ``lmcache.mp.heartbeat_interval``.
            own_cache_tokens: Size of vLLM's KV memory, tokens, with its own prefix cache on; ``None`` switches that cache off.
            shape: Shape of the model.
        """
        log_folder.mkdir(parents=True, exist_ok=True)
        log = log_folder / f"vllm-{time.strftime('%Y%m%d-%H%M%S')}-{port}.log"
        folder = tempfile.mkdtemp(prefix="lmcache-agent-")
        command = [*python_command(RUN), folder, json.dumps(asdict(shape)), "--port", str(port)]
        with log.open("wb") as output:
            guard = subprocess.Popen(  # noqa: S603  our own interpreter and arguments
                [
                    sys.executable,
                    str(GUARD),
                    folder,
                    *command,
                    *FLAGS,
                    *own_cache_flags(own_cache_tokens),
                    "--kv-transfer-config",
                    json.dumps(transfer_config(rpc_url, connector)),
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(os.environ | ENVIRONMENT),
                cwd=log_folder,
                start_new_session=True,
            )
        return cls(guard, Path(folder), log, port)

    @property
    def alive(self) -> bool:
        """Return whether vLLM still runs."""
        return self._guard.poll() is None

    async def wait_ready(self, patience: float = 900.0) -> None:
        """Return when ``/health`` answers. This takes about 40 s on two idle cores, and many times as long on busy ones.

        Raises:
            RefusedError: vLLM ended while starting; the message holds the end of its log.
            UnreachableError: vLLM does not answer after `patience` seconds; it was stopped.
        """
        deadline = time.monotonic() + patience
        async with httpx.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                if not self.alive:
                    raise RefusedError(f"vLLM ended while starting: {self.last_words()}", status=0)
                try:
                    if (await client.get("/health")).status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                await anyio.sleep(0.25)
        await self.stop()
        raise UnreachableError(f"vLLM did not answer within {patience:g} s of its start and was stopped; see its log: {self.log}")

    async def empty_own_cache(self) -> None:
        """Empty vLLM's own prefix cache. The store of a request that has ended may hold its blocks a little longer.

        Raises:
            RefusedError: vLLM still holds blocks: a request runs.
        """
        deadline = time.monotonic() + PATIENCE
        async with httpx.AsyncClient(base_url=self.url, timeout=30.0, trust_env=False) as client:
            while not ((answer := await client.post("/reset_prefix_cache")).is_success and answer.json().get("success")):
                if time.monotonic() > deadline:
                    raise RefusedError("vLLM did not empty its own prefix cache: a request runs", status=answer.status_code)
                await anyio.sleep(0.25)

    def last_words(self, lines: int = 5) -> str:
        """Return the last lines of the log as one line, and the path of the log."""
        said = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{' | '.join(said[-lines:]) or 'its log is empty'} (log: {self.log})"

    async def stop(self) -> None:
        """Stop vLLM and wait until it has ended and its folder is gone."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._guard.wait)
            # The guard has already done this, unless it was killed.
            await anyio.to_thread.run_sync(partial(shutil.rmtree, self._folder, ignore_errors=True))


def own_cache_flags(tokens: int | None) -> tuple[str, ...]:
    """Return the flags for vLLM's own prefix cache. vLLM keeps one block for itself; the others must hold the longest prompt."""
    if tokens is None:
        return ("--no-enable-prefix-caching", "--max-model-len", str(CONTEXT))
    blocks = tokens // BLOCK
    longest = min(CONTEXT, (blocks - 1) * BLOCK)
    return ("--enable-prefix-caching", "--num-gpu-blocks-override", str(blocks), "--max-model-len", str(longest))


def transfer_config(rpc_url: str, connector: Connector = LMCACHES_OWN) -> dict[str, object]:
    """Return vLLM's KV transfer configuration for LMCache's connector to the multi-process server."""
    host, _, port = rpc_url.rpartition(":")
    extra = {"lmcache.mp.host": host, "lmcache.mp.port": int(port), **connector}
    return {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
