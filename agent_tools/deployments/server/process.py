"""A private `lmcache server` process on free loopback ports. We start it, stop it and keep its log."""

import contextlib
import os
import secrets
import shutil
import socket
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

from agent_tools.child_process import environment, python_command
from agent_tools.errors import CacheDiedError, RefusedError, UnreachableError
from agent_tools.private_folder import make_private
from agent_tools.redaction import without_secrets

from .command_line import Flags, argv

GUARD = Path(__file__).with_name("guard.py")
KEPT_LOGS = 10
FIXED_PORTS = range(20_000, 30_000)
"""Ports below those of outgoing connections (Linux: 32,768 and up), and below Kubernetes' node ports."""
QUIET = {"LMCACHE_TRACK_USAGE": "false", "DO_NOT_TRACK": "1", "LMCACHE_DISABLE_BANNER": "1", "LMCACHE_LOG_LEVEL": "WARNING"}
"""Environment of the server: no telemetry, and warnings only, because it logs several lines per request."""

LMCACHE = python_command("from lmcache.cli.main import main; main()")
"""The command line of ``lmcache``, without its arguments."""


class ServerProcess:
    """A started server. `guard` ends the server and removes its folder when its owner ends for any reason."""

    def __init__(self, guard: "subprocess.Popen[bytes]", folder: Path, log: Path, http_port: int, rpc_port: int) -> None:
        self._guard = guard
        self.folder = folder
        self.log = log
        self.http_port = http_port
        self.rpc_port = rpc_port
        self.death_was_told = False
        """Whether `check_alive` has reported that the server ended. It is reported once before another server starts."""

    @classmethod
    def launch(
        cls, flags: Flags, log_folder: Path, ports: tuple[int, int] | None = None, extra: Mapping[str, str] | None = None
    ) -> "ServerProcess":
        """Start the process and return at once; `wait_ready` waits until it answers.

        Args:
            flags: Flags of `lmcache server` without host, ports and folder of the lookup log, which this method sets.
            log_folder: Folder for the server's log; the last ten logs are kept. It is the server's working directory, so that
                nothing in ours can run or be read.
            ports: Ports for HTTP and RPC; two free ports by default.
            extra: Additional environment variables for the server.
        """
        http_port, rpc_port = ports or (free_port(), free_port())
        folder = Path(tempfile.mkdtemp(prefix="lmcache-agent-"))
        own: Flags = {
            "--host": "127.0.0.1",
            "--port": rpc_port,
            "--http-host": "127.0.0.1",
            "--http-port": http_port,
            "--lookup-hash-log-dir": str(folder / "lookups"),
            "--lookup-hash-log-max-files": 10,
        }
        command = [*LMCACHE, "server", *argv({**flags, **own})]
        log = _new_log(log_folder, http_port)
        with log.open("wb") as output:
            guard = subprocess.Popen(  # noqa: S603  our own interpreter and arguments
                [sys.executable, str(GUARD), str(folder), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(_without_secrets(os.environ) | QUIET | dict(extra or {})),
                cwd=log_folder,
                start_new_session=True,
            )
        return cls(guard, folder, log, http_port, rpc_port)

    @property
    def alive(self) -> bool:
        """Whether the server is running."""
        return self._guard.poll() is None

    @property
    def http_url(self) -> str:
        """Base URL of the admin API."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def rpc_url(self) -> str:
        """Address to which engines send their requests."""
        return f"tcp://127.0.0.1:{self.rpc_port}"

    async def wait_ready(self, patience: float = 90.0) -> None:
        """Wait until ``/status`` answers.

        Raises:
            RefusedError: The server ended while it was starting. The message quotes the end of its log.
            UnreachableError: The server did not answer within `patience` seconds and was stopped.
        """
        deadline = time.monotonic() + patience
        async with httpx.AsyncClient(base_url=self.http_url, timeout=2.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                if not self.alive:
                    raise RefusedError(f"`lmcache server` ended while starting: {self.last_words()}", status=0)
                try:
                    if (await client.get("/status")).status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                await anyio.sleep(0.1)
        await self.stop()
        raise UnreachableError(
            f"`lmcache server` did not answer within {patience:g} s of its start and was stopped; its log: {self.log}"
        )

    async def check_alive(self) -> None:
        """Raise `CacheDiedError` if the server has ended. Called when the server does not answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = await anyio.to_thread.run_sync(self._guard.wait, 2.0)  # the server may be about to end
            self.death_was_told = True
            raise CacheDiedError(f"the `lmcache server` process ended (exit code {code}): {self.last_words()}")

    def last_words(self) -> str:
        """Return the last meaningful line of the log, and where the log is."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        telling = [line for line in lines if line and not line.startswith("INFO:")]  # uvicorn logs one such line per call
        return f"{telling[-1] if telling else 'it said nothing'} (log: {self.log})"

    async def stop(self) -> None:
        """Stop the server. Wait until the process has ended and its folder is removed."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._guard.wait)
            # The guard has removed the folder, unless the guard was killed.
            await anyio.to_thread.run_sync(partial(shutil.rmtree, self.folder, ignore_errors=True))


def _without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out our token and the model's key: ``GET /env`` shows the server's environment to every program on this machine."""
    return {name: value for name, value in environment.items() if without_secrets(value, name) == value}


def free_port() -> int:
    """Return a loopback port on which nothing listens now, and that no outgoing connection takes meanwhile."""
    with socket.socket() as probe:
        for _ in range(20):
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", secrets.choice(FIXED_PORTS)))
                break
        else:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _new_log(folder: Path, port: int) -> Path:
    make_private(folder)
    for old in sorted(folder.glob("lmcache-server-*.log"))[: -(KEPT_LOGS - 1)]:
        old.unlink(missing_ok=True)
    log = folder / f"lmcache-server-{time.strftime('%Y%m%d-%H%M%S')}-{port}.log"
    log.touch(0o600)
    return log
