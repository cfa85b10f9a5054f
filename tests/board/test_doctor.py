import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from parsed_source import parsed

import trilithon
from trilithon.board.doctor import Finding, findings
from trilithon.board.explanations import explained_ids, explanation
from trilithon.board.snapshot import Board, DeviceNode, read_board
from trilithon.board.storage import Disk
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.errors import UserError

Plant = Callable[..., Machine]

DOCUMENT = Path(__file__).parents[2] / "docs" / "doctor.md"
CPUFREQ = "/sys/devices/system/cpu/cpufreq"
DMC = "/sys/class/devfreq/dmc"
TREES = {
    "rk3588_vendor": {
        "cpu-governor": "warning",
        "npu-governor": "warning",
        "memory-clock": "warning",
        "little-cores": "note",
        "npu-ready": "good",
        "runtime-missing": "note",
        "open-files": "note",
        "gpu-kbase": "note",
        "vulkan-software": "note",
    },
    "rk3588_mainline": {
        "cpu-governor": "warning",
        "memory-clock-absent": "note",
        "little-cores": "note",
        "npu-driver-mainline": "warning",
    },
    "rk3588_throttled": {
        "cpu-governor": "good",
        "memory-clock": "good",
        "throttled": "warning",
        "little-cores": "note",
        "npu-ready": "good",
        "gpu-kbase": "note",
    },
    "rk3588_container": {
        "cpu-governor": "good",
        "memory-clock": "good",
        "little-cores": "note",
        "npu-nodes-absent": "problem",
        "container-hidden": "warning",
    },
    "rk3576": {
        "cpu-governor": "good",
        "memory-clock": "good",
        "little-cores": "note",
        "npu-ready": "good",
        "gpu-kbase": "note",
    },
    "rk3566": {
        "cpu-governor": "good",
        "memory-clock-absent": "note",
        "npu-ready": "good",
        "chip-unsupported": "note",
        "open-files": "warning",
        "gpu-kbase": "note",
        "swap-used": "warning",
        "swap-slow": "warning",
        "memory-low": "warning",
    },
    "rk3562": {
        "cpu-governor": "warning",
        "cpu-limit": "warning",
        "npu-governor": "warning",
        "memory-clock": "warning",
        "npu-driver-old": "warning",
        "npu-ready": "good",
        "chip-unsupported": "note",
        "runtime-unknown": "warning",
        "open-files": "note",
    },
    "rk3572": {"cpu-governor": "good", "chip-unknown": "note"},
    "cubie_a7s": {"cpu-governor": "good", "memory-clock": "warning", "little-cores": "note"},
    "pc_x86_64": {},
    "raspberry_pi_5": {"cpu-governor": "warning", "under-voltage": "warning", "swap-slow": "warning"},
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """A tree, changed a little, and what that adds to its findings."""

    tree: str
    adds: Mapping[str, str]
    without: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    board: Callable[[Board], Board] = lambda board: board


def _closed(unit: str, path: str) -> Callable[[Board], Board]:
    def close(board: Board) -> Board:
        device: Any = getattr(board, unit)
        return replace(board, **{unit: replace(device, nodes=(DeviceNode(path, False),))})

    return close


def _full(board: Board) -> Board:
    return replace(board, disks=(Disk(folder="/home/me/models", kind="eMMC", free_bytes=300 << 20),))


def _manifest(library: str) -> str:
    return f'{{"ICD": {{"library_path": "{library}", "api_version": "1.3.0"}}, "file_format_version": "1.0.0"}}'


ICD = "/usr/share/vulkan/icd.d"
LIBRARIES = "/usr/lib/aarch64-linux-gnu"
COOLING = "/sys/class/thermal/cooling_device0"
NPU, GPU = "/sys/class/devfreq/fdab0000.npu", "/sys/class/devfreq/fb000000.gpu"
PCI, USB = "/sys/bus/pci/devices/0000:01:00.0", "/sys/bus/usb/devices/2-1"
STATES = f"{CPUFREQ}/policy0/stats/time_in_state"
POLICY_FILES = ("related_cpus", "cpuinfo_max_freq", "scaling_governor", "scaling_cur_freq")
CHANGES = {
    "an NPU that someone has slowed": Change(
        tree="rk3588_vendor",
        adds={"npu-clock": "warning"},
        files={f"{NPU}/governor": "userspace\n", f"{NPU}/cur_freq": "300000000\n"},
    ),
    "an NPU that may not rise": Change(
        tree="rk3588_vendor",
        adds={"npu-clock": "warning"},
        files={f"{NPU}/governor": "performance\n", f"{NPU}/max_freq": "300000000\n"},
    ),
    "an NPU under powersave": Change(
        tree="rk3588_vendor",
        adds={"npu-clock": "warning"},
        files={f"{NPU}/governor": "powersave\n", f"{NPU}/cur_freq": "300000000\n"},
    ),
    "a GPU under powersave": Change(
        tree="rk3588_mainline", adds={"gpu-clock": "warning"}, files={f"{GPU}/governor": "powersave\n"}
    ),
    "a GPU under powersave that no engine can use": Change(
        tree="rk3588_vendor", adds={"gpu-clock": "note"}, files={f"{GPU}/governor": "powersave\n"}
    ),
    "a CPU that someone has slowed": Change(
        tree="rk3588_throttled",
        adds={"cpu-clock": "warning"},
        files={
            f"{CPUFREQ}/policy4/scaling_governor": "userspace\n",
            f"{CPUFREQ}/policy4/scaling_cur_freq": "408000\n",
            f"{CPUFREQ}/policy4/cpuinfo_max_freq": "2400000\n",
        },
    ),
    "no cpufreq": Change(
        tree="rk3566",
        adds={"cpufreq-absent": "note"},
        without=tuple(f"{CPUFREQ}/policy0/{name}" for name in POLICY_FILES),
    ),
    "a coprocessor on PCIe": Change(
        tree="rk3576",
        adds={"chip-unknown": "note"},
        files={f"{PCI}/vendor": "0x1d87\n", f"{PCI}/device": "0x182a\n", f"{PCI}/class": "0x120000\n"},
    ),
    "a coprocessor on USB": Change(
        tree="rk3576", adds={"chip-unknown": "note"}, files={f"{USB}/idVendor": "2207\n", f"{USB}/idProduct": "1820\n"}
    ),
    "a module that is not there": Change(
        tree="rk3588_mainline", adds={"npu-driver-none": "warning"}, without=("/sys/class/accel/accel0/device/driver",)
    ),
    "no node although no container": Change(
        tree="rk3576",
        adds={"npu-nodes-absent": "problem"},
        without=("/sys/class/drm/card1/device/driver", "/sys/class/drm/renderD129/device/driver"),
    ),
    "NPU closed": Change(
        tree="rk3576", adds={"npu-permission": "problem"}, board=_closed("npu", "/dev/dri/renderD129")
    ),
    "GPU closed": Change(
        tree="rk3588_mainline", adds={"gpu-permission": "warning"}, board=_closed("gpu", "/dev/dri/renderD128")
    ),
    "disk full": Change(tree="rk3576", adds={"disk-low": "warning"}, board=_full),
    "cooled earlier": Change(
        tree="rk3576",
        adds={"throttled": "note"},
        files={f"{COOLING}/stats/time_in_state_ms": "state0\t900000\nstate1\t61000\n"},
    ),
    "slowed under performance": Change(
        tree="rk3576",
        adds={"throttled": "note"},
        files={STATES: "408000 10\n1608000 20000\n2208000 40000\n"},
        without=(f"{COOLING}/stats/time_in_state_ms",),
    ),
    "an x86 CPU that counted": Change(
        tree="pc_x86_64",
        adds={"throttled": "note"},
        files={"/sys/devices/system/cpu/cpu3/thermal_throttle/package_throttle_count": "17\n"},
    ),
    "an x86 CPU under powersave": Change(
        tree="pc_x86_64",
        adds={"cpu-governor": "warning"},
        files={f"{CPUFREQ}/policy0/scaling_driver": "acpi-cpufreq\n"},
    ),
    "Arm's Vulkan": Change(
        tree="rk3576",
        adds={"vulkan-libmali": "note"},
        files={f"{ICD}/mali.json": _manifest("libmali.so.1"), "/usr/lib/libmali.so.1": "\0g24p0\0"},
    ),
    "an older Mesa": Change(
        tree="rk3588_mainline",
        adds={"vulkan-panvk": "warning", "vulkan-software": "note"},
        files={f"{LIBRARIES}/libvulkan_panfrost.so": "\0Mesa 24.2.8-1\0"},
    ),
    "no Vulkan": Change(
        tree="raspberry_pi_5",
        adds={"vulkan-missing": "note", "vulkan-software": "note"},
        without=(f"{ICD}/broadcom_icd.aarch64.json",),
    ),
    "a runtime without version": Change(
        tree="rk3576", adds={"runtime-unknown": "warning"}, files={"/usr/lib/librkllmrt.so": "\0"}
    ),
    "no runtime": Change(tree="rk3576", adds={"runtime-missing": "note"}, without=("/usr/lib/librkllmrt.so",)),
    "a CPU quota": Change(
        tree="rk3576", adds={"cpu-quota": "warning"}, files={"/sys/fs/cgroup/cpu.max": "200000 100000\n"}
    ),
    "a CPU set": Change(
        tree="rk3576", adds={"cpu-set": "note"}, files={"/sys/fs/cgroup/cpuset.cpus.effective": "2-5\n"}
    ),
    "a memory limit": Change(
        tree="rk3576", adds={"memory-limit": "warning"}, files={"/sys/fs/cgroup/memory.max": f"{4 << 30}\n"}
    ),
    "few addresses": Change(
        tree="rk3576",
        adds={"address-space": "warning"},
        files={"/proc/self/limits": "Max address space         4294967296           unlimited            bytes\n"},
    ),
    "a limit set by hand": Change(
        tree="rk3576", adds={"cpu-limit": "warning"}, files={f"{CPUFREQ}/policy4/scaling_max_freq": "1416000\n"}
    ),
    "a limit on one of two big clusters": Change(
        tree="rk3588_vendor",
        adds={"cpu-limit": "warning"},
        files={f"{CPUFREQ}/policy4/scaling_max_freq": "2352000\n", f"{CPUFREQ}/policy6/scaling_max_freq": "1416000\n"},
    ),
}


def _told(machine: Machine, change: Callable[[Board], Board] = lambda board: board) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings(change(read_board(machine)), machine)}


