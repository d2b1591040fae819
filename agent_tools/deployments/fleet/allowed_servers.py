"""Which of the servers that a coordinator knows may be called: by the operator's word alone, never by the coordinator's."""

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

from agent_tools.errors import SettingsError, UnsupportedError

from .coordinator import Instance

_ODD = re.compile(r"[^\w.:+=-]", re.ASCII)
_NAME_LENGTH, _PORTS = 128, 65_535
_PLACE = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[\w.-]+)(:(?P<port>\d{1,5}))?", re.ASCII | re.IGNORECASE)


class AllowedServers:
    """The operator's networks, and addresses under which servers are reached that cannot be under their own."""

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network], addresses: Mapping[str, str]) -> None:
        """`addresses`: advertised ``ip`` or ``ip:port`` -> ``host:port`` (the advertised port where it names none).

        Raises:
            SettingsError: One of `addresses` is no address.
        """
        self._networks = tuple(networks)
        self._addresses = {advertised: _place(reachable) for advertised, reachable in addresses.items()}

    def url(self, instance: Instance) -> str:
        """Where the server is called, written as `AdminClient.base_url` is.

        Raises:
            UnsupportedError: It may not be called; says why.
        """
        if not instance.name or told(instance.name) != instance.name:
            raise UnsupportedError(
                f"its name is empty, has other characters than letters, digits and . : + = _ -, or more than {_NAME_LENGTH}"
            )
        if not 0 < instance.port <= _PORTS:
            raise UnsupportedError(f"{instance.port} is no port")
        mapped = self._addresses.get(f"{instance.ip}:{instance.port}") or self._addresses.get(instance.ip)
        place = self._own(instance) if mapped is None else mapped["host"] + ":" + (mapped["port"] or str(instance.port))
        return str(httpx.URL(f"http://{place}")).rstrip("/")

    def _own(self, instance: Instance) -> str:
        try:
            ip = ip_address(instance.ip)
        except ValueError as error:
            raise UnsupportedError(
                f"it told the coordinator {told(instance.ip)}, which is no IP address; nothing else is called (start it with"
                " --coordinator-advertise-ip, or map that in the directory's addresses)"
            ) from error
        scoped = isinstance(ip, IPv6Address) and ip.scope_id is not None
        if scoped or not any(ip in network for network in self._networks):
            networks = ", ".join(map(str, self._networks)) or "none"
            raise UnsupportedError(
                f"its address {told(instance.ip)} is in none of the networks that the operator allows ({networks}), so it is"
                " never called"
            )
        return f"[{ip}]:{instance.port}" if isinstance(ip, IPv6Address) else f"{ip}:{instance.port}"


def told(name: str) -> str:
    """A name or address as we repeat it: whoever registers a server chooses it, and a model reads it."""
    return _ODD.sub("?", name)[:_NAME_LENGTH]


def _place(reachable: str) -> re.Match[str]:
    place = _PLACE.fullmatch(reachable)
    if place is None or int(place["port"] or 1) > _PORTS:
        raise SettingsError(f"addresses: {reachable!r} is not host:port")
    return place
