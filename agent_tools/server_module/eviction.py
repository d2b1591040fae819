"""Policy, watermark and ratio of each L1 manager, changed while it serves.

LMCache 0.5.6 (``storage_controllers/eviction_controller.py``): the loop reads the policy anew in each pass, but copies watermark
and ratio once when its thread starts. So a new policy is put in place under the manager's lock, and only for new numbers the
thread is succeeded by another, which begins when the old one has ended: the one-second clock of eviction keeps its phase.
"""
# ruff: noqa: SLF001  the private names are checked by `fit` when the module loads

import threading
import time
from dataclasses import replace
from typing import Any

from .options import Body, Share
from .policies import L1_POLICIES, EvictionSetting, order, successor, teach
from .refusal import Refusal

PATIENCE = 10.0
"""Seconds that a pass of the old thread may take; usually it is asleep, for at most one."""

_ISOLATED = (
    "IsolatedLRU works on L2 adapters only: on L1, LMCache 0.5.6 accepts it and its eviction thread dies at the first pass over"
    " the watermark"
)


class EvictionChange(Body):
    """What is to be changed; what is left out stays."""

    manager: str | None = None
    """Tag of the L1 manager; needed when there are several."""
    policy: str | None = None
    """LRU, ARC or noop."""
    watermark: Share | None = None
    """In (0, 1]."""
    ratio: Share | None = None
    """In (0, 1]."""


class ManagerEviction(Body):
    """The eviction of one L1 manager."""

    manager: str
    setting: EvictionSetting
    thread_alive: bool
    tracked: int | None
    """Keys whose order is followed; ``None`` when the server was started with noop and follows none."""


class EvictionChanged(Body):
    """A change that is in force from the next pass on; to undo it, ask for `previous`."""

    manager: str
    previous: EvictionSetting
    current: EvictionSetting
    tracked: int | None
    seconds: float


class Eviction:
    """The eviction controllers of a running server. Changes are made one after the other."""

    def __init__(self, context: Any) -> None:  # noqa: ANN401  LMCache's MPCacheServerContext
        """Nothing is changed by this."""
        self._controllers = context.storage_manager._eviction_controllers
        self._lock = threading.Lock()
        self._closed = False

    def read(self) -> list[ManagerEviction]:
        """What is in force, manager by manager."""
        return [
            ManagerEviction(
                manager=_tag(controller),
                setting=EvictionSetting.of(controller._eviction_config),
                thread_alive=controller._thread.is_alive(),
                tracked=_tracked(controller),
            )
            for controller in self._controllers
        ]

    def change(self, change: EvictionChange) -> EvictionChanged:
        """Put a setting in force; at most about one second, the rest of the old thread's sleep.

        Raises:
            Refusal: It is not one that L1 can have, or the old thread does not end; the previous one stays in force.
        """
        if change.policy is not None and change.policy not in L1_POLICIES:
            why = _ISOLATED if change.policy == "IsolatedLRU" else f"LMCache has no eviction policy {change.policy!r} for L1"
            raise Refusal(422, f"{why}; choose one of {', '.join(L1_POLICIES)}")
        with self._lock:
            if self._closed:
                raise Refusal(503, "the server is shutting down")
            started, controller = time.perf_counter(), self._controller(change.manager)
            previous = EvictionSetting.of(controller._eviction_config)
            wanted = previous.model_copy(update=change.model_dump(exclude={"manager"}, exclude_none=True))
            self._apply(controller, previous, wanted)
            return EvictionChanged(
                manager=_tag(controller),
                previous=previous,
                current=EvictionSetting.of(controller._eviction_config),
                tracked=_tracked(controller),
                seconds=time.perf_counter() - started,
            )

    def close(self) -> None:
        """Let a change that is under way end, and allow no other: LMCache is about to stop the threads."""
        with self._lock:
            self._closed = True

    @staticmethod
    def _apply(controller: Any, previous: EvictionSetting, wanted: EvictionSetting) -> None:  # noqa: ANN401
        boot = controller._eviction_config
        numbers = wanted.model_copy(update={"policy": previous.policy})
        if numbers != previous or not controller._thread.is_alive():
            # A copy, since several controllers and /config may share the one they were started with.
            controller._eviction_config = replace(boot, **numbers.fields())
            if not _succeed_thread(controller):
                controller._eviction_config = boot  # the successor reads it when it begins after all
                raise Refusal(503, f"the eviction thread did not end its pass within {PATIENCE:g} s; the previous setting stays")
        if wanted.policy != previous.policy:
            _succeed_policy(controller, wanted.policy)
            controller._eviction_config = replace(boot, **wanted.fields())

    def _controller(self, tag: str | None) -> Any:  # noqa: ANN401
        return controller_of(self._controllers, tag)


def controller_of(controllers: list[Any], tag: str | None) -> Any:  # noqa: ANN401
    """The eviction controller of the L1 manager with this tag; of the only one when no tag is given.

    Raises:
        Refusal: There is none of that tag, or several and no tag.
    """
    found = [controller for controller in controllers if tag in (None, _tag(controller))]
    if len(found) != 1:
        tags = ", ".join(_tag(controller) for controller in controllers)
        raise Refusal(404, f"name one of the L1 managers {tags}" if tag is None else f"no L1 manager {tag!r}; there are: {tags}")
    return found[0]


def _succeed_thread(controller: Any) -> bool:  # noqa: ANN401
    """Have the loop begin anew, in another thread, when the present one has ended. False when it does not end in time."""
    old, begun = controller._thread, threading.Event()

    def loop() -> None:
        old.join()
        controller._stop_flag.clear()
        begun.set()
        controller.eviction_loop()

    controller._stop_flag.set()
    # In place before the old one has ended, so that /status never sees a dead thread.
    controller._thread = threading.Thread(target=loop, daemon=True)
    controller._thread.start()
    return begun.wait(PATIENCE)


def _succeed_policy(controller: Any, name: str) -> None:  # noqa: ANN401
    l1 = controller._l1_manager
    with l1._lock:  # LMCache holds it while it tells a policy of keys that come and go
        now = controller._eviction_policy
        policy, is_new = successor(name, now)
        if is_new:
            known = order(now)
            teach(policy, [*l1._objects, *l1._staging] if known is None else known, l1._staging)
        controller._listener._policy = controller._eviction_policy = policy


def _tag(controller: Any) -> str:  # noqa: ANN401
    return str(controller._l1_manager.config.tag)


def _tracked(controller: Any) -> int | None:  # noqa: ANN401
    keys = order(controller._eviction_policy)
    return None if keys is None else len(keys)
