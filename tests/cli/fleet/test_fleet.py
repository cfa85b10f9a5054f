"""`trilithon fleet` on the command line: boards added, listed, drained and removed, and the gateway as a process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.cli.fleet.commands import complete_board
from trilithon.serve.access.keys import add_key
from trilithon.settings import Configuration

Program = Callable[..., Any]


def test_boards_are_added_listed_drained_and_removed(
    trilithon: Program, served: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "fleet add" in trilithon("fleet", "list").stderr
    assert trilithon("fleet", "list", "--json").stdout == "[]\n"
    monkeypatch.setenv("TRILITHON_BOARD_KEY", "trl-a-key-that-nobody-asks-for")
    added = trilithon("fleet", "add", f"rock1={served.url}", "--json")
    (row,) = json.loads(added.stdout)
    assert (added.code, row["name"], row["up"], row["models"][0]["name"]) == (0, "rock1", True, "tiny:latest")
    assert row["models"][0]["placement"].startswith("scripted/cpu")
    key_file = home / "data/trilithon/fleet/rock1.key"
    assert key_file.read_text() == "trl-a-key-that-nobody-asks-for\n"
    again = trilithon("fleet", "add", f"rock1={served.url}")
    assert (again.code, "already a board" in again.stderr) == (2, True)
    assert trilithon("fleet", "drain", "rock1", "absent").code == 2
    assert json.loads(trilithon("fleet", "list", "--json").stdout)[0]["drained"] is False
    assert trilithon("fleet", "drain", "rock1").code == 0
    listed = trilithon("fleet", "list")
    assert "drained" in listed.stdout
    assert "trl-a-key" not in listed.stdout + listed.stderr + added.stdout + added.stderr
    assert trilithon("fleet", "undrain", "rock1").code == 0
    assert complete_board(None, None, "ro") == ["rock1"]  # type: ignore[arg-type]
    assert trilithon("fleet", "rm", "rock1").code == 0
    assert not key_file.exists()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("add", "rock1=http://127.0.0.1:9"), 1, "does not answer at http://127.0.0.1:9: Connection refused"),
        (("add", "rock1"), 2, "NAME=https://HOST:PORT"),
        (("add", "r=http://10.0.0.1:9"), 2, "--private-network"),
        (("serve",), 2, "there are no boards yet"),
        (("serve", "--tls-cert", "FILE"), 2, "--tls-cert and --tls-key go together"),
        (("rm", "rock1"), 2, "there is no board rock1"),
        (("drain", "rock1"), 2, "there are no boards yet"),
    ],
)
def test_errors_are_one_line(trilithon: Program, tmp_path: Path, words: tuple[str, ...], code: int, text: str) -> None:
    (tmp_path / "file").write_text("x")
    done = trilithon("fleet", *(str(tmp_path / "file") if word == "FILE" else word for word in words))
    assert (done.code, text in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_gateway_for_other_machines_needs_keys(trilithon: Program, served: Any) -> None:
    trilithon("fleet", "add", f"rock1={served.url}")
    refused = trilithon("fleet", "serve", "--host", "0.0.0.0")
    assert (refused.code, "trilithon key add NAME" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_the_gateway_as_a_process(trilithon: Program, served: Any, home: Path, haproxy: str) -> None:
    trilithon("fleet", "add", f"rock1={served.url}")
    add_key(Configuration(data=home / "data" / "trilithon", cache=home), "ann")
    command = [sys.executable, "-m", "trilithon.cli", "fleet", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy()) as gateway:
        try:
            assert gateway.stderr is not None
            assert "the gateway serves 1 model of 1 board at http://127.0.0.1:" in gateway.stderr.readline()
        finally:
            gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(60) == 0
