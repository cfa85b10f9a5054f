import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from trilithon.board.doctor import Finding
from trilithon.board.sensors.clock_speed import MeasuredClock
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine
from trilithon.cli.doctor.doctor import EngineRow, doctor_command, print_report, report

ROWS = (
    EngineRow("llama.cpp/cpu", True),
    EngineRow("rkllm/npu", False, "librkllmrt.so is not installed", "sudo cp librkllmrt.so /usr/lib"),
)


def test_the_json_has_board_findings_and_engines() -> None:
    result = CliRunner().invoke(doctor_command(lambda _: ROWS), ["--json"])
    assert result.exit_code == 0
    body = json.loads(result.stdout)
    assert body["board"]["description"] == read_board().describe()
    assert isinstance(body["findings"], list)
    assert body["engines"][1] == {
        "placement": "rkllm/npu",
        "usable": False,
        "why": "librkllmrt.so is not installed",
        "fix": "sudo cp librkllmrt.so /usr/lib",
    }


def test_the_text_is_plain_when_nobody_watches() -> None:
    result = CliRunner().invoke(doctor_command(lambda _: ROWS))
    assert result.exit_code == 0
    assert result.stdout.startswith(read_board().describe())
    assert "  ✓ llama.cpp/cpu" in result.stdout
    assert "  ✗ rkllm/npu      librkllmrt.so is not installed" in result.stdout
    assert "→ sudo cp librkllmrt.so /usr/lib" in result.stdout
    assert "\x1b" not in result.stdout


def test_findings_stand_with_their_fixes_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fix = "echo performance | sudo tee " + "/sys/long" * 20 + "[x]"
    print_report(read_board(Machine(tmp_path)), [Finding("memory-clock", "warning", "memory clock", "parked", fix)], ())
    output = capsys.readouterr().out
    assert "  ! memory clock  parked\n" in output
    assert fix in output
    assert "explained by trilithon doctor --explain: memory-clock\n" in output
    assert "Engines" not in output


def test_a_healthy_machine_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(read_board(Machine(tmp_path)), (), ())
    assert "nothing found that slows this machine" in capsys.readouterr().out


def test_importing_the_command_loads_nothing_heavy() -> None:
    program = "import sys, trilithon.cli.doctor.doctor; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "trilithon.cli.doctor.doctor" in modules
    assert not {"rich", "trilithon.board.snapshot", "numpy", "xllamacpp"} & set(modules)


def test_measured_clocks_stand_with_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = MeasuredClock(cpus=(0, 1), measured_hz=1.41e9, claimed_hz=2.352e9)
    board = read_board(Machine(tmp_path))
    print_report(board, (), (), [clock])
    assert "  clock         cpu0-1 measured 1.41 GHz, claimed 2.35 GHz (-40%)\n" in capsys.readouterr().out
    assert report(board, (), (), [clock])["measured_clocks"] == [
        {"cpus": (0, 1), "measured_hz": 1.41e9, "claimed_hz": 2.352e9}
    ]
    assert "measured_clocks" not in report(board, (), ())


def test_clocks_are_measured_on_request() -> None:
    result = CliRunner().invoke(doctor_command(lambda _: ROWS), ["--json", "--measure-clocks"])
    assert all(clock["measured_hz"] > 1e6 for clock in json.loads(result.stdout)["measured_clocks"])
    assert "measured_clocks" not in json.loads(CliRunner().invoke(doctor_command(lambda _: ROWS), ["--json"]).stdout)
