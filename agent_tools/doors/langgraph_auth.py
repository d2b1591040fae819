"""Who may use the LangGraph server of langgraph.json, and what for.

`langgraph dev` has no authentication of its own and lets pages of every origin in. With a token (``LMCACHE_AGENT_TOKEN``) only
its holders are answered. Without a token, a request must be sent to a name of this machine, and a web page that sends a request
must be of this machine or LangGraph Studio. The routes of `rest` have their own doorkeeper.

If the operator names approvers, each has a token of their own and a part of their own: an approver answers the question of a
run and starts none; everybody else starts runs and approves none (`changes.permission`). Then nobody may write the state of a
thread either, since a state that was changed after the question could make the answer mean something else.
"""

import hmac
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from langgraph_sdk import Auth

from agent_tools.caches.settings import Settings
from agent_tools.models.rights import Right

from .access import is_loopback, tokens_of

STUDIO = "smith.langchain.com"
"""LangGraph Studio is a page there, or at one of its regions' names; it talks to the server from the person's browser."""

READS_ONLY = "your token may not change anything, so it may not write the state of a thread or choose a run's next step"

auth = Auth()
_settings = Settings.load()
"""Read once, as the server starts: wrong settings must not leave the server open."""
_tokens, _approvers = tokens_of(_settings), _settings.approver_names


@auth.authenticate
async def authenticate(headers: dict[bytes, bytes]) -> Auth.types.MinimalUserDict:
    """Return who the caller is: the holder of a named token, ``token`` for the operator's own, or ``local``.

    Raises:
        HTTPException: 401 if there is a token and the caller does not send it. 403 if there is none and the request comes from
            a page, or was sent to a name, of elsewhere.
    """
    given = _bearer(headers)
    for name, token in _settings.approvers.items():
        if hmac.compare_digest(given, token.get_secret_value().encode()):
            return {"identity": name}
    known, name_of_token = _tokens.recognise(given)
    if known:
        return {"identity": name_of_token or "token"}
    if not _tokens:
        _check_nearby(headers)
        return {"identity": "local"}
    raise Auth.exceptions.HTTPException(status_code=401, detail="send the token: Authorization: Bearer <LMCACHE_AGENT_TOKEN>")


@auth.on.threads.create_run
async def check_run(ctx: Auth.types.AuthContext, value: Auth.types.RunsCreate) -> None:
    """Refuse a run that would call an address, a run that an approver starts, and one that writes the state by the way.

    Raises:
        HTTPException: 403, with the reason.
    """
    kwargs: Mapping[str, Any] = value.get("kwargs") or {}
    command: Mapping[str, Any] = kwargs.get("command") or {}
    if kwargs.get("webhook"):
        raise _forbidden("a run may not call a webhook: this server calls no address that a caller names")
    writes = command.get("update") or command.get("goto")
    if writes and not _may_change(ctx.user.identity):
        raise _forbidden(READS_ONLY)
    if not _approvers:
        return
    if command.get("update") or command.get("goto"):
        raise _forbidden("where approvers are named, a run may not write the state of a thread or choose its next step")
    if ctx.user.identity in _approvers and (command.get("resume") is None or kwargs.get("input") is not None):
        raise _forbidden("an approver answers the question of a run and starts none; start it with the other token")


@auth.on.crons.create
async def check_cron(ctx: Auth.types.AuthContext, value: Auth.types.CronsCreate) -> None:
    """Refuse a schedule whose runs would be refused.

    Raises:
        HTTPException: 403, with the reason.
    """
    if (value.get("payload") or {}).get("webhook"):
        raise _forbidden("a schedule may not call a webhook: this server calls no address that a caller names")
    if ctx.user.identity in _approvers:
        raise _forbidden("an approver answers the question of a run and starts none")


@auth.on.threads.update
async def check_update(ctx: Auth.types.AuthContext, value: Auth.types.ThreadsUpdate) -> None:
    """Refuse to write the state of a thread where approvers are named; a run may still be cancelled.

    Raises:
        HTTPException: 403, with the reason.
    """
    if value.get("action") is None and not _may_change(ctx.user.identity):
        raise _forbidden(READS_ONLY)
    if _approvers and value.get("action") is None:
        raise _forbidden("where approvers are named, nobody may write the state of a thread")


def _may_change(identity: str) -> bool:
    """Return whether a caller may write the state of a thread, which can hold a plan."""
    return Right.CHANGE in _settings.rights_of(identity)


def _forbidden(detail: str) -> Auth.exceptions.HTTPException:
    return Auth.exceptions.HTTPException(status_code=403, detail=detail)


def _bearer(headers: dict[bytes, bytes]) -> bytes:
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    return given.strip() if scheme.lower() == b"bearer" else b""


def _check_nearby(headers: dict[bytes, bytes]) -> None:
    page, sent_to = headers.get(b"origin"), b"//" + headers.get(b"host", b"")
    hidden = page is None and headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}
    if hidden or not is_loopback(_name(sent_to)) or (page is not None and not _may_call(_name(page))):
        detail = "without a token (LMCACHE_AGENT_TOKEN) this server answers only to its own machine and LangGraph Studio"
        raise Auth.exceptions.HTTPException(status_code=403, detail=detail)


def _may_call(page: str) -> bool:
    return is_loopback(page) or page == STUDIO or page.endswith(f".{STUDIO}")


def _name(url: bytes) -> str:
    try:
        return urlsplit(url.decode("latin-1")).hostname or ""
    except ValueError:
        return ""
