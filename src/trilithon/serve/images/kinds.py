"""What a picture is by its own bytes, whatever its name or its sender says: PNG, JPEG, WebP or GIF, and how large."""

import re
from collections.abc import Callable

__all__ = ["picture_kind", "picture_size"]

_PNG = b"\x89PNG\r\n\x1a\n"
# JPEG's frame headers (ITU-T T.81, table B.1): SOF0 to SOF15 without DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FILL = re.compile(rb"\xff+")
_MOST_MARKERS = 4096  # before the frame's header; profiles and thumbnails come in pieces of 64 KiB
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def picture_kind(data: bytes) -> str | None:
    """ "png", "jpeg", "webp", "gif" by the first bytes; None for anything else."""
    if data.startswith(_PNG):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels, by the header alone; None where it is garbled or cut off."""
    kind = picture_kind(data)
    try:
        size = _SIZES[kind](data) if kind else None
    except IndexError:
        return None
    return size if size and min(size) > 0 else None


def _big(data: bytes, at: int, length: int) -> int:
    if len(data) < at + length:
        raise IndexError(at)
    return int.from_bytes(data[at : at + length], "big")


def _little(data: bytes, at: int, length: int) -> int:
    if len(data) < at + length:
        raise IndexError(at)
    return int.from_bytes(data[at : at + length], "little")


def _png(data: bytes) -> tuple[int, int] | None:
    """IHDR has to be the first chunk."""
    return (_big(data, 16, 4), _big(data, 20, 4)) if data[12:16] == b"IHDR" else None


def _gif(data: bytes) -> tuple[int, int] | None:
    return _little(data, 6, 2), _little(data, 8, 2)


def _webp(data: bytes) -> tuple[int, int] | None:
    """RFC 9649: lossy, lossless, extended."""
    form = data[12:16]
    if form == b"VP8 ":
        return _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF
    if form == b"VP8L":
        bits = _little(data, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return (_little(data, 24, 3) + 1, _little(data, 27, 3) + 1) if form == b"VP8X" else None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """From marker to marker until the frame's header. Any number of bytes 0xFF may stand before a marker's second one
    (ITU-T T.81, B.1.1.2)."""
    at = 2
    for _ in range(_MOST_MARKERS):
        begun = _FILL.match(data, at)
        if begun is None:
            return None
        at = begun.end()
        marker = data[at]
        if marker in _FRAMES:
            return _big(data, at + 6, 2), _big(data, at + 4, 2)
        at += 1 if marker in _WITHOUT_LENGTH else 1 + max(_big(data, at + 1, 2), 2)
    return None


_SIZES: dict[str, Callable[[bytes], tuple[int, int] | None]] = {"png": _png, "jpeg": _jpeg, "gif": _gif, "webp": _webp}
