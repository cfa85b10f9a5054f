"""Findings about the GPU: who holds it, and whether Vulkan would show it or only a software device."""

from collections.abc import Iterator

from trilithon.board.finding import Finding, Rule
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import Machine
from trilithon.board.vulkan import VulkanDriver
from trilithon.language import Message, listed

__all__ = ["RULES"]


def _kbase(board: Board, machine: Machine) -> Iterator[Finding]:
    if board.gpu is None or board.gpu.driver != "kbase":
        return
    own = [driver for driver in board.vulkan if driver.serves]
    if own:
        message = Message(
            "Vulkan is Arm's {driver} over kbase; some versions crash when a buffer is made: try it first",
            driver=own[0].name,
        )
        yield Finding("vulkan-libmali", "note", "GPU", message)
    else:
        message = Message("the vendor's driver (kbase) holds it, so Mesa's Vulkan is software; use the CPU or the NPU")
        yield Finding("gpu-kbase", "note", "GPU", message)


def _permission(board: Board, machine: Machine) -> Iterator[Finding]:
    closed = [node.path for node in (board.gpu.nodes if board.gpu else ()) if not node.usable]
    if closed and board.gpu and machine.exists(closed[0]):
        message = Message("this user may not open {nodes}: Vulkan will not show the GPU", nodes=listed(closed))
        fix = Message("sudo usermod -aG render,video $USER  # then log in again")
        yield Finding("gpu-permission", "warning", "GPU", message, fix)


def _panvk(board: Board, machine: Machine) -> Iterator[Finding]:
    """Mesa's own checks decide what PanVK shows; see `vulkan.py`."""
    installed = [driver for driver in board.vulkan if driver.name == "PanVK" and driver.library]
    if board.gpu is None or not installed:
        return
    if board.gpu.driver == "panfrost":
        message = Message(
            "Mesa's PanVK is not well tested on this GPU and hides it; garbled answers are reported: use the CPU"
        )
        yield Finding("vulkan-panvk", "note", "GPU", message)
    elif board.gpu.driver == "panthor" and not any(driver.serves for driver in installed):
        version = installed[0].version or Message("before 25.0")
        message = Message("PanVK of Mesa {version} hides this GPU; it is shown from 25.0 on", version=version)
        fix = Message("sudo apt update && sudo apt install mesa-vulkan-drivers  # from backports where that is older")
        yield Finding("vulkan-panvk", "warning", "GPU", message, fix)


def _missing(board: Board, machine: Machine) -> Iterator[Finding]:
    if board.gpu is None or board.gpu.driver == "kbase" or any(map(_is_hardware, board.vulkan)):
        return
    message = Message("no Vulkan driver for it is installed (kernel driver {driver})", driver=board.gpu.driver)
    yield Finding("vulkan-missing", "note", "GPU", message, "sudo apt install mesa-vulkan-drivers")


def _is_hardware(driver: VulkanDriver) -> bool:
    return driver.serves or (driver.name == "PanVK" and driver.library is not None)


def _software(board: Board, machine: Machine) -> Iterator[Finding]:
    software = [driver for driver in board.vulkan if driver.software and driver.library]
    if software and not any(driver.serves for driver in board.vulkan):
        version = f", Mesa {software[0].version}" if software[0].version else ""
        driver = f"{software[0].name}{version}"
        message = Message("the only Vulkan device is software ({driver}): slower than the CPU engines", driver=driver)
        yield Finding("vulkan-software", "note", "Vulkan", message)


RULES: tuple[Rule, ...] = (_kbase, _permission, _panvk, _missing, _software)
