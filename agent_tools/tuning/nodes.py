"""The steps of `tune_cache`. Each step calls one operation and chooses the next node."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from langchain_core.runnables import RunnableLambda
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from agent_tools.changes.undone import undone_lately
from agent_tools.errors import LMCacheToolError
from agent_tools.models import ActionKind, Baseline, Mode, Plan, Verdict, VerificationVerdict
from agent_tools.operations import Operations
from agent_tools.recommender.trial import keep_trial
from agent_tools.recommender.verify import why_undone

from .both_ways import Say, both_ways
from .person import authenticated
from .state import (
    APPLY,
    Advised,
    Approval,
    Changed,
    Finished,
    Nothing,
    Observed,
    Outcome,
    Planned,
    Stop,
    TuneContext,
    TuneReport,
    tune_context,
)

ACTOR = "graph tune_cache"

View = TypeVar("View", bound=BaseModel)


@dataclass(frozen=True)
class Run:
    """What a step uses besides its view of the state."""

    operations: Operations
    context: TuneContext
    say: Say
    person: str
    """Who started the run or, after an interrupt, resumed it."""

    def acting(self, *, approved: bool) -> Operations:
        """Return the operations for a change: approved by who resumed the run, if a person was asked."""
        return self.operations.approved(self.person if approved else None)


Step = Callable[[Any, Run], Awaitable[Command[str]]]


def node(step: Step, operations: Callable[[], Operations]) -> RunnableLambda[Any, Command[str]]:
    """Return a step as a node for both invoke and ainvoke. It runs on the I/O loop; an `LMCacheToolError` ends the run."""

    async def guarded(view: Any, context: object, say: Say, person: str) -> Command[str]:  # noqa: ANN401
        try:
            return await step(view, Run(operations().called_by(authenticated(person)), tune_context(context), say, person))
        except LMCacheToolError as error:
            return _stop(Outcome.FAILED, str(error))

    return both_ways(step.__name__, guarded)


async def read_metrics(_: Nothing, run: Run) -> Command[str]:
    """Observe the cache for the window."""
    context = run.context
    run.say(f"reading {context.cache}")
    baseline = await run.operations.baseline(context.cache, context.window_seconds or None, run.say)
    rate = baseline.metrics.tokens.hit_rate
    run.say("no lookups in the window" if rate is None else f"token hit rate {rate:.1%}")
    update = {"tune_baseline": baseline.model_dump(mode="json")}
    if context.mode is Mode.OBSERVE:
        return _stop(Outcome.OBSERVED, "mode observe: the cache was only read", update)
    return Command(goto="recommend", update=update)


async def recommend(view: Observed, run: Run) -> Command[str]:
    """Get a recommendation, and make a plan from it."""
    context = run.context
    run.say("searching for better settings")
    window = view.tune_baseline.metrics.window
    since = None if window.lifetime else window.start.timestamp()
    advice = await run.operations.recommend(context.cache, context.window_seconds or None, context.bounds, run.say, since)
    run.say(advice.why)
    update: dict[str, Any] = {"tune_advice": advice.model_dump(mode="json")}
    best = advice.best or advice.trial
    if best is None:
        return _stop(Outcome.NO_DATA if advice.verdict is Verdict.NO_DATA else Outcome.DO_NOTHING, advice.why, update)
    if best.action is ActionKind.OPTIMIZE:
        return (
            _stop(Outcome.RECOMMENDED, advice.why, update)
            if context.mode is Mode.RECOMMEND
            else Command(goto="optimize", update=update)
        )
    assert best.update is not None  # noqa: S101  every other action carries one
    plan = await run.operations.plan(context.cache, best.update, view.tune_reason or advice.why, context.bounds)
    plan = plan.model_copy(update={"predicted": best.gain})
    update["tune_plan"] = plan.model_dump(mode="json")
    if plan.command is not None:
        return _stop(
            Outcome.NEEDS_OPERATOR,
            f"{advice.why}. The change needs a restart by the operator; the plan holds what to start it with",
            update,
        )
    if context.mode is Mode.RECOMMEND:
        return _stop(Outcome.DO_NOTHING if advice.best is None else Outcome.RECOMMENDED, advice.why, update)
    if advice.best is None and (told := await _why_not_now(view.tune_baseline, plan, run)):
        return _stop(Outcome.DO_NOTHING, f"{advice.why}. It is not tried now, because {told}", update)
    if context.mode is Mode.AUTO or advice.trial is not None:
        await run.operations.check_cooldown(context.cache)
    return Command(goto="approve" if context.mode is Mode.APPROVE else "reconfigure", update=update)


async def _why_not_now(before: Baseline, plan: Plan, run: Run) -> str | None:
    """Return why the trial of a plan has to wait, or ``None``: it was undone lately, or nothing could be said of it."""
    undone = undone_lately(await run.operations.changes(plan.cache), plan.changes)
    if undone is not None:
        return f"{undone.change_id} changed the same and was undone at {undone.recorded_at:%Y-%m-%d %H:%M} UTC"
    doubt, seconds = await run.operations.trial_doubt(plan.cache, before), before.metrics.window.seconds
    if plan.predicted is not None and doubt < plan.predicted.estimate:
        return None
    if math.isinf(doubt):
        return f"there were too few requests in {seconds:.0f} s to judge it by"
    told = f"after {seconds:.0f} s the model's error is uncertain by {100 * doubt:.1f} points"
    return f"{told}, which is more than the trial may gain: observe for longer"


def approve(state: Planned) -> Command[str]:
    """Wait for a person's approval. The node does nothing before the interrupt, because LangGraph runs it again on resume."""
    plan = state.tune_plan
    answer = interrupt(approval_request(state), response_schema=Approval)
    approval = answer if isinstance(answer, Approval) else Approval.model_validate(answer)
    decision = approval.decisions[0]
    edited = decision.edited_action
    named = {approval.fingerprint, edited.args.fingerprint if edited else None} - {None}
    if named - {plan.fingerprint}:
        why = f"the approval is for another plan than {plan.plan_id}; start a new run. Nothing was changed"
        return _stop(Outcome.FAILED, why)
    if edited is not None and (edited.name != APPLY or edited.args.cache not in {None, plan.cache}):
        why = f"the edit is of another action, or of another cache, than {plan.plan_id}; start a new run. Nothing was changed"
        return _stop(Outcome.FAILED, why)
    if decision.type == "reject":
        return _stop(Outcome.REJECTED, f"not approved{f': {decision.message}' if decision.message else ''}; nothing was changed")
    edit = {} if edited is None else {"tune_edit": edited.args.update.model_dump(mode="json")}
    return Command(goto="reconfigure", update={"tune_approved": True, **edit})


