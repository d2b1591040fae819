"""Which of a coordinator's servers may be called. Only the operator's settings decide, never the coordinator."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

from agent_tools.errors import SettingsError, UnsupportedError
from agent_tools.redaction import text_without_secrets

from .coordinator import Instance

_ODD = re.compile(r"[^\w.:+=-]", re.ASCII)
_NAME_LENGTH, _PORTS = 128, 65_535
_PLACE = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[\w.-]+)(:(?P<port>\d{1,5}))?", re.ASCII | re.IGNORECASE)


class AllowedServers:
    """The operator's allowed networks, and the addresses of servers that are not reachable at the address they registered."""

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network], addresses: Mapping[str, str]) -> None:
        """Check the addresses.

        Args:
            networks: Networks in which servers may be called.
            addresses: Maps a registered ``ip`` or ``ip:port`` to ``host:port`` (without a port, the registered port is used), or
                to the URL of a proxy, ``https://host/prefix``.

        Raises:
            SettingsError: One of `addresses` is not ``host:port``.
        """
        self._networks = tuple(networks)
        self._urls = {advertised: _url(reachable) for advertised, reachable in addresses.items() if "://" in reachable}
        self._addresses = {name: _place(reachable) for name, reachable in addresses.items() if name not in self._urls}

    def is_operators_url(self, url: str) -> bool:
        """Return whether the operator gave this URL whole."""
        return url in self._urls.values()

    @cached_property
    def operators_servers(self) -> frozenset[str]:
        """The URLs of which the operator named the host and the port, so that no coordinator chose either."""
        whole = {_url(f"http://{place[0]}") for place in self._addresses.values() if place["port"]}
        return frozenset({*self._urls.values(), *whole})

    def url(self, instance: Instance) -> str:
        """Return the server's URL in the format of `AdminClient.base_url`.

        Raises:
            UnsupportedError: The server may not be called. The message says why.
        """
        if not instance.name or shown_name(instance.name) != instance.name:
            raise UnsupportedError(f"its name must have 1 to {_NAME_LENGTH} characters, only letters, digits and . : + = _ -")
        if not 0 < instance.port <= _PORTS:
            raise UnsupportedError(f"its port {instance.port} is not a valid port")
        proxied = self._urls.get(f"{instance.ip}:{instance.port}") or self._urls.get(instance.ip)
        if proxied is not None:
            return proxied
        mapped = self._addresses.get(f"{instance.ip}:{instance.port}") or self._addresses.get(instance.ip)
        place = self._own(instance) if mapped is None else mapped["host"] + ":" + (mapped["port"] or str(instance.port))
        return str(httpx.URL(f"http://{place}")).rstrip("/")

    def _own(self, instance: Instance) -> str:
        try:
            ip = ip_address(instance.ip)
        except ValueError as error:
            raise UnsupportedError(
                f"it registered {shown_name(instance.ip)}, which is not an IP address; start it with --coordinator-advertise-ip,"
                " or map this name under addresses in caches.toml"
            ) from error
        scoped = isinstance(ip, IPv6Address) and ip.scope_id is not None
        if scoped or not any(ip in network for network in self._networks):
            networks = ", ".join(map(str, self._networks)) or "none"
            raise UnsupportedError(
                f"its address {shown_name(instance.ip)} is outside the networks that caches.toml allows ({networks}), so it is"
                " never called"
            )
        return f"[{ip}]:{instance.port}" if isinstance(ip, IPv6Address) else f"{ip}:{instance.port}"


def shown_name(name: str) -> str:
    """Return a name or address that is safe to show. Anyone who registers a server chooses it, and a model reads it."""
    return _ODD.sub("?", name)[:_NAME_LENGTH]


def _url(reachable: str) -> str:
    """Return a URL in the format of `AdminClient.base_url`, which checks the rest."""
    try:
        url = httpx.URL(reachable)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in {"http", "https"} or not url.host:
        raise SettingsError(f"addresses: {text_without_secrets(reachable)!r} is no URL; correct it in caches.toml")
    return str(url).rstrip("/")


def _place(reachable: str) -> re.Match[str]:
    place = _PLACE.fullmatch(reachable)
    if place is None or int(place["port"] or 1) > _PORTS:
        raise SettingsError(f"addresses: {reachable!r} is not host:port; correct it in caches.toml")
    return place
