"""Symptoms of one tenant's or one model's prompts among the others': what only the owner of an application can mend."""

from dataclasses import dataclass

import numpy as np

from agent_tools.models import Rung, Severity, Symptom, SymptomCode
from agent_tools.plain import plain, points
from agent_tools.recommender.observation import Ints, Observation

from .rule import ENOUGH_LOOKUPS, NOTICEABLE, figure

LARGE_SHARE = 0.1
"""Smallest share of the requested tokens of a tenant or model that can crowd out others."""
ONCE = 0.05
"""Largest share of its tokens that come again, for prompts that nobody asks for again."""


@dataclass(frozen=True)
class Owner:
    """The prompts of one tenant or model in a window."""

    kind: str
    """``tenant`` or ``model``."""
    name: str
    mine: Ints
    """(requests,) 1 for each of the log's requests that is theirs, else 0."""
    prompts: int
    """Prompts in the window."""
    median_chunks: float
    largest_chunks: int
    share: float
    """Share of the window's requested tokens."""
    again: float
    """Share of these that an unbounded cache would serve."""

    def __str__(self) -> str:
        return f"{self.kind} {plain(self.name) or '(no salt)'}"


def crowded_out(seen: Observation) -> Symptom | None:
    """Report that one tenant's or model's prompts, which nobody asks for again, push out what others ask for again."""
    if seen.log is None or seen.curve is None or not (seen.metrics.evictions or seen.metrics.failed_stores):
        return None
    suspects = [one for one in owners(seen) if one.again <= ONCE and one.share >= LARGE_SHARE and one.prompts >= ENOUGH_LOOKUPS]
    costs = [(cost, one) for one in suspects if (cost := _cost(seen, one)) is not None and cost >= NOTICEABLE]
    if not costs:
        return None
    cost, worst = max(costs, key=lambda pair: pair[0])
    return Symptom(
        code=SymptomCode.CROWDED_OUT,
        severity=Severity.MEDIUM,
        summary=f"The prompts of {worst} take {worst.share:.0%} of the requested tokens, and {worst.again:.0%} of them come"
        f" again: {worst.prompts:,} prompts, median {worst.median_chunks:,.0f} and at most {worst.largest_chunks:,} chunks. They"
        f" push out what others ask for again and cost the others {points(-cost)} of token hit rate. Only their owner"
        " can mend that: send these prompts with lmcache.max_offload_tokens set to 0 in kv_transfer_params (in-process LMCache:"
        " lmcache.skip_save set to true), so that they are not stored",
        evidence=(
            figure("share of the requested tokens (access log)", worst.share, "share"),
            figure("share of these that come again (access log)", worst.again, "share"),
            figure("token hit rate that it costs the others (model)", cost, "share"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def owners(seen: Observation) -> list[Owner]:
    """Return the prompts of each tenant, and of each model, of the window. Empty without a log."""
    log, depths = seen.log, seen.shared_depths
    if log is None or depths is None:
        return []
    found, whole = [], max(int(seen.window_chunks.sum()), 1)
    for kind, labels, names in (("tenant", log.tenants, log.tenant_names), ("model", log.models, log.model_names)):
        for label in np.unique(labels[seen.in_window]) if len(names) > 1 else ():
            mine = (labels == label).astype(np.int64)
            inside = mine[seen.in_window] > 0
            chunks = seen.window_chunks[inside]
            asked = int(chunks.sum())
            found.append(
                Owner(
                    kind=kind,
                    name=names[label],
                    mine=mine,
                    prompts=int(inside.sum()),
                    median_chunks=float(np.median(chunks)),
                    largest_chunks=int(chunks.max()),
                    share=asked / whole,
                    again=float(depths[inside].sum()) / max(asked, 1),
                )
            )
    return found


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
