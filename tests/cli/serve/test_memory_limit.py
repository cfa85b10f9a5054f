"""The server's memory budget against a kernel that really kills what takes too much: a cgroup with a limit."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from trilithon.models.synthetic.tiny import write_tiny_model

Serving = Callable[..., Any]

pytestmark = pytest.mark.slow  # three models, whose KV cache is filled with zeros

CGROUPS = Path("/sys/fs/cgroup")
LIMIT_BYTES = 1000 << 20  # the server takes 100 MB, an engine without its cache 200 MB
CONTEXT = 65536
SIZE = {"context": CONTEXT, "embedding": 128}  # with 16 layers, the cache has 256 MiB


@dataclass(frozen=True, slots=True)
class LimitedGroup:
    folder: Path
    outside: Path

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """What is started in the block is in the group, and stays there."""
        _move_here(self.folder)
        try:
            yield
        finally:
            _move_here(self.outside)

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed."""
        files = (self.folder / "memory.events", self.folder / "memory.oom_control")
        text = next(file.read_text() for file in files if file.exists())
        return int(re.search(r"^oom_kill (\d+)", text, re.MULTILINE)[1])  # type: ignore[index] # it is always there


def _move_here(folder: Path) -> None:
    (folder / "cgroup.procs").write_text("0")  # the process that writes


@pytest.fixture
def limited() -> Iterator[LimitedGroup]:
    """Of version 1 or 2, whichever has the memory; needs root."""
    version_1 = (CGROUPS / "memory/memory.limit_in_bytes").exists()
    parent = CGROUPS / "memory" if version_1 else CGROUPS
    folder = parent / f"trilithon-test-{os.getpid()}"
    own = Path("/proc/self/cgroup").read_text()
    line = re.search(r":memory:(/.*)" if version_1 else r"^0::(/.*)", own, re.MULTILINE)
    try:
        if not version_1:
            (parent / "cgroup.subtree_control").write_text("+memory")
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"no cgroup with a limit of memory can be made here: {error}")
    assert line is not None
    outside = parent / line[1].strip("/")
    try:
        yield LimitedGroup(folder, outside if outside.is_dir() else parent)
    finally:
        deadline = time.monotonic() + 20
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:  # engines end after their server
            time.sleep(0.02)
        folder.rmdir()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of which one fits at a time, and one that never does."""
    folder = tmp_path_factory.mktemp("models")
    for name, layers, seed in (("one", 16, 0), ("two", 16, 1), ("large", 64, 2)):
        write_tiny_model(folder / f"{name}.gguf", layers=layers, seed=seed, **SIZE)
    return [folder / f"{name}.gguf" for name in ("one", "two", "large")]


def answered(served: Any, *names: str) -> list[httpx.Response]:
    with httpx.Client(base_url=served.url, timeout=100, trust_env=False) as client:
        bodies = [{"model": name, "max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}]} for name in names]
        return [client.post("/v1/chat/completions", json=body) for body in bodies]


def test_the_budget_keeps_the_kernel_from_killing(limited: LimitedGroup, serving: Serving, models: list[Path]) -> None:
    """The first makes room for the second; the third can never fit, and is refused before anything is loaded."""
    with limited.entered():
        served = serving(*models, "--context", CONTEXT, "--no-pages")
    one, two, large, again = answered(served, "one", "two", "large", "one")
    for answer in (one, two, again):
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 3
    assert large.status_code == 500, large.text
    assert "memory budget" in large.json()["error"]["message"]
    assert limited.kills == 0


def test_what_the_kernel_kills_is_told_and_the_server_goes_on(
    limited: LimitedGroup, serving: Serving, models: list[Path]
) -> None:
    with limited.entered():
        served = serving(*models, "--context", CONTEXT, "--no-pages", "--memory-budget", "8G")
    large, one = answered(served, "large", "one")
    assert limited.kills > 0
    assert large.status_code >= 500, large.text
    assert "out of memory" in large.json()["error"]["message"]
    assert one.status_code == 200, one.text
