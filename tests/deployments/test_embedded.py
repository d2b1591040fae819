"""Claims about a private server: started when needed, restarted when a setting needs it, and gone without a trace."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from real_cache import eventually
from real_logs import log_of

from agent_tools.caches.registry import Cache
from agent_tools.deployments.base import silent
from agent_tools.deployments.server import embedded
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import CacheDiedError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter
from agent_tools.workload.replay import replay

Own = Callable[..., EmbeddedDeployment]


@pytest.fixture
def own(lmcache: None, tmp_path: Path, arena_folder: Path) -> Iterator[Own]:
    """Makes an `EmbeddedDeployment` with these options; closed at the end of the test."""
    deployments: list[EmbeddedDeployment] = []

    def own(**options: object) -> EmbeddedDeployment:
        made = EmbeddedOptions.model_validate({"l1_size_mb": 8, "arena_folder": arena_folder, **options})
        deployments.append(EmbeddedDeployment(made, tmp_path / "logs"))
        return deployments[-1]

    yield own
    for deployment in deployments:
        io_loop.run(deployment.close)


def config(deployment: EmbeddedDeployment) -> CacheConfig:
    return io_loop.run(deployment.config)


def server_of(process: ServerProcess) -> psutil.Process:
    """The `lmcache server` under the guard."""
    return psutil.Process(process._guard.pid).children()[0]


def listening(port: int) -> bool:
    return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in psutil.net_connections("tcp"))


def test_it_starts_with_the_first_call_and_leaves_nothing_but_its_log(own: Own, tmp_path: Path, arena_folder: Path) -> None:
    deployment = own(eviction_policy="arc", eviction_watermark=0.7, eviction_ratio=0.1, chunk_size=128)
    assert not (tmp_path / "logs").exists()
    deployment.admin.timeout = 0.25  # a whole answer may take 1.5 s; the start takes longer, and is not part of the first call
    assert config(deployment).known() == {
        **CacheConfig(enabled=True, max_size_mb=8, eviction_policy=EvictionPolicy.ARC, enable_prefix_caching=True).known(),
        **CacheConfig(min_prefix_length=128, chunk_size=128, auto_eviction=True, l2_adapters=()).known(),
        **CacheConfig(cache_warmup=False, enable_sharing=True).known(),
        **CacheConfig(
            eviction_watermark=0.7, eviction_ratio=0.1, l2_store_policy="default", l2_prefetch_policy="default"
        ).known(),
        **CacheConfig(hash_algorithm="blake3", tenant_quotas_mb={}).known(),
    }
    process = io_loop.run(deployment.started)
    server = server_of(process)
    assert list(arena_folder.iterdir()) == []
    assert process.folder.is_dir()
    assert listening(process.http_port)
    io_loop.run(deployment.close)
    assert not psutil.pid_exists(server.pid)
    assert not psutil.pid_exists(process._guard.pid)
    assert not listening(process.http_port)
    assert not listening(process.rpc_port)
    assert not process.folder.exists()
    assert [log.suffix for log in (tmp_path / "logs").iterdir()] == [".log"]


@pytest.mark.needs("lmcache")
def test_l1_of_a_policy_it_cannot_have_is_refused_at_once() -> None:
    with pytest.raises(UnsupportedError, match="has the eviction policies lru, arc, noop, not mru"):
        EmbeddedDeployment(EmbeddedOptions(eviction_policy=EvictionPolicy.MRU), Path("unused"))


def test_a_folder_without_room_for_l1_is_a_clear_error(own: Own, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="No such file"):
        config(own(arena_folder=tmp_path / "missing"))
    with pytest.raises(UnsupportedError, match="MB free; ask for less"):
        config(own(l1_size_mb=1e9))


def test_without_lmcache_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnsupportedError, match="install the extra `embedded`"):
        EmbeddedDeployment(EmbeddedOptions(), Path("unused"))


@pytest.mark.needs("lmcache")
def test_a_secret_that_was_masked_is_never_taken_for_a_secret(cache: Cache) -> None:
    update = ConfigUpdate(l2_adapters=(L2Adapter(type="resp", settings={"password": "***"}),))
    with pytest.raises(UnsupportedError, match="we show secrets of an L2 adapter as"):
        io_loop.run(cache.deployment.apply, update, silent)


# ---- ends of all kinds ----


def test_a_server_that_was_killed_is_reported_once_and_the_next_call_starts_another(not_forked: None, own: Own) -> None:
    deployment = own()
    process = io_loop.run(deployment.started)
    server_of(process).kill()
    with pytest.raises(CacheDiedError, match=rf"process ended \(exit code 137\).*log: {process.log}"):
        config(deployment)
    assert config(deployment).max_size_mb == 8
    again = io_loop.run(deployment.started)
    assert again is not process
    assert not process.folder.exists()
    assert replay(log_of(range(4)), again.rpc_url).requests == 1
    # And when the guard itself is killed, the kernel ends the server.
    server = server_of(again)
    again._guard.kill()
    server.wait(10)
    io_loop.run(deployment.close)
    assert not again.folder.exists()


OWNER = """
    import sys, time
    from pathlib import Path
    from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
    from agent_tools.io_loop import io_loop

    deployment = EmbeddedDeployment(EmbeddedOptions(l1_size_mb=8, arena_folder=Path(sys.argv[2])), Path(sys.argv[1]))
    io_loop.run(deployment.started)
    print("started", flush=True)
    {then}
