"""Group similar servers, and choose the servers to change next. This module does no I/O."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from .fleet_state import Group, Reading, ServerOutcome, Step

SAME_HIT_RATE = 0.05
"""Largest difference in token hit rate between servers with the same workload."""
SAME_LENGTH = 1.25
"""Largest ratio of mean prompt lengths between servers with the same workload."""
OWN = frozenset({"tenant_quotas_mb", "l2_adapters"})
"""Settings that belong to one server alone, e.g. its folders. The grouping ignores them."""


def alike(readings: Mapping[str, Reading]) -> list[tuple[str, ...]]:
    """Return groups of servers with the same configuration and workload. In each group, the busiest server comes first."""
    busiest = sorted(readings, key=lambda name: (-readings[name].baseline.metrics.tokens.requested, name))
    groups: list[list[str]] = []
    for name in busiest:
        group = next((group for group in groups if _alike(readings[group[0]], readings[name])), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return [tuple(group) for group in groups]


def _alike(one: Reading, other: Reading) -> bool:
    return _settings(one) == _settings(other) and _same_workload(one, other)


def _settings(reading: Reading) -> dict[str, object]:
    return {name: value for name, value in reading.config.known().items() if name not in OWN}


def _same_workload(one: Reading, other: Reading) -> bool:
    mine, others = one.baseline.metrics, other.baseline.metrics
    if mine.by_model.keys() != others.by_model.keys():
        return False
    rates = (mine.tokens.hit_rate, others.tokens.hit_rate)
    if rates[0] is None or rates[1] is None:
        return rates[0] is rates[1]
    lengths = sorted(one.tokens.requested / max(one.total_requests or 0, 1) for one in (mine, others))
    return abs(rates[0] - rates[1]) <= SAME_HIT_RATE and lengths[1] <= SAME_LENGTH * lengths[0]


def next_servers(groups: Sequence[Group], steps: Mapping[str, Step], batch_size: int) -> tuple[Group, tuple[str, ...]] | None:
    """Return the next group and its servers to change, or ``None`` if there are none.

    The first server is the group's canary; later the group changes in batches. A group continues if its canary improved and
    none of its servers got worse or failed.
    """
    for group in groups:
        left = tuple(server for server in group.servers if server not in steps)
        if group.update is None or not left or not _goes_on(group, steps):
            continue
        return group, left[:1] if left == group.servers else left[:batch_size]
    return None


def _goes_on(group: Group, steps: Mapping[str, Step]) -> bool:
    outcomes = [steps[server].outcome for server in group.servers if server in steps]
    stopping = {ServerOutcome.ROLLED_BACK, ServerOutcome.FAILED, ServerOutcome.NEEDS_OPERATOR}
    return not outcomes or (outcomes[0] is ServerOutcome.IMPROVED and not stopping & set(outcomes))


def fingerprint(groups: Sequence[Group]) -> str:
    """Return a digest of all changes and their servers."""
    facts = [[group.servers, group.update.known()] for group in groups if group.update is not None]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
