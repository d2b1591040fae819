"""L2 adapters of a running server: attached, detached, their eviction; and when L1 and L2 exchange chunks.

LMCache 0.5.6 attaches and detaches adapters itself (``StorageManager.add_l2_adapter``, ``delete_l2_adapter``); no route offers
it. Its L2 eviction loop reads the settings in each pass. Prefetch and store policies have no state, and their controllers ask
them anew for each request (``prefetch_controller.py``, ``store_controller.py``), so another one can take over between two
requests; what was loaded as temporary before stays so.
"""
# ruff: noqa: SLF001  the private names are checked by `fit` when the module loads

import argparse
import json
import threading
from dataclasses import is_dataclass, replace
from typing import Any

from lmcache.v1.distributed.config import EvictionConfig
from lmcache.v1.distributed.l2_adapters.config import add_l2_adapters_args, parse_args_to_l2_adapters_config
from lmcache.v1.distributed.storage_controllers import L2AdapterEvictionState
from lmcache.v1.distributed.storage_controllers.prefetch_policy import create_prefetch_policy, get_registered_prefetch_policies
from lmcache.v1.distributed.storage_controllers.store_policy import create_store_policy, get_registered_store_policies
from lmcache.v1.utils.json_utils import make_json_safe, safe_asdict

from agent_tools.redaction import without_secrets

from .options import Body, Options, Share
from .policies import L1_POLICIES as GLOBAL_POLICIES
from .policies import EvictionSetting, order, successor, teach
from .refusal import Refusal

_ISOLATED = (
    "IsolatedLRU wipes every tenant without a quota within a second, so it is chosen when an adapter is attached, not after"
)
_NO_CAPACITY = (
    "adapter {} declares no capacity, so LMCache cannot tell when it is full; attach one with a capacity (fs_native, mock, resp,"
    " s3, dax), or bound it by the coordinator's quotas"
)


class Adapter(Body):
    """One L2 adapter."""

    id: int
    """LMCache's; never used again."""
    type: str
    manager: str
    """Tag of the L1 manager it serves."""
    can_evict: bool
    """Whether it declares a capacity."""
    eviction: EvictionSetting | None
    used_bytes: int
    capacity_bytes: int
    settings: dict[str, Any]
    """What it was started or attached with, as LMCache's ``/config`` tells it; secrets stand as ``***``."""


class L2Status(Body):
    """All of L2."""

    adapters: list[Adapter]
    prefetch_policy: str | None
    """``default``: chunks loaded from L2 leave L1 after use; ``retain``: they stay. ``None``: one that is not LMCache's."""
    listed: list[dict[str, Any]]
    """Adapters that may be attached, each as for ``--l2-adapter``; secrets are shown as ``***``."""
    store_policy: str | None
    """``default``: L1 keeps what was stored; ``skip_l1``: it does not."""


class L2EvictionChange(Body):
    """What is to be changed; what is left out stays (without eviction so far: LRU 0.8/0.2)."""

    policy: str | None = None
    """LRU, ARC or noop."""
    watermark: Share | None = None
    ratio: Share | None = None


class L2EvictionChanged(Body):
    """In force from the next pass on. To undo, ask for `previous`; for noop when that is ``None``."""

    id: int
    previous: EvictionSetting | None
    current: EvictionSetting
    tracked: int | None
    """Objects that it can evict: without a previous policy only those stored or read from now on."""


class PoliciesChange(Body):
    """What is to be changed; what is left out stays."""

    prefetch: str | None = None
    store: str | None = None


class PoliciesChanged(Body):
    """In force from the next request on."""

    previous: PoliciesChange
    current: PoliciesChange


