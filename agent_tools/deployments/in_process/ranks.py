"""The ranks of one engine: what their counters mean together.

Every rank of a tensor-parallel engine looks up every prompt and stores its own part of every chunk (in-process LMCache 0.5.6). So
lookups, tokens, stored and evicted chunks of an engine are those of one rank; bytes and keys are the sums over its ranks.
"""

from collections.abc import Mapping
from dataclasses import replace

from agent_tools.deployments.snapshot import Snapshot

from .worker import Json


def once_per_engine(answers: Mapping[str, Snapshot], metas: Mapping[str, Json]) -> dict[str, Snapshot]:
    """Return the workers' readings, with `Snapshot.repeats` on every rank of an engine but the lowest that answered.

    Workers of world size 1 are engines of their own (data parallel), and all of them count. Ranks that appear twice belong to
    further engines of the same model.
    """
    lowest: dict[tuple[object, ...], tuple[int, str]] = {}
    engine_of = {name: _engine(name, metas) for name in answers}
    for name, engine in engine_of.items():
        rank = (int(metas[name].get("worker_id") or 0), name)
        lowest[engine] = min(lowest.get(engine, rank), rank)
    return {name: replace(one, repeats=lowest[engine_of[name]][1] != name) for name, one in answers.items()}


def ranks_answering(answers: Mapping[str, Snapshot]) -> float:
    """Return the ranks that answered for each engine, as the mean over the engines."""
    engines = sum(not one.repeats for one in answers.values())
    return len(answers) / engines if engines else 1.0


def _engine(name: str, metas: Mapping[str, Json]) -> tuple[object, ...]:
    """Return what the ranks of one engine share."""
    meta = metas[name]
    if int(meta.get("world_size") or 1) <= 1:
        return ("alone", name)
    same = [other for other, one in metas.items() if _identity(one) == _identity(meta)]
    return (*_identity(meta)[:2], same.index(name))


def _identity(meta: Json) -> tuple[object, ...]:
    return (meta.get("model_name"), meta.get("world_size"), meta.get("worker_id"))
