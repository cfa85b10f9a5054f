"""Reads the header of a GGUF file without trusting any of its lengths.

The reader of the gguf library parses every token of the vocabulary into an array: 10.4 s of CPU time for the 262,144
tokens of the demo model (AMD EPYC, Zen 4), and 0.2 s for its import. This one skips long arrays: 0.03 s for the same
file. `trilithon doctor` has one second for everything."""

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from trilithon.errors import ModelError
from trilithon.models.files.quantizations import TENSOR_TYPES
from trilithon.units import format_bytes

__all__ = ["HeaderReader", "SkippedArray", "Tensor", "Value", "describe_content"]

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_WINDOW_BYTES = 1 << 20
_KEPT_ELEMENTS = 4096  # per-layer arrays are kept; vocabularies are not
_LONGEST_KEY = 1 << 16
_LONGEST_STRING = 1 << 24  # the longest chat templates are about 2**15
_MOST_TENSORS = _MOST_PAIRS = 1 << 16
# Of a whole header: the largest vocabularies have 2**18 tokens and twice as many merges.
_MOST_STRINGS_SKIPPED = 1 << 22
_MOST_ELEMENTS_SKIPPED = 1 << 24
_MOST_CHARACTERS_KEPT = 1 << 25
_LONGEST_HEADER = 1 << 28
_MOST_ELEMENTS_KEPT = 1 << 18
_MOST_DIMENSIONS = 4

