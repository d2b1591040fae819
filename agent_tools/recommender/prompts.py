"""The prompts of each tenant or model: how many, how long, how much comes again, and where reuse ends."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agent_tools.models import Prompts

from .observation import Ints, Observation


def prompts_of(seen: Observation) -> tuple[dict[str, Prompts], dict[str, Prompts]]:
    """Return the prompts of the window by tenant and by model; both are empty without a log."""
    log = seen.log
    if log is None:
        return {}, {}
    return prompts_by(seen, log.tenants, log.tenant_names), prompts_by(seen, log.models, log.model_names)


def prompts_by(seen: Observation, labels: npt.NDArray[np.int16], names: Sequence[str]) -> dict[str, Prompts]:
    """Return the prompts of the window by name; empty without a log. Where prompts diverge is an estimate if the log is sampled.

    Args:
        seen: The cache in its window.
        labels: (requests,) which name each of the log's requests has.
        names: All names.
    """
    log, depths = seen.log, seen.shared_depths
    if log is None or depths is None:
        return {}
    inside, lengths = labels[seen.in_window], log.tokens[seen.in_window] // log.chunk_size
    recorded, whole = seen.window_chunks, max(int(seen.window_chunks.sum()), 1)
    return {
        names[label]: _prompts(lengths[mine], recorded[mine], depths[mine], whole, log.sampling_rate)
        for label in np.unique(inside)
        for mine in [inside == label]
    }


def _prompts(lengths: Ints, recorded: Ints, depths: Ints, whole: int, sampling_rate: float) -> Prompts:
    """Return one name's prompts.

    Args:
        lengths: (prompts,) whole chunks.
        recorded: (prompts,) chunks that the log recorded of them, which are all unless it is sampled.
        depths: (prompts,) leading recorded chunks that an earlier prompt had in front too.
        whole: Recorded chunks of all names' prompts.
        sampling_rate: Share of the chunks that the log recorded.
    """
    asked = int(recorded.sum())
    ends, times = np.unique(depths[depths < recorded], return_counts=True)
    most = int(times.argmax()) if len(times) else None
    return Prompts(
        count=len(lengths),
        median_chunks=float(np.median(lengths)),
        largest_chunks=int(lengths.max()),
        share=asked / whole,
        again=int(depths.sum()) / max(asked, 1),
        diverge_at=None if most is None else round(int(ends[most]) / sampling_rate) + 1,
        diverging=0.0 if most is None else int(times[most]) / len(lengths),
    )
