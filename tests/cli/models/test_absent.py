"""A model that is not here: commands offer to pull it and go on; without a network they say so soon, and in one way."""

import contextlib
import io
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standin_hub import HubRepository, HubStandIn
from standin_web import WebStandIn

from trilithon.cli.models import absent
from trilithon.errors import NoSuchModel
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import model_name
from trilithon.settings import load_configuration

PROGRAM = str(Path(sys.executable).with_name("trilithon"))
NAME = "hf.co/u/M"
BENCH = ("-p", "8", "-n", "4", "-r", "1", "--no-quality", "--test", "tg", "--placement", "llama.cpp@embedded/cpu")


@pytest.fixture
def hub(home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))  # a pipe with nothing in it
    with WebStandIn() as storage, HubStandIn(storage) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.repositories["u/M"] = HubRepository({"M-F16.gguf": tiny.read_bytes()})
        yield server


@pytest.mark.parametrize(
    ("command", "words", "shows"),
    [
        ("show", (), "runs here"),
        ("run", ("hello", "-p", "num_predict=2"), ""),
        pytest.param("bench", BENCH, "recommended placement|decode", marks=pytest.mark.slow),  # a measurement
    ],
)
def test_the_command_goes_on_after_the_pull(
    trilithon: Any, hub: HubStandIn, command: str, words: tuple[str, ...], shows: str
) -> None:
    without = trilithon(command, NAME, *words)
    assert without.code == 2
    assert re.search(r"error: .*(there is no hf\.co/u/M:latest|not found).*trilithon pull", without.stderr)
    done = trilithon(command, NAME, *words, "--yes")
    assert done.code == 0, done.stderr
    assert f"looking at {NAME}" in done.stderr
    assert re.search(shows, done.stdout + done.stderr)
    assert "hf.co/u/M:latest  " not in done.stdout.splitlines()[0], "stdout is the command's own"
    assert "looking at" not in trilithon(command, NAME, *words, "--yes").stderr


def test_a_server_that_runs_pulls_it_itself(
    trilithon: Any, serving: Callable[..., Any], hub: HubStandIn, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serving(tiny, HF_ENDPOINT=hub.url)
    monkeypatch.setenv("TRILITHON_HOST", server.url)
    assert trilithon("run", NAME, "hello").code == 2
    done = trilithon("run", NAME, "hello", "-p", "num_predict=2", "--yes")
    assert done.code == 0, done.stderr
    assert "pulling manifest" in done.stderr
    monkeypatch.delenv("TRILITHON_HOST")
    assert "there are no models yet" in trilithon("list").stderr


@pytest.mark.parametrize(("typed", "code"), [("\n", 0), ("y\n", 0), ("n\n", 2)])
def test_the_user_is_asked_on_a_terminal(hub: HubStandIn, typed: str, code: int) -> None:
    parent, child = pty.openpty()
    process = subprocess.Popen([PROGRAM, "show", NAME], stdin=child, stdout=subprocess.PIPE, stderr=child)
    os.close(child)
    seen = bytearray()
    with contextlib.suppress(OSError):  # how a terminal says that nobody is there any more
        while piece := os.read(parent, 65536):
            seen += piece
            if b"[Y/n]" in seen and typed:
                os.write(parent, typed.encode())
                typed = ""
    os.close(parent)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == code, seen.decode()
    assert "there is no hf.co/u/M:latest in the store. Pull hf.co/u/M? [Y/n]" in " ".join(seen.decode().split())
    assert ("runs here" in output) is (code == 0)


def test_a_similar_name_and_the_pull_are_both_told(
    home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ModelStore.open(load_configuration()) as store:
        digest, size = store.add(tiny), tiny.stat().st_size
        weights = StoredFile(role="weights", digest=digest, size_bytes=size, name="tiny.gguf", format="gguf")
        store.put(Manifest(name=model_name("other:1b"), files=(weights,), source="", created=now()))
        with pytest.raises(NoSuchModel) as refusal:
            store.get(model_name("other:2b"))
    words = "there is no other:2b in the store; did you mean other:1b?"
    assert str(refusal.value) == f"{words} Or fetch it: trilithon pull other:2b"
    shown = list[str]()
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(absent, "sys", SimpleNamespace(stdin=terminal, stderr=terminal))
    monkeypatch.setattr("click.confirm", lambda text, **_: shown.append(text))
    assert not absent._agreed("other:2b", refusal.value)
    assert shown == [f"{words} Pull other:2b?"]


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    """HOST:PORT that drops what is sent to it, as a firewall does: its queue of connections is full."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield "{}:{}".format(*listener.getsockname())


@pytest.fixture(scope="module")
def refusing() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return "{}:{}".format(*listener.getsockname())


@pytest.mark.timeout(420)  # a generous limit on a busy machine
@pytest.mark.parametrize(
    ("command", "words", "kind"),
    [
        ("pull", (), "silent"),
        ("pull", (), "hub"),
        ("show", ("--yes",), "unknown"),
        ("bench", ("--yes",), "refusing"),
        ("run", ("hello", "--yes"), "silent"),
    ],
)
def test_no_network_is_told_with_each_retry_and_ctrl_c_says_that_nothing_came(
    home: Path, silent: str, refusing: str, command: str, words: tuple[str, ...], kind: str
) -> None:
    host = {"silent": silent, "refusing": refusing, "unknown": "nothing.invalid", "hub": silent}[kind]
    name, more = (NAME, {"HF_ENDPOINT": f"http://{silent}"}) if kind == "hub" else (f"{host}/library/tiny", {})
    process = subprocess.Popen(
        [PROGRAM, command, name, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | more,
    )
    assert process.stderr is not None
    give_up = threading.Timer(300, process.kill)
    give_up.start()
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "try 3 of 8" in line:
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=100)
    give_up.cancel()
    told = "".join(lines)
    where = re.escape(host.partition(":")[0])
    assert re.search(rf"^{where}\S*: .+; trying again in \S+ s \(try 2 of 8\)$", told, re.MULTILINE), told
    assert process.returncode == 130, rest
    why, hint = rest.splitlines()[-1].split("). ")
    assert re.fullmatch(rf"error: stopped before any data came \({where}.*", why)
    assert hint == f"Try again with: trilithon pull {name}"
