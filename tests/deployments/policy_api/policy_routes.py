"""A stand-in for LMCache's runtime policy API, loaded into a real `lmcache server` 0.5.6 by ``--server-module``.

Made from LMCache's pull request 4382: its routes, fields, statuses and the rule for the version. What it changes is the real
server, by the parts of our own module, since no release has the API.
"""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from lmcache.v1.distributed.storage_controllers.prefetch_policy import get_registered_prefetch_policies
from lmcache.v1.distributed.storage_controllers.store_policy import get_registered_store_policies

from agent_tools.server_module import build_server_modules as build_ours
from agent_tools.server_module.eviction import Eviction, EvictionChange
from agent_tools.server_module.l2 import L2, L2EvictionChange, PoliciesChange
from agent_tools.server_module.module import _http_app
from agent_tools.server_module.options import Options


class Refused(Exception):  # noqa: N818  it is an answer
    def __init__(self, status: int, error: str, field: str) -> None:
        self.status, self.said = status, {"error": error, "message": f"{field}: {error}", "field": field}


class Policies:
    """The policies of one server and their version."""

    def __init__(self, context: Any) -> None:
        self._eviction, self._l2, self._version = Eviction(context), L2(context, Options()), 0

    def read(self) -> dict[str, Any]:
        l1, l2 = self._eviction.read()[0].setting, self._l2.read()
        return {
            "version": self._version,
            "capabilities": {
                "store_policy": _selector(l2.store_policy, get_registered_store_policies(), "next_store_plan"),
                "prefetch_policy": _selector(l2.prefetch_policy, get_registered_prefetch_policies(), "next_prefetch_request"),
                "l1_eviction": _eviction(l1),
                "l2_eviction": [
                    {"adapter_id": one.id, "adapter_name": one.type, "eviction_enabled": one.eviction is not None}
                    | _eviction(one.eviction)
                    for one in l2.adapters
                ],
            },
        }

    def change(self, body: dict[str, Any]) -> dict[str, Any]:
        self._check(body)
        l1 = body.get("l1_eviction", {}).get("tunables")
        if l1:
            self._eviction.change(EvictionChange(watermark=l1.get("trigger_watermark"), ratio=l1.get("eviction_ratio")))
        if {"store_policy", "prefetch_policy"} & body.keys():
            self._l2.change_policies(PoliciesChange(store=body.get("store_policy"), prefetch=body.get("prefetch_policy")))
        for one in body.get("l2_eviction", ()):
            given = one["tunables"]
            change = L2EvictionChange(watermark=given.get("trigger_watermark"), ratio=given.get("eviction_ratio"))
            self._l2.change_eviction(one["adapter_id"], change)
        self._version += 1
        return {"status": "updated", "version": self._version, "applied": sorted(body), "effective_on": {}}

    def _check(self, body: dict[str, Any]) -> None:
        if body.get("expected_version", self._version) != self._version:
            raise Refused(409, "version_conflict", "expected_version")
        if "policy" in body.get("l1_eviction", {}):
            raise Refused(400, "state_migration_required", "l1_eviction.policy")
        if unknown := body.keys() - {"expected_version", "store_policy", "prefetch_policy", "l1_eviction", "l2_eviction"}:
            raise Refused(400, "unsupported_field", min(unknown))
        enabled = {one.id: one.eviction is not None for one in self._l2.read().adapters}
        for one in body.get("l2_eviction", ()):
            if not enabled.get(one["adapter_id"]):
                raise Refused(400, "eviction_not_configured", f"l2_eviction[{one['adapter_id']}]")


def _selector(current: str | None, registered: list[str], effective_on: str) -> dict[str, Any]:
    return {
        "current": current,
        "registered": registered,
        "hot_swappable": True,
        "stateful": False,
        "effective_on": effective_on,
    }


def _eviction(setting: Any) -> dict[str, Any]:
    numbers = {} if setting is None else {"trigger_watermark": setting.watermark, "eviction_ratio": setting.ratio}
    tunables = {
        name: {"current": value, "minimum": 0.0, "maximum": 1.0, "effective_on": "next_eviction_loop_tick"}
        for name, value in numbers.items()
    }
    policy = None if setting is None else setting.policy
    return {"policy": policy, "policy_hot_swappable": False, "stateful": True, "runtime_tunables": tunables}


class Nothing:
    """A module without parts."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def report_status(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def build_server_modules(build_context: Any) -> Any:
    policies, router = Policies(build_context.server_context), APIRouter()

    @router.get("/config/policies")
    def read() -> dict[str, Any]:
        return policies.read()

    @router.patch("/config/policies")
    async def change(request: Request) -> Any:
        try:
            return policies.change(await request.json())
        except Refused as refused:
            return JSONResponse(refused.said, refused.status)

    _http_app().include_router(router)
    if build_context.config.pop("ours", False):
        return build_ours(build_context)
    return Nothing(build_context.server_context)