def _severities(found: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.severity for name, finding in found.items()}


def test_each_tree_is_listed() -> None:
    assert set(TREES) == {path.stem for path in (Path(__file__).parent / "trees").glob("*.toml")}


@pytest.mark.parametrize("tree", TREES)
def test_each_tree_has_exactly_its_findings(plant: Plant, tree: str) -> None:
    found = _told(plant(tree))
    assert _severities(found) == TREES[tree]
    for finding in found.values():
        assert (finding.message + finding.fix).isprintable()
        assert finding.fix or finding.severity not in ("warning", "problem")


WRITES = re.compile(r"\btee\b|\bapt\b|\bswapoff\b|\bulimit\b|\busermod\b|\bcp\b|>")


def _all_findings(plant: Plant) -> list[Finding]:
    """Of every tree, and of every change of one."""
    told = [finding for tree in TREES for finding in _told(plant(tree)).values()]
    for change in CHANGES.values():
        machine = plant(change.tree, without=change.without, files=change.files)
        told += _told(machine, change.board).values()
    return told


def test_every_command_is_a_fix_or_a_look_and_says_until_when(plant: Plant) -> None:
    told = _all_findings(plant)
    assert {finding.look for finding in told if finding.fix} == {True, False}
    for finding in told:
        assert "reboot" not in finding.fix + finding.lasting, finding
        assert "linux-image" not in finding.fix + finding.lasting, finding
        command = finding.fix.partition("  #")[0]
        if finding.look:
            assert not WRITES.search(command), finding
        of_kernel = re.search(r"tee /sys/|> \$p/", command)
        of_shell = command.startswith(("ulimit", "sudo swapoff")) and " && " not in command
        assert bool(finding.until) == bool(of_kernel or of_shell), finding
        assert bool(finding.lasting) >= bool(of_kernel and "cgroup" not in command), finding


