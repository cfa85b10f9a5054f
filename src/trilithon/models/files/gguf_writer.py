"""The bytes of a GGUF header, for files that are too large to be built in memory."""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence

from trilithon.models.files.quantizations import tensor_type

__all__ = ["ALIGNMENT", "Plain", "header", "pair", "size_of", "tensor_table"]

Plain = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]
ALIGNMENT = 32
_VERSION = 3
# GGUF's numbers for types of values, and their formats in `struct`.
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_SIGNS = {_U32: "I", _I32: "i", _F32: "f", _BOOL: "?"}


def header(values: Mapping[str, Plain], tensors: Sequence[tuple[str, tuple[int, ...], str]]) -> bytes:
    """Everything before the data of the first tensor, with padding. A tensor is its name, shape and type."""
    start = struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensors), len(values))
    content = start + b"".join(pair(key, value) for key, value in values.items()) + tensor_table(tensors, ALIGNMENT)
    return content + bytes(-len(content) % ALIGNMENT)


def pair(key: str, value: Plain) -> bytes:
    """A key and its value. Integers become unsigned 32-bit, in arrays signed 32-bit."""
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, Sequence):
        return _text(key) + struct.pack("<I", _ARRAY) + _array(value)
    kind = _BOOL if isinstance(value, bool) else _U32 if isinstance(value, int) else _F32
    return _text(key) + struct.pack(f"<I{_SIGNS[kind]}", kind, value)


def tensor_table(tensors: Iterable[tuple[str, tuple[int, ...], str]], alignment: int) -> bytes:
    """The entries of tensors (name, shape, type) whose data follow each other."""
    table = bytearray()
    offset = 0
    for name, shape, kind in tensors:
        table += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor_type(kind).number, offset)
        offset += -(-size_of(shape, kind) // alignment) * alignment
    return bytes(table)


def size_of(shape: tuple[int, ...], kind: str) -> int:
    """The size of a tensor in bytes; its rows have to be multiples of a block."""
    stored = tensor_type(kind)
    return math.prod(shape) // stored.elements * stored.size_bytes


def _array(items: Sequence[str] | Sequence[int] | Sequence[float]) -> bytes:
    texts = [_text(item) for item in items if isinstance(item, str)]
    if texts:
        return struct.pack("<IQ", _STRING, len(texts)) + b"".join(texts)
    kind = _F32 if any(isinstance(item, float) for item in items) else _I32
    return struct.pack(f"<IQ{len(items)}{_SIGNS[kind]}", kind, len(items), *items)


def _text(text: str) -> bytes:
    stored = text.encode()
    return struct.pack("<Q", len(stored)) + stored
