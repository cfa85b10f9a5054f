"""`trilithon ps` and `trilithon stop`, with a server in another process."""

import io
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from trilithon.cli.serve.ps import handover_lines, plan_lines, until
from trilithon.cli.serve.server_client import running_server
from trilithon.errors import TrilithonError

Program = Callable[..., Any]

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def asked(served: Any, trilithon: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program, with the module's server to speak to."""
    monkeypatch.setenv("TRILITHON_HOST", served.url)
    monkeypatch.setattr("sys.stdin", None)
    return trilithon


def test_a_loaded_model_is_listed_and_unloaded(asked: Program, served: Any) -> None:
    assert asked("ps")[:2] == (0, "")
    asked("run", "tiny", "hello", "-p", "num_predict=3", "--keepalive", "5m")
    done = asked("ps")
    titles, row = done.stdout.splitlines()
    assert titles.split() == ["NAME", "ID", "SIZE", "PLACEMENT", "CONTEXT", "UNTIL"]
    assert row.startswith("tiny:latest  ")
    assert "scripted/cpu" in row
    assert "in 4:5" in row or "in 5:00" in row
    (found,) = json.loads(asked("ps", "--json").stdout)
    assert found["name"] == "tiny:latest"
    assert found["digest"].startswith(row.split()[1])
    assert asked("stop", "tiny") == (0, "", "tiny:latest is unloaded\n")
    assert asked("ps") == (0, "", "no model is loaded\n")
    assert json.loads(asked("ps", "--json").stdout) == []


def test_what_is_not_loaded_cannot_be_stopped(asked: Program) -> None:
    assert asked("stop", "tiny") == (2, "", "error: tiny:latest is not loaded; see: trilithon ps\n")


def test_a_model_that_is_kept_for_ever(asked: Program) -> None:
    asked("run", "tiny", "hello", "-p", "num_predict=3", "--keepalive", "-1")
    assert asked("ps").stdout.rstrip().endswith("for ever")
    asked("stop", "tiny")


def test_a_model_whose_handover_is_not_active_gets_a_line() -> None:
    paused = {"state": "paused", "reason": "llama.cpp/cpu used 0 of 199 tokens", "retry_in_seconds": 38.2, "misses": 2}
    models = [
        {"name": "a:latest", "handover": paused},
        {"name": "b:latest", "handover": {**paused, "state": "off", "retry_in_seconds": None}},
        {"name": "c:latest", "handover": {"state": "active", "reason": "", "retry_in_seconds": None, "misses": 2}},
        {"name": "d:latest"},
    ]
    assert list(handover_lines(models)) == [
        "a:latest: handover paused, tried again in 38 s: llama.cpp/cpu used 0 of 199 tokens",
        "b:latest: handover off: llama.cpp/cpu used 0 of 199 tokens",
    ]


def test_a_stale_plan_is_told_with_what_renews_it() -> None:
    models = [
        {"name": "a:latest", "plan": {"from": "campaign 3", "stale": ["kernel 1 → 2"], "renewal": "trilithon bench a"}},
        {"name": "b:latest", "plan": {"from": "set by hand", "stale": [], "renewal": ""}},
        {"name": "c:latest"},
    ]
    assert list(plan_lines(models)) == ["a:latest: its plan is stale: kernel 1 → 2; renew it: trilithon bench a"]


@pytest.mark.parametrize("words", [("ps",), ("stop", "tiny")])
def test_without_a_server_it_says_how_to_start_one(
    trilithon: Program, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TRILITHON_HOST", "127.0.0.1:1")
    done = trilithon(*words)
    assert done.code == 1
    assert done.stderr == "error: no server answers at http://127.0.0.1:1; start one: trilithon serve\n"


def test_a_socket_of_the_settings_where_nobody_listens_is_no_server(home: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[serve]\nunix = "{tmp_path / "wire"}"\n')
    assert running_server({"TRILITHON_CONFIG": str(config)}) is None
    with pytest.raises(TrilithonError, match="no server answers at unix:"):
        running_server({"TRILITHON_HOST": f"unix:{tmp_path / 'wire'}"})


@pytest.mark.parametrize("host", [os.fsdecode(b"\xff"), "a\u2100b", "x" * 300, "[::1", "http://"])
def test_a_host_that_is_none_is_told_in_one_line(
    trilithon: Program, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("TRILITHON_HOST", host)
    assert isinstance(sys.stderr, io.TextIOWrapper)
    sys.stderr.reconfigure(errors="replace")  # as `entry` does
    done = trilithon("ps")
    assert done.code in (1, 2)
    assert (done.stderr.count("\n"), done.stderr[:7]) == (1, "error: ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ((NOW + timedelta(seconds=272)).isoformat(), "in 4:32"),
        ("2026-11-22T13:00:00.123456789+01:00", "in 0.12 s"),
        ("2026-11-22T11:00:00Z", "now"),
        ("2318-03-04T00:00:00Z", "for ever"),
        ("2026-11-22T12:00:00", "2026-11-22T12:00:00"),
        ("soon", "soon"),
        ("", "-"),
    ],
)
def test_until_when(text: str, shown: str) -> None:
    assert until(text, NOW) == shown
