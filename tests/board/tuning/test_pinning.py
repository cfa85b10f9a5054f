import asyncio
import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilithon.board.sysfs import Machine
from trilithon.board.tuning import record as tuning_record
from trilithon.board.tuning.pinning import Outcome, open_files, pinned
from trilithon.board.tuning.tunables import tunables
from trilithon.errors import UserError

Plant = Callable[..., Machine]

CPUFREQ = "/sys/devices/system/cpu/cpufreq"
DMC = "/sys/class/devfreq/dmc"
NPU = "/sys/class/devfreq/fdab0000.npu"
SUBJECTS = ("CPU clocks", "memory clock", "GPU clock", "NPU clock")
TOPS = {
    **{f"{CPUFREQ}/policy{n}/scaling_cur_freq": f"{khz}\n" for n, khz in ((0, 1800000), (4, 2352000), (6, 2304000))},
    **{f"{folder}/cur_freq": f"{hertz}\n" for folder, hertz in ((DMC, 2112000000), (NPU, 1000000000))},
}
# What the trees do not need for reading: choices of governors, limits, settings of ondemand, idle states.
MORE = {
    **{f"{CPUFREQ}/policy{n}/scaling_available_governors": "ondemand userspace performance \n" for n in (0, 4, 6)},
    **{f"{CPUFREQ}/policy{n}/scaling_setspeed": "<unsupported>\n" for n in (0, 4, 6)},
    **{f"{CPUFREQ}/policy{n}/scaling_max_freq": f"{khz}\n" for n, khz in ((0, 1800000), (4, 1200000), (6, 2304000))},
    f"{CPUFREQ}/ondemand/up_threshold": "25\n",
    f"{CPUFREQ}/ondemand/io_is_busy": "1\n",
    f"{DMC}/available_governors": "dmc_ondemand userspace powersave performance\n",
    f"{NPU}/available_frequencies": "300000000 1000000000\n",
    **{f"/sys/devices/system/cpu/cpu{n}/cpuidle/state0/disable": "0\n" for n in range(8)},
    **{f"/sys/devices/system/cpu/cpu{n}/cpuidle/state1/disable": "0\n" for n in range(8)},
    "/proc/sys/kernel/random/boot_id": "11111111-aaaa\n",
}
DEFAULTS = {"up_threshold": "95\n", "io_is_busy": "0\n"}


@pytest.fixture
def board(plant: Plant) -> Machine:
    return plant("rk3588_vendor", files=MORE)


def content(machine: Machine) -> dict[str, bytes]:
    """Every file of the tree, to the byte; what leads nowhere is a link to a driver."""
    files = (path for path in machine.root.rglob("*") if path.is_file())
    return {str(path.relative_to(machine.root)): path.read_bytes() for path in files}


def put(machine: Machine, path: str, text: str) -> None:
    place = machine.root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def quiet(line: str) -> None:
    raise AssertionError(f"told: {line}")


@dataclass(frozen=True, slots=True)
class Kernel(Machine):
    """The files with some of a kernel behind them: a governor sets the clock, has its own settings, forgets them."""

    def write(self, path: str, text: str) -> None:
        folder, _, name = path.rpartition("/")
        if name not in ("governor", "scaling_governor"):
            if name == "set_freq" and not text.strip().isdecimal():
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            Machine.write(self, path, text)
            if name in ("set_freq", "scaling_setspeed"):
                Machine.write(self, f"{folder.removesuffix('/userspace')}/{self._current(name)}", text)
            return
        old, new = self.text(path) or "", text.strip()
        choices = self.text(path.replace("governor", "available_governors"))
        if choices is not None and new not in choices.split():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        Machine.write(self, path, f"{new}\n")
        self._switched(folder, old, new)

    def _current(self, name: str) -> str:
        return "cur_freq" if name == "set_freq" else "scaling_cur_freq"

    def _switched(self, folder: str, old: str, new: str) -> None:
        cpu = folder.startswith(CPUFREQ)
        if new == "performance":
            table = self.integers(f"{folder}/{'scaling_available_frequencies' if cpu else 'available_frequencies'}")
            current = f"{folder}/{'scaling_cur_freq' if cpu else 'cur_freq'}"
            Machine.write(self, current, f"{max(table or (1000000000,))}\n")
        if cpu and old == "ondemand" != new and not self._anyone_under("ondemand"):
            shutil.rmtree(self.root / f"{CPUFREQ}/ondemand".lstrip("/"))
        if cpu and new == "ondemand" and not self.exists(f"{CPUFREQ}/ondemand"):
            for name, text in DEFAULTS.items():
                put(self, f"{CPUFREQ}/ondemand/{name}", text)
        if old == "userspace":
            shutil.rmtree(self.root / f"{folder}/userspace".lstrip("/"), ignore_errors=True)
        if new == "userspace" and not cpu:
            put(self, f"{folder}/userspace/set_freq", "undefined\n")

    def _anyone_under(self, governor: str) -> bool:
        return any(self.text(path) == governor for path in self.glob(f"{CPUFREQ}/policy*/scaling_governor"))


