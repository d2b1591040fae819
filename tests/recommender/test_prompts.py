"""Claims about the prompts of each tenant and model: how many, how long, how much comes again, and where reuse ends."""

from dataclasses import replace

import numpy as np
from observed import observation
from real_cache import Play, eventually
from real_logs import log_of

from agent_tools.io_loop import io_loop
from agent_tools.models import Prompts, SymptomCode, Tenants, TokenCounts
from agent_tools.operations import Operations
from agent_tools.recommender.prompts import prompts_of
from agent_tools.recommender.symptoms import traffic
from agent_tools.tools.tenants import describe_tenants
from agent_tools.workload.access_log import AccessLog

APART = 1000
"""Chunk numbers of a prompt's own."""


def two_tenants() -> AccessLog:
    """60 prompts of 12 chunks that share a system prompt of 5, and between them 30 of 20 chunks with a timestamp in front."""
    helpdesk = [[*range(5), *range(APART * (n + 1), APART * (n + 1) + 7)] for n in range(60)]
    reports = [range(APART * (100 + n), APART * (100 + n) + 20) for n in range(30)]
    log = log_of(*(prompt for n in range(30) for prompt in (*helpdesk[2 * n : 2 * n + 2], reports[n])))
    return replace(log, tenants=(log.chunks_per_request == 20).astype(np.int16), tenant_names=("helpdesk", "reports"))


def test_each_tenants_prompts_end_their_reuse_where_they_diverge() -> None:
    by_tenant, by_model = prompts_of(observation(two_tenants()))
    whole = 60 * 12 + 30 * 20
    assert by_tenant == {
        "helpdesk": Prompts(
            count=60,
            median_chunks=12,
            largest_chunks=12,
            share=60 * 12 / whole,
            again=59 * 5 / (60 * 12),
            diverge_at=6,
            diverging=59 / 60,
        ),
        "reports": Prompts(
            count=30, median_chunks=20, largest_chunks=20, share=30 * 20 / whole, again=0, diverge_at=1, diverging=1
        ),
    }
    (together,) = by_model.values()
    assert (together.count, together.diverge_at, together.share) == (90, 6, 1)


def test_prompts_that_were_there_before_as_a_whole_diverge_nowhere() -> None:
    log = log_of(*[range(8)] * 20)
    only_again = replace(observation(log), metrics=observation(log).metrics)
    window = only_again.metrics.window.model_copy(update={"start": only_again.metrics.window.start.replace(second=2)})
    (prompts,) = prompts_of(only_again.during(window))[0].values()
    assert (prompts.count, prompts.again, prompts.diverge_at, prompts.diverging) == (19, 1, None, 0)


def test_without_a_log_nothing_is_known_of_prompts() -> None:
    assert prompts_of(observation()) == ({}, {})


def test_a_timestamp_in_front_of_one_tenants_prompts_is_found_beside_others_that_share_theirs() -> None:
    found = traffic.prefix_diverges_early(observation(two_tenants()))
    assert found is not None
    assert found.code is SymptomCode.PREFIX_DIVERGES_EARLY
    assert found.summary.startswith(
        "100% of the 30 prompts of tenant reports with 8 chunks or more share at most 1 chunk with an earlier one."
    )
    assert [one.value for one in found.evidence] == [1.0, 0.0, 20.0]
    alone = two_tenants()
    assert traffic.prefix_diverges_early(observation(replace(alone, tenants=0 * alone.tenants, tenant_names=("",)))) is None


def test_the_tool_lists_each_tenants_and_each_models_prompts(operations: Operations, play: Play) -> None:
    play(two_tenants(), model="prompted")

    def told() -> Tenants:
        return io_loop.run(operations.tenants)

    report = eventually(lambda: found if _counts(found := told()) == [60, 30] else None)
    assert report.no_prompts is None
    lines = describe_tenants(report).splitlines()
    (helpdesk,) = (line for line in lines if line.startswith("helpdesk: "))
    assert "60 prompts, median 12 and at most 12 chunks, " in helpdesk
    assert " of all tokens; 41% of theirs come again, most diverge in chunk 6 (98%)" in helpdesk
    (model,) = (line for line in lines[lines.index("models:") :] if line.startswith("prompted"))
    assert "90 prompts, median 12 and at most 20 chunks, " in model
    assert " of all tokens; 22% of theirs come again" in model


def _counts(report: Tenants) -> list[int]:
    """The prompts of the two tenants; tests that ran before on this cache have others."""
    prompts = [report.tenants[name].prompts for name in ("helpdesk", "reports") if name in report.tenants]
    return [one.count for one in prompts if one is not None]


def test_a_report_without_a_log_says_what_is_not_known() -> None:
    window = observation().metrics.window
    report = Tenants.model_validate(
        {
            "window": window,
            "tenants": {"acme": {"tokens": TokenCounts(requested=1000, hit_l1=250)}},
            "models": {"m": {"tokens": TokenCounts(requested=1000, hit_l1=250)}},
            "no_prompts": "there is no access log",
        }
    )
    assert describe_tenants(report).splitlines()[1:] == [
        "acme: token hit rate 25.0% of 1000 tokens",
        "models:",
        "m: token hit rate 25.0% of 1000 tokens",
        "note: there is no access log",
    ]