"""
WAIT = "time.sleep(60)"


@dataclass(frozen=True)
class Owner:
    """A Python program that has, or is about to have, started an embedded server."""

    process: "subprocess.Popen[str]"
    guard: psutil.Process
    arena_folder: Path

    def leaves(self, end: Callable[[], object]) -> None:
        """End it, and see that nothing is left of its server."""
        folder, flags = self.guard.cmdline()[2], self.guard.cmdline()
        family = [self.guard, *self.guard.children(recursive=True)]
        end()
        self.process.wait(20)
        _, alive = psutil.wait_procs(family, timeout=15)
        assert alive == []
        assert not Path(folder).exists()
        assert not listening(int(flags[flags.index("--http-port") + 1]))
        self.arena_folder.rmdir()  # which fails unless it is empty


@pytest.fixture(scope="module")
def owners(lmcache: None, tmp_path_factory: pytest.TempPathFactory, arena_folder: Path) -> Iterator[dict[str, Owner]]:
    """Three of them, started side by side."""
    ends = {"killed": WAIT, "starting": WAIT, "careless": "sys.stdin.read()"}
    folders = {name: arena_folder / name for name in ends}
    for folder in folders.values():
        folder.mkdir()
    processes = {
        name: subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(OWNER.format(then=then)),
                str(tmp_path_factory.mktemp(name)),
                str(folders[name]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        for name, then in ends.items()
    }
    try:
        yield {name: Owner(one, eventually(partial(guard_of, one.pid), 30), folders[name]) for name, one in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def guard_of(owner: int) -> psutil.Process | None:
    return next(
        (child for child in psutil.Process(owner).children() if any("guard.py" in part for part in child.cmdline())), None
    )


def has_started(owner: Owner) -> None:
    assert owner.process.stdout is not None
    assert owner.process.stdout.readline() == "started\n"


def test_ctrl_c_while_it_starts_leaves_nothing(owners: dict[str, Owner]) -> None:
    # To all of a terminal's processes; the server is not among them.
    owners["starting"].leaves(lambda: os.killpg(owners["starting"].process.pid, signal.SIGINT))


def test_an_owner_that_is_killed_leaves_nothing(owners: dict[str, Owner]) -> None:
    has_started(owners["killed"])
    owners["killed"].leaves(owners["killed"].process.kill)


def test_an_owner_that_ends_without_closing_leaves_nothing(owners: dict[str, Owner]) -> None:
    has_started(owners["careless"])
    assert owners["careless"].process.stdin is not None
    owners["careless"].leaves(owners["careless"].process.stdin.close)
