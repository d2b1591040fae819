"""Which servers belong together, and which of them is to be changed next; no I/O."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from .fleet_state import Group, Reading, ServerOutcome, Step

SAME_HIT_RATE = 0.05
"""Token hit rates that differ by no more are of one workload."""
SAME_LENGTH = 1.25
"""So are mean prompt lengths that differ by no more than this factor."""
OWN = frozenset({"tenant_quotas_mb", "l2_adapters"})
"""Settings that name a server's own folders or were set for it alone: they do not tell servers apart."""


def alike(readings: Mapping[str, Reading]) -> list[tuple[str, ...]]:
    """Servers in groups whose configuration and workload agree; in each the one with most traffic first."""
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
    """The servers to change next, all of one group: its canary, later a batch; ``None`` when there are none.

    A group goes on while its canary was seen to be better and no server of it was worse or failed.
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
    """Digest of what would be changed on which servers."""
    facts = [[group.servers, group.update.known()] for group in groups if group.update is not None]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
