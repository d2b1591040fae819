"""The steps of `tune_fleet`, one node each."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableLambda
from langgraph.runtime import Runtime
from langgraph.types import Command, Send, interrupt

from agent_tools.deployments.members import side_by_side
from agent_tools.errors import LMCacheToolError
from agent_tools.models import Mode, VerificationVerdict
from agent_tools.operations import Operations
from agent_tools.recommender.verify import why_undone

from .both_ways import Say, both_ways
from .fleet_order import alike, fingerprint, next_servers
from .fleet_state import (
    APPROVE,
    FleetApproval,
    FleetContext,
    FleetReport,
    FleetView,
    Group,
    Reading,
    ServerOutcome,
    ServerView,
    Step,
)
from .person import authenticated
from .state import context_of

ACTOR = "graph tune_fleet"
NOBODY = "no server could be read; check the addresses in caches.toml. Nothing was changed"


@dataclass(frozen=True)
class Run:
    """What a step uses besides its view of the state."""

    operations: Operations
    context: FleetContext
    say: Say
    person: str
    """Who started the run or, after an interrupt, resumed it."""

    def acting(self, *, approved: bool) -> Operations:
        """Return the operations for a change: approved by who resumed the run, if a person was asked."""
        return self.operations.approved(self.person if approved else None)


def node(
    step: Callable[[Any, Run], Awaitable[Any]],
    operations: Callable[[], Operations],
    on_error: Callable[[Any, LMCacheToolError], Any],
) -> RunnableLambda[Any, Any]:
    """Return a step as a node. `on_error` turns an `LMCacheToolError` into the node's result."""

    async def guarded(given: Any, context: object, say: Say, person: str) -> Any:  # noqa: ANN401
        # LangGraph does not turn the argument of `Send` into a view.
        view = ServerView.model_validate(given) if isinstance(given, dict) else given
        try:
            return await step(view, Run(operations().called_by(authenticated(person)), fleet_context(context), say, person))
        except LMCacheToolError as error:
            return on_error(view, error)

    return both_ways(step.__name__, guarded)


def fleet_context(context: object) -> FleetContext:
    """Return the run's settings. See `context_of`."""
    return context_of(context, FleetContext, "tune_fleet")


def stopped(_: FleetView, error: LMCacheToolError) -> Command[str]:
    """End the run after an error that came before any change."""
    return Command(goto="report", update={"fleet_stop": str(error)})


def left_out(view: ServerView, error: LMCacheToolError) -> dict[str, Any]:
    """Leave out a server that cannot be read, and record the reason."""
    return {"fleet_failures": {view.server: {"why": str(error)}}}


def failed(view: ServerView, error: LMCacheToolError) -> Command[str]:
    """Record that a server failed. The roll-out in its group stops."""
    return _done(view, ServerOutcome.FAILED, str(error))


async def list_servers(_: FleetView, run: Run) -> Command[str]:
    """List all servers, and start reading them side by side. Leave out a fleet whose coordinator does not answer."""
    caches = {cache: run.operations.servers(cache) for cache in run.context.caches}
    answers, failures = await side_by_side(caches)
    servers = [server for names in answers.values() for server in names]
    run.say(f"reading {len(servers)} servers side by side")
    left_out = {cache: {"why": str(error)} for cache, error in failures.items()}
    update: dict[str, Any] = {"fleet_failures": left_out}
    if not servers:
        return Command(goto="report", update={**update, "fleet_stop": NOBODY})
    return Command(goto=[Send("read", {"server": server}) for server in servers], update=update)


async def read(view: ServerView, run: Run) -> dict[str, Any]:
    """Observe one server for the window."""
    baseline = await run.operations.baseline(view.server, run.context.window_seconds or None)
    config = await run.operations.settings(view.server)
    reading = {"baseline": baseline.model_dump(mode="json"), "config": config.model_dump(mode="json")}
    return {"fleet_readings": {view.server: reading}}


