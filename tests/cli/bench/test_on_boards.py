"""`trilithon bench --on`: campaigns on boards that ssh reaches, one table here, and boards that fail."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.fleet.benches import bench_on
from trilithon.fleet.boards import add_board, parse_board
from trilithon.results.store.database import Store
from trilithon.settings import Configuration, load_configuration

Program = Callable[..., Any]

# ssh(1): the words after the host are one command for the user's shell there; its exit status is that of the command,
# 255 for an error of the connection. Here a host is a user's own folder on this machine.
SSH = """#!{python}
import json, os, subprocess, sys
host, command = sys.argv[sys.argv.index("--") + 1 :]
with open("{folder}/commands", "a") as log:
    log.write(json.dumps([host, command]) + "\\n")
if host == "ann@dead":
    print("ssh: connect to host dead port 22: No route to host", file=sys.stderr)
    sys.exit(255)
if host == "ann@lost":
    print('{{"text": "warm-up", "runs_done": 0, "runs_planned": 4}}', file=sys.stderr)
    print("Connection to lost closed by remote host.", file=sys.stderr)
    sys.exit(255)
home = os.path.join("{folder}", host.partition("@")[2])
os.makedirs(home, exist_ok=True)
names = {{"XDG_DATA_HOME": "data", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}}
environment = os.environ | {{"HOME": home}} | {{name: os.path.join(home, below) for name, below in names.items()}}
sys.exit(subprocess.call(["sh", "-c", command], env=environment))
"""
TRILITHON = """#!/bin/sh
exec {python} -c '
from trilithon.bench import campaign
from trilithon.cli.main import entry
campaign._SETTLE_FIRST_SECONDS = campaign._SETTLE_SECONDS = 0
entry()' "$@"
"""
SHORT = ("-p", "16", "-n", "8", "-r", "1", "--test", "pp", "--test", "tg", "--no-quality")


@pytest.fixture
def boards(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    """Two that ssh reaches, and one that it does not."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("ssh", SSH), ("trilithon", TRILITHON)):
        (programs / name).write_text(text.format(python=sys.executable, folder=tmp_path))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    configuration = load_configuration()
    for number, name in enumerate(("rock1", "rock2", "dead"), start=1):
        add_board(configuration, parse_board(f"{name}=https://10.0.0.{number}", ssh=f"ann@{name}"))
    add_board(configuration, parse_board("nossh=https://10.0.0.9"))
    return configuration


def commands(folder: Path) -> list[list[str]]:
    path = folder / "commands"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_campaigns_of_boards_come_here_once_and_a_dead_board_holds_none_up(
    trilithon: Program, boards: Configuration, tiny: Path, tmp_path: Path
) -> None:
    words = (tiny, *SHORT, "--placement", "scripted/cpu:prefill=50000,decode=5000")
    done = trilithon("bench", *words, "--on", "rock1,rock2,dead")
    assert done.code == 1
    assert "dead: ssh: connect to host dead port 22: No route to host\n" in done.stderr
    assert done.stderr.endswith("error: no results from: dead; the reasons are above\n")
    for name in ("rock1", "rock2"):
        assert f"{name}:scripted/cpu" in done.stdout
        assert f"{name}: saved as campaign " in done.stderr
    with Store.open(boards.results_database) as store:
        kept = store.campaigns()
    assert [(campaign.status, bool(campaign.imported)) for campaign in kept] == [("finished", True)] * 2
    sent = [command for host, command in commands(tmp_path) if host == "ann@rock1"]
    begin = "trilithon bench --yes --progress json -o json --n-prompt 16 --n-gen 8 --repetitions 1 --placement "
    assert sent[0].startswith(begin)
    assert sent[0].endswith(f" -- {tiny}")
    assert sent[1:] == ["trilithon results export 1 -o trilithon"]


def test_only_a_campaign_that_began_is_to_be_gone_on_with(boards: Configuration) -> None:
    known = [parse_board(f"{name}=https://10.0.0.1", ssh=f"ann@{name}") for name in ("dead", "lost")]
    assert [bench.problem for bench in bench_on(known, ["m"], lambda *_: None)] == [
        "ssh: connect to host dead port 22: No route to host",
        "Connection to lost closed by remote host.; go on there with: ssh ann@lost trilithon bench --resume",
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--on", "rock1,absent"), "there is no board absent"),
        (("--on", ","), "name boards, separated by commas"),
        (("--on", "rock1,nossh"), "board nossh has no address for ssh"),
        (("--on", "rock1", "--report", "x"), "trilithon results report"),
        (("--on", "rock1", "--questions", __file__), "--questions and --on: the boards do not have that file"),
    ],
)
def test_what_is_wrong_is_told_before_anything_begins(
    trilithon: Program, boards: Configuration, tmp_path: Path, words: tuple[str, ...], text: str
) -> None:
    done = trilithon("bench", "m", *words)
    assert (done.code, text in done.stderr, done.stderr.count("\n")) == (2, True, 1)
    assert commands(tmp_path) == []


@pytest.mark.slow  # two processes
def test_an_error_of_the_board_is_its_reason(trilithon: Program, boards: Configuration, tiny: Path) -> None:
    done = trilithon("bench", tiny, "--placement", "nonsense/cpu", "--on", "rock1,rock2")
    assert (done.code, done.stdout) == (1, "")
    for name in ("rock1", "rock2"):
        assert any(line.startswith(f"{name}: ") and "nonsense" in line for line in done.stderr.splitlines())
