"""Problem answers (RFC 9457) of the REST door: what went wrong, in a form that a client program can act on."""

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
    errors.ForbiddenError: HTTPStatus.FORBIDDEN,
    errors.TooManyRequestsError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.StalePlanError: HTTPStatus.CONFLICT,
    errors.BusyError: HTTPStatus.CONFLICT,
    errors.CooldownError: HTTPStatus.CONFLICT,
    errors.UnsupportedError: HTTPStatus(422),  # its name changed in Python 3.13
    errors.NothingToChangeError: HTTPStatus(422),
    errors.OutOfBoundsError: HTTPStatus(422),
    errors.RefusedError: HTTPStatus.BAD_GATEWAY,
    errors.NotLMCacheError: HTTPStatus.BAD_GATEWAY,
    errors.MissingRouteError: HTTPStatus.BAD_GATEWAY,
    errors.UnreachableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.CacheDiedError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.OutcomeUnknownError: HTTPStatus.GATEWAY_TIMEOUT,
    errors.RecordError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.WorkloadError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.SettingsError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The HTTP status of each error. An error that is not listed is a 500."""


class Problem(Frozen):
    """Why a request failed."""

    type: str
    """The kind of problem: ``urn:lmcache-agent-tools:<code>``."""
    title: str
    """The kind in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What happened, and what to do next."""
    instance: str
    """The path of the request."""
    code: str
    """The error's code, e.g. ``unknown_cache``."""


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the problem answers of a route for the OpenAPI document. `rest.document` adds the schema of `Problem`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    codes = {status: [kind.code for kind, one in STATUS.items() if one == status] for status in statuses}
    return {
        status: {"description": ", ".join(codes[status]) or HTTPStatus(status).phrase, "content": content} for status in statuses
    }


def problem(request: Request, status: int, detail: str, code: str = "", title: str = "") -> JSONResponse:
    """Return a problem as an HTTP response."""
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
    """Make an application answer every error with a problem."""
    app.exception_handler(LMCacheToolError)(_ours)
    app.exception_handler(RequestValidationError)(_bad_request)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(Exception)(_bug)


def status_of(error: LMCacheToolError) -> int:
    """Return the HTTP status of an error."""
    return STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)


async def _ours(request: Request, error: LMCacheToolError) -> JSONResponse:
    title = (type(error).__doc__ or error.code).splitlines()[0].rstrip(".")
    answer = problem(request, status_of(error), str(error), error.code, title)
    if isinstance(error, errors.TooManyRequestsError):
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


async def _bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
    """Name each wrong value by its place. The value itself is not repeated: it may be a secret, or huge."""
    wrong = "; ".join(f"{'.'.join(plain(part) for part in one['loc'])}: {_said(one)}" for one in error.errors())
    return problem(request, 422, f"{wrong}. Nothing was changed", "bad_request", "The request is not valid")


def _said(one: Mapping[str, Any]) -> str:
    if one["type"] == "json_invalid":
        return f"not JSON: {one['ctx']['error']}"
    return str(one["msg"]).removeprefix("Value error, ")


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    answer = problem(request, error.status_code, error.detail)
    answer.headers.update(error.headers or {})
    return answer


async def _bug(request: Request, _: Exception) -> JSONResponse:
    """Keep the exception's text to the server's log: Starlette raises the exception again after this response."""
    return problem(
        request,
        500,
        "the service failed; its log says why. If you asked for a change, read /lmcache/changes before you try again",
    )
