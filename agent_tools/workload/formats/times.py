"""The times of recorded requests: placed where a file states pauses or nothing, and looked at for wrong units and jumps."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.errors import WorkloadError
from agent_tools.workload.access_log import AccessLog

Floats = npt.NDArray[np.float64]

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Seconds in each unit of time."""
SECONDS_PER_OUTPUT_TOKEN = 0.02
"""Time that an answer is assumed to take for each of its tokens, where a trace states pauses between turns and no times."""
FEWEST_REQUESTS = 10
"""The times of no more requests than this are not judged."""
MOST_PER_SECOND, FEWEST_PER_SECOND = 1_000.0, 1 / 3600
"""Beyond this many requests a second, a trace has another unit of time, or is of a large fleet."""
MOST_TOKENS_PER_SECOND = 1e6
"""Prompt tokens a second that take dozens of GPUs to compute."""
MOST_DAYS = 31.0
"""Traces with times of their own, from 0, cover less than this."""
UNIX_TIMES = (1e9, 4.1e9)
"""Unix times of the years 2001 to 2099, seconds."""
HOLE_SECONDS, HOLE_SHARE = 3600.0, 0.5
"""A gap without requests, longer than this and than this share of the whole, is reported."""
LATE_SECONDS, LATE_SHARE, LATE_MOST = 5.0, 0.01, 60.0
"""A request is out of order if its time lies before an earlier line's by more than this, or this share of the whole if that is
more, at most the last: lines of requests that run side by side are written as they end."""
_DAY = 86_400.0


def placed(
    seconds: Floats,
    sessions: npt.NDArray[np.int32] | None,
    think: Floats,
    answers: npt.NDArray[np.int32],
    starts_per_second: float,
) -> tuple[Floats, list[str]]:
    """Return the time of each request, and what was assumed where the file states pauses or nothing.

    Args:
        seconds: (requests,) times; NaN where none is stated.
        sessions: (requests,) number of each session, -1 for none.
        think: (requests,) pause before each request, seconds; NaN where none is stated.
        answers: (requests,) tokens of each answer.
        starts_per_second: Starts of sessions, or of requests, a second.

    Raises:
        WorkloadError: Requests without a session have a time in part.
    """
    missing = ~np.isfinite(seconds)
    if not missing.any():
        return seconds, []
    if sessions is None:
        if not missing.all():
            raise WorkloadError("some requests have a time and some have none; leave out the lines without a time")
        return np.arange(len(seconds)) / starts_per_second, [f"no times are stated: {starts_per_second:g} requests a second"]
    times = seconds.astype(np.float64)
    count = max(int(sessions.max()) + 1, 1)
    answering = answers.astype(np.float64) * SECONDS_PER_OUTPUT_TOKEN
    starts = _place(times, missing, sessions, think, answering, 1 / starts_per_second, count)
    assumed = [f"sessions without a time start at {starts_per_second:g} a second"] if starts else []
    assumed.append(
        f"a turn starts its pause after an answer that takes {SECONDS_PER_OUTPUT_TOKEN * 1000:g} ms a token (closed loop)"
    )
    return times, assumed


def with_time_remarks(log: AccessLog, unit: float = 1.0) -> AccessLog:
    """Return the log with remarks on times that are not plausible, and on a hole in them.

    Args:
        log: The log, in the order of time.
        unit: Seconds in the unit that its times were read in.
    """
    if len(log) <= FEWEST_REQUESTS or log.duration <= 0:
        return log
    remarks = [_of_the_unit(log, unit), _of_a_hole(log)]
    return replace(log, remarks=(*log.remarks, *filter(None, remarks)))


def order_remarks(seconds: Floats, files: Sequence[int]) -> list[str]:
    """Return a remark if requests are dated before requests on earlier lines of the same file.

    Args:
        seconds: (requests,) times, in the order of the lines.
        files: How many requests each file has.
    """
    if not len(seconds):
        return []
    parts = np.split(seconds, np.cumsum(files)[:-1])
    behind = np.concatenate([np.maximum.accumulate(part) - part for part in parts])
    limit = min(max(LATE_SECONDS, LATE_SHARE * float(np.ptp(seconds))), LATE_MOST)
    late = int((behind > limit).sum())
    if not late:
        return []
    return [
        f"{late:,} requests are dated up to {behind.max():,.0f} s before a request on an earlier line (the clock was set back,"
        " logs were joined, or the lines are not sorted): requests are taken in the order of their times"
    ]


def _of_the_unit(log: AccessLog, unit: float) -> str | None:
    first, last = float(log.timestamps[0]), float(log.timestamps[-1])
    is_unix = UNIX_TIMES[0] <= first and last <= UNIX_TIMES[1]
    if not is_unix:
        for name, other in UNITS.items():
            start, end = first / unit * other, last / unit * other
            if other != unit and UNIX_TIMES[0] <= start and end <= UNIX_TIMES[1]:
                day = datetime.fromtimestamp(start, tz=timezone.utc).strftime("%Y-%m-%d")
                return f"the times are Unix times from {day} on if they are in {name}: give their unit with --time-unit {name}"
    rate = (len(log) - 1) / log.duration
    tokens = float(log.tokens.sum()) / log.duration
    if rate < FEWEST_PER_SECOND or (rate > MOST_PER_SECOND and not is_unix):
        odd = f"{rate:,.4g} requests a second are"
    elif tokens > MOST_TOKENS_PER_SECOND and not is_unix:
        odd = f"{tokens:,.0f} prompt tokens a second are"
    elif log.duration > MOST_DAYS * _DAY and not is_unix:
        odd = f"{log.duration / _DAY:,.0f} days of requests are"
    else:
        return None
    return f"{odd} not plausible: the unit of the times may be another one; give it with --time-unit (s, ms, us or ns)"


def _of_a_hole(log: AccessLog) -> str | None:
    widest = float(np.diff(log.timestamps).max())
    if widest <= max(HOLE_SECONDS, HOLE_SHARE * log.duration):
        return None
    return (
        f"no request came for {widest:,.0f} of the {log.duration:,.0f} s: the clock jumped, or the log has a hole; rates and"
        " times are not to be relied on"
    )


@compiled
def _place(
    seconds: Floats,
    missing: npt.NDArray[np.bool_],
    sessions: npt.NDArray[np.int32],
    think: Floats,
    answers: Floats,
    between: float,
    count: int,
) -> int:
    """Fill in the missing times of the requests of `count` sessions. Return how many sessions have no time of their own.

    `answers` is (requests,) the seconds that each answer takes, and `between` the seconds between two starts.
    """
    starts = 0
    ends = np.full(count, np.nan)  # of the last answer of each session
    for r in range(len(seconds)):
        session = sessions[r]
        if missing[r]:
            if session >= 0 and not np.isnan(ends[session]):
                seconds[r] = ends[session] + (think[r] if np.isfinite(think[r]) else 0.0)
            else:
                seconds[r] = starts * between
                starts += 1
        if session >= 0:
            ends[session] = seconds[r] + answers[r]
    return starts
