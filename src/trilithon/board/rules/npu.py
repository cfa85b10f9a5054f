"""Findings about the NPU: its driver, its device nodes, its runtime, and which engines know the chip."""

import shlex
from collections.abc import Iterator

from trilithon.board.chips import find_chip, is_unknown_rockchip
from trilithon.board.finding import UNTIL_LOGOUT, Finding, Rule
from trilithon.board.libraries import KNOWN_RKLLM_VERSIONS, RKLLM, followed_release, parse_version
from trilithon.board.limits.container import remedy
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import Machine
from trilithon.language import Message, listed

__all__ = ["RULES"]

# What RKLLM's documents ask for; its release 1.2.1 warned below 0.9.7. Every published report uses it.
_DRIVER = "0.9.8"
# The NPU back end of llama.cpp opens one file per buffer, some 1,500 per prompt, and crashes at the usual 1,024.
_OPEN_FILES = 65_536
_LIMITS = "/etc/security/limits.d/npu.conf"
# Keys in chips.toml, and what is to be said of a chip that they do not know.
_ENGINES = {"rkllm": Message("RKLLM refuses it"), "rk_llama_cpp": Message("rk-llama.cpp has no configuration for it")}


def _driver(board: Board, machine: Machine) -> Iterator[Finding]:
    npu = board.npu
    if npu is None or npu.driver == "rknpu":
        return
    mainline = npu.driver == "rocket"
    lacks = Message("the kernel has no driver for it")
    if mainline:
        lacks = Message("mainline's driver {driver} cannot run language models", driver=npu.driver)
    message = Message(
        "Linux {kernel}: {lacks}; language models need the vendor kernel (rknpu {driver}), where Mesa's Vulkan is lost",
        kernel=board.kernel,
        lacks=lacks,
        driver=_DRIVER,
    )
    # No command: another kernel may leave a board without screen unreachable. The paragraph has the way, and back.
    fix = f"trilithon doctor --explain npu-driver-{'mainline' if mainline else 'none'}"
    yield Finding("npu-driver-mainline" if mainline else "npu-driver-none", "warning", "NPU", message, fix, look=True)


def _old_driver(board: Board, machine: Machine) -> Iterator[Finding]:
    npu = board.npu
    if npu is None or npu.driver != "rknpu" or npu.version is None:
        return
    if parse_version(npu.version) < parse_version(_DRIVER):
        message = Message(
            "driver {version}: the runtimes ask for {least}, which comes with a newer vendor kernel",
            version=npu.version,
            least=_DRIVER,
        )
        yield Finding(
            "npu-driver-old", "warning", "NPU", message, "trilithon doctor --explain npu-driver-old", look=True
        )


def _nodes(board: Board, machine: Machine) -> Iterator[Finding]:
    npu = board.npu
    if npu is None or npu.driver != "rknpu":
        return
    there = [node for node in npu.nodes if machine.exists(node.path)]
    closed = [node.path for node in there if not node.usable]
    if (len(there) < len(npu.nodes) or not there) and board.in_container:
        message = Message("the driver is there and its device nodes are not: they are not passed into this container")
        yield Finding("npu-nodes-absent", "problem", "NPU", message, remedy(machine, board.container, "devices"))
    elif not there:
        message = Message(
            "the driver is there and has made no device node: it found no NPU in the device tree, or failed"
        )
        fix = Message("sudo dmesg | grep -i rknpu  # what it says")
        yield Finding("npu-nodes-absent", "problem", "NPU", message, fix, look=True)
    elif closed:
        message = Message("this user may not open {nodes}", nodes=listed(closed))
        yield Finding("npu-permission", "problem", "NPU", message, _node_fix(closed))
    else:
        version = npu.version or Message("of unknown version")
        message = Message("vendor driver {version}, open to this user", version=version)
        yield Finding("npu-ready", "good", "NPU", message)