async def recommend(view: FleetView, run: Run) -> Command[str]:
    """Group servers with the same configuration and workload, and get a recommendation for each group's canary."""
    if not view.fleet_readings:
        return Command(goto="report", update={"fleet_stop": NOBODY})
    if run.context.mode is Mode.OBSERVE:
        return Command(goto="report", update={"fleet_stop": "mode observe: the servers were only read"})
    groups = [await _group(servers, view.fleet_readings[servers[0]], run) for servers in alike(view.fleet_readings)]
    for group in groups:
        run.say(f"group of {len(group.servers)} servers, canary {group.servers[0]}: {group.advice.why}")
    update = {"fleet_groups": [group.model_dump(mode="json") for group in groups]}
    if run.context.mode is Mode.RECOMMEND or all(group.update is None for group in groups):
        return Command(goto="report", update=update)
    return Command(goto="approve" if run.context.mode is Mode.APPROVE else "next_batch", update=update)


async def _group(servers: tuple[str, ...], canary: Reading, run: Run) -> Group:
    window = canary.baseline.metrics.window
    since = None if window.lifetime else window.start.timestamp()
    context = run.context
    advice = await run.operations.recommend(servers[0], context.window_seconds or None, context.bounds, since=since)
    return Group(servers=servers, advice=advice)


def approve(state: FleetView) -> Command[str]:
    """Wait for a person's approval. The node does nothing before the interrupt, because LangGraph runs it again on resume."""
    answer = interrupt(approval_request(state), response_schema=FleetApproval)
    approval = answer if isinstance(answer, FleetApproval) else FleetApproval.model_validate(answer)
    decision = approval.decisions[0]
    if approval.fingerprint not in (None, fingerprint(state.fleet_groups)):
        why = "the approval is for other changes than the ones shown; start a new run. Nothing was changed"
        return Command(goto="report", update={"fleet_stop": why})
    if decision.type == "reject":
        why = f": {decision.message}" if decision.message else ""
        return Command(goto="report", update={"fleet_stop": f"not approved{why}; nothing was changed"})
    return Command(goto="next_batch", update={"fleet_approved": True})


def approval_request(view: FleetView) -> dict[str, Any]:
    """Return all changes as LangChain's human-in-the-loop payload."""
    changes = [(group, group.update.known()) for group in view.fleet_groups if group.update is not None]
    lines = [
        f"Change {len(group.servers)} servers, starting with {group.servers[0]}: {update}. {group.advice.why}."
        for group, update in changes
    ]
    shown = [{"servers": group.servers, "update": update} for group, update in changes]
    return {
        "action_requests": [
            {
                "name": APPROVE,
                "args": {"changes": shown, "fingerprint": fingerprint(view.fleet_groups)},
                "description": "\n".join(
                    [*lines, "If a server gets worse, its change is undone and the roll-out in its group stops."]
                ),
            }
        ],
        "review_configs": [{"action_name": APPROVE, "allowed_decisions": ["approve", "reject"]}],
    }


async def next_batch(view: FleetView, run: Run) -> Command[str]:
    """Choose the servers to change next. Do nothing while a change is still in progress."""
    if any(step.outcome is None for step in view.fleet_steps.values()):
        return Command()
    chosen = next_servers(view.fleet_groups, view.fleet_steps, run.context.batch_size)
    if chosen is None:
        return Command(goto="report")
    group, servers = chosen
    run.say(f"changing next: {', '.join(servers)}")
    views = [
        ServerView(
            server=server,
            fleet_reason=view.fleet_reason or group.advice.why,
            reading=view.fleet_readings[server],
            update=group.update,
            approved=view.fleet_approved,
        )
        for server in servers
    ]
    return Command(goto=[_send("plan", one) for one in views])


async def plan(view: ServerView, run: Run) -> Command[str]:
    """Plan the change of one server. The graph saves the plan before it acts, so that the plan is carried out only once."""
    assert view.update is not None  # noqa: S101  `next_batch` chooses groups that have one
    await run.operations.check_cooldown(view.server)
    made = await run.operations.plan(view.server, view.update, view.fleet_reason, run.context.bounds)
    if made.command is not None:
        why = f"the change needs a restart by the operator, with the command: {made.command}"
        return _done(view, ServerOutcome.NEEDS_OPERATOR, why, plan=made)
    return _on(view, "change", plan=made)