Scalar: TypeAlias = int | float | bool | str


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array that was skipped: only its length is known."""

    length: int


Value: TypeAlias = Scalar | tuple[Scalar, ...] | SkippedArray


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` is in GGUF's order: the length of a row comes first. `offset` is in bytes from the start of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    elements: int
    size_bytes: int
    offset: int


class HeaderReader:
    """Reads a file in this order: `with HeaderReader(path) as header`, `values()`, `tensors(alignment)`.

    Every method raises ModelError for a file that is damaged or not a GGUF. `value_offsets` has the offset of each
    value in the file, and `table_offset` that of the tensor table, for programs that rewrite a file."""

    def __init__(self, path: Path, size_bytes: int | None = None):
        self.path = path
        self.size_bytes = _regular_size(path) if size_bytes is None else size_bytes
        self.value_offsets: dict[str, int] = {}
        self.table_offset = self.tensor_count = 0
        self._window = b""
        self._base = 0  # offset of the window in the file
        self._at = 0  # offset of the next read in the window
        # Limits for the whole header, however many small entries it has.
        self._strings_left, self._elements_left = _MOST_STRINGS_SKIPPED, _MOST_ELEMENTS_KEPT
        self._characters_left = _MOST_CHARACTERS_KEPT

    def __enter__(self) -> Self:
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        try:
            self.start()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def start(self) -> None:
        """Read what comes before the values; for a reader that opens no file."""
        self._fill(0)
        if self._window[:4] != b"GGUF":
            raise ModelError("{path} {content}", path=self.path, content=describe_content(self._window))
        self._at = 4
        self.version = self._number(_U32)
        if self.version & 0xFFFF == 0:
            raise ModelError("{path} is a big-endian GGUF; download a little-endian one", path=self.path)
        if self.version not in (2, 3):
            raise ModelError(
                "{path} has GGUF version {version}, known are 2 and 3; download a newer conversion of it",
                path=self.path,
                version=self.version,
            )
        self._read_counts()

    def _read_counts(self) -> None:
        self.tensor_count = self._number(_U64)
        self._pair_count = self._number(_U64)
        # The smallest pair and the smallest tensor entry take 13 and 32 bytes.
        self._expect(self._pair_count, _MOST_PAIRS, 13, "metadata entries")
        self._expect(self.tensor_count, _MOST_TENSORS, 32, "tensors")

    def values(self) -> dict[str, Value]:
        """Key → value. Of arrays of strings, and of more than 4096 numbers, only the length."""
        values = dict(self._pairs())
        self.table_offset = self._position
        return values

    def _pairs(self) -> Iterator[tuple[str, Value]]:
        for _ in range(self._pair_count):
            key = self._string(_LONGEST_KEY, "a key")
            if key in self.value_offsets:
                raise self._damaged(f"{key!r:.80} is there twice")
            kind = self._number(_U32)
            self.value_offsets[key] = self._position
            yield key, self._value(kind, key)

    @staticmethod
    def beginning(content: bytes) -> tuple[dict[str, Value], int]:
        """The values that the first bytes of a file have in full, and the number of its tensors. Both are empty for
        bytes that are not the beginning of a GGUF."""
        reader = _BeginningReader(content)
        return reader.values(), reader.tensor_count

    def tensors(self, alignment: int) -> tuple[Tensor, ...]:
        """The tensor table. Raises ModelError also for a file that ends before its last tensor."""
        entries = [self._tensor_entry() for _ in range(self.tensor_count)]
        if len({entry.name for entry in entries}) < len(entries):
            raise self._damaged("two tensors have the same name")
        start = -(-self._position // alignment) * alignment
        tensors = tuple(
            Tensor(entry.name, entry.type, entry.shape, entry.elements, entry.size_bytes, start + entry.offset)
            for entry in entries
        )
        if any(tensor.offset % alignment for tensor in tensors):
            raise self._damaged(f"a tensor does not begin at a multiple of {alignment} bytes")
        end = max((tensor.offset + tensor.size_bytes for tensor in tensors), default=start)
        if end > self.size_bytes:
            raise ModelError(
                "{path} is truncated: {missing} bytes are missing ({size} of {whole} are there); download it again",
                path=self.path,
                missing=end - self.size_bytes,
                size=format_bytes(self.size_bytes),
                whole=format_bytes(end),
            )
        return tensors

    def _tensor_entry(self) -> Tensor:
        name = self._string(_LONGEST_KEY, "a tensor's name")
        count = self._number(_U32)
        if not 1 <= count <= _MOST_DIMENSIONS:
            raise self._damaged(f"tensor {name!r:.80} has {count} dimensions")
        shape = tuple(self._number(_U64) for _ in range(count))
        number, offset = self._number(_U32), self._number(_U64)
        if number not in TENSOR_TYPES:
            raise ModelError(
                "{path}: tensor {name!r:.80} has the unknown type {number}; download a common quantization of it",
                path=self.path,
                name=name,
                number=number,
            )
        kind = TENSOR_TYPES[number]
        elements = 1
        for length in shape:
            elements *= length
        if not 0 < elements < 1 << 62 or shape[0] % kind.elements:
            raise self._damaged(f"tensor {name!r:.80} of type {kind.name} has the shape {list(shape)}")
        return Tensor(name, kind.name, shape, elements, elements // kind.elements * kind.size_bytes, offset)

    def _value(self, kind: int, key: str) -> Value:
        if kind in _SCALARS:
            scalar: Scalar = self._unpack(_SCALARS[kind])
            return scalar
        if kind == _STRING:
            return self._string(_LONGEST_STRING, f"the text of {key!r:.80}")
        if kind == _ARRAY:
            return self._array(key)
        raise self._damaged(f"{key!r:.80} has the unknown type {kind}")

    def _array(self, key: str) -> Value:
        kind, length = self._number(_U32), self._number(_U64)
        if kind not in _SCALARS and kind != _STRING:
            raise self._damaged(f"{key!r:.80} is an array of the unknown type {kind}")
        width = 8 if kind == _STRING else _SCALARS[kind].size
        most = self._strings_left if kind == _STRING else _MOST_ELEMENTS_SKIPPED
        self._expect(length, most, width, f"elements of {key!r:.80}")
        if kind == _STRING:
            self._strings_left -= length
            self._skip_strings(length)
        elif length > min(_KEPT_ELEMENTS, self._elements_left):
            self._skip(length * width)
        else:
            self._elements_left -= length
            return tuple(self._unpack(_SCALARS[kind]) for _ in range(length))
        return SkippedArray(length)

    # Reads go through a buffer (no mmap): a file that is truncated meanwhile is an error, not a SIGBUS.

    @property
    def _position(self) -> int:
        return self._base + self._at

    def _fill(self, count: int) -> None:
        """Load at least `count` bytes from the position on into the window."""
        if self._position + count > self.size_bytes:
            raise ModelError("{path} is truncated: it ends within its header; download it again", path=self.path)
        if self._position > _LONGEST_HEADER:
            raise self._damaged("its header is too long")
        self._base, self._at = self._position, 0
        self._window = self._read(self._base, max(count, _WINDOW_BYTES))
        if len(self._window) < count:
            raise ModelError("{path} became shorter while it was read; wait until it is complete", path=self.path)

    def _read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset` on."""
        try:
            return os.pread(self._file, count, offset)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _take(self, count: int) -> int:
        """Consume `count` bytes, and return where they begin in the window."""
        if self._at + count > len(self._window):
            self._fill(count)
        begin, self._at = self._at, self._at + count
        return begin

    def _skip(self, count: int) -> None:
        if self._position + count > self.size_bytes:
            self._fill(count)
        self._at += count

    def _unpack(self, form: struct.Struct) -> Scalar:
        begin = self._take(form.size)  # before `self._window` is read: it may be replaced
        value: Scalar = form.unpack_from(self._window, begin)[0]
        return value

    def _number(self, form: struct.Struct) -> int:
        return int(self._unpack(form))

    def _string(self, longest: int, what: str) -> str:
        length = self._number(_U64)
        self._expect(length, min(longest, self._characters_left), 1, f"characters in {what}")
        self._characters_left -= length
        begin = self._take(length)
        return self._text(self._window[begin : begin + length])

    def _text(self, stored: bytes) -> str:
        return stored.decode(errors="replace")

    def _skip_strings(self, count: int) -> None:
        at, window, unpack = self._at, self._window, _U64.unpack_from
        for _ in range(count):
            if at + 8 > len(window):
                self._at = at
                self._fill(8)
                at, window = self._at, self._window
            at += 8 + unpack(window, at)[0]
        self._at = at
        self._skip(0)

    def _expect(self, count: int, most: int, least_bytes: int, what: str) -> None:
        if count > most or count * least_bytes > self.size_bytes - self._position:
            raise self._damaged(f"it claims {count} {what}")

    def _damaged(self, how: str) -> ModelError:
        return ModelError("{path} is damaged: {how}; download it again", path=self.path, how=how)


