"""`trilithon doctor`: what this machine is, which engines it can run, what slows it, and what fixes that."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.output import say
from trilithon.errors import UserError
from trilithon.terminal import plain_console

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from rich.console import Console

    from trilithon.board.doctor import Finding
    from trilithon.board.processors import Cluster
    from trilithon.board.sensors.clock_speed import MeasuredClock
    from trilithon.board.snapshot import Board
    from trilithon.board.vulkan import VulkanDriver

__all__ = ["EngineRow", "doctor_command", "print_report", "report"]

_MARKS = {"good": ("✓", "green"), "note": ("i", "cyan"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
_MENU_WIDTH = 14


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One placement as far as this machine goes. `why` says, when it is not usable, why; `fix` is the command
    that helps, or empty."""

    placement: str
    usable: bool
    why: str = ""
    fix: str = ""


def doctor_command(
    engine_rows: "Callable[[Board], Sequence[EngineRow]]", engine_findings: "Callable[[], Sequence[Finding]]" = tuple
) -> click.Command:
    """The command; `engine_rows` and `engine_findings` are called when it runs."""

    @click.command("doctor")
    @click.option("--measure-clocks", is_flag=True, help="Measure the CPUs' clocks too: 50 ms for each cluster.")
    @click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
    @click.option(
        "--root", type=click.Path(path_type=Path), help="Describe the machine in this board report or folder instead."
    )
    def doctor(measure_clocks: bool, as_json: bool, root: Path | None) -> None:
        """Describe this machine, the engines it can run, and what slows it."""
        from trilithon.board.doctor import findings
        from trilithon.board.sensors import clock_speed
        from trilithon.board.snapshot import read_board
        from trilithon.board.sysfs import THIS_MACHINE
        from trilithon.board.tuning import record as tuning_record
        from trilithon.results.plan_list import stale_findings
        from trilithon.settings import load_configuration

        clocks: Sequence[MeasuredClock] = ()
        if root is not None:
            if measure_clocks:
                raise UserError("--measure-clocks measures this machine, and --root names another; leave one out")
            board, all_findings, rows = _examined(root)
        else:
            configuration = load_configuration()
            board = read_board(THIS_MACHINE, (configuration.data, configuration.cache))
            all_findings = [*findings(board, THIS_MACHINE), *tuning_record.findings(configuration.data, THIS_MACHINE)]
            clocks = clock_speed.measure_clocks(board.clusters) if measure_clocks else ()
            all_findings += [*clock_speed.clock_findings(clocks), *engine_findings()]
            all_findings += stale_findings(board, configuration)
            rows = list(engine_rows(board))
        if as_json:
            say(json.dumps(report(board, all_findings, rows, clocks), indent=2, ensure_ascii=False))
        else:
            print_report(board, all_findings, rows, clocks)

    return doctor


def _examined(root: Path) -> "tuple[Board, list[Finding], list[EngineRow]]":
    """Of a report the engines' rows as they were there; a folder has none. Raises UserError."""
    from trilithon.board.doctor import Finding, findings
    from trilithon.board.snapshot import read_board
    from trilithon.board.sysfs import Machine
    from trilithon.cli.doctor.report_archive import printable, read_report

    if root.is_dir():
        machine = Machine(root)
        board = read_board(machine)
        return board, findings(board, machine), []
    stored = read_report(root)
    board = read_board(stored.machine, stored.folders)
    try:
        other = [Finding(**printable(finding)) for finding in stored.other_findings]
        rows = [EngineRow(**printable(row)) for row in stored.doctor["engines"]]
    except (KeyError, TypeError):
        raise UserError(f"{root} was written by another version; ask for a new one: trilithon board-report") from None
    return board, [*findings(board, stored.machine), *other], rows


def report(
    board: "Board", findings: "Sequence[Finding]", rows: Sequence[EngineRow], clocks: "Sequence[MeasuredClock]" = ()
) -> dict[str, Any]:
    """What `--json` prints: board, findings, engines, and the clocks if they were measured."""
    measured = {"measured_clocks": [asdict(clock) for clock in clocks]} if clocks else {}
    return measured | {
        "board": board.facts(),
        "findings": [asdict(finding) for finding in findings],
        "engines": [asdict(row) for row in rows],
    }


