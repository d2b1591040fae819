"""The REST door: the operations as routes under /lmcache, mounted into a LangGraph server (`app`) or served alone (`serve`).

Each route is one operation. Errors are RFC 9457 problems (`problems`); who may call is decided in `rest_access`.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Security
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import SecretStr
from starlette.routing import Mount

from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.models import Advice, CacheMetrics, CacheOptimizationResult, ChangeRecord, ChangeResult, LMCacheStatus, Plan
from agent_tools.operations import Operations, shared_operations
from agent_tools.report.page import no_report, served

from .access import Doorkeeper, check_host
from .problems import Problem, answer_errors_of, documented, status_of
from .rest_models import ConfigAnswer, ConfigRequest, OfHistory, OfPage, OfWindow, OptimizeRequest, WhichCache, WithReason

P = ParamSpec("P")
T = TypeVar("T")

PREFIX = "/lmcache"
ACTOR = "rest"
"""Who asked, in the change log."""


class Runner:
    """Runs operations on the I/O loop; whose they are is asked there, at each call, so that nothing is made before the first."""

    def __init__(self, operations: Callable[[], Operations]) -> None:
        self._operations = operations

    async def __call__(self, verb: Callable[Concatenate[Operations, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        async def call() -> T:
            return await verb(self._operations(), *args, **kwargs)

        return await io_loop.arun(call)

    async def token(self) -> SecretStr | None:
        """What a caller has to know."""
        return await self(_token)


async def _token(operations: Operations) -> SecretStr | None:
    return operations.registry.settings.token


async def _runner(request: Request) -> Runner:
    runner: Runner = request.app.state.runner
    return runner


Run = Annotated[Runner, Depends(_runner)]
router = APIRouter(tags=["LMCache"], responses=documented(401, 403, 404, 421, 422, 500, 502, 503))
CHANGES = documented(400, 409, 413, 504)
PAGES: dict[int | str, dict[str, Any]] = {
    status: {**one, "content": {**one["content"], "text/html": {"schema": {"type": "string"}}}}
    for status, one in documented(404, 422, 500, 502, 503).items()
}
"""Where a person asked, errors of a cache are pages too."""
UNCACHED = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@router.get("/caches", summary="Names of the caches")
async def list_caches(run: Run) -> list[str]:
    """The names that `cache` may have."""
    return list(await run(Operations.caches))


@router.get("/status", summary="State of a cache")
async def get_status(run: Run, query: Annotated[WhichCache, Query()]) -> LMCacheStatus:
    """Health, settings, figures since the cache started, and what looks wrong."""
    return await run(Operations.status, query.cache)


@router.get("/metrics", summary="Figures of a window")
async def get_metrics(run: Run, query: Annotated[OfWindow, Query()]) -> CacheMetrics:
    """Token hit rate by tier, evictions, failed stores and sizes."""
    return await run(Operations.metrics, query.cache, query.window_seconds)


@router.get("/config", summary="Settings of a cache")
async def get_config(run: Run, query: Annotated[WhichCache, Query()]) -> ConfigAnswer:
    """The settings in force, and for each whether and how it can be changed."""
    config, support = await run(Operations.config, query.cache)
    return ConfigAnswer(config=config, support=support)


@router.post("/config", summary="Change settings", responses=CHANGES)
async def change_config(run: Run, query: Annotated[WhichCache, Query()], body: ConfigRequest) -> Plan | ChangeResult:
    """Change settings within the operator's bounds; a dry run answers with the plan and changes nothing."""
    plan = await run(Operations.plan, query.cache, body.update, body.reason, fingerprint=body.fingerprint)
    return plan if body.dry_run else await run(Operations.apply, plan, ACTOR)


@router.post("/optimize", summary="Drop cold entries", responses=CHANGES)
async def optimize(
    run: Run, query: Annotated[WhichCache, Query()], body: OptimizeRequest | None = None
) -> CacheOptimizationResult:
    """Drop least recently used entries, without changing a setting; they cannot be restored."""
    asked = body or OptimizeRequest()
    return await run(Operations.optimize, query.cache, asked.target_utilization_percent, ACTOR, asked.reason)


