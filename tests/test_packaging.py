"""What the units and the container file call is there, and what keeps a drain and a killed engine harmless is set."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from trilithon.cli.main import main

PACKAGING = Path(__file__).parent.parent / "packaging"
SYSTEM, SOCKET, USER = (
    PACKAGING / name for name in ("trilithon.service", "trilithon.socket", "user/trilithon.service")
)
CONTAINER = PACKAGING / "Containerfile"
SYSTEMD = shutil.which("systemd-analyze")


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def called() -> list[str]:
    """Every `trilithon …` in these files, comments too."""
    found = []
    for path in (SYSTEM, USER, CONTAINER):
        text = path.read_text(encoding="utf-8").replace("\\\n#", " ")
        found += re.findall(r"(?:bin/trilithon|/data trilithon|`trilithon) ([a-z][^`#\n]*)", text)
    (words,) = re.findall(r"^CMD (.*)", CONTAINER.read_text(encoding="utf-8"), re.MULTILINE)
    return [*dict.fromkeys(each.strip() for each in found), " ".join(json.loads(words))]


@pytest.mark.parametrize("line", called())
def test_what_is_called_is_there(line: str) -> None:
    command: click.Command = main
    # With its settings: click remembers in a command how its help was first asked for.
    context = click.Context(main, info_name="trilithon", **main.context_settings)
    words = shlex.split(line)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, line
        command, words = found, words[1:]
    command.make_context(line, words, parent=context)


def test_there_is_something_called() -> None:
    assert len(called()) >= 6


@pytest.mark.parametrize("unit", [SYSTEM, USER], ids=["system", "user"])
def test_the_server_may_drain_and_outlives_its_engines(unit: Path) -> None:
    found = settings(unit)
    assert found["Type"] == ["notify"]
    assert found["KillMode"] == ["mixed"]  # otherwise the engines would get the signal as well, and their answers end
    assert int(found["TimeoutStopSec"][0]) > 30 + 5
    assert found["OOMPolicy"] == ["continue"]
    assert found["NoNewPrivileges"] == ["yes"]


def test_the_service_of_the_system_is_a_plain_user_with_few_devices() -> None:
    found = settings(SYSTEM)
    assert found["User"] == ["trilithon"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["ProtectSystem"] == ["strict"]
    assert found["DevicePolicy"] == ["closed"]
    assert all("*" not in each for each in found["DeviceAllow"])


def test_the_socket_is_for_this_machine_alone() -> None:
    assert all(re.fullmatch(r"(127\.0\.0\.1|\[::1\]):11435", each) for each in settings(SOCKET)["ListenStream"])


def test_the_container_is_no_root() -> None:
    text = CONTAINER.read_text(encoding="utf-8")
    assert re.findall(r"^USER (\d+)", text, re.MULTILINE) == ["10001"]
    assert "--privileged" not in text
    assert "--cap-drop all" in text


@pytest.mark.skipif(SYSTEMD is None, reason="this system has no systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    units = [tmp_path / "trilithon.service", tmp_path / "trilithon.socket", tmp_path / "user.service"]
    for unit, source in zip(units, (SYSTEM, SOCKET, USER), strict=True):
        unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", source.read_text("utf-8"), flags=re.MULTILINE))
    assert SYSTEMD is not None
    done = subprocess.run([SYSTEMD, "verify", *map(str, units)], capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if "trilithon" in line or "user.service" in line] == []
    assert done.returncode == 0
