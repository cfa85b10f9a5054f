"""`trilithon pull` as a program: what it says, its JSON, its exit codes, and what signals do to it."""

import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standin_hub import HubRepository, HubStandIn
from standin_registry import RegistryStandIn
from standin_web import Fault, WebStandIn

from trilithon.models.store.model_store import ModelStore

DATA = b"GGUF" + random.Random(3).randbytes(2_000_000)


@pytest.fixture
def registry() -> Iterator[RegistryStandIn]:
    with RegistryStandIn() as server:
        server.add("library/tiny", "latest", [("model", DATA)])
        yield server


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with WebStandIn() as storage, HubStandIn(storage) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        files = {f"M-{chip}-{quant}.rkllm": DATA for chip, quant in (("rk3588", "w8a8"), ("rk3576", "w4a16"))}
        server.repositories["u/M"] = HubRepository({**files, "M-Q4_K_M.gguf": DATA, "M-Q8_0.gguf": DATA[:-1]})
        yield server


def start(*words: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from trilithon.cli.main import entry; entry()", "pull", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def until(reached: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_name(trilithon: Any, home: Path, registry: RegistryStandIn) -> None:
    done = trilithon("pull", f"{registry.host}/library/tiny", "--insecure")
    assert (done.code, done.stdout) == (0, f"{registry.host}/library/tiny:latest  1.9 MiB  1 file\n")
    assert f"looking at {registry.host}/library/tiny:latest" in done.stderr
    assert "fetching tiny-latest.gguf: " in done.stderr
    assert len(ModelStore(home / "data" / "trilithon" / "models").list()) == 1
    again = trilithon("pull", f"{registry.host}/library/tiny", "--insecure")
    assert "1 file, all of them present already" in again.stdout


def test_json_lines(trilithon: Any, registry: RegistryStandIn) -> None:
    done = trilithon("pull", f"{registry.host}/library/tiny", "--insecure", "--json", "--limit", "2M")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == ["looking", "fetching", "checking", "keeping", "done"]
    fetching = [row for row in rows if row["stage"] == "fetching"][-1]
    assert fetching["total_bytes"] == len(DATA)
    assert rows[-1]["fetched_bytes"] == len(DATA)
    assert rows[-1]["files"][0]["name"] == "tiny-latest.gguf"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "name", "why"),
    [
        (["hf.co/u/M", "--chip", "RK3576"], "hf.co/u/M:latest", "w4a16: the only one for RK3576"),
        (["hf.co/u/M", "--quant", "q8_0"], "hf.co/u/M:q8_0", "Q8_0: as requested"),
        (["hf.co/u/M:Q8_0", "--quant", "Q4_K_M"], "hf.co/u/M:Q4_K_M", "Q4_K_M: as requested"),
        (["hf.co/u/M:w8a8", "--chip", "rk3588"], "hf.co/u/M:w8a8", "w8a8: as requested"),
    ],
)
def test_a_choice(trilithon: Any, hub: HubStandIn, words: list[str], name: str, why: str) -> None:
    done = trilithon("pull", *words)
    assert done.code == 0
    assert done.stdout.startswith(f"{name}  1.9 MiB")
    assert why in done.stderr