def approval_request(view: Planned) -> dict[str, Any]:
    """Return the plan as LangChain's human-in-the-loop payload."""
    plan, best = view.tune_plan, view.tune_advice.best or view.tune_advice.trial
    loses = f"Lost: {plan.loses}." if plan.loses else "No cached data is lost."
    what = "Change" if view.tune_advice.trial is None else "Try a small gain (undone unless it helps) on"
    lines = [f"{what} {plan.cache}: {plan}.", f"{view.tune_advice.why}.", loses]
    if best is not None:
        lines.append(f"Cost: {best.cost}. Risk: {best.risk}. Undo: {best.undo}.")
    arguments = {"plan_id": plan.plan_id, "fingerprint": plan.fingerprint, "update": plan.update.known()}
    return {
        "action_requests": [{"name": APPLY, "args": arguments, "description": "\n".join(lines)}],
        "review_configs": [{"action_name": APPLY, "allowed_decisions": ["approve", "edit", "reject"]}],
    }


async def reconfigure(view: Planned, run: Run) -> Command[str]:
    """Carry out the plan, or the settings that a person edited."""
    plan = view.tune_plan
    if view.tune_edit is not None:
        # This raises if the cache has changed since the person saw the plan.
        await run.operations.plan(plan.cache, plan.update, plan.reason, run.context.bounds, plan.fingerprint)
        reason = f"{plan.reason} (edited by the approver)"
        plan = await run.operations.plan(plan.cache, view.tune_edit, reason, run.context.bounds)
    run.say(f"applying {plan}")
    change = await run.acting(approved=view.tune_approved).apply(plan, ACTOR, run.say, before=view.tune_baseline)
    run.say(f"applied {plan}")
    tried = view.tune_advice.trial is not None and view.tune_edit is None
    return Command(
        goto="try_out" if tried else "verify",
        update={"tune_plan": plan.model_dump(mode="json"), "tune_change": change.model_dump(mode="json")},
    )


