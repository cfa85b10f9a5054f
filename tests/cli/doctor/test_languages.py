"""The doctor in Russian, whole: on every tree nothing but names and commands is left in English."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from board_tree import TREES, plant_tree
from russian import english_in

from trilithon.board.doctor import findings
from trilithon.board.sensors.sampler import Sampler
from trilithon.board.sensors.window import Window
from trilithon.board.snapshot import read_board
from trilithon.cli.doctor.doctor import print_report, report
from trilithon.cli.doctor.rows import rows_of_missing_units
from trilithon.cli.doctor.watch_screen import plain_lines

# Names of programs, parts and governors, and what the trees say of themselves.
NAMES = frozenset(
    re.findall(
        r"\S+",
        """AMD amdgpu APU Arm Armbian big bookworm Broadcom bullseye Cix Coral Cortex d Debian dmc_ondemand docker
        Docker EE eMMC EPYC devfreq forky GNU/Linux Google gpu i Intel kbase lavapipe Linux llvmpipe LPDDR Mali
        Mesa noble npu NVMe ondemand Orange panfrost panthor PanVK performance Pi Plus Podman powersave
        RADV Radxa Raspberry RKLLM RKNPU rknpu ROCK rocket Ryzen schedutil SD simple SSD trixie Ubuntu
        ubuntu userspace v VeriSilicon VideoCore VII Vulkan X zram""",
    )
)


@pytest.fixture
def russian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILITHON_LANG", "ru")


@pytest.mark.parametrize("tree", sorted(path.stem for path in TREES.glob("*.toml")))
@pytest.mark.usefixtures("russian")
def test_nothing_is_left_in_english(tree: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = plant_tree(tmp_path, tree)
    board = read_board(machine, (Path("/data"),))
    print_report(board, findings(board, machine), rows_of_missing_units({"cpu"}, board))
    is_command = re.compile(r" (→|\?) |--explain")
    lines = [line for line in capsys.readouterr().out.splitlines() if not is_command.search(line)]
    assert "Замечания" in lines
    left = {line: words for line in lines[1:] if (words := english_in(re.sub(r"/[a-z]\S*", "", line)) - NAMES)}
    assert left == {}


@pytest.mark.usefixtures("russian")
def test_the_sensors_are_told_in_russian(tmp_path: Path) -> None:
    machine = plant_tree(tmp_path, "rk3588_vendor")
    with Sampler(machine, period_seconds=0.01, whole_frames=True) as sampler:
        window = Window(sampler)
        sampler.start()
        while window.at_ns is None:
            window.wait(0.01)
        lines = plain_lines(read_board(machine), window)
    titles = {line.split()[0] for line in lines[2:] if line}
    assert titles >= {"Частоты", "Температуры", "Память"}
    assert not [line for line in lines if re.search(r"\d (MHz|GiB|MiB|W)\b", line)]


@pytest.mark.parametrize(
    ("words", "environment", "begins"),
    [
        (["--lang", "ru", "doctor", "--restore", "--json"], {"LC_ALL": "C.UTF-8"}, "ошибка: --restore только"),
        (["doctor", "--restore", "--json"], {"LC_ALL": "ru_RU.UTF-8"}, "ошибка: --restore только"),
        (["--lang", "en", "doctor", "--restore", "--json"], {"LC_ALL": "ru_RU.UTF-8"}, "error: --restore restores"),
        (["doctro"], {"LC_ALL": "ru_RU.UTF-8"}, "Использование: trilithon"),
        (["--lang", "xx"], {"LC_ALL": "C.UTF-8"}, "Usage: trilithon"),
    ],
)
def test_the_program_speaks_the_language(words: list[str], environment: dict[str, str], begins: str) -> None:
    variables = {name: value for name, value in os.environ.items() if not re.match("LC_|LANG|TRILITHON_LANG", name)}
    command = [sys.executable, "-m", "trilithon.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=variables | environment)
    assert (done.returncode, done.stderr.startswith(begins)) == (2, True), done.stderr


def test_findings_stay_in_english_where_programs_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILITHON_LANG", "ru")
    machine = plant_tree(tmp_path, "rk3588_vendor")
    board = read_board(machine)
    told = [*findings(board, machine)]
    assert "вычисл" not in str(report(board, told, ())) and "the governor is" in str(report(board, told, ()))
