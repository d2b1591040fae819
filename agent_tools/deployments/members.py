"""A cache of several processes (workers of an engine, servers of a fleet): ask them side by side, and merge their answers."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any, TypeVar

from agent_tools.deployments.counters import Labels, TokenCounters
from agent_tools.errors import LMCacheToolError, UnreachableError
from agent_tools.models import SETTINGS, CacheConfig, Health

from .snapshot import Snapshot, added

T = TypeVar("T")


async def side_by_side(asked: Mapping[str, Awaitable[T]]) -> tuple[dict[str, T], dict[str, LMCacheToolError]]:
    """Return the answers and the failures of all members, by name.

    Only an `LMCacheToolError` counts as a failure; any other exception is raised.
    """
    outcomes = dict(zip(asked, await asyncio.gather(*asked.values(), return_exceptions=True), strict=True))
    answers: dict[str, T] = {}
    failures: dict[str, LMCacheToolError] = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, LMCacheToolError):
            failures[name] = outcome
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            answers[name] = outcome
    return answers, failures


def together(answers: Mapping[str, Snapshot], failures: Mapping[str, LMCacheToolError]) -> Snapshot:
    """Return the sum of the members' readings. What several ranks of one engine count alike is counted once.

    A member that did not answer is named in the health, and is missing from the sums.

    Raises:
        UnreachableError: No member answered.
    """
    if not answers:
        reasons = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise UnreachableError(f"no member of this cache answered ({reasons or 'it has no members'}). Nothing was changed")
    parts = list(answers.values())
    counting = [part for part in parts if not part.repeats]
    counters = [part.counters for part in counting if part.counters is not None]
    return Snapshot(
        asked_at=min(part.asked_at for part in parts),
        taken_at=max(part.taken_at for part in parts),
        process_start=min((part.process_start for part in parts if part.process_start is not None), default=None),
        instance_id=",".join(f"{name}={part.instance_id}" for name, part in sorted(answers.items())),
        counters=reduce(added, counters) if counters else None,
        tokens=_tokens(counting),
        l1_used_bytes=sum(part.l1_used_bytes for part in parts),
        l1_total_bytes=sum(part.l1_total_bytes for part in parts),
        resident_objects=sum(part.resident_objects for part in parts),
        objects_per_chunk=_common(part.objects_per_chunk for part in parts),
        chunk_size=_common(part.chunk_size for part in parts) or 0,
        health=_health(answers, failures),
        locked_objects=_total(part.locked_objects for part in parts),
        l2_used_bytes=_total(part.l2_used_bytes for part in parts),
        l2_total_bytes=_total(part.l2_total_bytes for part in parts),
        version=_common(part.version for part in parts),
        notes={key: f"{name}: {note}" for name, part in sorted(answers.items()) for key, note in part.notes.items()},
        uncounted={name: why for part in parts for name, why in part.uncounted.items()},
        members=dict(answers),
    )


def agreed(configs: Mapping[str, CacheConfig]) -> CacheConfig:
    """Return the settings on which all members agree. Other settings are ``None`` and listed by member in `differences`."""
    plain = {name: config.model_dump(mode="json") for name, config in configs.items()}
    common: dict[str, Any] = {}
    differences: dict[str, dict[str, Any]] = {}
    for setting in (*SETTINGS, "hash_algorithm"):
        values = {name: settings[setting] for name, settings in plain.items()}
        first, *others = values.values()
        if all(other == first for other in others):
            common[setting] = first
        else:
            differences[setting] = values
    return CacheConfig(**common, differences=differences)


def _tokens(parts: Iterable[Snapshot]) -> dict[Labels, TokenCounters]:
    tokens: dict[Labels, TokenCounters] = {}
    for part in parts:
        for label, more in part.tokens.items():
            known = tokens.get(label, TokenCounters())
            tokens[label] = replace(
                known,
                requested=known.requested + more.requested,
                hit_l1=known.hit_l1 + more.hit_l1,
                hit_l2=known.hit_l2 + more.hit_l2,
            )
    return tokens


def _health(answers: Mapping[str, Snapshot], failures: Mapping[str, LMCacheToolError]) -> Health:
    silent = [f"{name} is missing from the sums: {error}" for name, error in failures.items()]
    ill = [f"{name}: {problem}" for name, part in answers.items() for problem in part.health.problems]
    return Health(
        healthy=not silent and all(part.health.healthy for part in answers.values()),
        problems=(*silent, *ill),
        discounted=tuple(f"{name}: {alarm}" for name, part in answers.items() for alarm in part.health.discounted),
    )


def _common(values: Iterable[T]) -> T | None:
    """Return the value that all members share, or ``None`` if they differ."""
    first, *others = values
    return first if all(other == first for other in others) else None


def _total(values: Iterable[int | None]) -> int | None:
    """Return the sum, or ``None`` if a value is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