async def optimize(view: Advised, run: Run) -> Command[str]:
    """Drop cold entries without changing a setting."""
    best = view.tune_advice.best
    target = best.target_utilization_percent if best else None
    if target is None:
        return _stop(Outcome.DO_NOTHING, view.tune_advice.why)
    dropped = await run.operations.optimize(run.context.cache, target, ACTOR, view.tune_reason or view.tune_advice.why)
    return _stop(Outcome.OPTIMIZED, dropped.message, {"tune_dropped": dropped.model_dump(mode="json")})


async def verify(view: Changed, run: Run) -> Command[str]:
    """Verify whether the change helped."""
    verification = await run.operations.verify(view.tune_change, view.tune_baseline, run.context.verify_seconds, run.say)
    run.say(f"{verification.verdict.value}: {verification.why}")
    update = {"tune_verification": verification.model_dump(mode="json")}
    if verification.verdict is VerificationVerdict.WORSE:
        return Command(goto="roll_back", update=update)
    improved = verification.verdict is VerificationVerdict.BETTER
    return _stop(Outcome.IMPROVED if improved else Outcome.KEPT_UNDECIDED, verification.why, update)


async def try_out(view: Changed, run: Run) -> Command[str]:
    """Judge the trial of a small gain: keep the change if it helps, else undo it."""
    found = await run.operations.try_out(view.tune_change, view.tune_baseline, run.context.verify_seconds, run.say)
    update = {"tune_verification": found.model_dump(mode="json")}
    sizes = [one.new - (one.old or 0) for one in view.tune_plan.changes if one.setting == "max_size_mb"]
    if not found.in_force:  # somebody else changed settings: their change is not ours to undo
        return _stop(Outcome.KEPT_UNDECIDED, f"the trial ended without an answer: {found.why}", update)
    if not keep_trial(found, added_mb=sum(sizes)):
        return Command(goto="roll_back", update=update)
    improved = found.verdict is VerificationVerdict.BETTER
    return _stop(Outcome.IMPROVED if improved else Outcome.KEPT_UNDECIDED, f"the trial is kept: {found.why}", update)


async def roll_back(view: Changed, run: Run) -> Command[str]:
    """Undo the change."""
    change, found = view.tune_change, view.tune_verification
    assert found is not None  # noqa: S101  only a verified change is undone here
    what = "trial" if view.tune_advice.trial is not None and view.tune_edit is None else "change"
    undo = await run.acting(approved=view.tune_approved).undo(change.plan.cache, change.change_id, ACTOR, run.say)
    return _stop(
        Outcome.ROLLED_BACK,
        f"the {what} {why_undone(found)}. It was undone: {undo.message}",
        {"tune_undo": undo.model_dump(mode="json")},
    )


def report(state: Finished, runtime: Runtime[TuneContext]) -> dict[str, Any]:
    """Write the report, the graph's only output."""
    try:
        shown = tune_context(runtime.context)
    except LMCacheToolError:
        shown = TuneContext()
    stop = state.tune_stop or Stop(outcome=Outcome.FAILED, summary="the run ended without a reason")
    finished = TuneReport(
        cache=shown.cache,
        mode=shown.mode,
        outcome=stop.outcome,
        summary=_simulated(state) + stop.summary,
        advice=state.tune_advice,
        plan=state.tune_plan,
        change=state.tune_change,
        dropped=state.tune_dropped,
        verification=state.tune_verification,
        undo=state.tune_undo,
    )
    return {"tune_report": finished.model_dump(mode="json")}


def _simulated(state: Finished) -> str:
    baseline = state.tune_baseline
    return "simulated: " if baseline is not None and baseline.metrics.window.simulated else ""


def _stop(outcome: Outcome, summary: str, update: dict[str, Any] | None = None) -> Command[str]:
    return Command(
        goto="report", update={**(update or {}), "tune_stop": Stop(outcome=outcome, summary=summary).model_dump(mode="json")}
    )
