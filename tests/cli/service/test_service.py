"""`trilithon service`: with a real systemd of a user where one can be started, and what is told without."""

import getpass
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from user_manager import in_user_session

from trilithon.cli.service import systemd
from trilithon.cli.service.units import MARK

Program = Callable[..., Any]

PROGRAM = Path(sys.executable).with_name("trilithon")
UNITS = "config/systemd/user"


@pytest.fixture
def tools(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of programs, with a systemctl for which systemd does not run."""
    folder = home / "tools"
    folder.mkdir()
    program(folder / "systemctl", "echo offline; exit 1")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_dry_run_shows_everything_and_changes_nothing(trilithon: Program, home: Path, tools: Path) -> None:
    done = trilithon("service", "install", "--user", "--dry-run", "--host", "0.0.0.0", "--port", "8080")
    assert (done.code, done.stderr) == (0, "")
    assert f"# {home}/{UNITS}/trilithon.service\n{MARK}" in done.stdout
    assert " serve --verbose --host 0.0.0.0 --port 8080\n" in done.stdout
    assert done.stdout.endswith(
        "systemctl --user enable trilithon.service\nsystemctl --user restart trilithon.service\n"
    )
    shown = json.loads(trilithon("service", "install", "--user", "--dry-run", "--on-demand", "--json").stdout)
    assert [Path(path).name for path in shown["files"]] == ["trilithon.service", "trilithon.socket"]
    assert shown["commands"][-1] == "systemctl --user restart trilithon.socket"
    assert not (home / "config").exists()


@pytest.mark.parametrize("gone", [True, False])
def test_without_systemd_one_line_says_so(trilithon: Program, home: Path, tools: Path, gone: bool) -> None:
    if gone:
        (tools / "systemctl").unlink()
    done = trilithon("service", "install", "--user")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == ("error: no systemd runs for this user; start the server yourself with: trilithon serve\n")
    assert not (home / "config").exists()


@pytest.mark.parametrize("words", [("status",), ("logs",), ("uninstall",), ("status", "--user")], ids=" ".join)
def test_without_a_service_one_line_says_so(trilithon: Program, tools: Path, words: tuple[str, ...]) -> None:
    done = trilithon("service", *words)
    assert (done.code, done.stdout) == (2, "")
    assert "is not installed" in done.stderr
    assert done.stderr.endswith("run: trilithon service install\n")


def test_other_machines_need_a_key_first(trilithon: Program, home: Path, tools: Path) -> None:
    program(tools / "systemctl", "echo running")
    program(tools / "loginctl", "echo refused >&2; exit 1")
    done = trilithon("service", "install", "--user", "--host", "0.0.0.0")
    assert done.code == 2
    assert "0.0.0.0 is reachable from other machines, and there is no key; run: trilithon key add NAME" in done.stderr
    assert not (home / UNITS).exists()
    trilithon("key", "add", "home")
    done = trilithon("service", "install", "--user", "--host", "0.0.0.0")
    assert (done.code, done.stdout.splitlines()[0]) == (0, f"wrote {home}/{UNITS}/trilithon.service")
    assert "note: the service ends when you log out (refused)" in done.stderr
    assert "start at boot" not in (home / UNITS / "trilithon.service").read_text().partition("\n")[0]


def test_a_unit_of_somebody_else_stays(trilithon: Program, home: Path, tools: Path) -> None:
    program(tools / "systemctl", "echo running")
    theirs = home / UNITS / "trilithon.service"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Service]\nExecStart=/bin/true\n")
    for command in ("install", "uninstall"):
        done = trilithon("service", command, "--user")
        assert done.code == 2
        assert f"{theirs} was not written by trilithon service install; move it away" in done.stderr
    assert theirs.read_text().startswith("[Service]")


def test_a_server_that_does_not_start_is_told(trilithon: Program, home: Path, tools: Path) -> None:
    script = 'case "$*" in *is-system-running) echo running ;; *restart*) echo "Job failed." >&2; exit 1 ;; esac'
    program(tools / "systemctl", script)
    program(tools / "loginctl", "exit 0")
    done = trilithon("service", "install", "--user")
    assert done.code == 1
    assert (
        "systemctl --user restart trilithon.service failed: Job failed.; see: trilithon service logs --user"
        in done.stderr
    )
    assert "start at boot" in (home / UNITS / "trilithon.service").read_text().partition("\n")[0]


def test_a_change_keeps_what_an_uninstallation_has_to_undo(
    trilithon: Program, home: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second installation meets the lingering that the first one has asked for."""
    program(tools / "systemctl", "echo running")
    program(tools / "loginctl", f'echo "$1" >> {home}/calls; : > {home}/linger/$USER')
    (home / "linger").mkdir()
    monkeypatch.setenv("USER", getpass.getuser())
    monkeypatch.setattr(systemd, "_LINGER", home / "linger")
    for port in ("8080", "8081"):
        assert trilithon("service", "install", "--user", "--port", port).code == 0
    assert trilithon("service", "uninstall", "--user").code == 0
    assert (home / "calls").read_text().split() == ["enable-linger", "disable-linger"]


@pytest.mark.parametrize(("socket_state", "code"), [("active", 0), ("failed", 1)])
def test_a_socket_that_does_not_listen_is_told(
    trilithon: Program, home: Path, tools: Path, socket_state: str, code: int
) -> None:
    states = f"*is-active*) echo {socket_state} ;; *show*) echo ActiveState=inactive"
    program(tools / "systemctl", f'case "$*" in *is-system-running) echo running ;; {states} ;; esac')
    (home / UNITS).mkdir(parents=True)
    for name in ("trilithon.service", "trilithon.socket"):
        (home / UNITS / name).write_text(MARK)
    assert trilithon("service", "status").code == code


def test_the_system_needs_root(trilithon: Program, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tools / "systemctl", "echo running")
    for name in ("prefix", "base_prefix"):
        monkeypatch.setattr(sys, name, "/opt/trilithon")
    monkeypatch.setattr(sys, "executable", "/opt/trilithon/bin/python")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = trilithon("service", "install", "--system")
    assert done.code == 2
    assert "a service of the system needs root; run: sudo /opt/trilithon/bin/python -P -m trilithon.cli" in done.stderr
    monkeypatch.setattr(systemd, "_user_exists", lambda: False)
    shown = trilithon("service", "install", "--system", "--dry-run").stdout
    assert "\nuseradd --system --user-group --home-dir /var/lib/trilithon" in shown


def test_logs_are_the_journals(trilithon: Program, home: Path, tools: Path) -> None:
    unit = home / UNITS / "trilithon.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(MARK)
    assert "this system has no journalctl" in trilithon("service", "logs").stderr
    program(tools / "journalctl", 'echo "$@"; exit 3')
    done = subprocess.run([PROGRAM, "service", "logs", "-f", "-n", "7"], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stdout == "--user-unit trilithon.service --output cat --lines 7 --follow --no-pager\n"


LIFE = """
T={program}
$T service install --user --port {port} > out 2> err
cat out err
$T service status --json
{python} -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/api/version').read().decode())"
kill -9 $($T service status --json | {python} -c "import json, sys; print(json.load(sys.stdin)['pid'])")
$T service status || echo "not running: $?"
$T service install --user --port {port} --on-demand --json
{python} -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/api/version').read().decode())"
$T service status
$T service install --user --port {port} --on-demand > out 2>&1 && echo "changed while it runs" || cat out
ls {units}/*.wants
$T service uninstall
ls {units} {units}/*.wants || true
systemctl --user show trilithon.service -p ActiveState -p LoadState
"""


@pytest.mark.slow
def test_installed_used_killed_changed_and_removed(home: Path) -> None:
    """The server starts twice. The journal does not run here, and no login, which can let services start at boot."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = {"program": shlex.quote(str(PROGRAM)), "python": shlex.quote(sys.executable)}
    script = LIFE.format(port=port, units=shlex.quote(str(home / UNITS)), **words)
    done = in_user_session(f"cd {shlex.quote(str(home))}\n{script}", home, os.environ)
    shown = done.stdout
    assert done.returncode == 0, shown + done.stderr
    assert f"wrote {home}/{UNITS}/trilithon.service\nthe server runs: http://127.0.0.1:{port}\n" in shown
    assert '"state": "active"' in shown
    assert shown.count('"version"') == 2
    assert "not running: 1" in shown  # it is started again after five seconds
    assert '"on_demand": true' in shown
    assert "at boot   enabled, starts with its first client" in shown
    assert "changed while it runs" in shown
    assert "\ntrilithon.socket\n" in shown
    assert "default.target.wants" not in shown  # which would start the server at boot
    assert f"removed {home}/{UNITS}/trilithon.service\nremoved {home}/{UNITS}/trilithon.socket\n" in shown
    assert "LoadState=not-found\nActiveState=inactive" in shown
    assert not list((home / UNITS).rglob("trilithon.*"))
