"""The program in this process: the imports are paid for once. What signals do to it is tested with real processes."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from trilithon.bench import campaign
from trilithon.cli.chat import screen as chat_screen
from trilithon.cli.main import run

PROGRAM = str(Path(sys.executable).with_name("trilithon"))
_THEIRS = ("TRILITHON_", "OLLAMA_", "HF_", "HUGGINGFACE_", "RKLLAMA_", "LISTEN_", "NOTIFY_")


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


Program = Callable[..., Done]


@pytest.fixture(autouse=True)
def language_ends_with_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--lang` sets them for this process."""
    for name in ("LANGUAGE", "TRILITHON_LANG"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def trilithon(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """Call it with the words of a command line. It neither waits for an idle machine nor measures its memory."""

    async def settle(*, limit_seconds: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(campaign, "settle", settle)
    monkeypatch.setattr(chat_screen, "_SILENT_SECONDS", 60.0)  # a busy machine is waited for, and nothing is said
    monkeypatch.setattr(campaign, "measure_bandwidth", lambda _: 1e10)
    monkeypatch.setenv("TRILITHON_HANG_SECONDS", "20")

    def call(*words: object) -> Done:
        capsys.readouterr()
        code = run([str(word) for word in words])
        output = capsys.readouterr()
        return Done(code, output.out, output.err)

    return call


class Served:
    """`trilithon serve` as a process: `url` to speak to, `errors` what it wrote on stderr up to now."""

    def __init__(self, folder: Path, *words: object, port: str = "0", **environment: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = _users_own(folder) | environment
        self._log = folder / "stderr"
        command = [PROGRAM, "serve", *map(str, words), *(("--port", port) if port else ())]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, env=self.environment)

    @property
    def errors(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        self.said("Trilithon .* serves .* at ")
        return re.search(r" at (\S+?),?\s", self.errors)[1]  # type: ignore[index] # it said so

    def said(self, pattern: str) -> str:
        """Everything, once it has said that."""
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.errors):
            assert self.process.poll() is None, self.errors
            assert time.monotonic() < deadline, self.errors
            time.sleep(0.02)
        return self.errors

    def ended(self) -> int:
        return self.process.wait(60)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _users_own(folder: Path) -> dict[str, str]:
    """The environment of a user who has nothing but `folder`."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith(_THEIRS)}
    names = {"HOME": "", "XDG_DATA_HOME": "data", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}
    return ours | {name: str(folder / below) for name, below in names.items()} | {"XDG_RUNTIME_DIR": ""}


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """`serving(*words, **environment)`: `trilithon serve` with these words, until the test ends."""
    with contextlib.ExitStack() as running:

        def start(*words: object, port: str = "0", **environment: str) -> Served:
            served = Served(tmp_path / f"server{len(list(tmp_path.iterdir()))}", *words, port=port, **environment)
            running.callback(served.stop)
            return served

        yield start


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all tests of a module: the scripted engine behind the name "tiny"."""
    running = Served(tmp_path_factory.mktemp("served"), tiny, "--placement", "scripted/cpu:prefill=5000,decode=200")
    yield running
    running.stop()
