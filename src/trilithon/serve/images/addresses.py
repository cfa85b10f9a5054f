"""Which addresses a picture may be fetched from: public ones alone, however they are written or wrapped.

Otherwise anybody who may ask a question could have this server look into the network that it stands in."""

import asyncio
import ipaddress
import socket

from trilithon.models.fetch.public_hosts import Address, is_public
from trilithon.serve.http.errors import ApiError

__all__ = ["Address", "is_public", "resolve"]


async def resolve(host: str, port: int) -> list[Address]:
    """Raises Problem for a name that leads nowhere."""
    try:
        rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ApiError(f"the image's host {host[:100]} cannot be resolved; check the URL", status=400) from error
    # A scope ("%eth0") would make a link-local address look like another one.
    return list(dict.fromkeys(ipaddress.ip_address(str(row[4][0]).partition("%")[0]) for row in rows))
