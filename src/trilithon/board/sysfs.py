"""Every read of /proc, /sys and /dev, and every write to them, goes through here, below a root that tests replace.

What is absent, closed to this user or garbled is None, never 0 and never an exception; `access` tells absent
from denied. Reads are bounded and never wait for a writer, nor for long for a driver."""

import errno
import glob
import os
import re
import resource
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

__all__ = [
    "THIS_MACHINE",
    "Access",
    "Machine",
    "format_cpu_list",
    "parse_count",
    "parse_cpu_list",
    "parse_integer",
    "parse_kibibytes",
    "parse_time_in_state",
]

Access = Literal["absent", "denied", "readable"]
Value = TypeVar("Value")

_MOST_BYTES = 1 << 20  # /proc/cpuinfo of a 256-thread server is about 400 kB; nothing read here is longer
_MOST_SEARCHED_BYTES = 64 << 20  # drivers and runtimes have 5 to 15 MB
_PIECE_BYTES = 1 << 20
_LARGEST_INTEGER = 1 << 64  # the kernel's numbers have 64 bits; what is larger is no number of its
_MOST_DIGITS = 20  # of such a number
_MOST_CPUS = 8192  # the kernel's own upper bound (NR_CPUS on x86-64)
# Files whose reading asks a driver, and through it a part that may be dead; the others are read from memory.
_ASKING = re.compile(r"/sys/class/.+/(temp|cur_state|cur_freq|\w+_alarm)|/sys/kernel/debug/.+|/proc/rknpu/.+")
_PATIENCE_SECONDS = 1.0
# The threads that wait for one for longer than that.
_waiting: dict[str, threading.Thread] = {}
_EFFECTIVE = os.access in os.supports_effective_ids


@dataclass(frozen=True, slots=True)
class Machine:
    """The files in which a kernel describes its machine. Paths are absolute, as on the machine itself."""

    root: Path = Path("/")

    @property
    def is_this_one(self) -> bool:
        return self.root == Path("/")

    @property
    def page_bytes(self) -> int | None:
        """The size of the kernel's memory pages; None below another root."""
        return resource.getpagesize() if self.is_this_one else None

    @property
    def uname_machine(self) -> str:
        """The architecture as uname(2) states it; empty below another root."""
        return os.uname().machine if self.is_this_one else ""

    def text(self, path: str) -> str | None:
        """The content without white space and NULs at its ends; what is not UTF-8 is replaced."""
        data = self._bytes(path)
        return None if data is None else data.decode("utf-8", "replace").strip(" \t\r\n\0")

    def parsed(self, path: str, parse: Callable[[str], Value]) -> Value | None:
        """What `parse` makes of the text; None also when it raises ValueError."""
        text = self.text(path)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError:
            return None

    def integer(self, path: str) -> int | None:
        return self.parsed(path, parse_integer)

    def integers(self, path: str) -> tuple[int, ...] | None:
        """Numbers with white space between them, as in `scaling_available_frequencies`."""
        return self.parsed(path, lambda text: tuple(map(parse_integer, text.split())))

    def cpus(self, path: str) -> tuple[int, ...] | None:
        return self.parsed(path, parse_cpu_list)

    def strings(self, path: str) -> tuple[str, ...] | None:
        """NUL-separated texts, as in the device tree."""
        text = self.text(path)
        return None if text is None else tuple(part for part in text.split("\0") if part)

    def fields(self, path: str, separator: str | None = ":") -> dict[str, str]:
        """The file's "name: value" lines; `separator` None splits at white space. Absent gives no fields."""
        lines = (line.split(separator, 1) for line in (self.text(path) or "").splitlines())
        return {parts[0].strip(): parts[1].strip() for parts in lines if len(parts) == 2}

    def glob(self, pattern: str) -> list[str]:
        """The paths that match, numbers in them in the order of counting (cpu2 before cpu10)."""
        names = glob.glob(pattern.lstrip("/"), root_dir=self.root)  # noqa: PTH207 - it skips what it may not list
        return sorted(("/" + name for name in names), key=_counting)

    def link(self, path: str) -> str | None:
        """The last name of what a symbolic link points to: the way sysfs says a device's driver."""
        try:
            return Path(self._at(path)).readlink().name
        except OSError:
            return None

    def texts_after(self, path: str, marker: bytes, *, length: int = 64) -> Iterator[str]:
        """What stands behind each `marker` in a regular file, at most `length` bytes of it, control characters and
        all. The file is read in pieces and not mapped: one that shrinks meanwhile would end the process."""
        try:
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                yield from _after(descriptor, marker, length)
        except OSError:
            return
        finally:
            os.close(descriptor)

    def identity(self, path: str) -> tuple[int, int] | None:
        """Equal for two paths of one file; None when there is none."""
        try:
            status = Path(self._at(path)).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def free_bytes(self, path: str) -> int | None:
        """What a user without privileges may still write to the file system that holds `path`."""
        try:
            status = os.statvfs(self._at(path))
        except OSError:
            return None
        return status.f_bavail * status.f_frsize

    def access(self, path: str) -> Access:
        """Whether this user may read it; "denied" also when a folder on the way is closed."""
        try:
            Path(self._at(path)).stat()
        except PermissionError:
            return "denied"
        except OSError:
            return "absent"
        return "readable" if os.access(self._at(path), os.R_OK, effective_ids=_EFFECTIVE) else "denied"

    def exists(self, path: str) -> bool:
        return self.access(path) != "absent"

    def readable(self, path: str) -> bool:
        return self.access(path) == "readable"

    def usable(self, path: str) -> bool:
        """Whether this user may open it for reading and writing, as a program opens a device node."""
        return os.access(self._at(path), os.R_OK | os.W_OK, effective_ids=_EFFECTIVE)

    def raw(self, path: str) -> str | None:
        """The content as it is: given to `write`, it comes back to the byte."""
        data = self._bytes(path)
        return None if data is None else data.decode("utf-8", "surrogateescape")

    def write(self, path: str, text: str) -> None:
        """Write to a file that is there, in one go, as drivers want it. Raises OSError; never waits for a reader."""
        flags = os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._at(path), flags)
        try:
            data = text.encode("utf-8", "surrogateescape")
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.EIO, "only a part was taken", path)
        finally:
            os.close(descriptor)

    def hold(self, path: str) -> int | None:
        """A descriptor to `os.pread` from again and again, the caller's to close; None for what is no regular file."""
        try:
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return None

    def _at(self, path: str) -> str:
        return f"{self.root}/{path.lstrip('/')}"

    def _bytes(self, path: str) -> bytes | None:
        return _patiently(self._at(path)) if _ASKING.fullmatch(path) else _content(self._at(path))