async def change(view: ServerView, run: Run) -> Command[str]:
    """Carry out the plan of one server."""
    assert view.step.plan is not None  # noqa: S101  made by `plan`
    run.say(f"{view.server}: applying {view.step.plan}")
    return _on(view, "verify", change=await run.acting(approved=view.approved).apply(view.step.plan, ACTOR, run.say))


async def verify(view: ServerView, run: Run) -> Command[str]:
    """Verify whether the change helped one server."""
    assert view.step.change is not None and view.reading is not None  # noqa: S101, PT018  made by `change` and `read`
    found = await run.operations.verify(view.step.change, view.reading.baseline, run.context.verify_seconds)
    run.say(f"{view.server}: {found.verdict.value}: {found.why}")
    if found.verdict is VerificationVerdict.WORSE:
        return _on(view, "roll_back", verification=found)
    better = found.verdict is VerificationVerdict.BETTER
    return _done(view, ServerOutcome.IMPROVED if better else ServerOutcome.KEPT_UNDECIDED, found.why, verification=found)


async def roll_back(view: ServerView, run: Run) -> Command[str]:
    """Undo the change of one server."""
    assert view.step.change is not None and view.step.verification is not None  # noqa: S101, PT018  made by `change`, `verify`
    undo = await run.acting(approved=view.approved).undo(view.server, view.step.change.change_id, ACTOR, run.say)
    return _done(
        view,
        ServerOutcome.ROLLED_BACK,
        f"the change {why_undone(view.step.verification)}. It was undone: {undo.message}",
        undo=undo,
    )


def report(state: FleetView, runtime: Runtime[FleetContext]) -> dict[str, Any]:
    """Write the report, the graph's only output."""
    try:
        context = fleet_context(runtime.context)
    except LMCacheToolError:
        context = FleetContext()
    steps = dict(state.fleet_steps)
    for group in state.fleet_groups:
        if group.update is not None and state.fleet_stop is None and context.mode in (Mode.APPROVE, Mode.AUTO):
            not_reached = Step(outcome=ServerOutcome.NOT_REACHED, summary="the roll-out in its group stopped earlier")
            steps |= {server: not_reached for server in group.servers if server not in steps}
    finished = FleetReport(
        caches=context.caches,
        mode=context.mode,
        summary=state.fleet_stop or _summary(state, steps),
        groups=tuple(state.fleet_groups),
        servers=steps,
        left_out={server: failure["why"] for server, failure in state.fleet_failures.items()},
    )
    return {"fleet_report": finished.model_dump(mode="json")}


def _summary(view: FleetView, steps: dict[str, Step]) -> str:
    read = f"{len(view.fleet_readings)} servers read in {len(view.fleet_groups)} groups"
    missing = f", {len(view.fleet_failures)} left out" if view.fleet_failures else ""
    outcomes = Counter(step.outcome.value for step in steps.values() if step.outcome is not None)
    became = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) or "nothing was changed"
    return f"{read}{missing}: {became}"


def _on(view: ServerView, node: str, **made: Any) -> Command[str]:  # noqa: ANN401  fields of `Step`
    """Save the step's results, and continue with the same server."""
    step = view.step.model_copy(update=made)
    return Command(goto=_send(node, view.model_copy(update={"step": step})), update=_kept(view, step))


def _done(view: ServerView, outcome: ServerOutcome, summary: str, **made: Any) -> Command[str]:  # noqa: ANN401
    """Save the outcome for this server."""
    step = view.step.model_copy(update={**made, "outcome": outcome, "summary": summary})
    return Command(goto="next_batch", update=_kept(view, step))


def _kept(view: ServerView, step: Step) -> dict[str, Any]:
    return {"fleet_steps": {view.server: step.model_dump(mode="json")}}


def _send(node: str, view: ServerView) -> Send:
    return Send(node, view.model_dump(mode="json"))
