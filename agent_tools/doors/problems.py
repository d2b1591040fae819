"""Problem answers (RFC 9457) of the REST door: what went wrong, in a form that a client can act on."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from agent_tools import errors
from agent_tools.errors import LMCacheToolError
from agent_tools.models.config import Frozen
from agent_tools.plain import MESSAGE, plain

MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[type[LMCacheToolError], HTTPStatus] = {
    errors.UnknownCacheError: HTTPStatus.NOT_FOUND,
    errors.UnknownChangeError: HTTPStatus.NOT_FOUND,
    errors.StalePlanError: HTTPStatus.CONFLICT,
    errors.BusyError: HTTPStatus.CONFLICT,
    errors.CooldownError: HTTPStatus.CONFLICT,
    errors.UnsupportedError: HTTPStatus(422),  # its name changed in Python 3.13
    errors.OutOfBoundsError: HTTPStatus(422),
    errors.RefusedError: HTTPStatus.BAD_GATEWAY,
    errors.NotLMCacheError: HTTPStatus.BAD_GATEWAY,
    errors.UnreachableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.CacheDiedError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.OutcomeUnknownError: HTTPStatus.GATEWAY_TIMEOUT,
    errors.WorkloadError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.SettingsError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The HTTP status of each error; one that is not listed is a 500."""


class Problem(Frozen):
    """Why a request was not answered."""

    type: str
    """What kind of problem: ``urn:lmcache-agent-tools:<code>``."""
    title: str
    """The kind in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What was asked, what LMCache answered, and what to do next."""
    instance: str
    """The path that was asked for."""
    code: str
    """The error's code, e.g. ``unknown_cache``; `."""


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problem answers of a route, for the OpenAPI document; `Problem` itself is added to its schemas by `rest.document`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    codes = {status: [kind.code for kind, one in STATUS.items() if one == status] for status in statuses}
    return {
        status: {"description": ", ".join(codes[status]) or HTTPStatus(status).phrase, "content": content} for status in statuses
    }


def problem(request: Request, status: int, detail: str, code: str = "", title: str = "") -> JSONResponse:
    """One problem as an HTTP answer."""
    code = code or HTTPStatus(status).name.lower()
    told = Problem(
        type=f"urn:lmcache-agent-tools:{code}",
        title=title or HTTPStatus(status).phrase,
        status=status,
        detail=plain(detail, MESSAGE),
        instance=request.url.path,
        code=code,
    )
    return JSONResponse(told.model_dump(), status, media_type=MEDIA_TYPE)


def answer_errors_of(app: FastAPI) -> None:
    """Have an application answer every error with a problem."""
    app.exception_handler(LMCacheToolError)(_ours)
    app.exception_handler(RequestValidationError)(_bad_request)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(Exception)(_bug)


def status_of(error: LMCacheToolError) -> int:
    """The HTTP status of an error."""
    return STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)


async def _ours(request: Request, error: LMCacheToolError) -> JSONResponse:
    title = (type(error).__doc__ or error.code).splitlines()[0].rstrip(".")
    return problem(request, status_of(error), str(error), error.code, title)


async def _bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
    """One sentence that names each wrong value by its place; the value itself, which may be a secret or huge, is not repeated."""
    wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {_said(one)}" for one in error.errors())
    return problem(request, 422, f"{wrong}. Nothing was changed", "bad_request", "The request makes no sense")


def _said(one: Mapping[str, Any]) -> str:
    if one["type"] == "json_invalid":
        return f"not JSON: {one['ctx']['error']}"
    return str(one["msg"]).removeprefix("Value error, ")


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    answer = problem(request, error.status_code, error.detail)
    answer.headers.update(error.headers or {})
    return answer


async def _bug(request: Request, _: Exception) -> JSONResponse:
    """What the exception says is for the server's log only; Starlette raises it again once this is sent."""
    return problem(
        request, 500, "this failed, and the log of the service says why; if you asked for a change, read the changes first"
    )
