"""`trilithon doctor --watch`: on a pseudo-terminal, in a pipe, and frames of constructed machines."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trilithon.board.sensors.sampler import Sampler
from trilithon.board.sensors.window import Window
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine
from trilithon.cli.doctor.watch_screen import frame_json, plain_lines, screen

Program = Callable[..., Any]

COMMAND = [str(Path(sys.executable).with_name("trilithon")), "doctor", "--watch"]
ZONE = "/sys/class/thermal/thermal_zone0"
POLICY = "/sys/devices/system/cpu/cpufreq/policy0"
FILES = {
    "/proc/meminfo": "MemTotal: 8192 kB\nMemAvailable: 4096 kB\nAnonPages: 1024 kB\n",
    "/proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n\n",
    "/sys/devices/system/cpu/online": "0\n",
    f"{POLICY}/related_cpus": "0\n",
    f"{POLICY}/cpuinfo_max_freq": "1800000\n",
    f"{POLICY}/scaling_cur_freq": "900000\n",
    f"{ZONE}/type": "soc-thermal\n",
    f"{ZONE}/temp": "81500\n",
    "/sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "/sys/class/powercap/intel-rapl:0/energy_uj": "1000000\n",
}


def plant(root: Path, files: dict[str, str]) -> Machine:
    for path, content in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    return Machine(root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return plant(tmp_path, FILES)


@pytest.fixture
def window(machine: Machine) -> Iterator[Window]:
    with Sampler(machine, period_seconds=0.1, whole_frames=True) as sampler:
        sampler.start()
        shown = Window(sampler)
        shown.wait(0.1)
        yield shown


def drawn(machine: Machine, window: Window, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(screen(read_board(machine), window))
    return capture.get()


def test_the_picture_names_units_and_readings_within_80_columns(machine: Machine, window: Window) -> None:
    text = drawn(machine, window)
    assert max(map(len, text.splitlines())) <= 80
    assert "no GPU · no NPU" in text
    assert "soc-thermal           81.5 °C" in text
    assert "cpu0                  900 MHz ████░░░░" in text
    assert "available             4.0 MiB ████░░░░" in text
    assert [word for word in ("Load", "Clocks", "Temperatures", "Memory", "Power") if word not in text] == ["Load"]


def test_an_rk3588_fits_a_small_terminal(window: Window, tmp_path: Path) -> None:
    zones = {f"/sys/class/thermal/thermal_zone{n}/type": f"zone{n}-thermal" for n in range(7)}
    zones |= {f"/sys/class/thermal/thermal_zone{n}/temp": "40000" for n in range(7)}
    machine = plant(tmp_path / "more", FILES | zones)
    with Sampler(machine, period_seconds=0.05, whole_frames=True) as sampler:
        sampler.start()
        wide = Window(sampler)
        wide.wait(0.05)
        lines = drawn(machine, wide).splitlines()
    assert len(lines) <= 24
    assert sum("thermal" in line for line in lines) == 7


def test_an_energy_counter_is_shown_as_power(machine: Machine, window: Window) -> None:
    plant(Path(machine.root), {"/sys/class/powercap/intel-rapl:0/energy_uj": "3000000\n"})
    joules = 0.0
    for _ in range(5):
        before_ns = window.at_ns or 0
        window.wait(0.1)
        (watts,) = (reading for reading in window.readings() if reading.quantity in ("power", "energy"))
        assert (watts.quantity, watts.name, watts.unit) == ("power", "package-0", "watts")
        joules += watts.value * ((window.at_ns or 0) - before_ns) / 1e9
    assert joules == pytest.approx(2)


def test_a_frame_as_json_and_as_lines_has_sources(machine: Machine, window: Window) -> None:
    body = frame_json(window)
    assert json.loads(json.dumps(body)) == body
    found = {(each["quantity"], each["name"]): each for each in body["readings"]}
    assert found["temperature", "soc-thermal"] == {
        "quantity": "temperature",
        "name": "soc-thermal",
        "value": 81.5,
        "unit": "celsius",
        "source": f"{ZONE}/temp",
    }
    lines = plain_lines(read_board(machine), window)
    assert f"Temperatures  soc-thermal     81.5 °C  {ZONE}/temp" in lines


def test_without_a_meter_it_says_so(tmp_path: Path) -> None:
    machine = plant(tmp_path, {ZONE + "/temp": "40000"})
    with Sampler(machine, period_seconds=0.05, whole_frames=True) as sampler:
        sampler.start()
        window = Window(sampler)
        assert "no reading yet" in drawn(machine, window)
        window.wait(0.05)
        assert plain_lines(read_board(machine), window)[-1] == "no power meter readable by this user"


def test_in_a_pipe_it_prints_one_frame_and_ends(trilithon: Program) -> None:
    done = trilithon("doctor", "--watch")
    assert done.code == 0
    assert done.stdout.startswith(read_board().describe())
    assert "/proc/meminfo" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_json_lines_until_the_reader_goes(home: Path) -> None:
    child = subprocess.Popen([*COMMAND, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    first, second = (json.loads(child.stdout.readline()) for _ in range(2))
    child.stdout.close()
    assert child.wait(10) == 0
    assert child.stderr.read() == b""
    child.stderr.close()
    assert 0.2e9 < second["at_ns"] - first["at_ns"] < 5e9
    assert {each["source"] for each in second["readings"]} >= {"/proc/stat", "/proc/meminfo"}


class Terminal:
    """The command on a pseudo-terminal."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.settings = termios.tcgetattr(slave)
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.child = subprocess.Popen(COMMAND, stdin=slave, stdout=slave, stderr=slave, env=environment)
        self._slave = slave
        self.text = ""

    def until(self, *words: str) -> None:
        deadline = time.monotonic() + 60
        while not all(word in self.text for word in words):
            assert time.monotonic() < deadline, self.text
            self._take()

    def ended(self) -> int:
        while self.child.poll() is None:
            self._take()
        self._take()
        return self.child.returncode

    def restored(self) -> bool:
        return termios.tcgetattr(self._slave)[3] == self.settings[3]

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        os.close(self.master)
        os.close(self._slave)

    def _take(self) -> None:
        if select.select([self.master], [], [], 0.1)[0]:
            self.text += os.read(self.master, 1 << 16).decode(errors="replace")


@pytest.fixture
def terminal(home: Path) -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_q_ends_it_with_0(terminal: Terminal) -> None:
    terminal.until("Memory", "available")
    os.write(terminal.master, b"x")
    os.write(terminal.master, b"q")
    assert terminal.ended() == 0
    assert terminal.restored()
    assert "\x1b[?1049l" in terminal.text  # back from the other screen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_130_and_puts_the_terminal_back(terminal: Terminal, number: signal.Signals) -> None:
    terminal.until("Memory", "available")
    assert not terminal.restored()
    terminal.child.send_signal(number)
    assert terminal.ended() == 130
    assert terminal.restored()
    assert "\x1b[?25h" in terminal.text  # the cursor shows again
    assert "stopped" in terminal.text


def test_clocks_are_not_measured_while_watching() -> None:
    done = subprocess.run([*COMMAND, "--measure-clocks"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "leave --measure-clocks out" in done.stderr
