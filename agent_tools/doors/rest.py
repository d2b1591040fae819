"""The REST door: operations as routes under /lmcache, mounted into a LangGraph server (`app`) or served alone (`serve`).

Each route calls one operation. Errors are RFC 9457 problems (`problems`). The doorkeeper in `access` decides who may call.
"""

import copy
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response, Security
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.routing import Mount

from agent_tools.caches.named_tokens import Tokens
from agent_tools.errors import LMCacheToolError, NothingToChangeError
from agent_tools.io_loop import io_loop
from agent_tools.models import (
    Advice,
    CacheConfig,
    CacheMetrics,
    CacheOptimizationResult,
    ChangeRecord,
    ChangeResult,
    LMCacheStatus,
    Plan,
    Support,
    Verification,
)
from agent_tools.models.start_configuration import Drift, StartConfiguration
from agent_tools.operations import Operations, shared_operations
from agent_tools.recommender.compare import CacheComparison
from agent_tools.report.page import no_report, served

from .access import CALLER, Doorkeeper, check_host, tokens_of
from .connections import LIMITS
from .own_metrics import CONTENT_TYPE, own_metrics
from .problems import Problem, answer_errors_of, documented, status_of
from .rates import Rates, load_of
from .rest_models import (
    OfChange,
    OfComparison,
    OfExport,
    OfHistory,
    OfPage,
    OfVerification,
    OfWindow,
    OptimizeRequest,
    VersionAnswer,
    WantedConfig,
    WhichCache,
    WithReason,
)

P = ParamSpec("P")
T = TypeVar("T")

PREFIX = "/lmcache"
WINDOWS = frozenset({"compare_caches", "metrics", "recommend"})
"""Operations whose second argument is the length of a window."""
ACTOR = "rest"
"""Name of this door in the change log."""


class Runner:
    """Run operations on the I/O loop. The first call makes the operations, so importing this module starts nothing."""

    def __init__(self, operations: Callable[[], Operations]) -> None:
        self._operations = operations
        self._rates = Rates()
        self._tokens: Tokens | None = None
        self.caller: str | None = None
        """Name of the token's holder."""
        self.counted_as = ""
        """Whose requests are counted together: the token's holder, or the address of a caller without a name."""

    def of(self, request: Request) -> "Runner":
        """Return the runner for the caller of one request."""
        own = copy.copy(self)
        own.caller = request.scope[CALLER]
        own.counted_as = own.caller or (request.client.host if request.client else "")
        return own

    async def __call__(self, verb: Callable[Concatenate[Operations, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        async def call() -> T:
            return await verb(self._operations().called_by(self.caller), *args, **kwargs)

        window = args[1] if len(args) > 1 and isinstance(args[1], float) and verb.__name__ in WINDOWS else None
        with self._rates.turn(self.counted_as, load_of(verb.__name__, window), window):
            return await io_loop.arun(call)

    async def tokens(self) -> Tokens:
        """Return the tokens of which callers must send one."""
        if self._tokens is None:
            self._tokens = await io_loop.arun(_tokens, self._operations)
        return self._tokens


async def _tokens(operations: Callable[[], Operations]) -> Tokens:
    return tokens_of(operations().registry.settings)


async def _runner(request: Request) -> Runner:
    runner: Runner = request.app.state.runner
    return runner.of(request)


Run = Annotated[Runner, Depends(_runner)]
router = APIRouter(tags=["LMCache"], responses=documented(401, 403, 404, 421, 422, 429, 500, 502, 503))
CHANGES = documented(400, 409, 413, 504)
CHANGED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The configuration in force, or the plan of a dry run.",
        "headers": {"Location": {"description": "The route of the change, if there was one.", "schema": {"type": "string"}}},
    }
}
PAGES: dict[int | str, dict[str, Any]] = {
    status: {**one, "content": {**one["content"], "text/html": {"schema": {"type": "string"}}}}
    for status, one in documented(404, 422, 429, 500, 502, 503).items()
}
"""The report is for people, so errors of a cache are pages too."""
UNCACHED = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@router.get("/caches", summary="Names of the caches")
async def list_caches(run: Run) -> list[str]:
    """Return the names that the query parameter `cache` accepts."""
    return list(await run(Operations.caches))


@router.get("/caches/compare", summary="Where a megabyte earns most")
async def compare_caches(run: Run, query: Annotated[OfComparison, Query()]) -> CacheComparison:
    """Return the L1 sizes that give caches of one machine the most hits together, within the bounds of each."""
    return await run(Operations.compare_caches, query.cache, query.window_seconds, query.budget_mb)


@router.get("/status", summary="State of a cache")
async def get_status(run: Run, query: Annotated[WhichCache, Query()]) -> LMCacheStatus:
    """Return health, settings, figures since the cache started, and what looks wrong."""
    return await run(Operations.status, query.cache)


@router.get("/version", summary="LMCache's version")
async def get_version(run: Run, query: Annotated[WhichCache, Query()]) -> VersionAnswer:
    """Return the version of the LMCache behind a cache."""
    return VersionAnswer(lmcache_version=await run(Operations.version, query.cache))


@router.get("/metrics", summary="Figures of a window")
async def get_metrics(run: Run, query: Annotated[OfWindow, Query()]) -> CacheMetrics:
    """Return the token hit rate by tier, evictions, failed stores and sizes."""
    return await run(Operations.metrics, query.cache, query.window_seconds)


@router.get("/config", summary="Settings of a cache")
async def get_config(run: Run, query: Annotated[WhichCache, Query()]) -> CacheConfig:
    """Return the settings in force. ``null`` means that the cache does not report the setting."""
    return await run(Operations.settings, query.cache)


@router.get("/config/support", summary="How each setting can be changed")
async def get_support(run: Run, query: Annotated[WhichCache, Query()]) -> Mapping[str, Support]:
    """Return for each setting whether it can be changed live, by a restart, or not at all, and why."""
    _, support = await run(Operations.config, query.cache)
    return support


@router.get("/config/export", summary="Settings as start-up configuration")
async def get_export(run: Run, query: Annotated[OfExport, Query()]) -> StartConfiguration:
    """Return the settings in force in the form with which a cache starts, so that they stay after a restart."""
    return await run(Operations.export, query.cache, query.form)


@router.get("/config/drift", summary="Where the Kubernetes resource differs")
async def get_drift(run: Run, query: Annotated[WhichCache, Query()]) -> tuple[Drift, ...]:
    """Return the settings that the cache's `LMCacheEngine` resource states and that are not in force."""
    return await run(Operations.drift, query.cache)


@router.post("/config", summary="Change settings", responses=CHANGES | CHANGED)
async def change_config(
    request: Request, response: Response, run: Run, query: Annotated[OfChange, Query()], body: WantedConfig
) -> CacheConfig | Plan:
    """Change settings within the operator's bounds and return the configuration in force.

    The body is any subset of the settings. Settings that hold already are no change. The `Location` header names the change, if
    there was one. With `dry_run` nothing is changed, and the answer is the plan if there is something to change.
    """
    if query.dry_run:
        try:
            return await run(Operations.plan, query.cache, body, query.reason, fingerprint=query.fingerprint)
        except NothingToChangeError:
            return await run(Operations.settings, query.cache)
    result = await run(Operations.configure, query.cache, body, query.reason, ACTOR, fingerprint=query.fingerprint)
    if result is None:
        return await run(Operations.settings, query.cache)
    response.headers["Location"] = f"{request.scope['root_path']}/changes/{result.change_id}"
    return result.config


@router.post("/optimize", summary="Drop cold entries", responses=CHANGES)
async def optimize(
    run: Run, query: Annotated[WhichCache, Query()], body: OptimizeRequest | None = None
) -> CacheOptimizationResult:
    """Remove least recently used entries. No setting changes. Removed entries cannot be restored."""
    asked = body or OptimizeRequest()
    return await run(Operations.optimize, query.cache, asked.target_utilization_percent, ACTOR, asked.reason)


@router.delete("/clear", summary="Empty a cache", responses=CHANGES)
async def clear(run: Run, query: Annotated[WithReason, Query()]) -> CacheOptimizationResult:
    """Remove everything from L1. This cannot be undone."""
    return await run(Operations.clear, query.cache, ACTOR, query.reason)


@router.get("/recommendations", summary="What would help")
async def get_recommendations(run: Run, query: Annotated[OfWindow, Query()]) -> Advice:
    """Return what would make the cache better, with evidence and predicted gain. Often the advice is to do nothing."""
    return await run(Operations.recommend, query.cache, query.window_seconds)


@router.get("/changes", summary="History of changes")
async def list_changes(run: Run, query: Annotated[OfHistory, Query()]) -> list[ChangeRecord]:
    """Return the latest records of the change log, oldest first."""
    return (await run(Operations.changes, query.cache))[-query.limit :]


@router.get("/changes/{change_id}", summary="One change")
async def get_change(run: Run, change_id: Annotated[str, Path()]) -> list[ChangeRecord]:
    """Return the records of one change, oldest first: what was asked, what came of it, whether it was verified or undone."""
    return await run(Operations.change, change_id)


@router.post("/changes/{change_id}/undo", summary="Undo a change", responses=CHANGES)
async def undo_change(run: Run, query: Annotated[WhichCache, Query()], change_id: Annotated[str, Path()]) -> ChangeResult:
    """Restore the settings that a change replaced."""
    return await run(Operations.undo, query.cache, change_id, ACTOR)


@router.post("/changes/{change_id}/verify", summary="Verify a change", responses=CHANGES)
async def verify_change(run: Run, query: Annotated[OfVerification, Query()], change_id: Annotated[str, Path()]) -> Verification:
    """Return whether a change helped: the predicted and the measured gain. The answer waits for traffic; the log notes it."""
    return await run(Operations.verify_change, change_id, query.verify_seconds, query.cache)


@router.get("/agent/metrics", summary="Our own figures, for Prometheus", response_class=PlainTextResponse)
async def get_own_metrics(run: Run) -> PlainTextResponse:
    """Return changes by outcome and the last advice of each cache, in Prometheus' text format. No cache is asked."""
    return PlainTextResponse(await run(own_metrics), media_type=CONTENT_TYPE)


@router.get("/report", summary="The report, for people", response_class=HTMLResponse, responses=PAGES)
async def get_report(run: Run, query: Annotated[OfPage, Query()]) -> HTMLResponse:
    """Return one web page: status now, hit-rate curve, advice with its evidence, history of changes."""
    try:
        page, status = await run(Operations.report, query.cache), 200
    except LMCacheToolError as error:  # a page for a person; it keeps reloading until the cache answers
        page, status = no_report(query.cache, str(error)), status_of(error)
    refresh = {"Refresh": str(query.refresh)} if query.refresh else {}
    return HTMLResponse(served(page, query.cache, query.refresh), status, refresh | UNCACHED)


def rest_app(operations: Callable[[], Operations] = shared_operations) -> FastAPI:
    """Return the application. It starts nothing and closes nothing: the caller owns the operations.

    The door is an application of its own, mounted into an outer one. LangGraph's server adopts the routes, middleware and error
    handlers of the application it is given, and ours must not apply to LangGraph's routes.
    """
    runner = Runner(operations)
    # HTTPBearer only documents that there may be a token. The doorkeeper, which runs first, demands it.
    door = FastAPI(
        title="LMCache agent tools",
        openapi_url=None,
        dependencies=[Security(HTTPBearer(scheme_name="token", auto_error=False))],
        separate_input_output_schemas=False,
        generate_unique_id_function=_operation_id,
    )
    door.state.runner = runner
    door.include_router(router)
    door.add_middleware(Doorkeeper, tokens=runner.tokens)
    answer_errors_of(door)
    outer = FastAPI(title=door.title, docs_url=None, redoc_url=None)
    mount = Mount(PREFIX, door)
    mount.path_regex = re.compile(
        mount.path_regex.pattern, re.DOTALL
    )  # without DOTALL a line break in a path leads past the door
    outer.routes.append(mount)
    outer.openapi = lambda: document(door)  # type: ignore[method-assign]
    return outer


def document(door: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document with the paths as they are once mounted, and with the schema of a problem."""
    spec = door.openapi()
    schemas = spec["components"]["schemas"] | {"Problem": Problem.model_json_schema()}
    paths = {PREFIX + path: item for path, item in spec["paths"].items()}
    return {**spec, "paths": paths, "components": {**spec["components"], "schemas": schemas}}


def _operation_id(route: APIRoute) -> str:
    return route.name


def serve(operations: Operations, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        SettingsError: Other machines could reach the service and no token is set.
    """
    check_host(host, tokens_of(operations.registry.settings))
    uvicorn.run(rest_app(lambda: operations), host=host, port=port, timeout_graceful_shutdown=30, **LIMITS)


app = rest_app()
