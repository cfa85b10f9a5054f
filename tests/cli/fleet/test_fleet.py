"""`trilithon fleet` on the command line: boards added, listed, drained and removed, and the gateway as a process."""

import contextlib
import json
import os
import re
import signal
import socket
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

# ssh(1): the words after the host are a command for the user's shell there; here that user has another folder.
SSH = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
XDG_DATA_HOME={folder}/data exec sh -c "$3"
"""


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
        (("add", "r=https://a..b:1"), 2, "is no address of a board"),
        (("add", f"r=https://{'a' * 64}.b:1"), 2, "is no address of a board"),
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


@pytest.mark.slow  # five processes
def test_a_key_is_made_over_ssh_where_a_server_answers_and_replaces_its_predecessor(
    trilithon: Program, served: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").write_text(SSH.format(folder=tmp_path))
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    key_file, words = home / "data/trilithon/fleet/rock1.key", ("fleet", "add", f"rock1={served.url}", "--ssh", "a@b")
    assert trilithon("fleet", "add", "rock1=http://127.0.0.1:9", "--ssh", "a@b").code == 1
    assert not (tmp_path / "data").exists()
    assert trilithon(*words).code == 0
    key = key_file.read_text()
    assert trilithon("fleet", "rm", "rock1").code == 0
    again = trilithon(*words)
    assert again.code == 0, again.stderr
    assert key_file.read_text() != key
    assert len(json.loads((tmp_path / "data/trilithon/keys.json").read_text())) == 1
    assert trilithon("fleet", "rm", "rock1").code == 0
    monkeypatch.setenv("TRILITHON_BOARD_KEY", "trl-a-key-that-nobody-asks-for")
    assert trilithon("fleet", "add", "rock1=http://127.0.0.1:9").code == 1
    assert not key_file.exists()


def test_a_gateway_for_other_machines_needs_keys(trilithon: Program, served: Any) -> None:
    trilithon("fleet", "add", f"rock1={served.url}")
    refused = trilithon("fleet", "serve", "--host", "0.0.0.0")
    assert (refused.code, "trilithon key add NAME" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_the_gateway_as_a_process(trilithon: Program, served: Any, home: Path, haproxy: str) -> None:
    trilithon("fleet", "add", f"rock1={served.url}")
    add_key(Configuration(data=home / "data" / "trilithon", cache=home), "ann")
    command = [sys.executable, "-m", "trilithon.cli", "fleet", "serve", "--port", "0", "--drain", "10m"]
    for ending, code in (([signal.SIGTERM], 0), ([signal.SIGINT, signal.SIGTERM], 130)):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        gateway = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
        signal.signal(signal.SIGHUP, before)
        with gateway, contextlib.ExitStack() as held:
            try:
                assert gateway.stderr is not None
                line = gateway.stderr.readline()
                assert "the gateway serves 1 model of 1 board at http://127.0.0.1:" in line
                (ignored,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{gateway.pid}/status").read_text())
                assert int(ignored, 16) & 1
                if code:  # one request was answered, and the next one is on its way when it is to end
                    client = held.enter_context(socket.create_connection(("127.0.0.1", int(line.rpartition(":")[2]))))
                    client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET")
                    assert client.recv(1 << 16)
            finally:
                for number in ending:
                    gateway.send_signal(number)
            assert gateway.wait(60) == code


def test_a_batch_is_answered_and_goes_on_where_it_was_stopped(trilithon: Program, served: Any, tmp_path: Path) -> None:
    trilithon("fleet", "add", f"rock1={served.url}")
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    lines = [{**chat, "model": "tiny"}, {"custom_id": "b", "body": chat}, {**chat, "max_tokens": -5}]
    file, answers = tmp_path / "questions.jsonl", tmp_path / "questions.answers.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert "model is missing" in trilithon("fleet", "ask", file).stderr
    done = trilithon("fleet", "ask", file, "--model", "tiny", "--json")
    assert (done.code, "1 line has no answer" in done.stderr) == (1, True)
    assert json.loads(done.stdout) == {"answered": 2, "refused": 1, "failed": 0, "output": str(answers)}
    rows = {row["line"]: row for row in map(json.loads, answers.read_text().splitlines())}
    assert [(rows[number]["board"], rows[number]["status"]) for number in (1, 2, 3)] == [
        ("rock1", 200),
        ("rock1", 200),
        ("rock1", 400),
    ]
    assert rows[2]["custom_id"] == "b"
    assert rows[1]["body"]["choices"][0]["message"]["content"]

    lines[2] = {**chat, "max_tokens": 3}
    file.write_text("\n".join(map(json.dumps, lines)))
    with answers.open("a") as half:
        half.write('{"line": 3, "of"')  # the run was killed while it wrote
    done = trilithon("fleet", "ask", file, "--model", "tiny", "--json")
    assert (done.code, json.loads(done.stdout)["answered"]) == (0, 3)
    assert len(answers.read_text().splitlines()) == 4
    assert trilithon("fleet", "ask", file, "--model", "tiny").stderr == ""
    before = file.read_text()
    answers.unlink()
    answers.symlink_to(file)
    for words in ((), ("-o", file)):
        refused = trilithon("fleet", "ask", file, "--model", "tiny", *words)
        assert (refused.code, "is the file of the questions" in refused.stderr) == (2, True)
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("", "has no lines"),
        ("[1]", "line 1: write a JSON object"),
        ('{"messages": "x", "model": "m"}', "line 1: write a JSON object"),
        ('{"messages": [], "model": 5}', "line 1: model is missing"),
        ('{"messages": [], "model": "absent"}', "line 1: no board has the model absent"),
    ],
)
def test_a_batch_that_is_none(trilithon: Program, served: Any, tmp_path: Path, text: str | None, words: str) -> None:
    trilithon("fleet", "add", f"rock1={served.url}")
    if text is not None:
        (tmp_path / "file").write_text(text)
    done = trilithon("fleet", "ask", tmp_path / "file")
    assert (done.code, words in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr
