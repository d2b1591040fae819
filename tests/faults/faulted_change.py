"""One change of a real server, planned, applied and undone while one of its calls is spoilt; and what must hold afterwards.

What is in force is asked of the server itself, by plain HTTP that does not pass the proxy.
"""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fault_proxy import METRICS, Call, Fault, FaultProxy
from pydantic import SecretStr

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.changes.log import stories
from agent_tools.errors import (
    CacheDiedError,
    LMCacheToolError,
    OutcomeUnknownError,
    RecordError,
    StalePlanError,
    UnknownChangeError,
)
from agent_tools.models import MB, Bounds, ChangeOutcome, ChangeResult, ConfigUpdate, L2Adapter, Plan
from agent_tools.operations import Operations

State = dict[str, object]
Outcome = ChangeOutcome
IMPATIENT = 0.4
"""Seconds that the product waits for a call while calls are spoilt."""
UNCHANGED = {Outcome.REFUSED}
PERHAPS = {Outcome.UNKNOWN, Outcome.FAILED}
CLOSED = {Outcome.APPLIED, *UNCHANGED, *PERHAPS}


@dataclass
class Scene:
    """A server, the proxy in front of it, and what is changed there."""

    url: str
    proxy: FaultProxy
    folder: Path
    arenas: Path
    l2: L2Adapter
    """The L2 adapter that the change attaches; the server's module lists it."""
    token: SecretStr | None = None
    """The token of the server's module."""
    bounds: Bounds | None = None
    """What the operator allows; by default what is changed."""
    first: State = field(default_factory=dict)
    """What is in force before each trial."""
    wanted: State = field(default_factory=dict)
    """What is in force after the change."""
    calls: tuple[str, ...] = ()
    """Those that the product makes when nothing goes wrong, in their order."""

    @property
    def update(self) -> ConfigUpdate:
        """Four calls that change something, of all kinds: POST, PUT, DELETE (to undo); two of them would double when repeated."""
        return ConfigUpdate(max_size_mb=24, eviction_policy="arc", l2_prefetch_policy="retain", l2_adapters=(self.l2,))

    def settings(self, state_folder: Path, timeout: float = 10) -> Settings:
        """The cache ``prod`` behind the proxy."""
        prod = CacheSettings(
            target=self.proxy.url,
            arena_folder=self.arenas,
            module_token=self.token,
            bounds=self.bounds or Bounds(max_size_mb=24, l2_adapter=self.l2),
            timeout_seconds=timeout,
        )
        return Settings(caches={"prod": prod}, state_folder=state_folder)

    @contextlib.asynccontextmanager
    async def agent(self, state_folder: Path, timeout: float = 10) -> AsyncIterator[Operations]:
        """One that knows only what is on record, and waits for a call so many seconds."""
        operations = Operations(Registry(self.settings(state_folder, timeout)))
        try:
            yield operations
        finally:
            await operations.close()

    async def in_force(self) -> State:
        """What the server itself says is set: sizes and numbers of what a repeated change would double, among others."""
        token = {} if self.token is None else {"Authorization": f"Bearer {self.token.get_secret_value()}"}
        async with httpx.AsyncClient(base_url=self.url, timeout=10, trust_env=False, headers=token) as client:
            paths = ("/reconfigure/dax/l1/status", "/agent-tools/eviction", "/agent-tools/l2")
            dax, eviction, l2 = [(await client.get(path)).raise_for_status().json() for path in paths]
        arenas: list[dict[str, Any]] = [one for one in dax["arenas"] if one["state"] == "active"]
        return {
            "l1_mb": sum(one["size_in_bytes"] for one in arenas) / MB,
            "arenas": len(arenas),
            "policy": eviction[0]["setting"]["policy"],
            "prefetch": l2["prefetch_policy"],
            "adapters": len(l2["adapters"]),
        }

    async def rehearse(self) -> None:
        """Change and undo without a fault, to count the calls and to know both states."""
        self.first = await self.in_force()
        self.proxy.heal()
        with tempfile.TemporaryDirectory(dir=self.folder) as state_folder:
            async with self.agent(Path(state_folder)) as operations:
                plan = await operations.plan("prod", self.update, "a rehearsal")
                change = await operations.apply(plan, "test")
                self.wanted = await self.in_force()
                await operations.undo("prod", change.change_id, "test")
        self.calls = tuple(self.proxy.calls)
        if await self.in_force() != self.first or self.wanted == self.first:
            raise RuntimeError(f"{self.first} -> {self.wanted} -> {await self.in_force()}")


@dataclass
class Attempt:
    """How far a change and its undo came."""

    plan: Plan | None = None
    change: ChangeResult | None = None
    undo: ChangeResult | None = None
    error: Exception | None = None

    @property
    def step(self) -> str:
        """Where it ended."""
        if self.error is None:
            return "none"
        return "plan" if self.plan is None else "apply" if self.change is None else "undo"


