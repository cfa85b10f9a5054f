"""Boards as real processes with the scripted engine, and a gateway with a real HAProxy in front of them."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from trilithon.fleet.boards import FleetBoard, add_board, keep_key, parse_board
from trilithon.fleet.gateway import Gateway, GatewayTimes
from trilithon.fleet.haproxy import Door
from trilithon.serve.access.keys import add_key
from trilithon.settings import Configuration

__all__ = ["LiveBoard", "add_all", "certificate", "gateway_of", "until"]

_THEIRS = ("TRILITHON_", "OLLAMA_", "HF_")


class LiveBoard:
    """`trilithon serve` with one model of the scripted engine, and a key for gateways."""

    def __init__(self, folder: Path, model: Path, placement: str):
        self.folder = folder
        self.key = add_key(self.configuration, "gateway-here", "gateway")
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port = int(listening.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._words = ["serve", str(model), "--no-pages", "--port", str(self.port), "--placement", placement]
        self.process = self._begin()

    @property
    def configuration(self) -> Configuration:
        return Configuration(data=self.folder / "data" / "trilithon", cache=self.folder / "cache")

    def _begin(self) -> subprocess.Popen[bytes]:
        ours = {name: text for name, text in os.environ.items() if not name.startswith(_THEIRS)}
        folders = {"HOME": "", "XDG_DATA_HOME": "data", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}
        environment = ours | {name: str(self.folder / below) for name, below in folders.items()}
        command = [sys.executable, "-m", "trilithon.cli", *self._words, "--verbose"]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stderr=log, env=environment)

    def again(self) -> None:
        """Start it at the same port, after it was killed."""
        self.process = self._begin()
        self.wait()

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(60)

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(60)


def add_all(configuration: Configuration, boards: list[LiveBoard]) -> list[FleetBoard]:
    added = []
    for number, board in enumerate(boards, start=1):
        known = keep_key(configuration, parse_board(f"rock{number}={board.url}"), board.key)
        add_board(configuration, known)
        added.append(known)
    return added


@contextlib.asynccontextmanager
async def gateway_of(
    configuration: Configuration, program: str, times: GatewayTimes | None = None
) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """With a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as listening, tempfile.TemporaryDirectory() as folder:
        door = Door(descriptors=(listening.fileno(),))
        gateway = Gateway(configuration, Path(folder), program, door, times)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with gateway.running() as feeding, httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
            yield gateway, http
            if feeding.done():
                feeding.result()


def certificate(path: Path) -> None:
    """An authority's, at this path alone."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*words, "-keyout", "/dev/null", "-out", str(path), "-subj", "/CN=ca"], capture_output=True, check=True
    )
    path.chmod(0o600)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
