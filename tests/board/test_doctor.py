from collections.abc import Callable
from dataclasses import replace

import pytest

from trilithon.board.doctor import Finding, findings
from trilithon.board.snapshot import DeviceNode, read_board
from trilithon.board.sysfs import THIS_MACHINE, Machine

Plant = Callable[..., Machine]


def found(machine: Machine) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings(read_board(machine), machine)}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            "rk3588_vendor",
            {
                "CPU clocks": "warning",
                "NPU clock": "warning",
                "memory clock": "warning",
                "little cores": "note",
                "NPU": "good",
                "open files": "note",
                "GPU": "note",
            },
        ),
        ("rk3588_mainline", {"CPU clocks": "warning", "little cores": "note", "NPU": "warning"}),
        (
            "rk3566",
            {
                "CPU clocks": "good",
                "NPU": "good",
                "open files": "warning",
                "swap": "warning",
                "memory": "warning",
                "GPU": "note",
            },
        ),
        ("pc_x86_64", {}),
    ],
)
def test_each_tree_has_exactly_its_findings(plant: Plant, tree: str, expected: dict[str, str]) -> None:
    faults = found(plant(tree))
    assert {subject: finding.severity for subject, finding in faults.items()} == expected
    for finding in faults.values():
        assert "\n" not in finding.message + finding.mend
        assert finding.mend or finding.severity not in ("warning", "problem")


def test_mends_name_what_they_mend(plant: Plant) -> None:
    faults = found(plant("rk3588_vendor"))
    assert faults["CPU clocks"].mend.endswith("cpufreq/policy*/scaling_governor")
    assert faults["memory clock"].mend == "echo performance | sudo tee /sys/class/devfreq/dmc/governor"
    assert "528 of 2112 MHz" in faults["memory clock"].message
    assert faults["NPU clock"].mend.endswith("/sys/class/devfreq/fdab0000.npu/governor")
    assert "cpu4-7 will be used" in faults["little cores"].message
    assert faults["open files"].mend == "ulimit -n 65536"


def test_a_memory_clock_at_its_top_is_good(plant: Plant) -> None:
    fast = {"/sys/class/devfreq/dmc/cur_freq": "2112000000\n"}
    assert found(plant("rk3588_vendor", files=fast))["memory clock"].severity == "good"


def test_clocks_set_by_hand_are_no_fault(plant: Plant) -> None:
    paths = [f"/sys/devices/system/cpu/cpufreq/policy{number}/scaling_governor" for number in (0, 4, 6)]
    assert found(plant("rk3588_vendor", files=dict.fromkeys(paths, "userspace\n")))["CPU clocks"].severity == "good"


@pytest.mark.parametrize(
    ("path", "mend"), [("/dev/dri/renderD129", "usermod -aG render,video"), ("/dev/rknpu", "99-npu.rules")]
)
def test_a_closed_npu_node_is_a_problem(plant: Plant, path: str, mend: str) -> None:
    machine = plant("rk3588_vendor")
    board = read_board(machine)
    assert board.npu is not None
    closed = replace(board, npu=replace(board.npu, nodes=(DeviceNode(path, False),)))
    (finding,) = [finding for finding in findings(closed, machine) if finding.subject == "NPU"]
    assert (finding.severity, path in finding.message, mend in finding.mend) == ("problem", True, True)


def test_a_driver_without_nodes_is_a_problem(plant: Plant) -> None:
    links = ["/sys/class/drm/card1/device/driver", "/sys/class/drm/renderD129/device/driver"]
    assert found(plant("rk3588_vendor", without=links))["NPU"].severity == "problem"


def test_mainline_names_the_vendor_kernel_s_package_only_on_armbian(plant: Plant) -> None:
    finding = found(plant("rk3588_mainline"))["NPU"]
    assert "rocket cannot run language models" in finding.message
    assert "linux-image-vendor-rk35xx" in finding.mend


def test_mainline_elsewhere_says_what_to_do_in_words(plant: Plant) -> None:
    finding = found(plant("rk3588_mainline", without=["/etc/armbian-release"]))["NPU"]
    assert finding.mend == ""
    assert finding.message.endswith("boot a system with the vendor kernel (rknpu 0.9.8)")


def test_swap_is_emptied_only_when_memory_takes_it(plant: Plant) -> None:
    assert found(plant("rk3566"))["swap"].mend.startswith("ps ")
    roomy = "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 1048576 kB\nSwapFree: 741376 kB\n"
    machine = plant("rk3588_vendor", files={"/proc/meminfo": roomy})
    assert found(machine)["swap"].mend == "sudo swapoff -a && sudo swapon -a"


def test_a_container_that_hides_the_device_tree(plant: Plant) -> None:
    hidden = ["/proc/device-tree/compatible", "/proc/device-tree/model"]
    machine = plant("rk3588_vendor", without=hidden, files={"/.dockerenv": ""})
    assert "systempaths=unconfined" in found(machine)["container"].mend


def test_a_container_that_shows_it_and_a_server_without_one_are_left_alone(plant: Plant) -> None:
    assert "container" not in found(plant("rk3588_vendor", files={"/.dockerenv": ""}))
    server = {"/.dockerenv": "", "/sys/class/dmi/id/product_name": "Server\n"}
    assert "container" not in found(plant("rk3566", without=["/proc/device-tree/compatible"], files=server))


def test_this_machine_can_be_examined() -> None:
    assert all(finding.message for finding in findings(read_board(), THIS_MACHINE))
