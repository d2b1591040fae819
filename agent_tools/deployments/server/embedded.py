"""A private `lmcache server`. We start it on first use, restart it when a setting needs a restart, and stop it."""

import importlib.util
import json
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
from pydantic import SecretStr

from agent_tools.arena_file import page_aligned
from agent_tools.deployments.base import Progress
from agent_tools.deployments.start_options import EmbeddedOptions
from agent_tools.errors import LMCacheToolError, RefusedError, UnsupportedError
from agent_tools.extras import installing
from agent_tools.models import MB, ConfigUpdate, L2Adapter, Support, SupportLevel
from agent_tools.wire.http_client import LIMITS

from .arenas import arena_file
from .command_line import L1_POLICIES, Flags, adapter_json, has_secret, with_update
from .deployment import ServerDeployment
from .process import ServerProcess
from .settable import SECRETS_NOT_KEPT

TOKEN_ENV, ADAPTERS_ENV = "AGENT_TOOLS_MODULE_TOKEN", "AGENT_TOOLS_MODULE_L2_ADAPTERS"
"""What the server's module takes out of its environment when it starts."""


class EmbeddedDeployment(ServerDeployment):
    """A server that starts with the first call. If it dies, a later call starts a new server with an empty L1."""

    backend = "embedded"
    owned = True

    def __init__(
        self,
        options: EmbeddedOptions,
        log_folder: Path,
        attachable: Sequence[L2Adapter] = (),
        most_mb: float | None = None,
    ) -> None:
        """Check the options and start nothing yet.

        The server writes its log to `log_folder`. `attachable` are the L2 adapters that it may attach live. `most_mb` is the
        memory that L1 may take while arenas are drained.

        Raises:
            UnsupportedError: lmcache is not installed, or L1 does not have this eviction policy.
        """
        if importlib.util.find_spec("lmcache") is None:
            raise UnsupportedError(
                "an embedded cache needs LMCache on this machine, and lmcache is not installed. Name the address of a running"
                f" `lmcache server` in caches.toml, or {installing('embedded')}"
            )
        if options.eviction_policy not in L1_POLICIES:
            names = ", ".join(policy.value for policy in L1_POLICIES)
            raise UnsupportedError(
                f"L1 of `lmcache server` has the eviction policies {names}, not {options.eviction_policy.value}; set one of them"
            )
        token = SecretStr(secrets.token_urlsafe(32))
        self._environment = {
            TOKEN_ENV: token.get_secret_value(),
            ADAPTERS_ENV: json.dumps([{"type": one.type, **one.settings} for one in attachable]),
        }
        # The transport adds the port of the running server.
        super().__init__(
            "http://127.0.0.1",
            arena_folder=options.arena_folder,
            transport=_OwnedTransport(self),
            token=token,
            most_mb=most_mb,
        )
        self.admin.ready = self.started  # a slow start does not use up the time of the first call
        self._flags = _start_flags(options)
        self._folder = options.arena_folder
        self._log_folder = log_folder
        self._process: ServerProcess | None = None
        self._starting = anyio.Lock()

    async def started(self) -> ServerProcess:
        """Return the running server. Start one if there is none.

        Raises:
            CacheDiedError: The server has ended since the last call. Raised once, so that nobody takes the new, empty cache for
                the old one.
        """
        async with self._starting:
            if self._process is not None and not self._process.alive:
                died, self._process = self._process, None
                await died.stop()
                if not died.death_was_told:
                    await died.check_alive()
            if self._process is None:
                self._process = await self._start(self._flags)
            return self._process

    async def close(self) -> None:
        """Stop the server. Only its log is left."""
        async with self._starting:
            await super().close()
            if self._process is not None:
                await self._process.stop()
                self._process = None

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Change everything live if all of it can be changed live; otherwise change everything by one restart."""
        support = await self.support(update)
        levels = {setting: support[setting] for setting in update.known()}
        for setting, one in levels.items():
            if one.level is SupportLevel.UNSUPPORTED:
                raise UnsupportedError(f"{setting} cannot be changed: {one.reason}. Nothing was changed")
        if all(one.level is SupportLevel.LIVE for one in levels.values()):
            await super().apply(update, progress)
            self._flags = with_update(self._flags, update)  # for a restart, and for the next server if this one dies
        else:
            await self._restart(update, progress)

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """Return the support of any server. We cannot start a server with a secret that is masked as ``***``."""
        support = dict(await super().support(update))
        if update is not None and any(has_secret(adapter) for adapter in update.l2_adapters or ()):
            support["l2_adapters"] = Support(level=SupportLevel.UNSUPPORTED, reason=SECRETS_NOT_KEPT)
        return support

    async def _restart(self, update: ConfigUpdate, progress: Progress) -> None:
        process, old = await self.started(), self._flags
        ports = (process.http_port, process.rpc_port)
        progress("restarting the server; L1 starts empty")
        async with self._starting:
            await process.stop()
            self._process = None
            try:
                self._process = await self._start(with_update(old, update), ports)
            except LMCacheToolError as error:
                self._process = await self._start(old, ports)
                raise RefusedError(f"{error}. The old settings are in force again; the restart emptied L1", status=0) from error

    async def _start(self, flags: Flags, ports: tuple[int, int] | None = None) -> ServerProcess:
        size = page_aligned(flags["--l1-size-gb"] * 1024 * MB)
        async with arena_file(self._folder, size) as path:
            whole = {**flags, "--l1-devdax-path": str(path)}
            launch = partial(ServerProcess.launch, whole, self._log_folder, ports, self._environment)
            process = await anyio.to_thread.run_sync(launch)
            try:
                await process.wait_ready()
            except BaseException:
                await process.stop()
                raise
        self._flags, self._access_log = flags, process.folder / "lookups"
        return process


class _OwnedTransport(httpx.AsyncHTTPTransport):
    """Sends calls to the server we own. Starts it when needed, and reports when it has died."""

    def __init__(self, owner: EmbeddedDeployment) -> None:
        super().__init__(trust_env=False, limits=LIMITS)
        self._owner = owner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        process = await self._owner.started()
        request.url = request.url.copy_with(port=process.http_port)
        try:
            return await super().handle_async_request(request)
        except httpx.TransportError:
            await process.check_alive()
            raise


def _start_flags(options: EmbeddedOptions) -> Flags:
    return {
        "--l1-size-gb": options.l1_size_mb / 1024,
        "--no-l1-use-lazy": True,
        "--shm-name": "",
        "--chunk-size": options.chunk_size,
        "--eviction-policy": L1_POLICIES[options.eviction_policy],
        "--eviction-trigger-watermark": options.eviction_watermark,
        "--eviction-ratio": options.eviction_ratio,
        "--l2-prefetch-policy": options.l2_prefetch_policy,
        "--l2-adapter": [adapter_json(adapter) for adapter in options.l2_adapters],
        "--supported-transfer-mode": "auto",
        "--metrics-sample-rate": 1.0,
        # We make the L1 arenas, because we are on the same machine.
        "--server-module": json.dumps(
            {
                "module_path": "agent_tools.server_module",
                "config": {"off": ["arenas"], "token_env": TOKEN_ENV, "l2_adapters_env": ADAPTERS_ENV},
            }
        ),
    }