class _BeginningReader(HeaderReader):
    """Reads from bytes in memory, as far as they go."""

    def __init__(self, content: bytes):
        super().__init__(Path("the beginning"), size_bytes=1 << 62)
        self._window, self.tensor_count, self._pair_count = content, 0, 0
        with suppress(ModelError):
            self.start()

    def values(self) -> dict[str, Value]:
        values: dict[str, Value] = {}
        with suppress(ModelError):  # the bytes end
            values.update(self._pairs())
        return values

    def _fill(self, count: int) -> None:
        if self._at + count > len(self._window):
            raise ModelError("the bytes end here")


def _regular_size(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ModelError("{path} does not exist; name a .gguf or .rkllm file", path=path) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise ModelError("{path} is a directory; name a .gguf file in it", path=path)
    if not stat.S_ISREG(status.st_mode):
        raise ModelError("{path} is not a regular file; name a .gguf file", path=path)
    if status.st_size == 0:
        raise ModelError("{path} is empty; download it again", path=path)
    return status.st_size


def _unreadable(path: Path, error: OSError | ValueError) -> ModelError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ModelError(
        "{path} cannot be read: {reason}; check its name and its permissions (ls -l)", path=path, reason=reason
    )


def describe_content(window: bytes) -> str:
    """What a file is that does not begin like a GGUF, and the fix; follows its path in a message."""
    head = window[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not a model; download the file itself (with /resolve/ instead of /blob/ in the URL)"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not a model; fetch the file itself with: git lfs pull"
    start = window[:4]
    shown = repr(start.decode()) if start.isascii() and start.decode().isprintable() else start.hex(" ")
    return f"is not a GGUF: it starts with {shown}; a GGUF starts with 'GGUF'"
