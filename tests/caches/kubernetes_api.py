"""A stand-in for a Kubernetes API that holds ``LMCacheEngine`` resources: one route, and a token. It was made from the API's
documentation and the operator's sources; no cluster was at hand."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

TOKEN = "the token of a service account"  # noqa: S105
ROUTE = "/apis/lmcache.lmcache.ai/v1alpha1/namespaces/serving/lmcacheengines/"


@dataclass
class KubernetesApi:
    """Answers for the resources of one namespace, and keeps what it was asked."""

    resources: dict[str, Any]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(Request(scope))(scope, receive, send)

    def _answer(self, request: Request) -> JSONResponse:
        self.asked.append(f"{request.method} {request.url.path}")
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _refused(401, "Unauthorized")
        if not request.url.path.startswith(ROUTE):
            return _refused(403, "Forbidden")
        found = self.resources.get(request.url.path.removeprefix(ROUTE))
        return _refused(404, "NotFound") if found is None else JSONResponse(found)


def _refused(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status}, status)


def kubeconfig(folder: Path, **servers: str) -> Path:
    """Write a kubeconfig with a context for each server; the first is the current one."""
    file = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": next(iter(servers)),
        "users": [{"name": "agent", "user": {"token": TOKEN}}, {"name": "stranger", "user": {"token": "wrong"}}],
        "clusters": [{"name": name, "cluster": {"server": url}} for name, url in servers.items()],
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": "stranger" if name == "stranger" else "agent"}}
            for name in servers
        ],
    }
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file
