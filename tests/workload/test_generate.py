"""Claims about the generated agent traffic."""

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

DIGEST_OF_SEED_7 = "ec18a41df7e8443b25b45bb40fd82232ac71f5e8087454ddda2b3a630b150653"


def digest(log: AccessLog) -> str:
    arrays = (log.chunk_ids, log.offsets, log.tokens, (log.timestamps * 1000).round().astype(np.int64), log.tenants)
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def test_the_same_seed_gives_the_same_traffic_on_every_machine() -> None:
    assert digest(AgentTraffic(requests=300, seed=7).generate()) == DIGEST_OF_SEED_7


def test_another_seed_gives_other_traffic() -> None:
    assert digest(AgentTraffic(requests=50, seed=1).generate()) != digest(AgentTraffic(requests=50, seed=2).generate())


def test_there_are_as_many_requests_as_asked_for_in_time_order() -> None:
    log = AgentTraffic(requests=500).generate()
    assert len(log) == 500
    assert log.timestamps[0] == 0
    assert (np.diff(log.timestamps) >= 0).all()
    assert (log.chunks_per_request == log.tokens // 256).all()
    assert log.tokens.max() <= 32_000


def test_tenants_share_no_chunk() -> None:
    log = AgentTraffic(requests=600, tenants=3).generate()
    tenant_of_chunk = np.repeat(log.tenants, log.chunks_per_request)
    pairs = np.unique(np.stack([log.chunk_ids, tenant_of_chunk]), axis=1)
    assert pairs.shape[1] == log.unique_chunks
    assert log.tenant_names == ("tenant-1", "tenant-2", "tenant-3")


def test_equal_chunks_have_equal_prefixes() -> None:
    log = AgentTraffic(requests=600, conversations=5).generate()
    before: dict[int, int] = {}
    for number in range(len(log)):
        chunks = log.request(number).tolist()
        assert [before.setdefault(chunk, parent) for chunk, parent in zip(chunks, [-1, *chunks], strict=False)] == [
            -1,
            *chunks[:-1],
        ]


def test_a_conversation_grows_at_its_end_only() -> None:
    log = AgentTraffic(requests=40, tenants=1, conversations=1, turns=10_000, context_tokens=2**24).generate()
    for earlier, later in zip(range(39), range(1, 40), strict=True):
        assert log.request(later)[: len(log.request(earlier))].tolist() == log.request(earlier).tolist()
        assert log.tokens[later] > log.tokens[earlier]


def test_conversations_share_a_system_prompt_and_nothing_after_it() -> None:
    traffic = AgentTraffic(
        requests=400, tenants=1, system_prompts=1, conversations=8, turns=1, system_tokens=1_000, user_tokens=600, spread=0
    )
    log = traffic.generate()
    assert log.tokens.tolist() == [1_600] * 400
    assert log.unique_chunks == 3 + 400 * 3  # 1,000 tokens hold 3 whole chunks; 1,600 hold 6


def test_popular_system_prompts_are_chosen_more_often() -> None:
    traffic = AgentTraffic(requests=4_000, tenants=1, system_prompts=4, turns=1, system_tokens=256, user_tokens=1, spread=0)
    log = traffic.model_copy(update={"prompt_skew": 1.0}).generate()
    shares = np.sort(np.bincount(log.chunk_ids) / len(log))[::-1]
    assert shares == pytest.approx([0.48, 0.24, 0.16, 0.12], abs=0.03)


def test_lengths_and_pauses_keep_their_means() -> None:
    traffic = AgentTraffic(
        requests=2_000, tenants=1, conversations=1, turns=10_000, context_tokens=2**24, tool_share=0.5, seed=3, system_tokens=100
    )
    log = traffic.generate()
    assert np.diff(log.tokens).mean() == pytest.approx(200 + (80 + 600) / 2, rel=0.1)
    assert np.diff(log.timestamps).mean() == pytest.approx(200 / 60 + (20 + 2) / 2, rel=0.1)


@pytest.mark.parametrize(
    "bad",
    [{"requests": 0}, {"tenants": 0}, {"tool_share": 1.5}, {"turns": 0.5}, {"seed": -1}, {"context_tokens": 4_000}, {"x": 1}],
)
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AgentTraffic.model_validate(bad)


def test_the_schema_explains_every_parameter() -> None:
    properties = AgentTraffic.model_json_schema()["properties"]
    assert [name for name, field in properties.items() if not field.get("description")] == []
