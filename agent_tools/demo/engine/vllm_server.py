"""A real vLLM on this machine's CPU as a process of ours: an OpenAI server whose KV goes to a running `lmcache server`.

Nothing imports vllm: it is another program, started by our own interpreter.
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
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import httpx

from agent_tools.deployments.server.process import GUARD
from agent_tools.errors import RefusedError, UnreachableError, UnsupportedError

MODEL = "tiny"
"""Name of the model, as clients say it."""
CONTEXT = 8192
"""Longest prompt with its answer, tokens; also the most that one step computes, so that a prompt is computed in one."""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "DO_NOT_TRACK": "1",
    "LMCACHE_LOG_LEVEL": "WARNING",
}
"""1 GB for vLLM's own KV, no telemetry, nothing downloaded, warnings only."""
FLAGS = (
    "--served-model-name", MODEL, "--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", str(CONTEXT),
    "--max-num-batched-tokens", str(CONTEXT), "--max-num-seqs", "4", "--enforce-eager", "--disable-uvicorn-access-log",
    "--no-enable-prefix-caching", "--enable-prompt-tokens-details",
)  # fmt: skip
"""vLLM's own prefix cache is off: on a CPU it lies in the same memory as L1, and would hide from LMCache what it is asked for."""

Connector = Mapping[str, float]
LMCACHES_OWN: Connector = {}
"""Settings of the connector: what is not named is LMCache's default."""


def require_vllm() -> None:
    """Raise `UnsupportedError` where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UnsupportedError("vLLM is not installed in this environment: `make demo-engine` installs it in one of its own")


class VllmServer:
    """A started vLLM. Its owner's end, however it comes, ends it too, with its child processes, and removes its folder."""

    def __init__(self, guard: "subprocess.Popen[bytes]", folder: Path, log: Path, port: int) -> None:
        self._guard = guard
        self._folder = folder
        self.log = log
        self.url = f"http://127.0.0.1:{port}"
        """Base URL: ``/v1`` is the OpenAI API, ``/metrics`` the engine's figures."""

    @classmethod
    def launch(cls, rpc_url: str, log_folder: Path, port: int, connector: Connector = LMCACHES_OWN) -> "VllmServer":
        """Start vLLM with a model of random weights and return at once; `wait_ready` waits for it.

        Args:
            rpc_url: Of the `lmcache server`, ``tcp://host:port``.
            log_folder: Where its log is written.
            port: Where it is to listen, on loopback.
            connector: Settings of LMCache's connector in vLLM, e.g. ``lmcache.mp.heartbeat_interval``.
        """
        log_folder.mkdir(parents=True, exist_ok=True)
        log = log_folder / f"vllm-{time.strftime('%Y%m%d-%H%M%S')}-{port}.log"
        folder = tempfile.mkdtemp(prefix="lmcache-agent-")
        command = [sys.executable, "-m", "agent_tools.demo.engine.vllm_process", folder, "--port", str(port)]
        with log.open("wb") as output:
            guard = subprocess.Popen(  # noqa: S603  our own interpreter and arguments
                [
                    sys.executable,
                    str(GUARD),
                    folder,
                    *command,
                    *FLAGS,
                    "--kv-transfer-config",
                    json.dumps(transfer_config(rpc_url, connector)),
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )
        return cls(guard, Path(folder), log, port)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._guard.poll() is None

    async def wait_ready(self, patience: float = 300.0) -> None:
        """Return when ``/health`` answers: some 40 s on two cores.

        Raises:
            RefusedError: It ended while starting; the message holds the end of its log.
            UnreachableError: It does not answer after `patience` seconds; it was stopped.
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
        raise UnreachableError(f"vLLM did not answer within {patience:g} s of its start; its log: {self.log}")

    def last_words(self, lines: int = 5) -> str:
        """The last lines of its log, in one, and where the log is."""
        said = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{' | '.join(said[-lines:]) or 'it said nothing'} (log: {self.log})"

    async def stop(self) -> None:
        """Stop it and wait until it has ended and its folder is gone."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._guard.wait)
            # The guard has done this, unless it was killed.
            await anyio.to_thread.run_sync(partial(shutil.rmtree, self._folder, ignore_errors=True))


def transfer_config(rpc_url: str, connector: Connector = LMCACHES_OWN) -> dict[str, object]:
    """VLLM's KV transfer configuration for LMCache's connector of the multi-process server."""
    host, _, port = rpc_url.rpartition(":")
    extra = {"lmcache.mp.host": host, "lmcache.mp.port": int(port), **connector}
    return {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
