"""Which names this server answers to: a web page whose own name is made to point here must get nothing (DNS rebinding).

A browser names in `Host` what stands in its address bar, so a name that strangers can own is not ours."""

import ipaddress
import re
import socket
from collections.abc import Collection

from trilithon.errors import UserError

__all__ = ["HostNames", "host_of", "is_loopback", "names_address"]

_LOOPBACK = ".localhost"  # RFC 6761
# Where a network gives machines their names: mDNS (RFC 6762), RFC 8375, ICANN's reservation of 2024, and routers' own.
# Anybody in the network can take another name there, and have it mean this machine.
_NETWORKS = (".local", ".lan", ".home", ".home.arpa", ".internal", ".fritz.box")
# What Docker and Podman call the machine that a container runs on.
_OF_CONTAINERS = ("host.docker.internal", "host.containers.internal")
_LABELS = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_LONGEST_NAME = 253
_PORT = re.compile(r"(:\d{1,5})?")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class HostNames:
    """`more` are names besides those that can only mean this machine: NAME, *.NAME for all below it, * for any."""

    def __init__(self, more: Collection[str] = (), own: str | None = None):
        own = (socket.gethostname() if own is None else own).lower()
        label = own.partition(".")[0]
        names = [name.strip().lower() for name in more]
        for name in names:
            if name != "*" and not _is_name(name.removeprefix("*.")) and _address(name.strip("[]")) is None:
                raise UserError(f"{name!r} is not a host name; write it as in rock5.lan, without scheme and port")
        self._any = "*" in names
        in_networks = [label + ending for ending in _NETWORKS if label != "localhost"]
        self._names = frozenset({"localhost", own, label, *in_networks, *_OF_CONTAINERS, *names})
        self._endings = (_LOOPBACK, *(name[1:] for name in names if name.startswith("*.")))

    def __contains__(self, header: object) -> bool:
        """The value of a `Host` header."""
        if not isinstance(header, str):
            return False
        host = host_of(header)
        if not host:
            return False
        address = _address(host)
        if address is not None:
            return self._any or not address.is_global or str(address) in self._names
        return self._any or host in self._names or host.endswith(self._endings)


def host_of(header: str) -> str:
    """The name or address in a `Host` header, in small letters, without port, brackets and a final dot; empty for what
    is none."""
    text = header.strip().lower()
    if text.startswith("["):
        inside, bracket, port = text[1:].partition("]")
        return inside if bracket and _PORT.fullmatch(port) and _address(inside) else ""
    name, colon, port = text.partition(":")
    name = name.removesuffix(".")
    return name if _PORT.fullmatch(colon + port) and _is_name(name) else ""


def names_address(header: str, address: str) -> bool:
    """Whether a `Host` header is the address that the client connected to, which no name of a stranger's can be."""
    host = _address(host_of(header))
    return host is not None and host == _address(address.partition("%")[0])


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` (a name, an address, or the path of a Unix socket) is for this machine alone."""
    if host.startswith(("/", "@", "\0")):
        return True
    address = _address(host.strip("[]"))
    return host.lower() == "localhost" if address is None else address.is_loopback


def _is_name(text: str) -> bool:
    return len(text) <= _LONGEST_NAME and _LABELS.fullmatch(text) is not None


def _address(text: str) -> _Address | None:
    """An address of IPv4 that is written as one of IPv6 counts as what it is."""
    try:
        ip_address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = ip_address.ipv4_mapped if isinstance(ip_address, ipaddress.IPv6Address) else None
    return mapped or ip_address
