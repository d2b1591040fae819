"""Who may use the LangGraph server of langgraph.json: holders of the token; without one, only this machine and Studio.

`langgraph dev` has no authentication of its own and lets pages of every origin in. So, unless the operator set a token
(``LMCACHE_AGENT_TOKEN``), a request must be sent to a name of this machine, and if a web page sends it, the page must be of
this machine or LangGraph Studio. The routes of `rest` have their own doorkeeper.
"""

import hmac
from urllib.parse import urlsplit

from langgraph_sdk import Auth

from agent_tools.caches.settings import Settings

from .access import is_loopback

STUDIO = "smith.langchain.com"
"""LangGraph Studio is a page there, or at one of its regions' names; it talks to the server from the person's browser."""

auth = Auth()
_token = Settings.load().token
"""Read once, as the server starts: settings that make no sense must not leave it open."""


@auth.authenticate
async def authenticate(headers: dict[bytes, bytes]) -> Auth.types.MinimalUserDict:
    """The caller, if he may come in.

    Raises:
        HTTPException: 401 without the token; 403 for a page or a name of elsewhere when there is no token.
    """
    if _token is None:
        _check_nearby(headers)
        return {"identity": "local"}
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), _token.get_secret_value().encode()):
        raise Auth.exceptions.HTTPException(status_code=401, detail="send the token: Authorization: Bearer <LMCACHE_AGENT_TOKEN>")
    return {"identity": "token"}


def _check_nearby(headers: dict[bytes, bytes]) -> None:
    page, sent_to = headers.get(b"origin"), b"//" + headers.get(b"host", b"")
    if not is_loopback(_name(sent_to)) or (page is not None and not _may_call(_name(page))):
        detail = "without a token (LMCACHE_AGENT_TOKEN) this server answers only to its own machine and LangGraph Studio"
        raise Auth.exceptions.HTTPException(status_code=403, detail=detail)


def _may_call(page: str) -> bool:
    return is_loopback(page) or page == STUDIO or page.endswith(f".{STUDIO}")


def _name(url: bytes) -> str:
    try:
        return urlsplit(url.decode("latin-1")).hostname or ""
    except ValueError:
        return ""
