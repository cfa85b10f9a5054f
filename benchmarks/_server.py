"""A real `trilithon serve` for the benchmark scripts: start it, measure its memory, stop it."""

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from _figures import CannotMeasure
from _timing import TRILITHON

__all__ = ["Server", "at_rest", "children", "descriptors", "private_folders", "resident_megabytes", "serving"]

_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)\b(?=.*\n)")


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    process: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def private_folders(folder: Path) -> dict[str, str]:
    """The environment of a user whose home is `folder`: nothing of the real user's is read or written."""
    return {
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "TRILITHON_DATA": str(folder / "data" / "trilithon"),
    }


@contextlib.contextmanager
def serving(*arguments: str | Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """`trilithon serve ARGUMENTS` on a free port, with these variables added to the environment. Raises CannotMeasure
    when it does not start."""
    command = [str(TRILITHON), "serve", *map(str, arguments), "--port", "0"]
    with (
        tempfile.NamedTemporaryFile("r", encoding="utf-8", prefix="serve-", suffix=".log") as log,
        subprocess.Popen(command, stderr=log.fileno(), env={**os.environ, **environment}) as process,
    ):
        try:
            while (match := _ADDRESS.search(text := Path(log.name).read_text(encoding="utf-8"))) is None:
                if process.poll() is not None:
                    raise CannotMeasure(f"trilithon serve did not start: {'; '.join(text.splitlines())}")
                time.sleep(0.05)
            yield Server(int(match[1]), process.pid)
        finally:
            process.terminate()


def resident_megabytes(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    match = re.search(r"VmRSS:\s+(\d+) kB", text)
    if match is None:
        raise CannotMeasure(f"/proc/{process}/status has no VmRSS; the process has ended")
    return int(match[1]) / 1000


def children(process: int) -> list[int]:
    """Live children of a process, without their own."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
        except OSError:  # it ended
            continue
        if int(parent) == process and state != "Z":
            pids.append(int(stat.parent.name))
    return pids


def descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def at_rest(server: Server, as_before: tuple[float, int, int] | None = None) -> tuple[float, int, int]:
    """Resident MB, descriptors and children of the idle server, which has 20 s to let go of what it needs no more."""
    deadline = time.monotonic() + 20
    while True:
        state = resident_megabytes(server.process), descriptors(server.process), len(children(server.process))
        settled = state[2] == 1 if as_before is None else state[1] <= as_before[1] and state[2] <= as_before[2]
        if settled or time.monotonic() > deadline:
            return state
        time.sleep(0.1)
