"""What the units call is there, what keeps a drain and a killed engine harmless is set, and systemd takes them."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from trilithon.cli.main import main
from trilithon.cli.service.units import MARK, SERVICE, SOCKET, ServicePlan, existing_groups, program_words, unit_files
from trilithon.errors import UserError

SYSTEMD = shutil.which("systemd-analyze")


@pytest.fixture(autouse=True)
def installed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trilithon in /opt: a system service may not read the folders of users, where this Python may lie."""
    for name in ("prefix", "base_prefix"):
        monkeypatch.setattr(sys, name, "/opt/trilithon")
    monkeypatch.setattr(sys, "executable", "/opt/trilithon/bin/python")


def unit(name: str = SERVICE, scope: str = "system", host: str = "127.0.0.1", **more: bool) -> str:
    plan = ServicePlan(scope="user" if scope == "user" else "system", host=host, port=11435, **more)
    (text,) = (text for path, text in unit_files(plan, {}).items() if path.name == name)
    return text


def settings(text: str) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            values.setdefault(name, []).append(value)
    return values


@pytest.mark.parametrize("scope", ["system", "user"])
def test_the_server_may_drain_and_outlives_its_engines(scope: str) -> None:
    values = settings(unit(scope=scope))
    assert values["Type"] == ["notify"]
    assert values["KillMode"] == ["mixed"]  # otherwise the engines would get the signal as well, and their answers end
    assert int(values["TimeoutStopSec"][0]) > 30 + 5
    assert values["OOMPolicy"] == ["continue"]
    assert values["NoNewPrivileges"] == ["yes"]


def test_the_service_of_the_system_is_a_plain_user_with_few_devices() -> None:
    values = settings(unit())
    assert values["User"] == ["trilithon"]
    assert values["CapabilityBoundingSet"] == [""]
    assert values["ProtectSystem"] == ["strict"]
    assert values["DevicePolicy"] == ["closed"]
    assert all("*" not in device for device in values["DeviceAllow"])
    assert values["SupplementaryGroups"] == [" ".join(existing_groups())]
    assert "Environment=TRILITHON_DATA=/var/lib/trilithon\n" in unit()


@pytest.mark.parametrize("scope", ["system", "user"])
def test_what_is_called_is_there(scope: str) -> None:
    (line,) = settings(unit(scope=scope, host="::1"))["ExecStart"]
    words = shlex.split(line)[len(program_words()) :]
    assert words == ["serve", "--verbose", "--host", "::1", "--port", "11435"]
    command = main.get_command(click.Context(main), words[0])
    assert command is not None
    command.make_context("serve", words[1:])


def test_a_socket_has_the_address_instead_of_the_server() -> None:
    assert "--host" not in unit(on_demand=True)
    assert settings(unit(SOCKET, on_demand=True))["ListenStream"] == ["127.0.0.1:11435", "[::1]:11435"]
    assert settings(unit(SOCKET, host="0.0.0.0", on_demand=True))["ListenStream"] == ["0.0.0.0:11435"]
    assert settings(unit(SOCKET, host="fd00::1", on_demand=True))["ListenStream"] == ["[fd00::1]:11435"]


@pytest.mark.parametrize("host", ["rock5.lan", "1.2.3.4\nExecStartPre=/bin/true", "fe80::1%eth0", "", "1.2.3.4 x"])
def test_a_socket_listens_on_addresses_alone(host: str) -> None:
    with pytest.raises(UserError, match=r"is no address for --on-demand|has a zone"):
        unit(SOCKET, host=host, on_demand=True)


@pytest.mark.parametrize("scope", ["system", "user"])
def test_nothing_is_left_of_the_template(scope: str) -> None:
    for name in (SERVICE, SOCKET):
        text = unit(name, scope, on_demand=True)
        assert text.startswith(MARK)
        assert re.findall(r"@[A-Z]+@", text) == []
        assert all(len(line) <= 120 for line in text.splitlines())


def test_folders_of_the_environment_reach_the_service_and_secrets_do_not() -> None:
    environment = {
        "TRILITHON_DATA": '/m/50% "big" $x\\y',
        "XDG_CACHE_HOME": "/c",
        "HF_TOKEN": "secret",
        "TRILITHON_API_KEY": "secret",
    }
    text = "\n".join(unit_files(ServicePlan(scope="user", host="h", port=1), environment).values())
    assert 'Environment="TRILITHON_DATA=/m/50%% \\"big\\" $x\\\\y"\n' in text
    assert "Environment=XDG_CACHE_HOME=/c\n" in text
    assert "secret" not in text


def test_a_path_with_signs_of_systemd_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "100% of $HOME"
    folder.mkdir()
    (folder / "trilithon").write_text("#!/bin/sh\n")
    (folder / "trilithon").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    assert f'ExecStart="{tmp_path}/100%% of $$HOME/trilithon" serve' in unit(scope="user")
    with pytest.raises(UserError, match="cannot stand in a unit"):
        unit_files(ServicePlan(scope="user", host="h", port=1), {"TRILITHON_DATA": "/a\nExecStartPre=/bin/rm"})


@pytest.mark.parametrize("attribute", ["executable", "prefix", "base_prefix"])
@pytest.mark.parametrize("home_folder", ["home/ann", "root"])
def test_a_system_service_is_not_installed_from_a_home_folder(
    monkeypatch: pytest.MonkeyPatch, attribute: str, home_folder: str
) -> None:
    monkeypatch.setattr(sys, attribute, f"/{home_folder}/.venv/bin/python")
    with pytest.raises(UserError, match=r"lies in a home folder.* install --system"):
        unit()
    assert "ProtectHome" not in unit(scope="user")


@pytest.mark.skipif(SYSTEMD is None, reason="this system has no systemd-analyze")
@pytest.mark.parametrize("scope", ["system", "user"])
def test_systemd_understands_the_units(tmp_path: Path, scope: str) -> None:
    for name in (SERVICE, SOCKET):
        text = unit(name, scope, on_demand=True)
        (tmp_path / name).write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    assert SYSTEMD is not None
    done = subprocess.run(
        [SYSTEMD, "verify", *map(str, sorted(tmp_path.glob("trilithon.*")))], capture_output=True, text=True
    )
    assert [line for line in done.stderr.splitlines() if "trilithon" in line] == []
    assert done.returncode == 0


@pytest.mark.skipif(SYSTEMD is None, reason="this system has no systemd-analyze")
def test_systemd_calls_the_service_of_the_system_little_exposed(tmp_path: Path) -> None:
    (tmp_path / SERVICE).write_text(unit())
    assert SYSTEMD is not None
    # --threshold: in tenths, the exit code is 1 above it. 2.5 and more would be MEDIUM.
    command = [SYSTEMD, "security", "--offline=true", "--threshold=25", str(tmp_path / SERVICE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd-analyze is older than 250 and cannot judge a file")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("scope", ["user", "system"])
def test_a_reload_needs_no_program_but_the_shell(scope: str) -> None:
    """A small Debian has no /bin/kill."""
    (line,) = settings(unit(scope=scope))["ExecReload"]
    words = shlex.split(line)
    assert words[0] == "/bin/sh"
    with subprocess.Popen(["sleep", "100"]) as server:
        subprocess.run(words, env={"MAINPID": str(server.pid), "PATH": "/nothing"}, check=True)
        assert server.wait(20) == -signal.SIGHUP
