"""Pulls that somebody else than the owner asked for reach public addresses only, and hosts that the owner allows."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from trilithon.errors import UserError

__all__ = ["Address", "PublicHosts", "is_public"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address stands in the last 32 bits
# Nobody keeps models or pictures there, and Python's lists of what is global differ from release to release.
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


@dataclass(frozen=True, slots=True)
class PublicHosts:
    """`allowed` are the hosts that may have any address, by name or address, in lower case and without a port."""

    allowed: frozenset[str] = frozenset()

    def allows(self, host: str) -> bool:
        return host.lower().removesuffix(".") in self.allowed

    def and_host_of(self, url: str) -> "PublicHosts":
        return PublicHosts(self.allowed | {(urlsplit(url).hostname or "").removesuffix(".")})

    def check(self, host: str, addresses: Iterable[Address]) -> None:
        """Raises UserError where an address is not public. Which one, and whether anybody listens there, is not
        said: that is what a scan of the owner's network would ask."""
        if not self.allows(host) and not all(map(is_public, addresses)):
            raise UserError(
                "{host} is not a public host, and pulls over the API reach no others; its owner can pull it "
                "with trilithon pull, or allow the host with pull_hosts in config.toml",
                host=host[:80],
            )


def is_public(address: Address) -> bool:
    """An address of IPv6 that leads to one of IPv4 is what that is."""
    address = _meant(address)
    if address.is_multicast or address.is_reserved or any(address in network for network in _CLOSED):
        return False
    return address.is_global


def _meant(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address
