import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trilithon.board.processes import oom_kills, read_process
from trilithon.board.sysfs import Machine


def test_this_process_lives_and_holds_memory() -> None:
    state = read_process(os.getpid())
    assert state is not None
    assert not state.ended
    assert state.resident_pages > 100
    assert state.user_ticks + state.system_ticks > 0
    parent = read_process(os.getppid())
    assert parent is None or parent.start_ticks <= state.start_ticks


def test_a_process_that_waits_to_be_reaped_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()  # it closes as the child ends
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        state = read_process(child.pid)
        assert state is not None and state.ended
    assert read_process(child.pid) is None


def test_a_process_that_a_signal_holds_is_stopped() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            for signal_number, stopped in ((signal.SIGSTOP, True), (signal.SIGCONT, False)):
                os.kill(child.pid, signal_number)
                deadline = time.monotonic() + 20
                while (state := read_process(child.pid)) is None or state.stopped != stopped:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
        finally:
            child.kill()


def test_a_name_with_spaces_and_parentheses_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    fields = " ".join(str(number) for number in range(4, 53))
    (tmp_path / "proc/7/stat").write_text(f"7 (a ) S 1) R {fields}\n")
    state = read_process(7, Machine(tmp_path))
    assert state is not None
    assert (state.user_ticks, state.system_ticks, state.start_ticks, state.resident_pages) == (14, 15, 22, 24)


@pytest.mark.parametrize(
    "content", ["", "7", "7 (a) R", "7 (a) R 1 2 3", f"7 (a) R {'x ' * 50}", f"7 (a) R {'9' * 5000} " * 9]
)
def test_a_garbled_process_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/stat").write_text(content)
    assert read_process(7, Machine(tmp_path)) is None


def test_oom_kills_reads_the_counter(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    vmstat = tmp_path / "proc/vmstat"
    vmstat.write_text("nr_free_pages 5\noom_kill 7\nswap_ra 0\n")
    assert oom_kills(Machine(tmp_path)) == 7
    vmstat.write_text("nr_free_pages 5\noom_kill_other 7\n")
    assert oom_kills(Machine(tmp_path)) is None
    vmstat.write_text(f"oom_kill {'9' * 5000}\n")
    assert oom_kills(Machine(tmp_path)) is None
    assert oom_kills(Machine(tmp_path / "none")) is None
