"""Eviction policies of LMCache 0.5.6: the order that one has, and a successor that takes it over."""
# ruff: noqa: SLF001  the private names are checked by `fit` when the module loads

from collections.abc import Container, Iterable
from itertools import groupby
from typing import Any

from lmcache.v1.distributed.config import EvictionConfig
from lmcache.v1.distributed.eviction_policy import CreateEvictionPolicy
from lmcache.v1.distributed.eviction_policy.arc import ARCEvictionPolicy
from lmcache.v1.distributed.eviction_policy.lru import LRUEvictionPolicy

from .options import Body

NOOP = "noop"
L1_POLICIES = ("LRU", "ARC", NOOP)

Policy = Any
"""LMCache's `EvictionPolicy`."""
Key = Any
"""LMCache's `ObjectKey`."""


class EvictionSetting(Body):
    """What an eviction controller does. No bounds: it may have been started with any."""

    policy: str
    """LMCache's name: LRU, ARC, IsolatedLRU, noop."""
    watermark: float
    """Share of the capacity in use from which on it evicts."""
    ratio: float
    """Share of the keys that one pass evicts."""

    @classmethod
    def of(cls, config: Any) -> "EvictionSetting":  # noqa: ANN401
        """That of LMCache's `EvictionConfig`."""
        return cls(policy=config.eviction_policy, watermark=config.trigger_watermark, ratio=config.eviction_ratio)

    def fields(self) -> dict[str, Any]:
        """The same as fields of LMCache's `EvictionConfig`."""
        return {"eviction_policy": self.policy, "trigger_watermark": self.watermark, "eviction_ratio": self.ratio}


class Held:
    """Follows the order like the policy it holds, and evicts nothing: LMCache's own noop forgets the order."""

    def __init__(self, policy: Policy) -> None:
        """`policy` goes on unchanged when it is released."""
        self.policy = policy

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  all else is the held policy's
        return getattr(self.policy, name)

    def get_eviction_actions(self, *_: object, **__: object) -> list[Any]:
        """None, ever."""
        return []


def order(policy: Policy) -> list[Key] | None:
    """Keys in the order of eviction, next first; ``None`` when the policy follows none.

    ARC evicts from two lists, each in its own order; here those seen once come before those seen again.
    """
    followed = policy.policy if isinstance(policy, Held) else policy
    if isinstance(followed, LRUEvictionPolicy):
        with followed._lock:
            return list(followed._order)
    if isinstance(followed, ARCEvictionPolicy):
        with followed._lock:
            return [*followed._t1, *followed._t2]
    return None


def successor(name: str, now: Policy) -> tuple[Policy, bool]:
    """The policy of this name that comes after `now`, and whether it still has to be taught the keys."""
    if name == NOOP:
        return Held(now), False
    if isinstance(now, Held) and type(now.policy) is type(CreateEvictionPolicy(EvictionConfig(name))):
        return now.policy, False
    return CreateEvictionPolicy(EvictionConfig(name)), True


def teach(policy: Policy, keys: Iterable[Key], reserved: Container[Key] = ()) -> None:
    """Make keys known to a new policy, next to be evicted first. `reserved` ones are still being written."""
    for is_reserved, some in groupby(keys, reserved.__contains__):
        batch = list(some)[::-1]  # policies take a batch from its end
        # A key that ARC met as created would count as seen again when its write finishes.
        (policy.on_keys_reserved if is_reserved else policy.on_keys_created)(batch)