def _node_fix(closed: list[str]) -> str:
    if all(path.startswith("/dev/dri/") for path in closed):
        return Message("sudo usermod -aG render,video $USER  # then log in again")
    rule = 'SUBSYSTEM=="misc|dma_heap", KERNEL=="rknpu|cma*|system*", GROUP="video", MODE="0660"'
    return Message(
        "echo '{rule}' | sudo tee /etc/udev/rules.d/99-npu.rules && sudo udevadm control --reload && "
        "sudo udevadm trigger && sudo usermod -aG video $USER  # then log in again",
        rule=rule,
    )


def _chip(board: Board, machine: Machine) -> Iterator[Finding]:
    chip = find_chip(board.chip)
    lacking = [text for key, text in _ENGINES.items() if chip and getattr(chip, key) is False]
    if board.npu and lacking:
        rest = Message("; language models run on the CPU here") if len(lacking) == len(_ENGINES) else ""
        message = Message("{chip}: {lacking}{rest}", chip=board.chip, lacking=listed(lacking), rest=rest)
        yield Finding("chip-unsupported", "note", "NPU", message)


def _unknown(board: Board, machine: Machine) -> Iterator[Finding]:
    """A chip or a coprocessor of Rockchip's that is newer than the table."""
    shown = listed(board.other_npus)
    if is_unknown_rockchip(board.chip):
        message = Message(
            "unknown chip {chip}: which NPU it has, and what runs on it, is not known here{shows}",
            chip=board.chip,
            shows=Message(" (it shows {npus})", npus=shown) if shown else "",
        )
        yield Finding("chip-unknown", "note", "NPU", message)
    elif any("coprocessor" in name for name in board.other_npus):
        message = Message("unknown chip: {npus}; no engine here supports it", npus=shown)
        yield Finding("chip-unknown", "note", "NPU", message)


def _runtime(board: Board, machine: Machine) -> Iterator[Finding]:
    if board.npu is None or board.npu.driver != "rknpu":
        return
    runtimes = [runtime for runtime in board.runtimes if runtime.library == RKLLM]
    if not runtimes:
        chip = find_chip(board.chip)
        if chip and chip.rkllm:
            message = Message(
                "{library} is in none of the system's library folders: the RKLLM engine needs it", library=RKLLM
            )
            yield Finding("runtime-missing", "note", "NPU runtime", message, "trilithon engines install rkllm")
        return
    first = runtimes[0]
    if followed_release(first.version) is None:
        known = ", ".join(sorted(KNOWN_RKLLM_VERSIONS))
        version = Message("no version in it")
        if first.version:
            version = Message("version {version}", version=first.version)
        message = Message(
            "{path}: {version}; its structures are known of {known} alone, and others would crash",
            path=first.path,
            version=version,
            known=known,
        )
        fix = Message(
            "sudo cp {library} {path} && sudo ldconfig  # of a version that is known",
            library=RKLLM,
            path=shlex.quote(first.path),
        )
        yield Finding("runtime-unknown", "warning", "NPU runtime", message, fix)


def _open_files(board: Board, machine: Machine) -> Iterator[Finding]:
    soft, hard = board.open_files_soft, board.open_files_hard
    if board.npu is None or board.npu.driver != "rknpu" or soft is None or hard is None or soft >= _OPEN_FILES:
        return
    if hard >= _OPEN_FILES:
        message = Message(
            "limit {soft:,}; NPU engines need {needed:,}, which the hard limit allows", soft=soft, needed=_OPEN_FILES
        )
        fix, lasting = f"ulimit -n {_OPEN_FILES}", f"echo '* - nofile {_OPEN_FILES}' | sudo tee {_LIMITS}"
        yield Finding("open-files", "note", "open files", message, fix, until=UNTIL_LOGOUT, lasting=lasting)
    else:
        message = Message(
            "limit {hard:,}; NPU engines need {needed:,} and crash without", hard=hard, needed=_OPEN_FILES
        )
        fix = Message(
            "echo '* - nofile {needed}' | sudo tee /etc/security/limits.d/npu.conf  # then log in again",
            needed=str(_OPEN_FILES),
        )
        yield Finding("open-files", "warning", "open files", message, fix)


RULES: tuple[Rule, ...] = (_driver, _old_driver, _nodes, _chip, _unknown, _runtime, _open_files)
