"""Send events to a webhook. Nothing that the webhook does, or fails to do, holds up or ends a watch."""

import httpx
from pydantic import SecretStr

from agent_tools.errors import SettingsError
from agent_tools.wire.access import Access

from .event import Event

SECONDS = 5.0
"""Longest wait for each of the webhook's answers."""


class Webhook:
    """A POST of JSON for each event. The address is a secret: chat services put their key into it, so no message shows it."""

    def __init__(self, url: SecretStr, access: Access) -> None:
        """Make a client; nothing is sent yet.

        Raises:
            SettingsError: The URL is not one that can be sent to, or a header is not valid.
        """
        try:
            parsed = httpx.URL(url.get_secret_value())
            right = parsed.scheme in {"http", "https"} and bool(parsed.host)
        except httpx.InvalidURL:
            right = False
        if not right:
            raise SettingsError("the webhook is not an address of the form https://host/path; correct it (it is not shown here)")
        self._url = parsed
        self._http = httpx.AsyncClient(
            timeout=SECONDS, trust_env=False, headers=access.plain_headers, verify=access.certificates(), follow_redirects=False
        )

    async def send(self, event: Event) -> str | None:
        """Send one event. Return why it was not taken, without the address; ``None`` if it was taken."""
        try:
            async with self._http.stream("POST", self._url, json=event.body()) as answer:
                status = answer.status_code
        except httpx.HTTPError as error:
            return f"the webhook did not answer ({type(error).__name__})"
        return None if httpx.codes.is_success(status) else f"the webhook answered with status {status}"

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