class L2:
    """The L2 side of a running server. Changes are made one after the other."""

    def __init__(self, context: Any, options: Options) -> None:  # noqa: ANN401  LMCache's MPCacheServerContext
        """Nothing is changed by this."""
        self._storage = context.storage_manager
        self._evictor = self._storage._l2_eviction_controller
        self._types = options.l2_types
        self._listed = options.l2_adapters
        self._of_start = tuple(descriptor for _, descriptor, _ in self._storage._snapshot_adapters())
        self._lock = threading.Lock()

    def read(self) -> L2Status:
        """What is there and in force."""
        with self._evictor._states_lock:
            settings = {state.adapter_id: EvictionSetting.of(state.eviction_config) for state in self._evictor._adapter_states}
        adapters = [_describe(settings, *one) for one in self._storage._snapshot_adapters()]
        now = self._policies()
        return L2Status(adapters=adapters, prefetch_policy=now.prefetch, store_policy=now.store, listed=self._shown_as_listed())

    def attach(self, adapter: dict[str, Any]) -> Adapter:
        """Attach an adapter given as for ``--l2-adapter``. It receives what is stored from now on.

        Raises:
            Refusal: The operator did not list it, its type is not allowed, or LMCache does not accept it.
        """
        if adapter.get("type") not in self._types:
            raise Refusal(
                403, f"adapters of type {adapter.get('type')!r} are not allowed here; l2_types: {', '.join(self._types)}"
            )
        with self._lock:
            config = _parsed(adapter)
            if not self._is_listed(config):
                raise Refusal(
                    403,
                    "this adapter is not listed in the module's l2_adapters, so it was not attached: its operator adds it to the"
                    " config of --server-module, with every setting as it is to be attached",
                )
            try:
                number = self._storage.add_l2_adapter(config)
            except Exception as error:
                raise Refusal(422, f"LMCache could not attach it: {type(error).__name__}: {error}") from error
        return next(one for one in self.read().adapters if one.id == number)

    def detach(self, number: int, seconds: float) -> None:
        """Let an adapter's work in progress end, then close it; what it holds can no longer be hit.

        Raises:
            Refusal: No such adapter; or its work did not end in time: it takes no more and can be detached later.
        """
        self._find(number)
        try:
            self._storage.delete_l2_adapter(number, seconds)
        except TimeoutError as error:
            raise Refusal(504, f"adapter {number} still works after {seconds:g} s; it takes no more work: ask again") from error

    def change_eviction(self, number: int, change: L2EvictionChange) -> L2EvictionChanged:
        """Put an adapter's eviction in force.

        Raises:
            Refusal: No such adapter, it cannot evict, or IsolatedLRU is on either side of a change of policy.
        """
        if change.policy is not None and change.policy not in GLOBAL_POLICIES:
            raise Refusal(422, _ISOLATED if change.policy == "IsolatedLRU" else f"LMCache has no policy {change.policy!r}")
        with self._lock:
            adapter, found = self._find(number), self._state(number)
            previous = EvictionSetting.of(found.eviction_config) if found else None
            start = previous or EvictionSetting(policy="LRU", watermark=0.8, ratio=0.2)
            wanted = start.model_copy(update=change.model_dump(exclude_none=True))
            state = self._retune(found, wanted) if found else self._begin(number, adapter, wanted)
            keys = order(state.eviction_policy)
            return L2EvictionChanged(id=number, previous=previous, current=wanted, tracked=None if keys is None else len(keys))

    def change_policies(self, change: PoliciesChange) -> PoliciesChanged:
        """Put LMCache's prefetch or store policy of these names in force.

        Raises:
            Refusal: There is none of that name.
        """
        known = {"prefetch": get_registered_prefetch_policies(), "store": get_registered_store_policies()}
        for kind, name in change.model_dump(exclude_none=True).items():
            if name not in known[kind]:
                raise Refusal(422, f"LMCache has no {kind} policy {name!r}; it has {', '.join(known[kind])}")
        with self._lock:
            previous = self._policies()
            if change.prefetch is not None:
                self._storage._prefetch_controller._policy = create_prefetch_policy(change.prefetch)
            if change.store is not None:
                for controller in self._storage._store_controllers.values():
                    controller._policy = create_store_policy(change.store)
            return PoliciesChanged(previous=previous, current=self._policies())

    def _is_listed(self, config: Any) -> bool:  # noqa: ANN401  LMCache's L2AdapterConfigBase
        """Compare whole settings with their secrets. Adapters of the server's start count, so that they can be put back."""
        wanted = _comparable(config)
        return any(
            wanted == _comparable(one) for one in (*map(_parsed, self._listed), *(start.config for start in self._of_start))
        )

    def _shown_as_listed(self) -> list[dict[str, Any]]:
        of_start = [{**_shown(start.config), "type": start.type_name} for start in self._of_start]
        return [*map(without_secrets, self._listed), *of_start]

    def _begin(self, number: int, adapter: Any, wanted: EvictionSetting) -> Any:  # noqa: ANN401
        if not adapter.supports_global_eviction:
            raise Refusal(409, _NO_CAPACITY.format(number))
        state = L2AdapterEvictionState(number, adapter, EvictionConfig(**wanted.fields()))
        self._evictor.add_adapter_state(state)
        return state

    def _retune(self, state: Any, wanted: EvictionSetting) -> Any:  # noqa: ANN401
        with self._evictor._states_lock:  # LMCache holds it during a pass
            if wanted.policy != state.eviction_config.eviction_policy:
                if state.eviction_policy.support_isolation:
                    raise Refusal(409, "its IsolatedLRU enforces tenants' quotas, which no other policy does; detach it instead")
                now = state.eviction_policy
                policy, is_new = successor(wanted.policy, now)
                # First in place, then taught, so that no key that is stored meanwhile is missed.
                state.listener._policy = state.eviction_policy = policy
                if is_new:
                    teach(policy, order(now) or ())
            state.eviction_config = replace(state.eviction_config, **wanted.fields())
        return state

    def _find(self, number: int) -> Any:  # noqa: ANN401
        adapters = {one: adapter for one, _, adapter in self._storage._snapshot_adapters()}
        if number not in adapters:
            raise Refusal(404, f"no L2 adapter {number}; there are: {', '.join(map(str, adapters)) or 'none'}")
        return adapters[number]

    def _state(self, number: int) -> Any:  # noqa: ANN401
        with self._evictor._states_lock:
            return next((state for state in self._evictor._adapter_states if state.adapter_id == number), None)

    def _policies(self) -> PoliciesChange:
        stores = {type(controller._policy) for controller in self._storage._store_controllers.values()}
        prefetch = {name: type(create_prefetch_policy(name)) for name in get_registered_prefetch_policies()}
        store = {name: type(create_store_policy(name)) for name in get_registered_store_policies()}
        return PoliciesChange(
            prefetch=next(
                (name for name, kind in prefetch.items() if kind is type(self._storage._prefetch_controller._policy)), None
            ),
            store=next((name for name, kind in store.items() if {kind} == stores), None),
        )


