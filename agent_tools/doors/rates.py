"""How much one caller may ask for at once, so that one caller's searches do not slow down everybody's reads."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from agent_tools.errors import TooManyRequestsError


class Load(Enum):
    """What a request costs this process: (name, most in progress for one caller, most for all callers)."""

    SEARCH = ("searches", 2, 4)
    """Reads an access log and runs the model over it: seconds of a core."""
    WINDOW = ("windows of observation", 8, 64)
    """Waits, and reads the cache every few seconds."""
    READ = ("requests", 32, 128)
    """Reads counters once."""

    @property
    def words(self) -> str:
        return self.value[0]

    @property
    def most_for_one(self) -> int:
        return self.value[1]

    @property
    def most_for_all(self) -> int:
        return self.value[2]


SEARCHES = frozenset({
    "compare_caches", "diagnose", "forecast", "predict_hit_rate", "recommend", "recommend_tenant_quotas", "report",
    "tenant_quotas", "tune", "verify", "verify_change",
})  # fmt: skip
"""Operations and tools (without prefix) that search. A change is a `Load.READ`: the cache's lock allows one at a time anyway."""
USUAL_SECONDS = 5.0
"""Assumed length of a search until one has ended."""


def load_of(name: str, window_seconds: float | None) -> Load:
    """Return what an operation or a tool costs."""
    if name in SEARCHES:
        return Load.SEARCH
    return Load.WINDOW if window_seconds else Load.READ


@dataclass(eq=False)
class _Turn:
    caller: str
    load: Load
    began: float
    seconds: float


@dataclass
class Rates:
    """What is in progress at one door. Used from one event loop."""

    _turns: list[_Turn] = field(default_factory=list)
    _last_search: float = USUAL_SECONDS

    @contextmanager
    def turn(self, caller: str, load: Load, window_seconds: float | None = None) -> Iterator[None]:
        """Count a request while it is in progress.

        Args:
            caller: The holder of the token, or the address of a caller without one.
            load: What the request costs.
            window_seconds: How long it waits, if that is known.

        Raises:
            TooManyRequestsError: This caller, or all callers together, have too many such requests in progress.
        """
        alike = [one for one in self._turns if one.load is load]
        own = [one for one in alike if one.caller == caller]
        if len(own) >= load.most_for_one:
            raise _too_many(f"you have {len(own)} {load.words} in progress, the most one caller may have", own)
        if len(alike) >= load.most_for_all:
            raise _too_many(f"{len(alike)} {load.words} of all callers are in progress, the most there may be", alike)
        expected = (window_seconds or 0) + (self._last_search if load is Load.SEARCH else 0)
        turn = _Turn(caller, load, time.monotonic(), expected)
        self._turns.append(turn)
        try:
            yield
        finally:
            self._turns.remove(turn)
            if load is Load.SEARCH:
                self._last_search = max(time.monotonic() - turn.began - (window_seconds or 0), 0.0)


def _too_many(why: str, turns: list[_Turn]) -> TooManyRequestsError:
    left = min(one.began + one.seconds for one in turns) - time.monotonic()
    seconds = max(math.ceil(left), 1)
    return TooManyRequestsError(f"{why}; ask again in {seconds} s. Nothing was changed", seconds)
