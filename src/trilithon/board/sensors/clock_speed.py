"""The clock that a CPU really runs at, measured: drivers and firmware may claim another.

A loop of additions, each of which needs the result of the one before it, takes one cycle per addition on every design,
in order or out of order (Arm's software optimisation guides of A53 to X4; Intel's and AMD's tables). The
operands are registers: some newer designs add constants while they rename registers, in no time. The loop is machine
code, so it needs no compiler. Its counter and branch cost up to 2 cycles of 256 where they do not run beside the
additions: a measured clock is at most 1% too low. Other work and the governor's delay lower it for a moment, so the
fastest piece of the time counts."""

import ctypes
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from trilithon.board.finding import Finding
from trilithon.board.processors import Cluster
from trilithon.board.sysfs import THIS_MACHINE, Machine, format_cpu_list
from trilithon.errors import UserError
from trilithon.language import Message, listed

__all__ = [
    "MeasuredClock",
    "clock_findings",
    "clock_groups",
    "far_clocks",
    "fastest_piece",
    "machine_code",
    "measure_clocks",
]

# A claim is a step of the driver's table, rounded, and firmware may choose another voltage and clock nearby. Published
# measurements of boards lie between +13% and -70% of it; within a tenth no rate changes by more than runs differ.
FAR_FRACTION = 0.10

_ADDITIONS = 256
_SECONDS = 0.05
_PIECE_SECONDS = 0.002  # 25 of them; a call from Python costs a thousandth of it
_LEAST_PIECES = 3  # on a machine that stops in between
_STEADY_FRACTION = 0.02  # x86 says a mean of the last milliseconds, which is never the same twice
_CPUFREQ = "/sys/devices/system/cpu/cpufreq"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredClock:
    """The clock of `cpus` under load. `claimed_hz` is what cpufreq said then, None where there is no cpufreq."""

    cpus: tuple[int, ...]
    measured_hz: float
    claimed_hz: float | None

    @property
    def difference(self) -> float | None:
        """As a fraction of the claim: -0.4 for a clock that is 40% lower."""
        return self.measured_hz / self.claimed_hz - 1 if self.claimed_hz else None

    @property
    def far(self) -> bool:
        return self.difference is not None and abs(self.difference) > FAR_FRACTION

    def describe(self) -> str:
        """ "cpu4-5 measured 1.41 GHz, claimed 2.35 GHz (-40%)"."""
        cpus, measured = format_cpu_list(self.cpus), self.measured_hz / 1e9
        if self.claimed_hz is None or self.difference is None:
            return Message("cpu{cpus} measured {measured:.2f} GHz; nothing claims one", cpus=cpus, measured=measured)
        return Message(
            "cpu{cpus} measured {measured:.2f} GHz, claimed {claimed:.2f} GHz ({difference:+.0%})",
            cpus=cpus,
            measured=measured,
            claimed=self.claimed_hz / 1e9,
            difference=self.difference,
        )


def measure_clocks(
    clusters: Sequence[Cluster], machine: Machine = THIS_MACHINE, *, seconds: float = _SECONDS
) -> tuple[MeasuredClock, ...]:
    """One CPU of each group that shares a clock, one group after the other, each for `seconds`; groups of which this
    process may use no CPU are left out. Raises UserError where this machine cannot be measured."""
    allowed = os.sched_getaffinity(0)
    measured = []
    with _loop(os.uname().machine) as loop:
        for cpus in clock_groups(clusters, machine):
            usable = [cpu for cpu in cpus if cpu in allowed]
            if usable:
                hertz, claimed = _on(usable[0], loop, machine, seconds)
                measured.append(MeasuredClock(cpus=cpus, measured_hz=hertz, claimed_hz=claimed))
    return tuple(measured)


def far_clocks(clocks: Sequence[MeasuredClock]) -> tuple[str, ...]:
    """Those that are far from what is claimed, in words."""
    return tuple(clock.describe() for clock in clocks if clock.far)


def clock_findings(clocks: Sequence[MeasuredClock]) -> list[Finding]:
    """A finding where a measured clock is far from the claimed one."""
    far = far_clocks(clocks)
    if not far:
        return []
    message = Message(
        "{clocks}: other work, heat, the power supply or the firmware may set it", clocks=listed(far, "; ")
    )
    fix = Message("trilithon doctor --measure-clocks  # again, while nothing else runs")
    return [Finding("clock-measured", "warning", "CPU clocks", message, fix, look=True)]


