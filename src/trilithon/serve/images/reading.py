"""Pictures that come with a question: inside it or, where the owner allows it, from a public address."""

import asyncio
import base64
import binascii
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from trilithon.serve.http.errors import ApiError
from trilithon.serve.images.addresses import Address, is_public, resolve
from trilithon.serve.images.kinds import picture_kind, picture_size
from trilithon.units import format_bytes

if TYPE_CHECKING:  # needed only where fetching is allowed
    import httpx

__all__ = ["ImagePolicy", "data_url", "decode_image", "fetch_image"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
_PIECE = 1 << 20  # characters, a multiple of four
_WHITE_SPACE = re.compile(r"[ \t\r\n]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePolicy:
    """`permits` judges an address before anything is sent there; `looks_up` gives the addresses of a name.
    `most_pixels` because a small file can unpack into gigabytes."""

    fetch_remote: bool = False
    most_bytes: int = 20 << 20
    most_pixels: int = 64 << 20
    most_redirects: int = 3
    limit_seconds: float = 15.0
    permits: Callable[[Address], bool] = is_public
    looks_up: Callable[[str, int], Awaitable[list[Address]]] = resolve


async def fetch_image(url: str, policy: ImagePolicy) -> bytes:
    """The bytes of the picture at a data: or, where allowed, an http(s) address. Raises Problem (400) for whatever is
    none, too large, too slow, or at an address that is not public."""
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        return await asyncio.to_thread(decode_image, url, policy)  # some megabytes take a while
    if scheme not in ("http", "https"):
        raise _problem("an image must be a data: URL")  # and never from this machine's files
    if not policy.fetch_remote:
        raise _problem("images are not fetched from URLs; send it as a data: URL")
    try:
        async with asyncio.timeout(policy.limit_seconds):
            return _checked(await _fetched(url, policy), policy)
    except TimeoutError as error:
        raise _problem(
            f"the image did not arrive within {policy.limit_seconds:.0f} s; send it as a data: URL"
        ) from error


def decode_image(text: str, policy: ImagePolicy) -> bytes:
    """A picture in base64, as Ollama's clients send it; a data: URL is taken too. Raises Problem (400)."""
    data = _from_data_url(text, policy) if text[:5].lower() == "data:" else _from_base64(text, policy)
    return _checked(data, policy)


def data_url(data: bytes) -> str:
    """Of a picture whose kind is known."""
    return f"data:image/{picture_kind(data)};base64,{base64.b64encode(data).decode('ascii')}"


def _from_data_url(url: str, policy: ImagePolicy) -> bytes:
    """RFC 2397. The media type is not looked at: the bytes say what they are."""
    head, comma, content = url.partition(",")
    if not comma or len(head) > 200:
        raise _problem("invalid data: URL; write data:image/png;base64,…")
    if head.lower().endswith(";base64"):
        return _from_base64(content, policy)
    _require_size(len(content) // 3, policy)  # at most three characters are a byte
    return unquote_to_bytes(content)


def _from_base64(text: str, policy: ImagePolicy) -> bytes:
    _require_size(len(text) * 3 // 4 - 2, policy)
    if "\n" in text or "\r" in text or " " in text:
        text = _WHITE_SPACE.sub("", text)
    try:
        padded = text + "=" * (-len(text) % 4)
        if "=" in padded[:-2]:
            raise ValueError("an end in the middle")
        # In pieces: each holds the interpreter's lock.
        pieces = (padded[at : at + _PIECE] for at in range(0, len(padded), _PIECE))
        return b"".join([base64.b64decode(piece, validate=True) for piece in pieces])
    except (binascii.Error, ValueError) as error:
        raise _problem("the image is not base64; send the base64 of a PNG, JPEG, WebP or GIF") from error


def _checked(data: bytes, policy: ImagePolicy) -> bytes:
    _require_size(len(data), policy)
    if picture_kind(data) is None:
        raise _problem("not an image; send a PNG, JPEG, WebP or GIF")
    size = picture_size(data)
    if size is None:
        raise _problem("the image is damaged; send it again")
    if size[0] * size[1] > policy.most_pixels:
        raise _problem(f"the image has {size[0]} x {size[1]} pixels; send a smaller one")
    return data


async def _fetched(url: str, policy: ImagePolicy) -> bytes:
    import httpx

    try:
        target = _target(httpx.URL(url))
        # Without the environment: a proxy would connect to where we have not looked.
        async with httpx.AsyncClient(trust_env=False, timeout=policy.limit_seconds) as client:
            for _ in range(policy.most_redirects + 1):
                async with contextlib.aclosing(await _asked(client, target, policy)) as response:
                    if response.status_code not in _REDIRECTS:
                        return await _body(response, policy)
                    target = _target(target.join(response.headers.get("location", "")))
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise _problem("the image could not be fetched; check the URL, or send it as a data: URL") from error
    raise _problem(f"the image's URL redirects more than {policy.most_redirects} times; send it as a data: URL")


def _target(url: "httpx.URL") -> "httpx.URL":
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise _problem("an image URL must be https://HOST/PATH, without user and password")
    return url


async def _asked(client: "httpx.AsyncClient", url: "httpx.URL", policy: ImagePolicy) -> "httpx.Response":
    """The connection goes to an address that was judged, and not to the name, which may mean another one by then."""
    import httpx

    addresses = await policy.looks_up(url.host, url.port or _PORTS[url.scheme])
    if not addresses or not all(map(policy.permits, addresses)):
        raise _problem("the image's URL is not on the public internet; send it as a data: URL")
    for address in addresses:
        request = client.build_request(
            "GET",
            url.copy_with(host=str(address)),
            headers={"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": url.host},  # which the certificate is compared with, too
        )
        with contextlib.suppress(httpx.ConnectError):  # the next one may be of the other kind of IP
            return await client.send(request, stream=True, follow_redirects=False)
    raise _problem("the image's server does not answer; send it as a data: URL")


async def _body(response: "httpx.Response", policy: ImagePolicy) -> bytes:
    if response.status_code != 200:
        raise _problem(f"the image's server returned status {response.status_code}; check the URL")
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        _require_size(len(content), policy)
    return bytes(content)


def _require_size(size_bytes: int, policy: ImagePolicy) -> None:
    if size_bytes > policy.most_bytes:
        raise _problem(f"the image is larger than {format_bytes(policy.most_bytes)}; send a smaller one")


def _problem(text: str) -> ApiError:
    return ApiError(text, status=400, field="image")
