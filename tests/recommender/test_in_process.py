"""Claims about in-process LMCache in the recommender: sizes are those of one worker, and so are chunks."""

from dataclasses import replace

import pytest
from observed import CONFIG, LIVE, observation
from real_logs import conversations, log_of

from agent_tools.models import MB, Support, SupportLevel
from agent_tools.prediction.in_process_setting import InProcessSetting
from agent_tools.recommender.modelled import server_setting
from agent_tools.recommender.observation import Observation

CHUNK_BYTES = 2**18
"""Of one rank."""
RANKS = 8
INSIDE = LIVE | {"eviction_watermark": Support(level=SupportLevel.UNSUPPORTED, reason="it has none")}


def inside(ranks: int) -> Observation:
    """An engine of so many ranks with 64 MB each. What LMCache measures is of all ranks together."""
    log = replace(log_of(*conversations(10, 8)), chunk_bytes=CHUNK_BYTES)
    config = CONFIG.model_copy(update={"max_size_mb": 64.0, "eviction_watermark": None, "eviction_ratio": None})
    figures = {"kv_bytes_per_token": ranks * CHUNK_BYTES / log.chunk_size, "total_size_mb": 64.0 * ranks}
    return observation(log, config=config, support=INSIDE, **figures)  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [1, 2, RANKS])
def test_a_worker_holds_as_many_chunks_at_any_world_size(ranks: int) -> None:
    seen = inside(ranks)
    assert (seen.in_process, seen.workers) == (True, ranks)
    assert server_setting(seen) == InProcessSetting(64 * MB / CHUNK_BYTES)
