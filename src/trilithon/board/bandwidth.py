"""How fast this machine's CPUs read memory: the roof over decode, which reads every weight once per token."""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trilithon.board.limits.memory import read_memory
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.errors import UserError

__all__ = ["buffer_bytes", "last_level_cache_bytes", "measure_bandwidth"]

_PASSES = 4
_CHUNK_BYTES = 4 << 20  # about 0.4 ms at 10 GB/s: between two chunks a thread looks at the clock
_LEAST_BUFFER_BYTES = 4 * _CHUNK_BYTES
# What a machine has whose kernel does not say: the device trees of most Rockchip boards name no cache sizes, and
# the RK3588, the largest of them, has 3 MiB.
_UNKNOWN_CACHE_BYTES = 4 << 20
_UNSAID_MEMORY_BYTES = 1 << 30

_Words: TypeAlias = NDArray[np.uint64]


def measure_bandwidth(
    cpus: Sequence[int] | None = None, *, seconds: float = 0.4, machine: Machine = THIS_MACHINE
) -> float:
    """Bytes per second that one pinned thread per CPU reads in all; the best of several passes in `seconds`.

    `cpus` None takes every CPU that this process may use. Raises UserError for a CPU that it may not use."""
    chosen = sorted(set(cpus if cpus is not None else os.sched_getaffinity(0)))
    if not chosen or not set(chosen) <= set(os.sched_getaffinity(0)):
        allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        raise UserError(
            "CPUs {names}: this process may use {allowed}",
            names=",".join(map(str, chosen)) or "(none)",
            allowed=allowed,
        )
    each_bytes = buffer_bytes(len(chosen), machine)
    barrier = threading.Barrier(len(chosen))
    with ThreadPoolExecutor(len(chosen)) as pool:
        readers = [pool.submit(_read, cpu, each_bytes, seconds / _PASSES, barrier) for cpu in chosen]
        rates = [reader.result() for reader in readers]
    return max(map(sum, zip(*rates, strict=True)), default=0.0)


def buffer_bytes(threads: int, machine: Machine = THIS_MACHINE) -> int:
    """What each thread reads through: together four times the last-level caches, within an eighth of free memory."""
    wanted = max(4 * last_level_cache_bytes(machine) // threads, _LEAST_BUFFER_BYTES)
    available = read_memory(machine).available_bytes
    allowed = (_UNSAID_MEMORY_BYTES if available is None else available) // 8 // threads
    return max(min(wanted, allowed) // _CHUNK_BYTES, 1) * _CHUNK_BYTES


def last_level_cache_bytes(machine: Machine = THIS_MACHINE) -> int:
    """The sum of all last-level caches; 4 MiB where the kernel does not say."""
    caches: dict[tuple[int, str], int] = {}
    for folder in machine.glob("/sys/devices/system/cpu/cpu[0-9]*/cache/index[0-9]*"):
        level, size = machine.integer(f"{folder}/level"), machine.parsed(f"{folder}/size", _kibibytes)
        if level is not None and size is not None:
            caches[level, machine.text(f"{folder}/shared_cpu_list") or folder] = size
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last) or _UNKNOWN_CACHE_BYTES


def _kibibytes(text: str) -> int:
    return int(text.removesuffix("K")) << 10


def _read(cpu: int, size_bytes: int, pass_seconds: float, barrier: threading.Barrier) -> list[float]:
    """Bytes per second of each pass. The thread is pinned for good: it ends with its pool."""
    try:
        os.sched_setaffinity(0, {cpu})  # of the calling thread alone
        buffer: _Words = np.empty(size_bytes // 8, np.uint64)
        buffer.fill(1)  # touched here: pages on this CPU's memory, and none of them the kernel's zero page
    except BaseException:
        barrier.abort()
        raise
    chunks = buffer.reshape(-1, _CHUNK_BYTES // 8)
    barrier.wait()
    return [_pass(chunks, pass_seconds) for _ in range(_PASSES)]


def _pass(chunks: _Words, seconds: float) -> float:
    """Which reader: on a server CPU (2 cores of an AMD EPYC, Zen 4) the or-reduction read fastest of np.dot and np.max
    of float32, np.max of int32 and uint8, np.add.reduce of int64, np.copyto and matrix × vector. np.dot also would
    start OpenBLAS's own threads. On a Cortex-A76 it should be bound by memory as well: the loop is compiled to
    16-byte NEON loads with one ORR of two cycles each, 19 GB/s at 2.4 GHz, above what one such core gets from DRAM."""
    start = time.monotonic_ns()
    end = start + int(seconds * 1e9)
    done = 0
    while (now := time.monotonic_ns()) < end or not done:
        np.bitwise_or.reduce(chunks[done % len(chunks)])  # releases the GIL
        done += 1
    return done * _CHUNK_BYTES / (now - start) * 1e9