async def attempt(operations: Operations, update: ConfigUpdate) -> Attempt:
    """Plan, apply, undo, until an error ends it."""
    done = Attempt()
    try:
        done.plan = await operations.plan("prod", update, "a test wants it")
        done.change = await operations.apply(done.plan, "test")
        done.undo = await operations.undo("prod", done.change.change_id, "test")
    except Exception as error:  # noqa: BLE001  which error it was is judged
        done.error = error
    return done


async def trial(scene: Scene, call: Call, fault: Fault, *, lasting: bool = False) -> tuple[Attempt, list[str]]:
    """A change with this call spoilt, and all that does not hold afterwards."""
    with tempfile.TemporaryDirectory(dir=scene.folder) as name:
        state_folder = Path(name)
        await scene.proxy.open()
        scene.proxy.arm(call, fault, lasting=lasting)
        async with scene.agent(state_folder, 10 if fault in METRICS else IMPATIENT) as operations:
            done = await attempt(operations, scene.update)
        await scene.proxy.open()
        scene.proxy.heal()
        await scene.proxy.settled()  # whatever the agent was told has to hold when they have
        try:
            before = scene.wanted if done.step == "undo" else scene.first
            wrong = [fault async for fault in told(scene, state_folder, done, before)]
            wrong += [fault async for fault in aftermath(scene, state_folder, done)]
        except Exception as error:  # noqa: BLE001  a trial that ends so has failed
            wrong = [f"afterwards: {type(error).__name__}: {error}"]
    if list(scene.arenas.iterdir()):
        wrong.append("an arena's file was left behind")
    return done, wrong


async def told(scene: Scene, state_folder: Path, done: Attempt, before: State) -> AsyncIterator[str]:
    """What the product says, to its caller and on record, against what is in force; `before` would be, had nothing changed."""
    now = await scene.in_force()
    async with scene.agent(state_folder) as operations:
        log = stories(await operations.changes())
    outcome = log[0][-1].outcome if len(log) > (done.step == "undo") else None
    if done.error is None:
        if now != scene.first:
            yield f"undone, and in force is {now}"
        return
    if not isinstance(done.error, LMCacheToolError):
        yield f"{type(done.error).__name__} is none of our errors: {done.error}"
    if isinstance(done.error, RecordError) and "was undone by" in str(done.error):
        if now != scene.first:
            yield f"told that it was undone, and in force is {now}"
        return
    unknown = isinstance(done.error, OutcomeUnknownError | CacheDiedError)
    if not unknown and now != before:
        yield f"told {type(done.error).__name__}, and in force is {now}: {done.error}"
    if "othing was changed" in str(done.error) and now != before:
        yield f"told that nothing was changed, and in force is {now}: {done.error}"
    if outcome in {None, Outcome.REFUSED} and now != before:
        yield f"on record as {outcome}, and in force is {now}"
    if unknown != (outcome in PERHAPS):
        yield f"told {type(done.error).__name__}, and on record as {outcome}"


async def aftermath(scene: Scene, state_folder: Path, done: Attempt) -> AsyncIterator[str]:
    """Do it again, twice; undo it; look at the record."""
    async with scene.agent(state_folder) as operations:
        if done.step == "undo" and done.change is not None:
            try:
                await operations.undo("prod", done.change.change_id, "test again")
            except UnknownChangeError as error:
                if "is not in force: prod is set as it was before it" not in str(error):  # else its server was started anew
                    yield f"undo again: {error}"
        elif done.error is not None:
            plan = done.plan or await operations.plan("prod", scene.update, "a test wants it")
            async for wrong in _again(scene, operations, plan):
                yield wrong
            log = stories(await operations.changes())
            if await scene.in_force() != scene.first:
                await operations.undo("prod", log[0][0].change_id, "test")
        if (now := await scene.in_force()) != scene.first:
            yield f"after the undo, in force is {now}"
        async for wrong in gaps(operations):
            yield wrong


async def _again(scene: Scene, operations: Operations, plan: Plan) -> AsyncIterator[str]:
    """The same plan once more, and once more."""
    for _ in range(2):
        before, known = await scene.in_force(), len(scene.proxy.changes)
        try:
            await operations.apply(plan, "test again")
            expected = scene.wanted
        except StalePlanError:
            expected = before
        sent = scene.proxy.changes[known:]
        if (now := await scene.in_force()) != expected:
            yield f"the same plan again led from {before} to {now}"
        if before != scene.first and sent:
            yield f"the same plan again sent {sent}"


async def gaps(operations: Operations, *, killed: bool = False) -> AsyncIterator[str]:
    """Each line is a record, each change began, and what became of it is said, unless its process was killed."""
    records = await operations.changes()
    path = operations.actor.log.path
    lines = path.read_bytes().splitlines() if path.exists() else []
    if len(lines) != len(records):
        yield f"{len(lines)} lines and {len(records)} records"
    for story in stories(records):
        if story[0].outcome is not Outcome.STARTED:
            yield f"{story[0].change_id} begins with {story[0].outcome}"
        if not killed and not CLOSED & {record.outcome for record in story}:
            yield f"{story[0].change_id}: nothing says what became of it"
