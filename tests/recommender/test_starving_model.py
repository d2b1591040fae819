"""Claims about advice for two models of unequal bytes on one server."""

from dataclasses import replace

import numpy as np
from observed import CONFIG, observation

from agent_tools.models import Bounds, SymptomCode, TokenCounts, Verdict
from agent_tools.prediction.server_model import simulate_server
from agent_tools.recommender.modelled import server_setting
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.recommend import recommend
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.chunk_layout import ChunkLayout, ObjectGroup, with_layouts
from agent_tools.workload.generate import AgentTraffic

SECONDS = 40.0
LAYOUTS = (ChunkLayout((ObjectGroup(32_768),), 8, "big"), ChunkLayout((ObjectGroup(8_192),), 1, "small"))
"""256 KiB a chunk on eight ranks, and 8 KiB on one."""


def two_models() -> AccessLog:
    """Return agents' requests of which one in eight is of the big model."""
    log = AgentTraffic(
        requests=500, seed=4, chunk_size=256, tenants=1, conversations=12, system_tokens=4800, turns=8, context_tokens=16000
    ).generate()
    models = (np.random.default_rng(1).random(len(log)) > 0.125).astype(np.int16)
    times = (log.timestamps - log.timestamps[0]) * SECONDS / log.duration
    log = replace(log, models=models, model_names=("big", "small"), timestamps=times, tenant_names=("",))
    return with_layouts(log, LAYOUTS)


def served_at(size_mb: float) -> Observation:
    """Return what a server of this size would show, by its model."""
    bounds, config = Bounds(max_size_mb=4000), CONFIG.model_copy(update={"max_size_mb": size_mb})
    seen = observation(two_models(), config=config, bounds=bounds)
    setting = server_setting(seen)
    assert setting is not None
    assert seen.log is not None
    run = simulate_server(seen.log, setting)
    counts = {
        name: TokenCounts(
            requested=int(run.asked_chunks[seen.log.models == label].sum()) * 256,
            hit_l1=int(run.hit_chunks[seen.log.models == label].sum()) * 256,
        )
        for label, name in enumerate(seen.log.model_names)
    }
    total = TokenCounts(requested=sum(c.requested for c in counts.values()), hit_l1=sum(c.hit for c in counts.values()))
    figures = {"by_model": counts, "tokens": total, "evictions": run.evicted_chunks, "failed_stores": run.failed_chunks}
    return observation(two_models(), config=config, bounds=bounds, total_requests=len(seen.log), **figures)


def test_a_model_that_starves_beside_another_is_named_and_growth_is_proposed() -> None:
    seen = served_at(30)
    advice = recommend(seen)
    (starving,) = [symptom for symptom in advice.symptoms if symptom.code is SymptomCode.MODEL_STARVES]
    rate = seen.metrics.by_model["big"].hit_rate
    assert f"The model big has a token hit rate of {rate:.1%}" in starving.summary
    assert advice.verdict is Verdict.ACT
    update = advice.recommendations[0].update
    assert update is not None
    assert update.max_size_mb is not None
    assert update.max_size_mb > 30


def test_the_bytes_of_both_models_decide_how_much_fits() -> None:
    seen = served_at(30)
    assert seen.log is not None
    assert seen.curve is not None
    assert seen.chunk_bytes is not None
    footprint_mb = seen.curve.footprint * seen.chunk_bytes / 2**20
    chunks = [
        len(np.unique(seen.log.chunk_ids[np.repeat(seen.log.models == one, seen.log.chunks_per_request)])) for one in (0, 1)
    ]
    assert abs(footprint_mb - sum(n * layout.bytes for n, layout in zip(chunks, LAYOUTS, strict=True)) / 2**20) < 0.2
