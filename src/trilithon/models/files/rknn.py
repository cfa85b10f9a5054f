"""The facts of an RKNN file (.rknn), such as a vision encoder, from the JSON at its end.

The layout is that of files that rknn-toolkit2 2.5.0 wrote: `RKNN` and four zero bytes, a version and the length of the
model (64 bits each, little-endian); behind 64 bytes and the model the length of the JSON text, and the text."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilithon.errors import ModelError

__all__ = ["RknnFacts", "read_rknn"]

_MAGIC = b"RKNN\0\0\0\0"
_HEAD_BYTES = 64
_MOST_JSON_BYTES = 64 << 20
_CHANNELS = 3
_LARGEST_SIDE = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class RknnFacts:
    """`platforms` are the chips that it was converted for, in lower case ("rk3588"); `toolkit` is the version that
    converted it. `width` and `height` are those of the picture that it takes, in pixels, None for another input."""

    platforms: tuple[str, ...]
    toolkit: str
    outputs: int
    width: int | None
    height: int | None


def read_rknn(path: Path) -> RknnFacts:
    """Raises ModelError for a file that cannot be read, is none, or is cut short."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            if not head.startswith(_MAGIC):
                raise ModelError("{name} is not an RKNN file; get it again", name=path.name)
            _, length = struct.unpack_from("<2Q", head, len(_MAGIC))
            size = path.stat().st_size
            if length > size - _HEAD_BYTES - 8:
                raise ModelError("{name} is cut short; get it again", name=path.name)
            file.seek(_HEAD_BYTES + length)
            (count,) = struct.unpack("<Q", file.read(8))
            text = file.read(min(count, _MOST_JSON_BYTES + 1))
    except OSError as error:
        raise ModelError("{name} cannot be read: {reason}", name=path.name, reason=error.strerror) from error
    except struct.error:
        raise ModelError("{name} is cut short; get it again", name=path.name) from None
    if len(text) != count:
        raise ModelError("{name} is cut short; get it again", name=path.name)
    try:
        return _facts(json.loads(text))
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        raise ModelError("{name} has no description that can be read; convert it again", name=path.name) from None


def _facts(facts: Mapping[str, Any]) -> RknnFacts:
    platforms = facts["target_platform"]
    named = [platforms] if isinstance(platforms, str) else platforms
    width, height = _picture(facts)
    return RknnFacts(
        platforms=tuple(str(platform).lower() for platform in named),
        toolkit=str(facts.get("version", "")),
        outputs=int(facts["output_num"]),
        width=width,
        height=height,
    )


def _picture(facts: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Of a single input of the shape (1, 3, height, width) or (1, height, width, 3)."""
    shape = facts["norm_tensor"][0]["size"] if facts.get("input_num") == 1 else []
    if len(shape) != 4 or not all(type(side) is int and 0 < side <= _LARGEST_SIDE for side in shape):
        return None, None
    if shape[1] == _CHANNELS:
        return shape[3], shape[2]
    return (shape[2], shape[1]) if shape[3] == _CHANNELS else (None, None)