def test_what_lasts_is_a_file_of_systemd_or_udev_with_the_same_values(plant: Plant) -> None:
    told = _told(plant("rk3588_vendor"))
    assert told["cpu-governor"].until == "until the next boot"
    assert told["cpu-governor"].lasting == (
        f"printf '%s\\n' 'w {CPUFREQ}/policy*/scaling_governor - - - - performance' | "
        "sudo tee /etc/tmpfiles.d/cpu-governor.conf"
    )
    rule = 'SUBSYSTEM=="devfreq", KERNEL=="fdab0000.npu", ATTR{governor}="performance"'
    file = "/etc/udev/rules.d/99-devfreq-fdab0000.npu.rules"
    assert told["npu-governor"].lasting == f"echo '{rule}' | sudo tee {file}"
    assert told["open-files"].lasting.endswith("/etc/security/limits.d/npu.conf")
    path = f"{CPUFREQ}/policy4/scaling_max_freq"
    limit = _told(plant("rk3576", files={path: "1416000\n"}))["cpu-limit"]
    assert re.search(rf"'w {path} - - - - \d+'", limit.lasting)


def test_every_finding_is_explained(plant: Plant) -> None:
    assert {finding.id for finding in _all_findings(plant)} <= set(explained_ids())
    for name in explained_ids():
        assert explanation(name).startswith(f"{name}\n\n")
        assert "\n## " not in explanation(name)
    with pytest.raises(UserError, match=r"did you mean cpu-governor\?"):
        explanation("cpu-governer")


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_adds_its_findings(plant: Plant, name: str) -> None:
    change = CHANGES[name]
    before = TREES[change.tree]
    found = _severities(_told(plant(change.tree, without=change.without, files=change.files), change.board))
    assert {key: value for key, value in found.items() if before.get(key) != value} == dict(change.adds)
    # Some changes take something away as well: a node that is closed is not "ready".
    assert set(before) - set(found) <= {"npu-ready", "npu-driver-mainline", "gpu-kbase", "cpu-governor", "npu-governor"}


