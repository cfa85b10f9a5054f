"""Vulkan drivers from their manifests, and what vulkaninfo says of the machine that runs the tests."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine
from trilithon.board.vulkan import VulkanDriver, read_vulkan

Plant = Callable[..., Machine]


def _machine(root: Path, files: dict[str, str]) -> Machine:
    for path, text in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    return Machine(root)


def _manifest(library: str, **more: str) -> str:
    fields = "".join(f', "{key}": "{value}"' for key, value in more.items())
    return f'{{"file_format_version": "1.0.1", "ICD": {{"library_path": "{library}"{fields}}}}}'


def _by_name(drivers: Iterable[VulkanDriver]) -> dict[str, VulkanDriver]:
    return {driver.name: driver for driver in drivers}


def test_which_driver_serves_which_kernel_driver(plant: Plant) -> None:
    machine = plant("rk3588_mainline")
    serving = _by_name(read_vulkan(machine, ["panthor"]))
    assert (serving["PanVK"].serves, serving["PanVK"].version, serving["PanVK"].software) == (True, "25.2.4", False)
    assert (serving["lavapipe"].serves, serving["lavapipe"].software) == (False, True)
    for kernel in ("panfrost", "kbase", "amdgpu"):
        assert not _by_name(read_vulkan(machine, [kernel]))["PanVK"].serves
    assert not any(driver.serves for driver in read_vulkan(machine, []))


def test_a_version_that_is_not_in_the_library_comes_from_the_packages(plant: Plant) -> None:
    machine = plant("pc_x86_64")
    assert _by_name(read_vulkan(machine, ["amdgpu"]))["RADV"].version == "25.0.7"
    (machine.root / "var/lib/dpkg/status").unlink()
    assert _by_name(read_vulkan(machine, ["amdgpu"]))["RADV"].version is None


def test_an_old_mesa_serves_when_it_is_told_to(tmp_path: Path) -> None:
    files = {"/etc/vulkan/icd.d/p.json": _manifest("/opt/libvulkan_panfrost.so")}
    files |= {"/opt/libvulkan_panfrost.so": "Mesa 24.0.1"}
    machine = _machine(tmp_path, files)
    assert not read_vulkan(machine, ["panthor"])[0].serves
    _machine(tmp_path, {"/proc/self/environ": "PAN_I_WANT_A_BROKEN_VULKAN_DRIVER=1\0"})
    assert read_vulkan(machine, ["panthor"])[0].serves


def test_the_environment_chooses_manifests(tmp_path: Path) -> None:
    files = {
        "/usr/share/vulkan/icd.d/one.json": _manifest("/opt/libvulkan_radeon.so"),
        "/opt/two.json": _manifest("libvulkan_lvp.so"),
        "/opt/three.json": _manifest("./libvulkan_intel.so"),
        "/home/me/.local/share/vulkan/icd.d/four.json": _manifest("/opt/libGLX_nvidia.so.0"),
        "/proc/self/environ": "HOME=/home/me\0",
    }
    machine = _machine(tmp_path, files)
    assert [driver.name for driver in read_vulkan(machine, [])] == ["NVIDIA", "RADV"]
    _machine(tmp_path, {"/proc/self/environ": "VK_ICD_FILENAMES=/opt/two.json:relative.json\0"})
    assert [driver.name for driver in read_vulkan(machine, [])] == ["lavapipe"]
    _machine(tmp_path, {"/proc/self/environ": "VK_ICD_FILENAMES=/opt/two.json\0VK_DRIVER_FILES=/opt/three.json\0"})
    assert [driver.name for driver in read_vulkan(machine, [])] == ["ANV"]
    _machine(tmp_path, {"/proc/self/environ": "VK_ADD_DRIVER_FILES=/opt/three.json\0HOME=/no[b]ody\0"})
    assert [driver.name for driver in read_vulkan(machine, [])] == ["ANV", "RADV"]


def test_libraries_are_looked_for_as_the_loader_does(tmp_path: Path) -> None:
    files = {
        "/usr/share/vulkan/icd.d/bare.json": _manifest("libvulkan_lvp.so"),
        "/usr/share/vulkan/icd.d/relative.json": _manifest("../lib/libvulkan_radeon.so"),
        "/usr/share/vulkan/icd.d/small.json": _manifest("libvulkan_intel.so", library_arch="32"),
        "/usr/share/vulkan/icd.d/unknown.json": _manifest("/opt/libvulkan_new.so"),
        "/usr/share/vulkan/icd.d/gone.json": _manifest("/opt/libvulkan_broadcom.so"),
        "/usr/lib/aarch64-linux-gnu/libvulkan_lvp.so": "Mesa\0Mesa 25.1.0-rc2 (LLVM)",
        "/usr/share/vulkan/lib/libvulkan_radeon.so": "",
        "/opt/libvulkan_new.so": "",
    }
    drivers = _by_name(read_vulkan(_machine(tmp_path, files), ["amdgpu", "v3d"]))
    assert drivers["lavapipe"].library == "/usr/lib/aarch64-linux-gnu/libvulkan_lvp.so"
    assert drivers["lavapipe"].version == "25.1.0"
    assert drivers["RADV"].serves
    assert drivers["V3DV"].library is None
    assert not drivers["V3DV"].serves
    assert not drivers["libvulkan_new.so"].software
    assert len(drivers) == 4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ICD": 3}', '{"ICD": {"library_path": 3}}', "[" * 100_000])
def test_what_is_no_manifest_is_passed_over(tmp_path: Path, text: str) -> None:
    machine = _machine(tmp_path, {"/usr/share/vulkan/icd.d/x.json": text})
    assert read_vulkan(machine, ["amdgpu"]) == ()


@pytest.mark.skipif(shutil.which("vulkaninfo") is None, reason="no vulkaninfo (package vulkan-tools)")
def test_vulkaninfo_agrees() -> None:
    done = subprocess.run(["vulkaninfo", "--summary"], capture_output=True, text=True, timeout=30, check=False)
    kinds = re.findall(r"deviceType\s+= (\w+)", done.stdout)
    drivers = read_board().vulkan
    assert any(kind.endswith("_CPU") for kind in kinds) == any(driver.software and driver.library for driver in drivers)
    assert any(not kind.endswith("_CPU") for kind in kinds) == any(driver.serves for driver in drivers)
    versions = set(re.findall(r"driverInfo\s+= Mesa (\d+\.\d+\.\d+)", done.stdout))
    assert versions <= {driver.version for driver in drivers}