def unclocked(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Without the clocks of the moment, which a governor leaves where it likes."""
    return {path: data for path, data in files.items() if not path.endswith(("cur_freq",))}


# -- pinning


def test_all_is_at_its_top_and_then_as_it_was(board: Machine, tmp_path: Path) -> None:
    kernel = Kernel(board.root)
    before = content(board)
    with pinned(tmp_path / "data", quiet, machine=kernel) as outcomes:
        assert [outcome.subject for outcome in outcomes] == list(SUBJECTS)
        assert all(outcome.pinned for outcome in outcomes), outcomes
        assert outcomes[0].text == "performance 1800 MHz, performance 2352 MHz, performance 2304 MHz"
        assert board.text(f"{CPUFREQ}/policy4/scaling_governor") == "performance"
        assert board.text(f"{CPUFREQ}/policy4/scaling_max_freq") == "2352000"
        assert not board.exists(f"{CPUFREQ}/ondemand")
        assert board.text(f"{DMC}/cur_freq") == "2112000000"
        assert board.text(f"{NPU}/governor") == "performance"
        assert tuning_record.load(tmp_path / "data") is not None
    assert unclocked(content(board)) == unclocked(before)
    assert tuning_record.load(tmp_path / "data") is None


def test_idle_states_only_when_asked_for_and_never_the_first(board: Machine, tmp_path: Path) -> None:
    before = content(board)
    with pinned(tmp_path / "data", quiet, idle_states=True, machine=board) as outcomes:
        assert Outcome("idle states", True, "1 of 1 off") in outcomes
        assert board.integer("/sys/devices/system/cpu/cpu7/cpuidle/state1/disable") == 1
        assert board.integer("/sys/devices/system/cpu/cpu7/cpuidle/state0/disable") == 0
    assert content(board) == before


def test_on_x86_the_state_after_polling_stays(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "pc")
    put(machine, "/sys/devices/system/cpu/cpu0/cpuidle/state0/name", "POLL\n")
    for number in range(4):
        put(machine, f"/sys/devices/system/cpu/cpu0/cpuidle/state{number}/disable", "0\n")
    with pinned(tmp_path / "data", quiet, idle_states=True, machine=machine):
        states = [machine.integer(f"/sys/devices/system/cpu/cpu0/cpuidle/state{n}/disable") for n in range(4)]
        assert states == [0, 0, 1, 1]


def test_what_is_at_its_top_is_not_touched(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "board")
    put(machine, f"{DMC}/governor", "performance\n")
    put(machine, f"{DMC}/cur_freq", "2112000000\n")
    with pinned(tmp_path / "data", quiet, machine=machine) as outcomes:
        assert outcomes == (Outcome("memory clock", True, "performance 2112 MHz"),)
        assert tuning_record.load(tmp_path / "data") is None


def test_a_machine_without_clocks_has_nothing_to_pin(tmp_path: Path) -> None:
    with pinned(tmp_path / "data", quiet, machine=Machine(tmp_path / "empty")) as outcomes:
        assert outcomes == ()


def test_a_speed_set_by_hand_keeps_its_governor(board: Machine, tmp_path: Path) -> None:
    put(board, f"{DMC}/governor", "userspace\n")
    put(board, f"{DMC}/userspace/set_freq", "1560000000\n")
    before = content(board)
    with pinned(tmp_path / "data", quiet, machine=Kernel(board.root)):
        assert board.text(f"{DMC}/governor") == "userspace"
        assert board.text(f"{DMC}/cur_freq") == "2112000000"
    assert unclocked(content(board)) == unclocked(before)


@pytest.mark.parametrize("governors", ["userspace", "userspace performance"])
def test_a_clock_that_nobody_has_set_goes_back_to_where_it_was(governors: str, board: Machine, tmp_path: Path) -> None:
    """As with mainline's drivers of buses, whose governor is userspace from the start."""
    put(board, f"{DMC}/available_governors", f"{governors}\n")
    put(board, f"{DMC}/governor", "userspace\n")
    put(board, f"{DMC}/userspace/set_freq", "undefined\n")
    put(board, f"{DMC}/cur_freq", "528000000\n")
    with pinned(tmp_path / "data", quiet, machine=Kernel(board.root)) as outcomes:
        assert outcomes[1] == Outcome("memory clock", True, "userspace 2112 MHz")
    assert board.integer(f"{DMC}/cur_freq") == 528_000_000
    assert board.text(f"{DMC}/governor") == "userspace"


def test_without_performance_the_speed_is_set(board: Machine, tmp_path: Path) -> None:
    put(board, f"{DMC}/available_governors", "dmc_ondemand userspace\n")
    before = content(board)
    with pinned(tmp_path / "data", quiet, machine=Kernel(board.root)) as outcomes:
        assert outcomes[1] == Outcome("memory clock", True, "userspace 2112 MHz")
        assert board.text(f"{DMC}/userspace/set_freq") == "2112000000"
    assert unclocked(content(board)) == unclocked(before)


def test_without_either_the_floor_is_raised(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "board")
    put(machine, f"{DMC}/governor", "dmc_ondemand\n")
    put(machine, f"{DMC}/available_governors", "dmc_ondemand\n")
    put(machine, f"{DMC}/available_frequencies", "528000000 2112000000\n")
    put(machine, f"{DMC}/min_freq", "528000000\n")
    before = content(machine)
    with pinned(tmp_path / "data", quiet, machine=machine):
        assert machine.integer(f"{DMC}/min_freq") == 2112000000
    assert content(machine) == before


def test_a_clock_that_nothing_can_keep_is_not_called_pinned(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "board")
    put(machine, f"{DMC}/governor", "dmc_ondemand\n")
    put(machine, f"{DMC}/available_governors", "dmc_ondemand\n")
    put(machine, f"{DMC}/cur_freq", "528000000\n")
    with pinned(tmp_path / "data", quiet, machine=machine) as outcomes:
        assert outcomes == (Outcome("memory clock", False, "nothing keeps it at its top: dmc_ondemand 528 MHz"),)


def test_a_speed_set_by_hand_comes_back_with_its_governor(board: Machine, tmp_path: Path) -> None:
    """Without a table there is no top to set by hand, and the governor performance must do it."""
    (board.root / f"{DMC}/available_frequencies".lstrip("/")).unlink()
    put(board, f"{DMC}/governor", "userspace\n")
    put(board, f"{DMC}/userspace/set_freq", "1560000000\n")
    before = content(board)
    with pinned(tmp_path / "data", quiet, machine=Kernel(board.root)) as outcomes:
        assert outcomes[1].pinned
        assert board.text(f"{DMC}/governor") == "performance"
        assert not board.exists(f"{DMC}/userspace")
    assert unclocked(content(board)) == unclocked(before)


@dataclass(frozen=True, slots=True)
class IntelPstate(Machine):
    """It overrules the preference under performance, refuses to have it written then, and later has its own."""

    def write(self, path: str, text: str) -> None:
        folder, _, name = path.rpartition("/")
        if name == "energy_performance_preference" and self.text(f"{folder}/scaling_governor") == "performance":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        Machine.write(self, path, text)
        if name == "scaling_governor":
            preference = "performance\n" if text == "performance" else "balance_performance\n"
            Machine.write(self, f"{folder}/energy_performance_preference", preference)


def test_the_preference_of_an_x86_cpu_comes_back(tmp_path: Path) -> None:
    machine = IntelPstate(tmp_path / "pc")
    policy = f"{CPUFREQ}/policy0"
    put(machine, f"{policy}/scaling_driver", "intel_pstate\n")
    put(machine, f"{policy}/scaling_governor", "powersave\n")
    put(machine, f"{policy}/scaling_available_governors", "performance powersave\n")
    put(machine, f"{policy}/cpuinfo_max_freq", "5000000\n")
    put(machine, f"{policy}/scaling_cur_freq", "800000\n")  # idle: it says little about what it was told
    put(machine, f"{policy}/energy_performance_preference", "balance_power\n")
    before = content(machine)
    with pinned(tmp_path / "data", quiet, machine=machine) as outcomes:
        assert outcomes == (Outcome("CPU clocks", True, "performance 800 MHz"),)
    assert content(machine) == before


def test_the_npu_of_an_rk3562_is_set_through_debugfs(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "board")
    npu, freq = "/sys/class/devfreq/ff300000.npu", "/sys/kernel/debug/rknpu/freq"
    put(machine, "/proc/device-tree/compatible", "rockchip,rk3562-evb2\0rockchip,rk3562\0")
    put(machine, f"{npu}/governor", "rknpu_ondemand\n")
    put(machine, f"{npu}/available_frequencies", "300000000 1000000000\n")
    put(machine, freq, "600000000\n")
    before = content(machine)
    with pinned(tmp_path / "data", quiet, machine=machine) as outcomes:
        assert outcomes == (Outcome("NPU clock", True, "1000 MHz"),)
        assert machine.text(f"{npu}/governor") == "rknpu_ondemand"
    assert content(machine) == before
    (machine.root / freq.lstrip("/")).unlink()
    assert [type(each).__name__ for each in tunables(machine)] == ["DevfreqClock"]


def test_a_limit_that_cooling_has_set_is_not_taken_for_the_users(board: Machine, tmp_path: Path) -> None:
    """It would be put back as the user's own, and stay when the chip is cool again."""
    put(board, "/sys/class/thermal/cooling_device9/type", "thermal-cpufreq-0\n")
    put(board, "/sys/class/thermal/cooling_device9/cur_state", "3\n")
    with pinned(tmp_path / "data", quiet, machine=board) as outcomes:
        assert board.text(f"{CPUFREQ}/policy4/scaling_max_freq") == "1200000"
        assert outcomes[0].pinned
        assert outcomes[0].text.startswith("performance 1008 MHz, performance 408 MHz; it is hot, and the kernel")


def test_a_limit_that_cooling_lowers_meanwhile_is_put_back_all_the_same(board: Machine, tmp_path: Path) -> None:
    put(board, "/sys/class/thermal/cooling_device9/type", "cpufreq-cpu4\n")
    put(board, "/sys/class/thermal/cooling_device9/cur_state", "0\n")
    before = content(board)
    with pinned(tmp_path / "data", quiet, machine=board):
        put(board, f"{CPUFREQ}/policy4/scaling_max_freq", "600000")
        put(board, "/sys/class/thermal/cooling_device9/cur_state", "3\n")
    put(board, "/sys/class/thermal/cooling_device9/cur_state", "0\n")
    assert content(board) == before


def test_a_clock_that_does_not_follow_is_said(board: Machine, tmp_path: Path) -> None:
    with pinned(tmp_path / "data", quiet, machine=board) as outcomes:
        assert outcomes[1] == Outcome("memory clock", False, "at 528 of 2112 MHz")
        assert outcomes[1].line() == "memory clock: not pinned: at 528 of 2112 MHz"


@dataclass(frozen=True, slots=True)
class Deaf(Machine):
    """A driver that says yes, and keeps its governor."""

    def write(self, path: str, text: str) -> None:
        Machine.write(self, path, "powersave\n" if path == f"{DMC}/governor" and text == "performance" else text)


def test_a_value_that_the_kernel_did_not_take_is_noticed_and_undone(board: Machine, tmp_path: Path) -> None:
    before = content(board)
    with pinned(tmp_path / "data", quiet, machine=Deaf(board.root)) as outcomes:
        expected = f"{DMC}/governor: the kernel shows powersave where performance was written"
        assert outcomes[1] == Outcome("memory clock", False, expected)
        assert board.text(f"{DMC}/governor") == "dmc_ondemand"
        assert board.text(f"{NPU}/governor") == "performance"
    assert content(board) == before


# -- ends of every kind


class Gone(Exception):
    pass


def test_an_exception_puts_everything_back(board: Machine, tmp_path: Path) -> None:
    before = content(board)
    with pytest.raises(Gone), pinned(tmp_path / "data", quiet, machine=board):
        raise Gone
    assert content(board) == before


def test_a_cancelled_task_puts_everything_back(board: Machine, tmp_path: Path) -> None:
    before = content(board)

    async def work(entered: asyncio.Event) -> None:
        with pinned(tmp_path / "data", quiet, machine=board):
            entered.set()
            await asyncio.sleep(60)

    async def cancel() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(work(entered))
        await entered.wait()
        assert content(board) != before
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert content(board) == before


def test_another_thread_may_pin(board: Machine, tmp_path: Path) -> None:
    before, during = content(board), []

    def work() -> None:
        with pinned(tmp_path / "data", quiet, machine=board):
            during.append(content(board))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during and during[0] != before
    assert content(board) == before


CHILD = """
import asyncio, sys, time
from pathlib import Path
from trilithon.board.sysfs import Machine
from trilithon.board.tuning.pinning import pinned

async def sleep():
    print("pinned", flush=True)
    await asyncio.sleep(60)

root, data, way = sys.argv[1:]
if way == "inside":
    async def work():
        with pinned(Path(data), print, idle_states=True, machine=Machine(Path(root))):
            await sleep()
    asyncio.run(work())
with pinned(Path(data), print, idle_states=True, machine=Machine(Path(root))):
    if way == "loop":
        asyncio.run(sleep())
    print("pinned", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def child(board: Machine, data: Path, way: str = "plain") -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", CHILD, str(board.root), str(data), way]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "pinned\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (signal.SIGINT, "plain"),
        (signal.SIGINT, "loop"),
        (signal.SIGINT, "inside"),
        (signal.SIGTERM, "plain"),
        (signal.SIGTERM, "inside"),
        (signal.SIGHUP, "plain"),
    ],
)
def test_a_signal_puts_everything_back(board: Machine, tmp_path: Path, number: signal.Signals, way: str) -> None:
    handler = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    before = content(board)
    try:
        with child(board, tmp_path / "data", way) as process:
            assert content(board) != before
            process.send_signal(number)
            assert process.wait(timeout=20) not in (0, None)
    finally:
        signal.signal(signal.SIGHUP, handler)
    assert content(board) == before
    assert tuning_record.load(tmp_path / "data") is None


@dataclass(frozen=True, slots=True)
class Signalled(Machine):
    """A signal comes with every single write, those of putting back among them."""

    number: signal.Signals = signal.SIGINT

    def write(self, path: str, text: str) -> None:
        signal.raise_signal(self.number)
        Machine.write(self, path, text)
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_during_the_writes_wait(board: Machine, tmp_path: Path, number: signal.Signals) -> None:
    before, handlers = content(board), [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), pinned(tmp_path / "data", quiet, machine=Signalled(board.root, number)):
        raise AssertionError("never reached: the signal comes first")
    assert content(board) == before
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


@dataclass(frozen=True, slots=True)
class SignalledOnce(Machine):
    at: int = 0
    written: list[str] = field(default_factory=list)

    def write(self, path: str, text: str) -> None:
        self.written.append(path)
        if len(self.written) == self.at:
            signal.raise_signal(signal.SIGTERM)
        Machine.write(self, path, text)


def test_a_signal_at_any_one_write_waits(board: Machine, tmp_path: Path) -> None:
    for path, text in TOPS.items():
        put(board, path, text)
    before = content(board)
    count = SignalledOnce(board.root)
    with pinned(tmp_path, quiet, machine=count):
        middle = len(count.written)
    for number in range(1, len(count.written) + 1):
        entered = False
        with pytest.raises(KeyboardInterrupt), pinned(tmp_path, quiet, machine=SignalledOnce(board.root, number)):
            entered = True
        assert entered == (number > middle)
        assert content(board) == before
        assert tuning_record.load(tmp_path) is None


def test_the_handlers_of_others_are_left_alone(board: Machine, tmp_path: Path) -> None:
    came: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with pinned(tmp_path / "data", quiet, machine=Signalled(board.root, signal.SIGTERM)):
            assert came == [signal.SIGTERM]  # once, after the writes
            signal.raise_signal(signal.SIGTERM)
            assert came == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, handler)


# -- after SIGKILL

DYING = """
import os, signal, sys
from dataclasses import dataclass, field
from pathlib import Path
from trilithon.board.sysfs import Machine
from trilithon.board.tuning.pinning import pinned

@dataclass(frozen=True, slots=True)
class Dying(Machine):
    left: list = field(default_factory=list)

    def write(self, path, text):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left.pop()
        Machine.write(self, path, text)

root, data, writes = sys.argv[1:]
with pinned(Path(data), print, machine=Dying(Path(root), [None] * int(writes))):
    pass
"""


@pytest.mark.parametrize("writes", [0, 2, 6, 7, 9])
def test_sigkill_between_any_two_writes(board: Machine, tmp_path: Path, writes: int) -> None:
    """Six governors and a limit are written, and then written back."""
    before = content(board)
    words = [sys.executable, "-c", DYING, str(board.root), str(tmp_path / "data"), str(writes)]
    assert subprocess.run(words, timeout=30).returncode == -signal.SIGKILL
    assert (content(board) == before) == (writes == 0)
    assert restore(tmp_path / "data", board).done
    assert content(board) == before


def killed(board: Machine, data: Path) -> int:
    with child(board, data) as process:
        process.kill()
        process.wait()
    return process.pid


def restore(data: Path, machine: Machine) -> tuning_record.Restored:
    with tuning_record.lock(data):
        return tuning_record.restore(data, machine)


def test_after_sigkill_the_record_puts_everything_back(board: Machine, tmp_path: Path) -> None:
    before = content(board)
    pid = killed(board, tmp_path / "data")
    assert content(board) != before
    assert restore(tmp_path / "data", board) == tuning_record.Restored(True, (f"put back what process {pid} had left",))
    assert content(board) == before
    assert restore(tmp_path / "data", board) == tuning_record.Restored(True, ())


def test_the_next_pinning_puts_back_first(board: Machine, tmp_path: Path) -> None:
    before, told = content(board), []
    pid = killed(board, tmp_path / "data")
    with pinned(tmp_path / "data", told.append, machine=board):
        assert told == [f"clocks left over from before: put back what process {pid} had left"]
    assert content(board) == before


def test_after_a_reboot_the_record_is_dropped(board: Machine, tmp_path: Path) -> None:
    killed(board, tmp_path / "data")
    put(board, "/proc/sys/kernel/random/boot_id", "22222222-bbbb\n")
    before = content(board)
    restored = restore(tmp_path / "data", board)
    assert restored.done
    assert "started anew" in restored.lines[0]
    assert content(board) == before
    assert tuning_record.load(tmp_path / "data") is None


def test_while_the_owner_lives_nobody_else_puts_back(board: Machine, tmp_path: Path) -> None:
    with child(board, tmp_path / "data") as process:
        during = content(board)
        with pytest.raises(UserError, match=f"process {process.pid} has set the clocks and still runs"):
            restore(tmp_path / "data", board)
        with pytest.raises(UserError, match=f"process {process.pid} "), pinned(tmp_path / "data", quiet, machine=board):
            pass
        record = (tmp_path / "data/tuning.json").read_text()
        unknown = json.dumps(json.loads(record) | {"pid": 2**22 + 1})  # it is in another PID namespace
        (tmp_path / "data/tuning.json").write_text(unknown)
        with pytest.raises(UserError, match="still runs"):
            restore(tmp_path / "data", board)
        (tmp_path / "data/tuning.json").write_text(record)
        (tmp_path / "data/tuning.lock").unlink()  # a file system without locks
        with pytest.raises(UserError, match=f"process {process.pid} has set"):
            restore(tmp_path / "data", board)
        assert content(board) == during


def test_what_someone_changed_meanwhile_is_left_alone(board: Machine, tmp_path: Path) -> None:
    before = content(board)
    killed(board, tmp_path / "data")
    put(board, f"{DMC}/governor", "powersave\n")
    (board.root / f"{CPUFREQ}/policy6/scaling_governor".lstrip("/")).unlink()
    restored = restore(tmp_path / "data", board)
    assert restored.done
    text = f"someone has set {DMC}/governor to powersave meanwhile: left alone; it was dmc_ondemand"
    assert text in restored.lines
    assert f"{CPUFREQ}/policy6/scaling_governor is gone; it was ondemand" in restored.lines
    after = content(board)
    assert after.pop(f"{DMC}/governor".lstrip("/")) == b"powersave\n"
    assert after.items() <= before.items()


def record_of(path: str, new: object = "b") -> str:
    change = {"path": path, "old": "a", "new": new, "effective": False}
    return json.dumps({"boot_id": None, "pid": 1, "start_ticks": 1, "changes": [change]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"boot_id": 5, "pid": 1, "start_ticks": 1, "changes": []}',
        '{"boot_id": null, "pid": 1, "start_ticks": 1, "changes": [{"path": "/etc/passwd", "old": "", "new": ""}]}',
        record_of("/sys/class/devfreq/../governor"),
        record_of("/sys/class/devfreq/dmc/device/driver/unbind"),
        record_of("/sys/devices/system/cpu/cpufreq/policy0/../../cpu1/online"),
        record_of(f"{DMC}/governor", new=5),
    ],
)
def test_a_garbled_or_malicious_record_changes_nothing(board: Machine, tmp_path: Path, text: str) -> None:
    before = content(board)
    (tmp_path / "tuning.json").write_text(text)
    with pytest.raises(UserError, match=r"tuning\.json is damaged .*; remove it and restart the board"):
        restore(tmp_path, board)
    with pytest.raises(UserError, match="is damaged"), pinned(tmp_path, quiet, machine=board):
        pass
    assert content(board) == before


# -- what cannot be written


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write everything: it becomes someone else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def closed(board: Machine) -> Iterator[tuple[Machine, Path]]:
    """The board where anyone may read it and nobody but root may write, and a folder that anyone may write to."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        shutil.copytree(board.root, base / "board", symlinks=True)
        for path in [base, *base.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o444)
        (base / "data").mkdir()
        (base / "data").chmod(0o777)
        yield Machine(base / "board"), base / "data"


def test_what_this_user_may_not_write_is_said_with_its_fix(closed: tuple[Machine, Path]) -> None:
    machine, data = closed
    before = content(machine)
    with unprivileged(), pinned(data, quiet, machine=machine) as outcomes:
        lines = [outcome.line() for outcome in outcomes]
        assert content(machine) == before
    assert [line.partition(":")[0] for line in lines] == list(SUBJECTS)
    governors = " ".join(f"{CPUFREQ}/policy{n}/scaling_governor" for n in (0, 4, 6))
    assert lines[0] == (
        f"CPU clocks: not pinned: this user may not write {CPUFREQ}/policy0/scaling_governor; "
        f"run: echo performance | sudo tee {governors} && echo 2352000 | sudo tee {CPUFREQ}/policy4/scaling_max_freq"
    )
    assert lines[1] == (
        f"memory clock: not pinned: this user may not write {DMC}/governor; "
        f"run: echo performance | sudo tee {DMC}/governor"
    )


def test_a_closed_debugfs_is_said_with_its_fix(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        machine = Machine(Path(name) / "board")
        Path(name).chmod(0o755)
        npu = "/sys/class/devfreq/ff300000.npu"
        put(machine, "/proc/device-tree/compatible", "rockchip,rk3562\0")
        put(machine, f"{npu}/available_frequencies", "300000000 1000000000\n")
        put(machine, "/sys/kernel/debug/rknpu/freq", "600000000\n")
        debugfs = machine.root / "sys/kernel/debug"
        debugfs.chmod(0o700)
        (Path(name) / "data").mkdir()
        (Path(name) / "data").chmod(0o777)
        if os.geteuid() != 0:
            debugfs.chmod(0)
        with unprivileged(), pinned(Path(name) / "data", quiet, machine=machine) as outcomes:
            lines = [outcome.line() for outcome in outcomes]
        debugfs.chmod(0o700)
        freq = "/sys/kernel/debug/rknpu/freq"
        fix = f"run: echo 1000000000 | sudo tee {freq}"
        assert lines == [f"NPU clock: not pinned: this user may not write {freq}; {fix}"]


def test_one_that_may_be_written_is_pinned(closed: tuple[Machine, Path]) -> None:
    machine, data = closed
    (machine.root / f"{DMC}/governor".lstrip("/")).chmod(0o666)
    before = content(machine)
    with unprivileged(), pinned(data, quiet, machine=machine):
        assert machine.text(f"{DMC}/governor") == "performance"
        assert machine.text(f"{NPU}/governor") == "rknpu_ondemand"
    assert content(machine) == before


def test_what_cannot_be_put_back_stays_on_record_and_the_rest_is_back(closed: tuple[Machine, Path]) -> None:
    machine, data = closed
    told: list[str] = []
    before = content(machine)
    governors = [machine.root / f"{folder}/governor".lstrip("/") for folder in (DMC, NPU)]
    for governor in governors:
        governor.chmod(0o666)
    with unprivileged():
        with pinned(data, told.append, machine=machine):
            os.seteuid(os.getuid())
            governors[0].chmod(0o444)
            if os.geteuid() == 0:
                os.seteuid(65534)
        assert f"{DMC}/governor: Permission denied; it was dmc_ondemand" in told
        assert told[-1] == f"not all is as it was; run: {tuning_record.restore_command(data)}"
        assert governors[0].read_text() == "performance"
        assert governors[1].read_text() == "rknpu_ondemand\n"
        restored = restore(data, machine)
        assert not restored.done
    governors[0].chmod(0o666)
    assert restore(data, machine).done
    assert content(machine) == before


def test_without_a_record_nothing_is_changed(board: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(board)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(UserError, match="cannot be written: No space left on device; free some space there"),
        pinned(tmp_path, quiet, machine=board),
    ):
        raise AssertionError("never reached")
    assert content(board) == before


@dataclass(frozen=True, slots=True)
class Failing(Machine):
    """Writes fail by their number, half of them after they had their effect."""

    failures: frozenset[int] = frozenset()
    written: list[str] = field(default_factory=list)

    def write(self, path: str, text: str) -> None:
        number = len(self.written)
        self.written.append(path)
        if number not in self.failures or number % 2:
            Machine.write(self, path, text)
        if number in self.failures:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.slow
@given(failures=st.frozensets(st.integers(0, 60)), raises=st.booleans(), idle=st.booleans(), data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fails_the_end_is_the_beginning(
    board: Machine, tmp_path: Path, failures: frozenset[int], raises: bool, idle: bool, data: st.DataObject
) -> None:
    for path, text in TOPS.items():  # nothing to wait for
        put(board, path, text)
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        governors = {
            path: data.draw(st.sampled_from(["ondemand\n", "userspace", "performance\n", "schedutil\n\n"]))
            for path in board.glob("/sys/class/devfreq/*/governor")
        }
        for path, text in governors.items():
            put(board, path, text)
        before = content(board)
        machine = Failing(board.root, failures)
        told: list[str] = []
        with contextlib.suppress(Gone), pinned(Path(name), told.append, idle_states=idle, machine=machine):
            if raises:
                raise Gone
        left = {path for path, text in content(board).items() if before[path] != text}
        record = tuning_record.load(Path(name))
        recorded = {change.path.lstrip("/") for change in record.changes} if record else set()
        assert left <= recorded
        assert bool(told) == bool(recorded)
        assert restore(Path(name), board).done
        assert content(board) == before


@given(st.lists(st.frozensets(st.integers(0, 40), max_size=20), min_size=2, max_size=4))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_failing_time_after_the_other_ends_at_the_beginning(
    board: Machine, tmp_path: Path, rounds: list[frozenset[int]]
) -> None:
    """What one time has left, the next puts back before it begins, or refuses to begin."""
    for path, text in TOPS.items():
        put(board, path, text)
    before = content(board)
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        for failures in rounds:
            machine = Failing(board.root, failures)
            with contextlib.suppress(UserError), pinned(Path(name), lambda _: None, machine=machine):
                pass
        assert restore(Path(name), board).done
        assert content(board) == before


# -- this process


def test_the_limit_of_open_files_rises_for_a_while() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with open_files(600) as limit:
            assert limit == 600 == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(soft, 512), hard)
        with open_files(10) as limit:
            assert limit == min(soft, 512)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
