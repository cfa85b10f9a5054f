"""`trilithon bench --pin-clocks` and `trilithon doctor --restore` on a planted board."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trilithon.bench import prepare
from trilithon.board import sysfs
from trilithon.board.snapshot import Board, read_board
from trilithon.board.sysfs import Machine
from trilithon.board.tuning import record as tuning_record
from trilithon.board.tuning.changes import Change
from trilithon.measure.records import Campaign
from trilithon.results.store.database import Store

Program = Callable[..., Any]

POLICY = "/sys/devices/system/cpu/cpufreq/policy0"
DMC = "/sys/class/devfreq/dmc"
FILES = {
    "/sys/devices/system/cpu/online": "0-1\n",
    f"{POLICY}/related_cpus": "0 1\n",
    f"{POLICY}/scaling_governor": "ondemand\n",
    f"{POLICY}/scaling_cur_freq": "1800000\n",
    f"{POLICY}/scaling_available_frequencies": "408000 1800000\n",
    f"{DMC}/governor": "dmc_ondemand\n",
    f"{DMC}/cur_freq": "2112000000\n",
    f"{DMC}/available_frequencies": "528000000 2112000000\n",
    "/sys/devices/system/cpu/cpu0/cpuidle/state0/disable": "0\n",
    "/sys/devices/system/cpu/cpu0/cpuidle/state1/disable": "0\n",
}
PLACEMENT = "scripted/cpu:prefill=50000,decode=5000"
SHORT = ("-p", "16", "-n", "8", "-r", "1", "--test", "tg", "--no-quality", "--placement", PLACEMENT)

# The program itself on another machine; it does not wait for this one to be idle.
PROGRAM = """
import signal, sys
from pathlib import Path
from trilithon.bench import campaign
from trilithon.board import sysfs
from trilithon.cli.main import entry
campaign._SETTLE_FIRST_SECONDS = campaign._SETTLE_SECONDS = 0
campaign.measure_bandwidth = lambda cpus: 1e10
sysfs.THIS_MACHINE = sysfs.Machine(Path(sys.argv.pop(1)))
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
entry()
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path / "board")
    for path, text in FILES.items():
        place = machine.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    monkeypatch.setattr(sysfs, "THIS_MACHINE", machine)
    return machine


def content(machine: Machine) -> dict[str, str]:
    return {path: (machine.root / path.lstrip("/")).read_text() for path in FILES}


def data(home: Path) -> Path:
    return home / "data" / "trilithon"


def campaign_of(home: Path, number: int = 1) -> Campaign:
    with Store.open(data(home) / "results.sqlite") as store:
        return store.campaign(number)


def test_clocks_are_pinned_before_the_board_is_read(
    trilithon: Program, home: Path, tiny: Path, board: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Board] = []

    def read(*_: Any) -> Board:
        seen.append(read_board(board))
        return read_board()

    monkeypatch.setattr(prepare, "read_board", read)
    done = trilithon("bench", tiny, *SHORT, "--pin-clocks")
    assert done.code == 0, done.stderr
    assert {cluster.governor for cluster in seen[0].clusters} == {"performance"}
    assert "CPU clocks: pinned, performance 1800 MHz\nmemory clock: pinned, performance 2112 MHz\n" in done.stderr
    assert content(board) == FILES
    campaign = campaign_of(home)
    assert campaign.plan["pin_clocks"] is True
    assert campaign.board["pinned"] == {
        "CPU clocks": "pinned, performance 1800 MHz",
        "memory clock": "pinned, performance 2112 MHz",
    }
    assert campaign.placements[0].must_match["pinned"] == "CPU clocks, memory clock"


def test_unpinned_runs_are_told_from_pinned_ones(trilithon: Program, home: Path, tiny: Path, board: Machine) -> None:
    assert trilithon("bench", tiny, *SHORT, "--pin-clocks", "--keep-awake").code == 0
    assert trilithon("bench", tiny, *SHORT).code == 0
    assert "idle states" in campaign_of(home).placements[0].must_match["pinned"]
    assert "pinned" not in campaign_of(home, 2).placements[0].must_match
    assert "pinned" not in campaign_of(home, 2).board
    done = trilithon("results", "compare", f"1:{PLACEMENT}", f"2:{PLACEMENT}")
    assert "pinned CPU clocks, memory clock, idle states → unknown" in done.stdout + done.stderr


def test_what_cannot_be_pinned_is_said_and_the_rest_goes_on(
    trilithon: Program, home: Path, tiny: Path, board: Machine
) -> None:
    governor = board.root / f"{DMC}/governor".lstrip("/")
    governor.unlink()
    governor.symlink_to("/proc/sys/kernel/osrelease")  # may be read, and not even root may write it
    done = trilithon("bench", tiny, *SHORT, "--pin-clocks")
    assert done.code == 0, done.stderr
    fix = f"run: echo performance | sudo tee {DMC}/governor"
    assert f"memory clock: not pinned: this user may not write {DMC}/governor; {fix}\n" in done.stderr
    assert campaign_of(home).placements[0].must_match["pinned"] == "CPU clocks"