def test_notes(trilithon: Any, hub: HubStandIn) -> None:
    done = trilithon("pull", "hf.co/u/M", "--chip", "rk3588")
    assert "note: there is no tokenizer.json and its card names no base_model" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["hf.co/u/Nothing"], 2, "there is no repository u/Nothing"),
        (["hf.co/u/M", "--quant", "Q2_K"], 2, "there is no Q2_K among its files; there are"),
        (["hf.co/u/M", "--quant", "a/../b"], 2, "does not fit"),
        (["tiny", "--quant", "Q4_K_M"], 2, "--quant chooses a file of hf.co/user/repo"),
        (["hf.co/u/M", "--limit", "fast"], 2, "--limit fast: write a rate from 1k on"),
        (["hf.co/u/M", "--limit", "1"], 2, "--limit 1: write a rate from 1k on"),
        (["hf.co/u/M", "--chip", "rk9"], 2, "unknown chip 'rk9'; there are rk3588"),
        (["a b"], 2, "model name 'a b' does not fit"),
        (
            ["http://example.org/m.gguf"],
            2,
            "plain http is not protected against changes; write https, or add --insecure",
        ),
        (["./m.gguf"], 2, "is a local file"),
    ],
)
def test_what_cannot_be(trilithon: Any, hub: HubStandIn, words: list[str], code: int, message: str) -> None:
    done = trilithon("pull", *words)
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_network_that_fails_is_no_wrong_input(
    trilithon: Any, registry: RegistryStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.fault = lambda _: Fault(status=429, headers={"Retry-After": "9999"})
    done = trilithon("pull", f"{registry.host}/library/tiny", "--insecure")
    assert done.code == 1
    assert "asks to wait 2:46:39" in done.stderr


@pytest.mark.parametrize("endpoint", ["http://[::1", "hf-mirror.com"])
def test_a_mirror_that_is_no_address(home: Path, endpoint: str) -> None:
    """In a process of its own: the hub's library reads it when it is imported."""
    done = start("hf.co/u/M", env={**os.environ, "HF_ENDPOINT": endpoint})
    stdout, stderr = done.communicate(timeout=20)
    assert (done.returncode, stdout) == (2, "")
    assert stderr.splitlines()[-1].startswith("error: HF_ENDPOINT: ")


def test_two_chips_are_one_model(trilithon: Any, hub: HubStandIn) -> None:
    assert trilithon("pull", "hf.co/u/M", "--chip", "rk3588").code == 0
    done = trilithon("pull", "hf.co/u/M", "--chip", "rk3576")
    assert done.stdout == "hf.co/u/M:latest  1.9 MiB  2 files, all of them present already\n"  # the same bytes, here
    assert "note: M-rk3588-w8a8.rkllm is kept too, for RK3588" in done.stderr
    again = json.loads(trilithon("pull", "hf.co/u/M", "--chip", "rk3588", "--json").stdout.splitlines()[-1])
    assert [(file["name"], file["chip"]) for file in again["files"]] == [
        ("M-rk3588-w8a8.rkllm", "RK3588"),
        ("M-rk3576-w4a16.rkllm", "RK3576"),
    ]
    assert again["fetched_bytes"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_what_came(home: Path, registry: RegistryStandIn, number: signal.Signals) -> None:
    registry.fault = lambda asked: Fault(pace=400_000) if "blobs" in asked.path and not asked.is_look else None
    reference = f"{registry.host}/library/tiny"
    process = start(reference, "--insecure")
    before = registry.sent_bytes
    until(lambda: registry.sent_bytes > before + 200_000)
    os.kill(process.pid, number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert f"Resume with: trilithon pull {reference}" in stderr
    assert "of 1.9 MiB" in stderr.splitlines()[-1]
    registry.fault = lambda _: None
    rest = start(reference, "--insecure", "--json")
    stdout, stderr = rest.communicate(timeout=20)
    assert rest.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["fetched_bytes"] < len(DATA) - 100_000


def test_a_signal_while_another_process_has_it(home: Path, registry: RegistryStandIn) -> None:
    digest = registry.add("library/tiny", "latest", [("model", DATA)])[0]
    with ModelStore(home / "data" / "trilithon" / "models") as store, store.receive(digest, len(DATA)):
        process = start(f"{registry.host}/library/tiny", "--insecure")
        assert process.stderr is not None
        line = next(line for line in process.stderr if "another process" in line)
        assert "another process fetches tiny-latest.gguf" in line
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_background_job_that_ignores_ctrl_c_ends_on_sigterm(home: Path, registry: RegistryStandIn) -> None:
    registry.fault = lambda asked: Fault(pace=400_000) if "blobs" in asked.path and not asked.is_look else None
    before = registry.sent_bytes
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = start(f"{registry.host}/library/tiny", "--insecure", **ignoring)
    until(lambda: registry.sent_bytes > before + 100_000)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Resume with: trilithon pull" in stderr


@pytest.mark.slow
def test_a_bar_on_a_terminal(home: Path, registry: RegistryStandIn) -> None:
    registry.fault = lambda asked: Fault(pace=700_000) if "blobs" in asked.path and not asked.is_look else None
    parent, child = pty.openpty()
    program = [sys.executable, "-c", "from trilithon.cli.main import entry; entry()"]
    words = ["pull", f"{registry.host}/library/tiny", "--insecure"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([*program, *words], stdout=subprocess.PIPE, stderr=child, env=environment)
    os.close(child)
    seen = bytearray()
    with contextlib.suppress(OSError):  # how a terminal says that nobody is there any more
        while piece := os.read(parent, 65536):
            seen += piece
    os.close(parent)
    stdout, _ = process.communicate(timeout=20)
    assert (process.returncode, stdout.decode().split()[0]) == (0, f"{registry.host}/library/tiny:latest")
    text = seen.decode()
    assert "fetching tiny-latest.gguf" in text
    assert "MiB/s, about " in text
    assert " left" in text
