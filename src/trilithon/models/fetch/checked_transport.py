"""Connections to hosts whose addresses were checked.

A host is resolved once, its addresses are checked, and the connection is made to one of them: a name that resolves to
another address the next time (DNS rebinding) gains nothing. Each redirect is a request of its own."""

import asyncio
import ipaddress
import socket
import urllib.request
from collections.abc import Mapping

import httpx

from trilithon.models.fetch.public_hosts import Address, PublicHosts

__all__ = ["CheckedTransport", "resolved"]

_PORTS = {"http": 80, "https": 443}


class CheckedTransport(httpx.AsyncBaseTransport):
    """With the proxies of the environment: what goes through one is checked by name, and the proxy connects. Raises
    UserError for a host that is not public."""

    def __init__(self, hosts: PublicHosts, limits: httpx.Limits):
        self._hosts = hosts
        self._direct = httpx.AsyncHTTPTransport(limits=limits)
        self._proxied = {
            scheme: httpx.AsyncHTTPTransport(proxy=proxy, limits=limits) for scheme, proxy in _proxies().items()
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host, scheme = request.url.host, request.url.scheme
        proxied = None if urllib.request.proxy_bypass(host) else self._proxied.get(scheme)
        try:
            addresses = await resolved(host, request.url.port or _PORTS[scheme])
        except (OSError, UnicodeError) as error:
            if proxied is None:
                raise httpx.ConnectError(str(error)) from error
            addresses = []  # a network where only the proxy resolves names
        self._hosts.check(host, addresses)
        if proxied is not None:
            return await proxied.handle_async_request(request)
        return await self._from_any(request, addresses)

    async def aclose(self) -> None:
        for transport in (self._direct, *self._proxied.values()):
            await transport.aclose()

    async def _from_any(self, request: httpx.Request, addresses: list[Address]) -> httpx.Response:
        """From the first address that can be reached."""
        for number, address in enumerate(addresses, start=1):
            try:
                return await self._direct.handle_async_request(_pinned(request, address))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise httpx.ConnectError("the name has no address")


async def resolved(host: str, port: int) -> list[Address]:
    """Its addresses. Raises OSError where the name has none."""
    rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A scope ("%eth0") would make a link-local address look like another one.
    return list(dict.fromkeys(ipaddress.ip_address(str(row[4][0]).partition("%")[0]) for row in rows))


def _pinned(request: httpx.Request, address: Address) -> httpx.Request:
    """The request, sent to this address: its Host header and the certificate are those of the name."""
    return httpx.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )


def _proxies() -> Mapping[str, str]:
    """By scheme, as the environment names them."""
    named = urllib.request.getproxies()
    by_scheme = {scheme: named.get(scheme) or named.get("all", "") for scheme in _PORTS}
    return {scheme: proxy if "://" in proxy else f"http://{proxy}" for scheme, proxy in by_scheme.items() if proxy}
