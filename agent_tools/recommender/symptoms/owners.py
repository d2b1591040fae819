"""Symptoms of one tenant's or one model's prompts among the others': what only the owner of an application can mend."""

from dataclasses import dataclass

import numpy as np

from agent_tools.models import Prompts, Rung, Severity, Symptom, SymptomCode
from agent_tools.plain import plain, points
from agent_tools.recommender.observation import Ints, Observation
from agent_tools.recommender.prompts import prompts_by

from .rule import ENOUGH_LOOKUPS, NOTICEABLE, figure

LARGE_SHARE = 0.1
"""Smallest share of the requested tokens of a tenant or model that can crowd out others."""
ONCE = 0.05
"""Largest share of its tokens that come again, for prompts that nobody asks for again."""


@dataclass(frozen=True)
class Owner:
    """One tenant or model, and its prompts in a window."""

    kind: str
    """``tenant`` or ``model``."""
    name: str
    mine: Ints
    """(requests,) 1 for each of the log's requests that is theirs, else 0."""
    prompts: Prompts

    def __str__(self) -> str:
        return f"{self.kind} {plain(self.name) or '(no salt)'}"


def crowded_out(seen: Observation) -> Symptom | None:
    """Report that one tenant's or model's prompts, which nobody asks for again, push out what others ask for again."""
    if seen.log is None or seen.curve is None or not (seen.metrics.evictions or seen.metrics.failed_stores):
        return None
    suspects = [one for one in owners(seen) if one.prompts.again <= ONCE and large(one.prompts)]
    costs = [(cost, one) for one in suspects if (cost := _cost(seen, one)) is not None and cost >= NOTICEABLE]
    if not costs:
        return None
    cost, worst = max(costs, key=lambda pair: pair[0])
    theirs = worst.prompts
    return Symptom(
        code=SymptomCode.CROWDED_OUT,
        severity=Severity.MEDIUM,
        summary=f"The prompts of {worst} take {theirs.share:.0%} of the requested tokens, and {theirs.again:.0%} of them come"
        f" again: {theirs.count:,} prompts, median {theirs.median_chunks:,.0f} and at most {theirs.largest_chunks:,} chunks. They"
        f" push out what others ask for again and cost the others {points(-cost)} of token hit rate. Only their owner"
        " can mend that: send these prompts with lmcache.max_offload_tokens set to 0 in kv_transfer_params (in-process LMCache:"
        " lmcache.skip_save set to true), so that they are not stored",
        evidence=(
            figure("share of the requested tokens (access log)", theirs.share, "share"),
            figure("share of these that come again (access log)", theirs.again, "share"),
            figure("token hit rate that it costs the others (model)", cost, "share"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def large(prompts: Prompts) -> bool:
    """Return whether there are enough of them to matter to the others."""
    return prompts.share >= LARGE_SHARE and prompts.count >= ENOUGH_LOOKUPS


def owners(seen: Observation) -> list[Owner]:
    """Return the tenants, and the models, that share the window. Empty without a log, and if one alone has it."""
    if seen.log is None:
        return []
    log = seen.log
    sides = (("tenant", log.tenants, log.tenant_names), ("model", log.models, log.model_names))
    return [
        Owner(kind, name, (labels == names.index(name)).astype(np.int64), prompts)
        for kind, labels, names in sides
        if len(names) > 1
        for name, prompts in prompts_by(seen, labels, names).items()
    ]


def _cost(seen: Observation, owner: Owner) -> float | None:
    """Return the token hit rate that the others lose to an owner's prompts, or ``None`` if the model cannot say."""
    from agent_tools.prediction.server_prediction import predict_server  # noqa: PLC0415  the model takes long to load
    from agent_tools.recommender.modelled import predicted_hits, server_setting  # noqa: PLC0415

    here, log = server_setting(seen), seen.log
    if here is None or log is None:
        return None
    others = owner.mine == 0
    counted, asked = seen.in_window[others], seen.window_chunks[others[seen.in_window]].sum()
    if not asked:
        return None
    now = predicted_hits(seen, here)
    served = (now.l1 + now.l2).mean(axis=0)[others[seen.in_window]].sum()
    alone = predict_server(log.select(np.flatnonzero(others)), here, clocks=seen.clocks, delay=seen.store_delay)
    return float((alone.hit_chunks[counted].sum() - served) / asked)
