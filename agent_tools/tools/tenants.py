"""The tools for tenants (cache salts): token hit rate, prompts, memory use and quota of each tenant, and of each model."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agent_tools.models import ConfigUpdate, Prompts, Tenant, Tenants
from agent_tools.models.config import DEFAULT_TENANT
from agent_tools.plain import plain

from .act import ACTOR, ReasonArguments, changed
from .observe import WindowArguments
from .spec import CHANGE, READ, Operations, ToolSpec

if TYPE_CHECKING:
    from agent_tools.recommender.quota_advice import TenantQuotas


class QuotaArguments(ReasonArguments):
    """The quota of one tenant, and the reason for changing it."""

    tenant: Annotated[str, Field(max_length=128)]
    """The cache salt of the tenant's requests. Empty: requests without a salt."""
    quota_mb: Annotated[float, Field(ge=0)] | None
    """The tenant's L2 quota, MB. null removes the quota."""


class BudgetArguments(WindowArguments):
    """The L2 budget to divide among the tenants."""

    budget_mb: Annotated[float, Field(gt=0)] | None = None
    """The most that all quotas together may come to, MB. Leave out for the sum of the present quotas, or for the size of L2."""


async def list_tenants(operations: Operations, arguments: WindowArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_list_tenants`. The artifact is a `Tenants`."""
    report = await operations.tenants(arguments.cache, arguments.window_seconds)
    return describe_tenants(report), report.model_dump(mode="json")


async def recommend_tenant_quotas(operations: Operations, arguments: BudgetArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_recommend_tenant_quotas`. The artifact is a `TenantQuotas`."""
    advice = await operations.tenant_quotas(arguments.cache, arguments.window_seconds, arguments.budget_mb)
    return describe_quotas(advice), {**advice.model_dump(mode="json"), "quotas_mb": advice.quotas_mb}


async def set_tenant_quota(operations: Operations, arguments: QuotaArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_set_tenant_quota`. The artifact is a `ChangeResult`."""
    config, _ = await operations.config(arguments.cache)
    salt = arguments.tenant or DEFAULT_TENANT
    others = {name: quota for name, quota in (config.tenant_quotas_mb or {}).items() if name != salt}
    quotas = others if arguments.quota_mb is None else {**others, salt: arguments.quota_mb}
    plan = await operations.plan(arguments.cache, ConfigUpdate(tenant_quotas_mb=quotas), arguments.reason)
    return changed(await operations.apply(plan, ACTOR))


def describe_tenants(report: Tenants) -> str:
    """Return one line for each tenant, the one with the most requested tokens first, then one for each model."""
    lines = [*_lines(report.tenants, "(no salt)")]
    if report.more.count:
        tokens = report.more.tokens
        lines.append(f"... and {report.more.count:,} more tenants together: {tokens.hit} of {tokens.requested} tokens hit")
    if not lines:
        lines = ["no tenant has sent a request" + ("" if report.no_usage else " or has a quota")]
    models = ["models:", *_lines(report.models, "(no name)")] if report.models else []
    notes = [f"note: {why}" for why in (report.no_prompts, report.no_usage) if why is not None]
    return "\n".join([f"window: {report.window.span}", *lines, *models, *notes])


def _lines(named: Mapping[str, Tenant], nameless: str) -> list[str]:
    ranked = sorted(named.items(), key=lambda pair: -pair[1].tokens.requested)
    return [f"{plain(name) or nameless}: {'; '.join(_facts(one))}" for name, one in ranked]


def _facts(one: Tenant) -> Iterator[str]:
    tokens, usage = one.tokens, one.usage
    if tokens.hit_rate is not None:
        yield f"token hit rate {tokens.hit_rate:.1%} of {tokens.requested} tokens"
    elif one.prompts is None:
        yield "no requests"
    if one.prompts is not None:
        yield _prompts(one.prompts)
    yield from (f"{size:.1f} MB in {tier}" for tier, size in (("L1", usage.l1_mb), ("L2", usage.l2_mb)) if size)
    if usage.quota_mb is not None:
        yield f"quota {usage.quota_mb:g} MB"


def _prompts(prompts: Prompts) -> str:
    ends = f", most diverge in chunk {prompts.diverge_at:,} ({prompts.diverging:.0%})" if prompts.diverge_at else ""
    return (
        f"{prompts.count:,} prompts, median {prompts.median_chunks:,.0f} and at most {prompts.largest_chunks:,} chunks,"
        f" {prompts.share:.0%} of all tokens; {prompts.again:.0%} of theirs come again{ends}"
    )


def describe_quotas(advice: "TenantQuotas") -> str:
    """Return the recommended quotas as a few lines of text."""
    whole = max(advice.requested_tokens, 1)
    shared, equal, quotas = (
        hits / whole for hits in (advice.hit_tokens_shared, advice.hit_tokens_equal, advice.hit_tokens_quotas)
    )
    lines = [
        f"{advice.verdict.value}: {advice.why}",
        f"{advice.budget_mb:g} MB of L2: {shared:.1%} as one shared cache, {equal:.1%} in equal parts, {quotas:.1%} with the"
        " quotas below",
    ]
    for one in advice.tenants:
        now = "none" if one.quota_now_mb is None else f"{one.quota_now_mb:g} MB"
        asked = max(one.requested_tokens, 1)
        lines.append(
            f"{plain(one.tenant) or '(no salt)'}: quota {now} -> {one.quota_mb:.1f} MB; {one.requests} requests,"
            f" {one.hit_tokens_now / asked:.1%} of its tokens served now, {one.hit_tokens_quota / asked:.1%} with the new quota"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in advice.notes)])


TENANTS = (
    ToolSpec(
        name="list_tenants",
        title="Tenants of a cache",
        description="For each tenant (cache salt) and each model of a cache, show token hit rate, prompts (number, lengths, share"
        " of all tokens, how much comes again, in which chunk most diverge from earlier ones); for tenants also memory use in L1"
        " and L2, and quota.",
        arguments=WindowArguments,
        run=list_tenants,
        hints=READ,
    ),
    ToolSpec(
        name="recommend_tenant_quotas",
        title="Recommend tenants' quotas",
        description="Divide an L2 budget among tenants (cache salts): show what each tenant gains or loses, and whether quotas"
        " beat one shared cache at all; often they do not. Changes nothing. To follow the result, pass its `quotas_mb` to"
        " lmcache_plan_update"
        ' as {"tenant_quotas_mb": ...}.',
        arguments=BudgetArguments,
        run=recommend_tenant_quotas,
        hints=READ,
    ),
    ToolSpec(
        name="set_tenant_quota",
        title="Set a tenant's quota",
        description="Set or remove the L2 quota of one tenant (cache salt), within the operator's bounds. The change is"
        " recorded and can be undone. On a single server a tenant without a quota loses everything it has in L2, so an update"
        " that leaves another tenant unlisted is refused. In a fleet, tenants without a quota have no limit.",
        arguments=QuotaArguments,
        run=set_tenant_quota,
        hints=CHANGE,
    ),
)
