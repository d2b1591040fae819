"""A real `LMCacheEngine` in a process of its own (see `engine_script`), as a test holds it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHUNK = 64
"""Tokens per chunk."""
CHUNK_BYTES = 2 * CHUNK * 2 * 64 * 2
"""K and V x tokens x heads x head size x bytes of a float16, in one layer: 32 KiB."""
SCRIPT = Path(__file__).with_name("engine_script.py")
QUIET = {"LMCACHE_TRACK_USAGE": "false", "DO_NOT_TRACK": "1", "LMCACHE_DISABLE_BANNER": "1", "LMCACHE_LOG_LEVEL": "WARNING"}


class EngineProcess:
    """The process as a test holds it."""

    def __init__(self, port: int, *, role: str = "worker", worker_id: int = 0, world_size: int = 1, **config: Any) -> None:
        """Started at once; `ready` waits. `config` is LMCache's own, over an L1 of 2 MiB."""
        self.url = f"http://127.0.0.1:{port}"
        settings = {"port": port, "role": role, "worker_id": worker_id, "world_size": world_size, "config": config}
        self.played = 0
        """Prompts served."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **QUIET},
        )

    def ready(self) -> "EngineProcess":
        """Wait until it takes prompts."""
        assert self._answer() == "ready"
        return self

    def play(self, *prompts: tuple[int, ...]) -> list[int]:
        """Serve prompts ``(seed, chunks)`` or ``(seed, chunks, tokens behind them)`` in turn; for each, the chunks found."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(prompts) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        assert isinstance(found, list), found
        self.played += len(prompts)
        return [tokens // CHUNK for tokens in found]

    @property
    def alive(self) -> bool:
        """Whether it was neither killed nor stopped."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it, and leave nothing behind; an engine has nothing to save."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            stream.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise AssertionError(f"the engine ended with {self._process.wait()}: {self._log.read()[-2000:].decode()}")
        return json.loads(line)
