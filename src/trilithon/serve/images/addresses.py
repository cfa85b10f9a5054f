"""Which addresses a picture may be fetched from: public ones alone, however they are written or wrapped.

Otherwise anybody who may ask a question could have this server look into the network that it stands in."""

import asyncio
import ipaddress
import socket

from trilithon.serve.http.errors import ApiError

__all__ = ["Address", "is_public", "resolve"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address stands in the last 32 bits
# Nobody keeps pictures there, and Python's lists of what is global differ from release to release.
_CLOSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # RFC 6890
        "192.88.99.0/24",  # relays of 6to4, RFC 7526
        "64:ff9b:1::/48",  # local NAT64, RFC 8215
        "2001::/23",  # Teredo, benchmarks, ORCHID: RFC 2928
        "2002::/16",  # 6to4, RFC 3056
        "fec0::/10",  # site-local, RFC 3879
    )
)


def is_public(address: Address) -> bool:
    """An address of IPv6 that leads to one of IPv4 is what that is."""
    address = _meant(address)
    if address.is_multicast or address.is_reserved or any(address in network for network in _CLOSED):
        return False
    return address.is_global


async def resolve(host: str, port: int) -> list[Address]:
    """Raises Problem for a name that leads nowhere."""
    try:
        getaddrinfo = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ApiError(f"the image's host {host[:100]} cannot be resolved; check the URL", status=400) from error
    # A scope ("%eth0") would make a link-local address look like another one.
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in getaddrinfo))


def _meant(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address
