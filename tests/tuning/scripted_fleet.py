"""Operations on a fleet of any size that exists in memory: what was asked of it, and who gets worse by a change."""

from collections.abc import Callable, Mapping
from typing import Any

from example_advice import agents, observed

from agent_tools.changes.log import new_id
from agent_tools.errors import LMCacheToolError, UnreachableError
from agent_tools.models import (
    Advice,
    CacheConfig,
    CacheMetrics,
    ChangeResult,
    Plan,
    SettingChange,
    SupportLevel,
    Verdict,
    Verification,
    VerificationVerdict,
)
from agent_tools.models.change import Baseline
from agent_tools.models.metrics import now

EXAMPLE = observed(agents(), 4096)
assert EXAMPLE.advice.verdict is Verdict.ACT
NEW = EXAMPLE.advice.best.update if EXAMPLE.advice.best else None


def verdict(kind: VerificationVerdict) -> Verification:
    """A verification that came out so."""
    return Verification(
        verdict=kind,
        why=f"seen to be {kind.value}",
        in_force=True,
        gain=None,
        paired=True,
        before=EXAMPLE.metrics,
        after=EXAMPLE.metrics,
    )


class ScriptedFleet:
    """Stands in for `Operations`: the same verbs as `tune_fleet` uses, answered from memory and written down."""

    def __init__(
        self,
        servers: int,
        *,
        worse: Callable[[str], bool] = lambda _: False,
        silent: Callable[[str], bool] = lambda _: False,
        sizes_mb: Mapping[str, float] | None = None,
        fails_at: Callable[[str, str], Exception | None] = lambda _verb, _server: None,
    ) -> None:
        self.names = [f"prod/{number:03}" for number in range(servers)]
        self._worse, self._silent, self._fails_at = worse, silent, fails_at
        self._sizes = dict(sizes_mb or {})
        self.done: list[tuple[str, str]] = []
        """(verb, server) of all that was carried out, in order."""
        self._plans: set[str] = set()

    def servers_of(self, verb: str) -> list[str]:
        """Where a verb was carried out."""
        return [server for what, server in self.done if what == verb]

    def approved(self, _person: str | None) -> "ScriptedFleet":
        return self

    def called_by(self, _caller: str | None) -> "ScriptedFleet":
        return self

    async def servers(self, cache: str) -> list[str]:
        if cache != "prod":
            raise UnreachableError(f"the coordinator of {cache} does not answer")
        return self.names

    async def baseline(self, server: str, *_: object) -> Baseline:
        if self._silent(server):
            raise UnreachableError(f"no cache answered at {server}")
        return Baseline(metrics=self._metrics(server))

    async def settings(self, server: str) -> CacheConfig:
        return CacheConfig(max_size_mb=self._sizes.get(server, 4096), eviction_watermark=0.8)

    async def recommend(self, server: str, *_: object, **__: object) -> Advice:
        self._go("recommend", server)
        return EXAMPLE.advice

    async def check_cooldown(self, _server: str) -> None:
        return None

    async def plan(self, server: str, update: Any, reason: str, *_: object) -> Plan:
        self._go("plan", server)
        changes = tuple(
            SettingChange(setting=name, old=None, new=value, how=SupportLevel.LIVE, note="")
            for name, value in update.known().items()
        )
        return Plan(
            plan_id=new_id("plan"), cache=server, created_at=now(), update=update, changes=changes, reason=reason, fingerprint="f"
        )

    async def apply(self, plan: Plan, *_: object) -> ChangeResult:
        if plan.plan_id not in self._plans:  # as `Actor.apply` does it: once
            self._plans.add(plan.plan_id)
            self.done.append(("apply", plan.cache))
        self._raise("apply", plan.cache)
        return self._result(plan)

    async def verify(self, change: ChangeResult, *_: object) -> Verification:
        self._go("verify", change.plan.cache)
        return verdict(VerificationVerdict.WORSE if self._worse(change.plan.cache) else VerificationVerdict.BETTER)

    async def undo(self, server: str, change_id: str, *_: object) -> ChangeResult:
        self._go("undo", server)
        assert NEW is not None
        return self._result(await self.plan(server, NEW, change_id))

    def _result(self, plan: Plan) -> ChangeResult:
        change_id = f"change-of-{plan.plan_id}"
        return ChangeResult(success=True, message="", change_id=change_id, plan=plan, config=CacheConfig(), undo="")

    def _metrics(self, server: str) -> CacheMetrics:
        """The first server is the busiest, the others follow."""
        fewer = self.names.index(server)
        tokens = EXAMPLE.metrics.tokens
        return EXAMPLE.metrics.model_copy(
            update={"tokens": tokens.model_copy(update={"requested": tokens.requested - fewer, "hit_l1": tokens.hit_l1 - fewer})}
        )

    def _go(self, verb: str, server: str) -> None:
        self._raise(verb, server)
        self.done.append((verb, server))

    def _raise(self, verb: str, server: str) -> None:
        error = self._fails_at(verb, server)
        if error is not None:
            raise error


def refused(verb: str, server: str) -> Callable[[str, str], Exception | None]:
    """Fails at this verb on this server, as LMCache would refuse it."""
    return lambda what, where: LMCacheToolError("refused by the script") if (what, where) == (verb, server) else None