def test_a_machine_without_clocks_is_told_so(
    trilithon: Program, home: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysfs, "THIS_MACHINE", Machine(tmp_path / "nothing"))
    done = trilithon("bench", tiny, *SHORT, "--pin-clocks")
    assert done.code == 0
    assert "no clock is pinned: this machine's kernel allows none to be set" in done.stderr


def test_a_measurement_that_fails_puts_the_clocks_back(trilithon: Program, board: Machine, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no model")
    done = trilithon("bench", tmp_path / "no.gguf", *SHORT, "--pin-clocks")
    assert done.code == 2
    assert "CPU clocks: pinned" in done.stderr
    assert content(board) == FILES


def test_keep_awake_alone_is_refused(trilithon: Program, tiny: Path) -> None:
    done = trilithon("bench", tiny, *SHORT, "--keep-awake")
    assert (done.code, done.stderr) == (2, "error: --keep-awake goes with --pin-clocks; leave --keep-awake out\n")


@pytest.fixture
def measuring(home: Path, tiny: Path, board: Machine) -> Iterator[subprocess.Popen[str]]:
    """A campaign under way, its clocks pinned."""
    slow = ("--test", "tg", "-n", "400", "--no-quality", "--placement", "scripted/cpu:decode=20")
    words = [sys.executable, "-c", PROGRAM, str(board.root), "bench", str(tiny), *slow, "--pin-clocks"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "tg400" in line:
                    break
            assert content(board) != FILES
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_stopped_campaign_puts_the_clocks_back_and_may_go_on_pinned(
    measuring: subprocess.Popen[str], home: Path, board: Machine, number: signal.Signals
) -> None:
    measuring.send_signal(number)
    assert measuring.wait(timeout=30) == 130
    assert content(board) == FILES
    assert tuning_record.load(data(home)) is None
    assert campaign_of(home).status == "interrupted"
    assert campaign_of(home).plan["pin_clocks"] is True


def test_a_killed_campaign_leaves_a_record_that_the_doctor_puts_back(
    measuring: subprocess.Popen[str], home: Path, board: Machine, trilithon: Program
) -> None:
    refused = trilithon("doctor", "--restore")
    assert refused.code == 2
    assert f"process {measuring.pid} has set the clocks and still runs" in refused.stderr
    measuring.kill()
    measuring.wait()
    time.sleep(0.05)
    assert content(board) != FILES
    done = trilithon("doctor", "--restore")
    assert (done.code, done.stdout) == (0, f"put back what process {measuring.pid} had left\n")
    assert content(board) == FILES
    again = trilithon("doctor", "--restore")
    assert (again.code, again.stdout) == (0, "nothing to restore: no clock is pinned\n")


def test_what_cannot_be_put_back_ends_with_the_command(trilithon: Program, home: Path, board: Machine) -> None:
    folder = data(home)
    governor = board.root / f"{DMC}/governor".lstrip("/")
    governor.unlink()
    governor.symlink_to("/proc/sys/kernel/osrelease")
    release = Path("/proc/sys/kernel/osrelease").read_text()
    change = Change(f"{DMC}/governor", "dmc_ondemand\n", release)
    record = tuning_record.new_record([change], board)
    tuning_record.save(record, folder)
    done = trilithon("doctor", "--restore")
    assert done.code == 1
    assert "it was dmc_ondemand" in done.stdout
    assert done.stderr == f"error: not everything was restored; run: {tuning_record.restore_command(folder)}\n"
    assert f"sudo env TRILITHON_DATA={folder} " in done.stderr


@pytest.mark.parametrize("words", [("--json", "--restore"), ("--restore", "--json")])
def test_restore_stands_alone(trilithon: Program, words: tuple[str, ...]) -> None:
    done = trilithon("doctor", *words)
    assert done.code == 2
    assert done.stderr == "error: --restore restores clocks and does nothing else; leave --json out\n"


def test_the_doctor_says_that_clocks_are_left(trilithon: Program, home: Path, board: Machine) -> None:
    assert not [each for each in json.loads(trilithon("doctor", "--json").stdout)["findings"] if "left" in each["id"]]
    record = tuning_record.new_record([Change(f"{DMC}/governor", "dmc_ondemand\n", "performance")], board)
    tuning_record.save(record, data(home))
    found = json.loads(trilithon("doctor", "--json").stdout)["findings"]
    (finding,) = (each for each in found if each["id"] == "clocks-left")
    assert finding["severity"] == "note"
    assert "keeps them at their top until it ends" in finding["message"]
