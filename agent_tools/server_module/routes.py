"""The routes of the module, each a few lines that call one part. Sync on purpose: FastAPI runs them beside its event loop."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from .answer import packed
from .guard import Guard
from .layouts import Layouts
from .options import Part
from .parts import Parts
from .problem import ProblemRoute
from .refusal import Refusal
from .window import Window

PREFIX = "/agent-tools"
_METHODS = ["GET", "PUT", "POST", "DELETE"]


def router_of(parts: Parts, guard: Guard, status: Callable[[], dict[str, Any]], identity: dict[str, Any]) -> APIRouter:
    """Return all routes. `status` answers ``status``; every window holds `identity`: version, instance, chunk size."""
    router = APIRouter(prefix=PREFIX, route_class=ProblemRoute, tags=["agent-tools"], dependencies=[Depends(guard.check)])
    router.add_api_route("/status", status, methods=["GET"], summary="What of the module is there")
    for part, made in parts.made.items():
        _ROUTES[part](router, made, identity | {"layouts": parts.layouts} if part == "window" else identity)

    @router.api_route("/{path:path}", methods=_METHODS, include_in_schema=False)
    def nothing(path: str) -> None:
        why = {str(part): why for part, why in parts.off.items()}.get(path.partition("/")[0])
        if why is not None:
            raise Refusal(501, f"this part is off: {why}")
        raise Refusal(404, f"there is no {PREFIX}/{path} for this method; {PREFIX}/status tells what there is")

    return router


def _eviction_routes(router: APIRouter, eviction: Any, _: object) -> None:  # noqa: ANN401
    from .eviction import EvictionChange, EvictionChanged, ManagerEviction  # noqa: PLC0415  imports LMCache's insides

    @router.get("/eviction")
    def read_eviction() -> list[ManagerEviction]:
        return eviction.read()  # type: ignore[no-any-return]

    @router.put("/eviction")
    def change_eviction(change: EvictionChange) -> EvictionChanged:
        return eviction.change(change)  # type: ignore[no-any-return]


def _l2_routes(router: APIRouter, l2: Any, _: object) -> None:  # noqa: ANN401
    from .l2 import Adapter, L2EvictionChange, L2EvictionChanged, L2Status, PoliciesChange, PoliciesChanged  # noqa: PLC0415

    @router.get("/l2")
    def read_l2() -> L2Status:
        return l2.read()  # type: ignore[no-any-return]

    @router.post("/l2/adapters", status_code=201)
    def attach(adapter: dict[str, Any]) -> Adapter:
        return l2.attach(adapter)  # type: ignore[no-any-return]

    @router.delete("/l2/adapters/{number}", status_code=204)
    def detach(number: int, seconds: Annotated[float, Query(gt=0, le=300)] = 30.0) -> None:
        l2.detach(number, seconds)

    @router.put("/l2/adapters/{number}/eviction")
    def change_l2_eviction(number: int, change: L2EvictionChange) -> L2EvictionChanged:
        return l2.change_eviction(number, change)  # type: ignore[no-any-return]

    @router.put("/l2/policies")
    def change_policies(change: PoliciesChange) -> PoliciesChanged:
        return l2.change_policies(change)  # type: ignore[no-any-return]


def _arena_routes(router: APIRouter, arenas: Any, _: object) -> None:  # noqa: ANN401
    from .arenas import ArenasStatus, Resize, Resized  # noqa: PLC0415

    @router.get("/arenas")
    def read_arenas() -> ArenasStatus:
        return arenas.read()  # type: ignore[no-any-return]

    @router.put("/arenas")
    def resize(wanted: Resize) -> Resized:
        return arenas.resize(wanted)  # type: ignore[no-any-return]


def _entry_routes(router: APIRouter, entries: Any, _: object) -> None:  # noqa: ANN401
    from .entries import EntriesStatus, Removal, Removed, TopEntries  # noqa: PLC0415

    @router.get("/entries")
    def read_entries(top: Annotated[int, Query(ge=0, le=1000)] = 20) -> EntriesStatus:
        return entries.read(top)  # type: ignore[no-any-return]

    @router.get("/entries/top")
    def read_top_entries(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> TopEntries:
        return entries.top(limit)  # type: ignore[no-any-return]

    @router.post("/entries/remove")
    def remove(removal: Removal) -> Removed:
        return entries.remove(removal)  # type: ignore[no-any-return]


def _window_routes(router: APIRouter, window: Window, given: dict[str, Any]) -> None:
    identity = {name: value for name, value in given.items() if name != "layouts"}
    layouts: Layouts = given["layouts"]

    @router.get("/window", response_class=Response)
    def read_window(since: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=100_000)] = 20_000) -> Response:
        part = window.since(since, limit)
        # After the slice, so that every name it uses is among them.
        models = window.names("model")
        names = {
            "tenants": window.names("tenant"),
            "models": [model for model, _ in models],
            "world_sizes": [world_size for _, world_size in models],
            "groups": [layouts.of(*model) for model in models],
        }
        return Response(packed(part, **identity, **names), media_type="application/msgpack")

    @router.delete("/window", status_code=204)
    def forget_window() -> None:
        window.forget()


_ROUTES: dict[Part, Callable[[APIRouter, Any, dict[str, Any]], None]] = {
    "eviction": _eviction_routes,
    "l2": _l2_routes,
    "arenas": _arena_routes,
    "window": _window_routes,
    "entries": _entry_routes,
}