def machine_code(architecture: str) -> bytes:
    """A C function `void f(uint64_t n)` that makes n times 256 dependent additions; n is at least 1. Raises UserError
    for an architecture that it is not written for."""
    if architecture == "aarch64":
        # add x1, x1, x2 …; subs x0, x0, #1; b.ne to the first; ret. Branches count in instructions, from themselves.
        back = (-(_ADDITIONS + 1) & 0x7FFFF) << 5
        return struct.pack(f"<{_ADDITIONS + 3}I", *[0x8B020021] * _ADDITIONS, 0xF1000400, 0x54000001 | back, 0xD65F03C0)
    if architecture == "x86_64":
        # add rax, rdx …; dec rdi; jne to the first; ret. Jumps count in bytes, from the instruction behind them.
        body = bytes.fromhex("4801d0") * _ADDITIONS + bytes.fromhex("48ffcf")
        return body + bytes.fromhex("0f85") + struct.pack("<i", -(len(body) + 6)) + bytes.fromhex("c3")
    raise UserError(
        "clocks are measured on aarch64 and x86_64 only, not on {architecture}; read what cpufreq claims",
        architecture=architecture,
    )


@contextmanager
def _loop(architecture: str) -> Iterator[Callable[[int], None]]:
    """The function, callable. Its memory is a file that is mapped for running and never for writing, which hardened
    systems allow more often; the kernel makes instruction caches see what was written."""
    code = machine_code(architecture)
    try:
        descriptor = os.memfd_create("clock", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, code)
            memory = _Mapped(descriptor, len(code))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(
            "clocks cannot be measured: this system lets no program run code that it made ({reason}); "
            "read what cpufreq claims",
            reason=error.strerror,
        ) from error
    try:
        # Calls through ctypes release the GIL.
        yield ctypes.CFUNCTYPE(None, ctypes.c_uint64)(memory.address)
    finally:
        memory.close()


class _Mapped:
    """A mapping for running, by the C library: Python's own mmap gives no address of memory that is not writable."""

    def __init__(self, descriptor: int, size_bytes: int):
        self._library = ctypes.CDLL(None, use_errno=True)
        self._library.mmap.restype = ctypes.c_void_p
        self._library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        self._library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._size_bytes = size_bytes
        address = self._library.mmap(None, size_bytes, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, descriptor, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address: int = address

    def close(self) -> None:
        self._library.munmap(self.address, self._size_bytes)


def clock_groups(clusters: Sequence[Cluster], machine: Machine) -> Iterator[tuple[int, ...]]:
    """CPUs with one clock: those of a cpufreq policy, as the two big pairs of an RK3588; where each CPU has a policy of
    its own, as on x86, or none, those of a cluster."""
    policies = [machine.cpus(f"{path}/related_cpus") or () for path in machine.glob(f"{_CPUFREQ}/policy*")]
    shared = [cpus for cpus in policies if len(cpus) > 1]
    for cluster in clusters:
        inside = [tuple(cpu for cpu in cpus if cpu in cluster.cpus) for cpus in shared]
        inside = [cpus for cpus in inside if cpus]
        rest = tuple(cpu for cpu in cluster.cpus if all(cpu not in cpus for cpus in inside))
        yield from (*inside, *([rest] if rest else []))


def _on(cpu: int, loop: Callable[[int], None], machine: Machine, seconds: float) -> tuple[float, float | None]:
    """Measured and claimed hertz. In a thread of its own, which stays on that CPU and ends."""
    claim = _claim_of(cpu, machine)
    outcome: list[tuple[float, float | None]] = []
    failures: list[OSError] = []

    def run() -> None:
        try:
            os.sched_setaffinity(0, {cpu})  # of the calling thread alone
        except OSError as error:
            failures.append(error)
            return
        outcome.append(fastest_piece(loop, lambda: machine.integer(claim) if claim else None, seconds))

    thread = threading.Thread(target=run, name=f"measures cpu{cpu}")
    thread.start()
    thread.join()
    if failures:
        raise UserError(
            "the clock of cpu{cpu} cannot be measured: {reason}; try again", cpu=cpu, reason=failures[0].strerror
        ) from failures[0]
    return outcome[0]


def fastest_piece(
    loop: Callable[[int], None], claimed_khz: Callable[[], int | None], seconds: float
) -> tuple[float, float | None]:
    """Measured and claimed hertz of the fastest piece in which the claim stayed: a governor raises it meanwhile."""
    end = time.monotonic_ns() + int(seconds * 1e9)
    pieces: list[tuple[bool, float, float | None]] = []
    times, before = 1000, claimed_khz()
    while (start := time.monotonic_ns()) < end or len(pieces) < _LEAST_PIECES:
        loop(times)
        hertz = times * _ADDITIONS / max(time.monotonic_ns() - start, 1) * 1e9
        after = claimed_khz()
        steady = before is None or after is None or abs(after - before) <= _STEADY_FRACTION * before
        pieces.append((steady, hertz, after * 1e3 if after else None))
        times, before = max(int(_PIECE_SECONDS * hertz / _ADDITIONS), 1), after
    _, fastest, claimed = max(pieces, key=lambda piece: piece[:2])
    return fastest, claimed


def _claim_of(cpu: int, machine: Machine) -> str:
    """The file with the clock of that CPU; empty where it has no cpufreq policy."""
    policies = machine.glob(f"{_CPUFREQ}/policy*")
    own = [path for path in policies if cpu in (machine.cpus(f"{path}/related_cpus") or ())]
    return f"{own[0]}/scaling_cur_freq" if own else ""
