"""Findings about the GPU: who holds it, and whether Vulkan would show it or only a software device."""

from collections.abc import Iterator

from trilithon.board.finding import Finding, Rule
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import Machine
from trilithon.board.vulkan import VulkanDriver

__all__ = ["RULES"]


def _kbase(board: Board, machine: Machine) -> Iterator[Finding]:
    if board.gpu is None or board.gpu.driver != "kbase":
        return
    own = [driver for driver in board.vulkan if driver.serves]
    if own:
        message = f"Vulkan is Arm's {own[0].name} over kbase; some versions crash when a buffer is made: try it first"
        yield Finding("vulkan-libmali", "note", "GPU", message)
    else:
        message = "the vendor's driver (kbase) holds it, so Mesa's Vulkan is software; use the CPU or the NPU"
        yield Finding("gpu-kbase", "note", "GPU", message)


def _permission(board: Board, machine: Machine) -> Iterator[Finding]:
    closed = [node.path for node in (board.gpu.nodes if board.gpu else ()) if not node.usable]
    if closed and board.gpu and machine.exists(closed[0]):
        message = f"this user may not open {', '.join(closed)}: Vulkan will not show the GPU"
        fix = "sudo usermod -aG render,video $USER  # then log in again"
        yield Finding("gpu-permission", "warning", "GPU", message, fix)


def _panvk(board: Board, machine: Machine) -> Iterator[Finding]:
    """Mesa's own checks decide what PanVK shows; see `vulkan.py`."""
    installed = [driver for driver in board.vulkan if driver.name == "PanVK" and driver.library]
    if board.gpu is None or not installed:
        return
    if board.gpu.driver == "panfrost":
        message = "Mesa's PanVK is not well tested on this GPU and hides it; garbled answers are reported: use the CPU"
        yield Finding("vulkan-panvk", "note", "GPU", message)
    elif board.gpu.driver == "panthor" and not any(driver.serves for driver in installed):
        message = f"PanVK of Mesa {installed[0].version or 'before 25.0'} hides this GPU; it is shown from 25.0 on"
        fix = "sudo apt update && sudo apt install mesa-vulkan-drivers  # from backports where that is older"
        yield Finding("vulkan-panvk", "warning", "GPU", message, fix)


def _missing(board: Board, machine: Machine) -> Iterator[Finding]:
    if board.gpu is None or board.gpu.driver == "kbase" or any(map(_is_hardware, board.vulkan)):
        return
    message = f"no Vulkan driver for it is installed (kernel driver {board.gpu.driver})"
    yield Finding("vulkan-missing", "note", "GPU", message, "sudo apt install mesa-vulkan-drivers")


def _is_hardware(driver: VulkanDriver) -> bool:
    return driver.serves or (driver.name == "PanVK" and driver.library is not None)


def _software(board: Board, machine: Machine) -> Iterator[Finding]:
    software = [driver for driver in board.vulkan if driver.software and driver.library]
    if software and not any(driver.serves for driver in board.vulkan):
        version = f", Mesa {software[0].version}" if software[0].version else ""
        message = f"the only Vulkan device is software ({software[0].name}{version}): slower than the CPU engines"
        yield Finding("vulkan-software", "note", "Vulkan", message)


RULES: tuple[Rule, ...] = (_kbase, _permission, _panvk, _missing, _software)