@router.delete("/clear", summary="Empty a cache", responses=CHANGES)
async def clear(run: Run, query: Annotated[WithReason, Query()]) -> CacheOptimizationResult:
    """Remove everything from L1; it cannot be undone."""
    return await run(Operations.clear, query.cache, ACTOR, query.reason)


@router.get("/recommendations", summary="What would help")
async def get_recommendations(run: Run, query: Annotated[OfWindow, Query()]) -> Advice:
    """What would make the cache better, with evidence and predicted gain; often: do nothing. Changes nothing."""
    return await run(Operations.recommend, query.cache, query.window_seconds)


@router.get("/changes", summary="History of changes")
async def list_changes(run: Run, query: Annotated[OfHistory, Query()]) -> list[ChangeRecord]:
    """The latest records of the change log, oldest first."""
    return (await run(Operations.changes, query.cache))[-query.limit :]


@router.post("/changes/{change_id}/undo", summary="Take back a change", responses=CHANGES)
async def undo_change(run: Run, query: Annotated[WhichCache, Query()], change_id: Annotated[str, Path()]) -> ChangeResult:
    """Set back what a change set."""
    return await run(Operations.undo, query.cache, change_id, ACTOR)


@router.get("/report", summary="The report, for people", response_class=HTMLResponse, responses=PAGES)
async def get_report(run: Run, query: Annotated[OfPage, Query()]) -> HTMLResponse:
    """One web page: status now, hit-rate curve, advice with its evidence, history of changes."""
    try:
        page, status = await run(Operations.report, query.cache), 200
    except LMCacheToolError as error:  # for a person; and the page, if it is open, goes on looking for the cache
        page, status = no_report(query.cache, str(error)), status_of(error)
    refresh = {"Refresh": str(query.refresh)} if query.refresh else {}
    return HTMLResponse(served(page, query.cache, query.refresh), status, refresh | UNCACHED)


def rest_app(operations: Callable[[], Operations] = shared_operations) -> FastAPI:
    """The application. It starts nothing and closes nothing: the operations belong to who gives them.

    All of the door is an application of its own, mounted: LangGraph's server takes the routes, the middleware and the error
    handlers of the application it is given for its own, and ours are not meant for its routes.
    """
    runner = Runner(operations)
    # HTTPBearer only documents that there may be a token: the doorkeeper, who is asked first, demands it.
    door = FastAPI(
        title="LMCache agent tools",
        openapi_url=None,
        dependencies=[Security(HTTPBearer(scheme_name="token", auto_error=False))],
        separate_input_output_schemas=False,
        generate_unique_id_function=_operation_id,
    )
    door.state.runner = runner
    door.include_router(router)
    door.add_middleware(Doorkeeper, token=runner.token)
    answer_errors_of(door)
    outer = FastAPI(title=door.title, docs_url=None, redoc_url=None)
    mount = Mount(PREFIX, door)
    mount.path_regex = re.compile(mount.path_regex.pattern, re.DOTALL)  # else a line break in a path leads past the door
    outer.routes.append(mount)
    outer.openapi = lambda: document(door)  # type: ignore[method-assign]
    return outer


def document(door: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the paths as they are once mounted and the problems that every route may answer with."""
    spec = door.openapi()
    schemas = spec["components"]["schemas"] | {"Problem": Problem.model_json_schema()}
    paths = {PREFIX + path: item for path, item in spec["paths"].items()}
    return {**spec, "paths": paths, "components": {**spec["components"], "schemas": schemas}}


def _operation_id(route: APIRoute) -> str:
    return route.name


def serve(operations: Operations, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        SettingsError: Other machines could reach the service, and there is no token.
    """
    check_host(host, operations.registry.settings.token)
    uvicorn.run(rest_app(lambda: operations), host=host, port=port, ws="none", server_header=False, timeout_graceful_shutdown=30)


app = rest_app()