def _parsed(adapter: dict[str, Any]) -> Any:  # noqa: ANN401
    """LMCache's configuration of an adapter, by its own parser of ``--l2-adapter``."""
    parser = add_l2_adapters_args(argparse.ArgumentParser())
    try:
        (config,) = parse_args_to_l2_adapters_config(parser.parse_args([f"--l2-adapter={json.dumps(adapter)}"])).adapters
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(422, f"LMCache does not accept it: {error}") from error
    numbers = config.eviction_config and (config.eviction_config.trigger_watermark, config.eviction_config.eviction_ratio)
    if numbers and not all(0 < number <= 1 for number in numbers):
        raise Refusal(422, "watermark and ratio of its eviction are to be in (0, 1]")  # LMCache itself does not check them
    return config


def _comparable(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """All settings, unmasked. Of eviction only whether it wipes tenants: the rest of it can be changed on its own."""
    plain = {**vars(config), "class": type(config)}
    eviction = plain.pop("eviction_config", None)
    return {**plain, "isolated": eviction is not None and eviction.eviction_policy == "IsolatedLRU"}


def _describe(settings: dict[int, EvictionSetting], number: int, descriptor: Any, adapter: Any) -> Adapter:  # noqa: ANN401
    usage = adapter.get_usage()
    return Adapter(
        id=number,
        type=descriptor.type_name,
        manager=descriptor.config.affinity_tag,
        can_evict=adapter.supports_global_eviction,
        eviction=settings.get(number),
        used_bytes=usage.total_bytes_used,
        capacity_bytes=usage.total_capacity_bytes,
        settings=_shown(descriptor.config),
    )


def _shown(config: Any) -> dict[str, Any]:  # noqa: ANN401  LMCache's L2AdapterConfigBase
    """As LMCache's own ``GET /config`` does, but for the secrets."""
    plain = safe_asdict(config) if is_dataclass(config) else make_json_safe(vars(config))
    shown: dict[str, Any] = without_secrets({**plain, "affinity_tag": config.affinity_tag})
    return shown