THIS_MACHINE = Machine()


def _content(place: str) -> bytes | None:
    try:
        # O_NONBLOCK: opening a pipe or a device that nobody serves would wait for ever.
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read_all(descriptor)
    except OSError:
        # An attribute can be there and have no value now: EAGAIN, EINVAL, EIO, ENODEV, by driver.
        return None
    finally:
        os.close(descriptor)


def _patiently(place: str) -> bytes | None:
    """None after a second. The thread that waits stays behind, and until it has its answer nobody asks again."""
    if place in _waiting and _waiting[place].is_alive():
        return None
    contents: list[bytes | None] = []
    # A daemon: one that a file holds for ever must not keep the program from ending.
    thread = threading.Thread(target=lambda: contents.append(_content(place)), name=f"reads {place}", daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    if thread.is_alive():
        _waiting[place] = thread
    return contents[0] if contents else None


def _read_all(descriptor: int) -> bytes:
    pieces: list[bytes] = []
    left = _MOST_BYTES
    while left > 0 and (piece := os.read(descriptor, min(left, 1 << 16))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _after(descriptor: int, marker: bytes, length: int) -> Iterator[str]:
    window, left = b"", _MOST_SEARCHED_BYTES
    while left > 0:
        piece = os.read(descriptor, min(left, _PIECE_BYTES))
        window += piece
        left -= len(piece)
        at = window.find(marker)
        while at >= 0 and (not piece or at + len(marker) + length <= len(window)):
            start = at + len(marker)
            yield window[start : start + length].decode("latin-1")
            at = window.find(marker, start)
        if not piece:
            return
        window = window[at if at >= 0 else max(0, len(window) - len(marker) + 1) :]


def parse_count(text: str | None) -> int | None:
    """What a counter shows; None for what is none."""
    if text is None or not text.isdecimal() or len(text) > _MOST_DIGITS:
        return None
    return int(text)


def parse_kibibytes(text: str | None) -> int | None:
    """Bytes of "12 kB", as in /proc/meminfo; None for anything else."""
    count = parse_count(text.removesuffix(" kB")) if text and text.endswith(" kB") else None
    return None if count is None else count * 1024


def parse_integer(text: str) -> int:
    """Raises ValueError, also for what is more than 64 bits."""
    value = int(text)
    if abs(value) > _LARGEST_INTEGER:
        raise ValueError("more than 64 bits")
    return value


def _counting(path: str) -> list[tuple[int, str]]:
    """Sorts numbers by value, and before text where the two stand in the same place."""
    return [(int(part), "") if part.isdecimal() else (_MOST_BYTES, part) for part in re.split(r"(\d+)", path)]


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's CPU lists, "0-3,6" or "0 1 2 3", in order. Raises ValueError for anything else."""
    cpus: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part, re.ASCII)
        if match is None:
            if part:
                raise ValueError(f"not a CPU list: {text!r}")
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= _MOST_CPUS:
            raise ValueError(f"not a CPU list: {text!r}")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def format_cpu_list(cpus: Sequence[int]) -> str:
    """The shortest list that `parse_cpu_list` reads back: "0-3,6"."""
    ranges: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def parse_time_in_state(text: str) -> dict[int, int]:
    """cpufreq's `stats/time_in_state`: kHz to ticks of 10 ms. Raises ValueError for anything else."""
    pairs = [line.split() for line in text.splitlines() if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("time_in_state: a line is not a clock and a time")
    return {int(khz): int(ticks) for khz, ticks in pairs}