def _ids_in_code(folder: str = "") -> set[str]:
    """The first argument of every Finding that is made there."""
    found = set()
    for path in Path(trilithon.__path__[0], folder).glob("**/*.py"):
        for node in ast.walk(parsed(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "Finding"
                and node.args
            ):
                found |= {leaf.value for leaf in ast.walk(node.args[0]) if isinstance(leaf, ast.Constant)}
    return found


def test_each_finding_is_raised_by_a_tree_and_not_by_another() -> None:
    cases = [set(told) for told in TREES.values()] + [set(change.adds) for change in CHANGES.values()]
    assert set().union(*cases) == _ids_in_code("board/rules")
    assert not set.intersection(*map(set, TREES.values()))


def test_each_finding_has_its_paragraph_and_each_paragraph_its_finding() -> None:
    text = re.sub(r"^## .*$", "", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    names = [section.split("\n", 1)[0] for section in sections]
    assert set(names) == _ids_in_code()
    assert len(names) == len(set(names))
    for name, section in zip(names, sections, strict=True):
        assert "\n- **Check:** " in section, name
        assert "\n- **Source:** " in section, name
        assert "\n- **Fix:** " in section or section.split("\n\n")[1].startswith("*Good*"), name


def test_fixes_name_what_they_fix(plant: Plant) -> None:
    found = _told(plant("rk3588_vendor"))
    assert found["cpu-governor"].fix.endswith("cpufreq/policy*/scaling_governor")
    assert found["memory-clock"].fix == f"echo performance | sudo tee {DMC}/governor"
    assert "528 of 2112 MHz" in found["memory-clock"].message
    assert found["npu-governor"].fix.endswith("/sys/class/devfreq/fdab0000.npu/governor")
    assert "cpu4-7 will be used" in found["little-cores"].message
    assert found["open-files"].fix == "ulimit -n 65536"
    assert "lavapipe, Mesa 22.3.6" in found["vulkan-software"].message


def test_little_cores_alone_are_not_said_to_slow_others(plant: Plant) -> None:
    """Seen under emulation: the process could use the first two CPUs of eight."""
    findings = _told(plant("rk3588_vendor"), lambda board: replace(board, big_cpus=(0, 1)))
    assert findings["little-cores"].message == "this process may use little cores alone, cpu0-1: cpu4-7 are faster"


def test_a_memory_clock_at_its_top_is_good(plant: Plant) -> None:
    assert _told(plant("rk3588_vendor", files={f"{DMC}/cur_freq": "2112000000\n"}))["memory-clock"].severity == "good"


def test_a_limit_of_every_cpu_is_told_once(plant: Plant) -> None:
    files = {
        f"{CPUFREQ}/policy{cpu}/{name}": value
        for cpu in range(200)
        for name, value in (
            ("related_cpus", f"{cpu}\n"),
            ("scaling_max_freq", "2000000"),
            ("cpuinfo_max_freq", "4000000"),
        )
    }
    assert "limited to cpu0-199 2000 of 4000 MHz" in _told(plant("pc_x86_64", files=files))["cpu-limit"].message


def test_clocks_set_by_hand_are_a_fault_only_below_their_top(plant: Plant) -> None:
    policies = [f"{CPUFREQ}/policy{number}" for number in (0, 4, 6)]
    files = {f"{policy}/scaling_governor": "userspace\n" for policy in policies}
    held = _told(plant("rk3588_vendor", files=files))
    assert held["cpu-clock"].message == (
        "held low by the governor userspace: cpu0-3 1008 of 1800 MHz, cpu4-5 408 of 2352 MHz, cpu6-7 408 of 2304 MHz"
    )
    assert "cpu-governor" not in held
    for policy, top in zip(policies, (1800000, 2352000, 2304000), strict=True):
        files[f"{policy}/scaling_cur_freq"] = f"{top}\n"
    assert _told(plant("rk3588_vendor", files=files))["cpu-governor"].severity == "good"


STEPS = "300000000 400000000 1000000000\n"


@pytest.mark.parametrize(
    ("files", "message", "fix"),
    [
        (
            {"governor": "userspace\n", "cur_freq": "300000000\n", "available_frequencies": STEPS},
            "300 of 1000 MHz: the governor userspace holds it there",
            "echo performance | sudo tee NPU/governor",
        ),
        (
            {
                "governor": "userspace\n",
                "cur_freq": "300000000\n",
                "available_governors": "userspace simple_ondemand\n",
            },
            "300 of 1000 MHz: the governor userspace holds it there",
            "echo 1000000000 | sudo tee NPU/userspace/set_freq",
        ),
        (
            {"governor": "performance\n", "max_freq": "300000000\n", "available_frequencies": STEPS},
            "300 of 1000 MHz: max_freq allows no more",
            "echo 1000000000 | sudo tee NPU/max_freq",
        ),
        (
            {"governor": "powersave\n", "cur_freq": "300000000\n", "max_freq": "400000000\n"}
            | {"available_frequencies": STEPS},
            "300 of 1000 MHz: the governor powersave holds it there and max_freq allows no more",
            "echo 1000000000 | sudo tee NPU/max_freq && echo performance | sudo tee NPU/governor",
        ),
    ],
)
def test_an_npu_held_low_says_by_what_and_how_to_raise_it(
    plant: Plant, files: dict[str, str], message: str, fix: str
) -> None:
    told = _told(plant("rk3588_vendor", files={f"{NPU}/{name}": text for name, text in files.items()}))
    assert (told["npu-clock"].subject, told["npu-clock"].message) == ("NPU clock", message)
    assert told["npu-clock"].fix == fix.replace("NPU", NPU)
    assert "npu-governor" not in told


@pytest.mark.parametrize(
    "files",
    [
        {f"{GPU}/governor": "simple_ondemand\n"},  # it idles
        {f"{GPU}/governor": "userspace\n", f"{GPU}/cur_freq": "1000000000\n"},
        {f"{GPU}/max_freq": "0\n", f"{GPU}/cur_freq": "garbled\n", f"{GPU}/governor": "powersave\n"},
    ],
)
def test_a_gpu_that_idles_or_is_at_its_top_is_no_finding(plant: Plant, files: dict[str, str]) -> None:
    assert "gpu-clock" not in _told(plant("rk3588_mainline", files=files))


def test_a_limit_of_a_gpu_that_nothing_can_use_is_told_without_advice(plant: Plant) -> None:
    files = {f"{GPU}/max_freq": "300000000\n", f"{GPU}/available_frequencies": STEPS}
    finding = _told(plant("rk3588_vendor", files=files))["gpu-clock"]
    assert finding.message == "300 of 1000 MHz: max_freq allows no more; no engine here can use this GPU"
    assert finding.fix == ""


def test_a_limit_that_heat_has_set_is_no_clock_held_low(plant: Plant) -> None:
    files = {f"{NPU}/max_freq": "700000000\n", f"{NPU}/available_frequencies": STEPS}
    told = _told(plant("rk3588_throttled", files=files))
    assert ("npu-clock" in told, "throttled" in told) == (False, True)


def test_an_npu_that_no_engine_supports_is_not_advised_on(plant: Plant) -> None:
    files = {f"/sys/class/devfreq/fde40000.npu/{name}": text for name, text in _slowed().items()}
    assert not {"npu-clock", "npu-governor"} & set(_told(plant("rk3566", files=files)))
    mainline = {f"{NPU}/{name}": text for name, text in _slowed().items()}
    assert not {"npu-clock", "npu-governor"} & set(_told(plant("rk3588_mainline", files=mainline)))


def _slowed() -> dict[str, str]:
    return {"governor": "userspace\n", "cur_freq": "300000000\n", "max_freq": "1000000000\n"}


def test_another_makers_memory_clock_is_read_and_its_npu_left_alone(plant: Plant) -> None:
    finding = _told(plant("cubie_a7s"))["memory-clock"]
    assert finding.message == "parked at 400 of 2400 MHz (governor simple_ondemand): decode waits for memory"
    assert finding.fix == "echo performance | sudo tee /sys/class/devfreq/a020000.dmcfreq/governor"


@pytest.mark.parametrize("name", ["dmc", "a020000.dmcfreq", "3d400000.memory-controller", "1c62000.dram-controller"])
def test_names_of_the_memory_clock(plant: Plant, name: str) -> None:
    files = {f"/sys/class/devfreq/{name}/{file}": text for file, text in _slowed().items()}
    told = _told(plant("raspberry_pi_5", files=files))["memory-clock"]
    assert told.message.startswith("parked at 300 of 1000 MHz (governor userspace)")


def test_memory_that_may_not_rise_is_parked_under_performance_too(plant: Plant) -> None:
    limited = {"max_freq": "1068000000\n", "cur_freq": "1068000000\n", "governor": "performance\n"}
    told = _told(plant("rk3588_vendor", files={f"{DMC}/{name}": text for name, text in limited.items()}))
    assert told["memory-clock"].message.startswith("parked at 1068 of 2112 MHz")
    assert told["memory-clock"].fix == f"echo 2112000000 | sudo tee {DMC}/max_freq"


def test_memory_that_someone_holds_a_little_low_is_parked(plant: Plant) -> None:
    files = {f"{DMC}/cur_freq": "1900000000\n", f"{DMC}/governor": "userspace\n"}
    assert _told(plant("rk3588_vendor", files=files))["memory-clock"].severity == "warning"
    files[f"{DMC}/governor"] = "dmc_ondemand\n"
    assert _told(plant("rk3588_vendor", files=files))["memory-clock"].severity == "good"


def test_an_npu_held_low_is_told_in_a_container_that_hides_the_chip(plant: Plant) -> None:
    files = {f"{NPU}/{name}": text for name, text in _slowed().items()}
    assert _told(plant("rk3588_container", files=files))["npu-clock"].message.startswith("300 of 1000 MHz")


def test_a_container_without_sysfs_says_nothing_of_cpufreq(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\n")
    assert "cpufreq-absent" not in _told(Machine(tmp_path))
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    assert "cpufreq-absent" in _told(Machine(tmp_path))


def test_an_unknown_chip_is_called_so(plant: Plant) -> None:
    told = _told(plant("rk3572"))["chip-unknown"]
    assert told.message == (
        "unknown chip RK3572: which NPU it has, and what runs on it, is not known here "
        "(it shows RKNPU3 (driver rknpu3))"
    )
    files = {"/proc/device-tree/compatible": "maker,board\0rockchip,rk3688\0"}
    assert "unknown chip RK3688" in _told(plant("rk3566", files=files))["chip-unknown"].message
    files = {"/proc/device-tree/compatible": "maker,board\0rockchip,rk3399\0"}
    assert "chip-unknown" not in _told(plant("rk3566", files=files))


def test_a_root_port_is_no_coprocessor_nor_is_a_board_in_download_mode(plant: Plant) -> None:
    files = {
        f"{PCI}/vendor": "0x1d87\n",
        f"{PCI}/device": "0x3588\n",
        f"{PCI}/class": "0x060400\n",
        f"{USB}/idVendor": "2207\n",
        f"{USB}/idProduct": "350b\n",
    }
    assert "chip-unknown" not in _told(plant("rk3576", files=files))


def test_what_is_cooled_is_named_and_fans_are_not(plant: Plant) -> None:
    message = _told(plant("rk3588_throttled"))["throttled"].message
    assert message == "slowed by heat now: cpufreq-cpu4 at step 3, devfreq-fdab0000.npu at step 2"
    slowed = {STATES: "408000 10\n1608000 20000\n2208000 40000\n", f"{COOLING}/stats/time_in_state_ms": ""}
    told = _told(plant("rk3576", files=slowed))
    slowed_text = "cpu0-3 below its top clock 33% of the time since boot, by heat or before it was pinned"
    assert told["throttled"].message == f"was slowed: {slowed_text}"


@pytest.mark.parametrize("statistics", ["", "state0\t600000\nstate1\t0\n"])
@pytest.mark.parametrize(
    "ticks",
    [
        "408000 20000\n1608000 100\n2208000 40000\n",  # idle under ondemand
        "408000 30000\n1608000 25000\n2208000 10000\n",  # with something to do at times
        "408000 3000\n1416000 20000\n2208000 10000\n",  # mostly busy
        "1008000 30000\n2208000 40000\n",  # a table with two clocks
    ],
)
def test_the_time_before_the_governor_was_set_is_no_heat(plant: Plant, ticks: str, statistics: str) -> None:
    """The doctor's own advice is to set the governor performance; the kernel's counters begin at boot."""
    files = {STATES: ticks, f"{COOLING}/stats/time_in_state_ms": statistics}
    assert "throttled" not in _told(plant("rk3576", files=files))


def test_where_the_kernel_counts_the_time_of_cooling_that_decides(plant: Plant) -> None:
    slowed = {STATES: "408000 10\n1608000 20000\n2208000 40000\n"}
    assert "throttled" not in _told(plant("rk3576", files=slowed))
    # A fan has no say in it, nor has what slows another unit.
    for kind in ("pwm-fan", "devfreq-27800000.gpu"):
        assert "throttled" in _told(plant("rk3576", files=slowed | {f"{COOLING}/type": f"{kind}\n"}))


@pytest.mark.parametrize(
    ("path", "fix"), [("/dev/dri/renderD129", "usermod -aG render,video"), ("/dev/mali0", "99-npu.rules")]
)
def test_a_closed_npu_node_says_how_to_open_it(plant: Plant, path: str, fix: str) -> None:
    finding = _told(plant("rk3588_vendor"), _closed("npu", path))["npu-permission"]
    assert (path in finding.message, fix in finding.fix) == (True, True)


@pytest.mark.parametrize("driver", ["0.9.8", "0.9.10", "1.0"])
def test_a_driver_that_is_new_enough(plant: Plant, driver: str) -> None:
    assert "npu-driver-old" not in _told(plant("rk3562", files={"/sys/module/rknpu/version": f"{driver}\n"}))


@pytest.mark.parametrize("version", ["1.1.4", "1.2.0", "1.2.2", "1.3.0", "1.3.1", "1.2.4"])
def test_a_runtime_whose_structures_are_known(plant: Plant, version: str) -> None:
    text = f"\0RKLLM SDK (version: {version} | target: Linux)\0"
    assert "runtime-unknown" not in _told(plant("rk3562", files={"/usr/lib/librkllmrt.so": text}))


@pytest.mark.parametrize("without", [[], ["/etc/armbian-release"]])
def test_another_kernel_is_never_a_command_to_copy(plant: Plant, without: list[str]) -> None:
    finding = _told(plant("rk3588_mainline", without=without))["npu-driver-mainline"]
    assert "rocket cannot run language models" in finding.message
    assert finding.message.endswith("need the vendor kernel (rknpu 0.9.8), where Mesa's Vulkan is lost")
    assert (finding.look, finding.fix) == (True, "trilithon doctor --explain npu-driver-mainline")
    told = explanation("npu-driver-mainline")
    assert all(words in told for words in ("linux-image-vendor-rk35xx", "Vulkan", "Way back", "second SD card"))


def test_a_mali_g52_is_hidden_unless_asked_for(plant: Plant) -> None:
    driver = "/sys/class/drm/renderD128/device/driver"
    library = {f"{LIBRARIES}/libvulkan_panfrost.so": "\0Mesa 26.0.1\0"}
    machine = plant("rk3588_mainline", without=[driver], files=library)
    (machine.root / driver[1:]).parent.mkdir(parents=True)
    (machine.root / driver[1:]).symlink_to("../bus/platform/drivers/panfrost")
    assert {"vulkan-panvk", "vulkan-software"} <= set(_told(machine))
    (machine.root / "proc/self/environ").write_bytes(b"A=1\0PAN_I_WANT_A_BROKEN_VULKAN_DRIVER=1\0")
    assert {"vulkan-panvk", "vulkan-software"} & set(_told(machine)) == {"vulkan-panvk"}


def test_swap_is_emptied_only_when_memory_takes_it(plant: Plant) -> None:
    assert _told(plant("rk3566"))["swap-used"].fix.startswith("ps ")
    roomy = "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 1048576 kB\nSwapFree: 741376 kB\n"
    machine = plant("rk3588_vendor", files={"/proc/meminfo": roomy})
    assert _told(machine)["swap-used"].fix == "sudo swapoff -a && sudo swapon -a"
    swaps = "Filename Type Size Used Priority\n/dev/zram0 partition 524288 307200 100\n/swap file 524288 0 -2\n"
    machine = plant("rk3576", files={"/proc/meminfo": roomy, "/proc/swaps": swaps})
    assert _told(machine)["swap-used"].fix == "sudo swapoff /dev/zram0 && sudo swapon /dev/zram0"


def test_two_folders_on_one_full_disk_are_told_once(plant: Plant) -> None:
    def full(board: Board) -> Board:
        disks = tuple(Disk(folder=name, kind="eMMC", free_bytes=5 << 20) for name in ("/data", "/cache"))
        return replace(board, disks=disks)

    machine = plant("rk3576")
    found = [finding for finding in findings(full(read_board(machine)), machine) if finding.id == "disk-low"]
    assert [finding.message for finding in found] == ["5.0 MiB free for /data; models and results are kept there"]


def test_a_container_that_shows_the_device_tree_and_a_server_without_one_are_left_alone(plant: Plant) -> None:
    assert "container-hidden" not in _told(plant("rk3588_vendor", files={"/.dockerenv": ""}))
    server = {"/.dockerenv": "", "/sys/class/dmi/id/product_name": "Server\n"}
    assert "container-hidden" not in _told(plant("rk3566", without=["/proc/device-tree/compatible"], files=server))


def test_a_virtual_machine_made_from_an_image_is_no_container(plant: Plant) -> None:
    assert not read_board(plant("rk3588_container", files={"/proc/2/comm": "kthreadd\n"})).in_container


def test_this_machine_can_be_examined() -> None:
    assert all(finding.message for finding in findings(read_board(), THIS_MACHINE))
