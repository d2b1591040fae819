"""Symptoms of the shapes of production: models of unequal bytes on one server, and chunks made of several objects."""

import numpy as np

from agent_tools.models import Rung, Severity, Symptom, SymptomCode
from agent_tools.plain import plain
from agent_tools.prediction.hit_rate_curve import hits_per_request
from agent_tools.recommender.observation import Observation

from .rule import figure

INCOMPLETE = 0.2
"""Smallest share of L1's chunks without some object that is reported. Some are usual: eviction takes objects one by one."""
FEWEST_INCOMPLETE = 20
"""Fewest such chunks that are reported: those being stored at this moment are among them."""
STARVES = 0.2
"""Smallest share of a model's tokens lost to eviction that is reported."""
TIMES = 2
"""How many times as much a starving model loses as the rest of the traffic."""
NOTABLE = 0.02
"""Smallest share of the requested tokens of a model that is looked at."""


def chunks_incomplete(seen: Observation) -> Symptom | None:
    """Report that many chunks in L1 lack the part of some KV rank or object group. No request can hit them."""
    incomplete, resident = seen.metrics.incomplete_chunks or 0, seen.metrics.resident_chunks or 0
    if incomplete < FEWEST_INCOMPLETE or not resident or incomplete / resident < INCOMPLETE:
        return None
    return Symptom(
        code=SymptomCode.CHUNKS_INCOMPLETE,
        severity=Severity.HIGH if incomplete > resident / 2 else Severity.MEDIUM,
        summary=f"{incomplete:,} of {resident:,} chunks in L1 lack the part of some KV rank or object group, so no request can"
        " hit them. Either a worker of the engine does not store (read its log), or L1 has room for the parts of some ranks or"
        " groups only",
        evidence=(
            figure("chunks in L1 that lack objects (/status, agent_tools)", incomplete, "chunks"),
            figure("chunks in L1", resident, "chunks"),
        ),
    )


def model_starves(seen: Observation) -> Symptom | None:
    """Report that one model loses far more of its hits to eviction than the rest of the traffic on the same server."""
    if seen.log is None or seen.curve is None or len(seen.log.layouts) < 2 or seen.shared_depths is None:
        return None
    log, window = seen.log, seen.in_window
    models, asked = log.models[window], seen.window_chunks
    best = hits_per_request(log, log.unique_chunks)[window]
    lost: dict[str, tuple[float, float, float]] = {}
    for label in np.unique(models):
        layout, of_model = log.layouts[label], models == label
        measured = None if layout is None else seen.metrics.by_model.get(layout.model)
        if layout is None or measured is None or measured.hit_rate is None or asked[of_model].sum() < NOTABLE * asked.sum():
            continue
        ceiling = float(best[of_model].sum() / asked[of_model].sum())
        lost[layout.model] = (max(ceiling - measured.hit_rate, 0.0), measured.hit_rate, ceiling)
    if len(lost) < 2:
        return None
    model = max(lost, key=lambda name: lost[name][0])
    share, rate, ceiling = lost[model]
    others = max(loss for name, (loss, *_) in lost.items() if name != model)
    if share < STARVES or share < TIMES * others:
        return None
    return Symptom(
        code=SymptomCode.MODEL_STARVES,
        severity=Severity.HIGH,
        summary=f"The model {plain(model)} has a token hit rate of {rate:.1%}; an unbounded cache would give it {ceiling:.1%};"
        f" the other models lose at most {100 * others:.1f} points. They share L1, so it needs room for all of them, or a server"
        " of its own",
        evidence=(
            figure(f"token hit rate of {plain(model)}", rate, "share"),
            figure(f"token hit rate of {plain(model)} in an unbounded cache (access log)", ceiling, "share"),
            figure("most that another model loses", others, "share"),
        ),
        rung=Rung.ACCESS_LOG,
    )