def print_report(
    board: "Board", findings: "Sequence[Finding]", rows: Sequence[EngineRow], clocks: "Sequence[MeasuredClock]" = ()
) -> None:
    """For people, on stdout; plain text when that is not a terminal."""
    # soft_wrap: a fix has to stay one line, so that it can be copied.
    console = plain_console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    console.print(board.describe(), style="bold")
    for name, text in [*_machine_lines(board), *(("clock", clock.describe()) for clock in clocks)]:
        console.print(f"  {name:<{_MENU_WIDTH}}{text}")
    if rows:
        console.print("\nEngines", style="bold")
        width = max(len(row.placement) for row in rows) + 2
        for row in rows:
            _print_item(console, "good" if row.usable else "problem", row.placement, width, row.why, row.fix)
    console.print("\nFindings", style="bold")
    if not findings:
        console.print("  nothing found that slows this machine")
    for finding in findings:
        _print_item(console, finding.severity, finding.subject, _MENU_WIDTH, finding.message, finding.fix)
    explained = dict.fromkeys(f"#{finding.id}" for finding in findings if finding.severity != "good")
    if explained:
        console.print(f"\n  explained in docs/doctor.md: {' '.join(explained)}", style="dim")


def _print_item(console: "Console", severity: str, name: str, width: int, text: str, fix: str) -> None:
    mark, style = _MARKS[severity]
    console.print(f"  {mark} ", style=style, end="")
    console.print(f"{name:<{width}}{text}".rstrip())
    if fix:
        console.print(f"    {'':<{width}}→ {fix}", style="dim")


def _machine_lines(board: "Board") -> list[tuple[str, str]]:
    from trilithon.board.sysfs import format_cpu_list

    lines = [("CPU", _cluster_text(cluster, board.chip)) for cluster in board.clusters]
    quota = "" if board.limits.cpu_quota is None else f", with the time of {board.limits.cpu_quota:g} CPUs"
    lines.append(("runs on", f"cpu{format_cpu_list(board.big_cpus)}{quota}, {board.architecture}"))
    lines.append(("memory", _memory_text(board)))
    if board.gpu:
        lines.append(("GPU", f"{board.gpu.name + ', ' if board.gpu.name else ''}driver {board.gpu.driver}"))
    lines += [("Vulkan", _vulkan_text(driver)) for driver in board.vulkan if driver.serves or driver.software]
    if board.npu:
        cores = f"{board.npu.cores} core{'s' * (board.npu.cores != 1)}, " if board.npu.cores else ""
        lines.append(("NPU", f"{cores}driver {board.npu.driver} {board.npu.version or ''}".rstrip()))
    lines += [("NPU", f"{name}, not supported") for name in board.other_npus]
    lines += [
        ("NPU runtime", f"{runtime.path} {runtime.version or 'of unknown version'}") for runtime in board.runtimes
    ]
    lines += [(f"{swap.kind} swap", f"{swap.path}, {_size(swap.size_bytes)}") for swap in board.swaps]
    lines += [("disk", f"{disk.folder}: {_size(disk.free_bytes)} free, {disk.kind}") for disk in board.disks]
    container = f", container ({board.container})" if board.container else ""
    lines.append(("system", f"{board.operating_system}, Linux {board.kernel}{container}"))
    return lines


def _vulkan_text(driver: "VulkanDriver") -> str:
    version = f", Mesa {driver.version}" if driver.version else ""
    return f"{driver.name}{version}{', software' * driver.software}"


def _cluster_text(cluster: "Cluster", chip: str) -> str:
    from trilithon.board.sysfs import format_cpu_list

    clock = f", up to {cluster.max_khz / 1e6:.2f} GHz" if cluster.max_khz else ""
    clock += f", now {cluster.current_khz / 1e6:.2f}" if clock and cluster.current_khz else ""
    governor = f", governor {cluster.governor}" if cluster.governor else ""
    kind = "" if cluster.kind == "all" else f" ({cluster.kind})"
    return f"cpu{format_cpu_list(cluster.cpus)} {cluster.core_type or chip}{kind}{clock}{governor}"


def _memory_text(board: "Board") -> str:
    text = f"{_size(board.memory_bytes)}, {_size(board.memory_available_bytes)} available"
    if board.limits.memory_bytes is not None:
        text += f"; limited to {_size(board.limits.memory_bytes)}"
    if board.swap_bytes:
        text += f"; swap {_size(board.swap_bytes)}, {_size(board.swap_used_bytes)} used"
    clock = board.clock("memory")
    if clock and clock.current_hz and clock.max_hz:
        text += f"; clock {clock.current_hz / 1e6:.0f} of {clock.max_hz / 1e6:.0f} MHz"
    return text


def _size(count: int | None) -> str:
    from trilithon.units import format_bytes

    return "unknown" if count is None else format_bytes(count)
