"""Every route of the module answers, what it cannot do as ``application/problem+json`` (RFC 9457); none ends the server."""

import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from .refusal import Refusal


class ProblemRoute(APIRoute):
    """A route whose errors are problems."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, with errors caught."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Refusal as refusal:
                return _problem(refusal.status, str(refusal), request)
            except RequestValidationError as error:
                wrong = [f"{'.'.join(map(str, one['loc'][1:])) or 'the body'}: {one['msg']}" for one in error.errors()]
                return _problem(HTTPStatus(422), "; ".join(wrong), request)
            except Exception as error:
                logging.getLogger(__name__).exception("%s %s failed", request.method, request.url.path)
                return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}", request)

        return answer


def _problem(status: int, detail: str, request: Request) -> Response:
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": int(status), "detail": detail}
    return JSONResponse({**problem, "instance": request.url.path}, status, media_type="application/problem+json")
