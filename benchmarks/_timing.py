"""Wall time of functions and of `trilithon` commands, for the benchmark scripts."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from _figures import CannotMeasure

__all__ = ["TRILITHON", "command_seconds", "median_seconds", "seconds"]

TRILITHON = Path(sys.executable).with_name("trilithon")


def seconds(call: Callable[[], object]) -> float:
    started_ns = time.monotonic_ns()
    call()
    return (time.monotonic_ns() - started_ns) / 1e9


def median_seconds(call: Callable[[], object], runs: int) -> float:
    return median(seconds(call) for _ in range(runs))


def command_seconds(*arguments: str, runs: int, environment: Mapping[str, str] | None = None) -> float:
    """Median wall time of `trilithon ARGUMENTS` as a process of its own. Raises CannotMeasure when it fails."""

    def execute() -> None:
        done = subprocess.run(
            [TRILITHON, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        if done.returncode:
            last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise CannotMeasure(f"trilithon {' '.join(arguments)} ended with exit code {done.returncode}: {last_line}")

    return median_seconds(execute, runs)
