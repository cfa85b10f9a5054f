"""`trilithon doctor`: what this machine is, which engines it can run, what slows it, and what fixes that."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.output import say, shown
from trilithon.errors import UserError
from trilithon.language import Message, listed
from trilithon.terminal import plain_console, shows_signs

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from rich.console import Console

    from trilithon.board.doctor import Finding
    from trilithon.board.processors import Cluster
    from trilithon.board.sensors.clock_speed import MeasuredClock
    from trilithon.board.snapshot import Board
    from trilithon.board.vulkan import VulkanDriver

__all__ = ["EngineRow", "doctor_command", "print_report", "report"]

_STYLES = {"good": "green", "note": "cyan", "warning": "yellow", "problem": "red"}
_MARKS = {"good": "✓", "note": "i", "warning": "!", "problem": "✗"}
_PLAIN_MARKS = {"good": "ok", "note": "i", "warning": "!", "problem": "no"}  # on terminals without UTF-8
_LEAST_WIDTH = 14
_EXPLAIN = "trilithon doctor --explain"


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
        "--explain", metavar="ID", shell_complete=_complete_ids, help="Print the paragraph on a finding and its fix."
    )
    @click.option(
        "--root", type=click.Path(path_type=Path), help="Describe the machine in this board report or folder instead."
    )
    def doctor(measure_clocks: bool, as_json: bool, explain: str | None, root: Path | None) -> None:
        """Describe this machine, the engines it can run, and what slows it."""
        if explain is not None:
            from trilithon.board.explanations import explanation

            say(explanation(explain.removeprefix("#")), wrap=True)
            return
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
                raise UserError(
                    Message("--measure-clocks measures this machine, and --root names another; leave one out")
                )
            board, all_findings, rows = _examined(root)
        else:
            configuration = load_configuration()
            board = read_board(THIS_MACHINE, (configuration.data, configuration.cache))
            all_findings = [*findings(board, THIS_MACHINE), *tuning_record.findings(configuration.data, THIS_MACHINE)]
            clocks = clock_speed.measure_clocks(board.clusters) if measure_clocks else ()
            all_findings += [*clock_speed.clock_findings(clocks), *engine_findings()]
            all_findings += stale_findings(board, configuration)
            all_findings = _without_installed_runtime(all_findings)
            rows = list(engine_rows(board))
        if as_json:
            say(json.dumps(report(board, all_findings, rows, clocks), indent=2, ensure_ascii=False))
        else:
            print_report(board, all_findings, rows, clocks)

    return doctor


def _without_installed_runtime(findings: "list[Finding]") -> "list[Finding]":
    """The system's folders have no runtime, and Trilithon was given one elsewhere: then none is missing."""
    from trilithon.board.libraries import RKLLM
    from trilithon.engines.registry import registered
    from trilithon.settings import load_configuration

    installed = any((entry.folder / RKLLM).is_file() for entry in registered(load_configuration()))
    return [finding for finding in findings if not (installed and finding.id == "runtime-missing")]


def _complete_ids(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from trilithon.board.explanations import explained_ids

    return [name for name in explained_ids() if name.startswith(incomplete)]


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
        message = Message(
            "{file} was written by another version; ask for a new one: trilithon board-report", file=str(root)
        )
        raise UserError(message) from None
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
    lines = [*_machine_lines(board), *((Message("clock"), clock.describe()) for clock in clocks)]
    names = [shown(name) for name, _ in lines] + [shown(finding.subject) for finding in findings]
    width = max(_LEAST_WIDTH, *(len(name) + 2 for name in names))
    console.print(shown(board.describe()), style="bold", soft_wrap=not console.is_terminal)
    for name, text in lines:
        _print_line(console, "  ", shown(name), width, shown(text))
    if rows:
        console.print(f"\n{shown(Message('Engines'))}", style="bold")
        row_width = max(len(row.placement) for row in rows) + 2
        for row in rows:
            _print_item(console, "good" if row.usable else "problem", row.placement, row_width, row.why)
            _print_command(console, row_width, row.fix)
    console.print(f"\n{shown(Message('Findings'))}", style="bold")
    if not findings:
        console.print(f"  {shown(Message('nothing found that slows this machine'))}")
    for finding in findings:
        _print_item(console, finding.severity, shown(finding.subject), width, finding.message)
        _print_command(console, width, finding.fix, looks=finding.look, until=finding.until)
        _print_command(console, width, finding.lasting, until=Message("from the next boot on"))
    explained = dict.fromkeys(finding.id for finding in findings if finding.severity != "good")
    if explained:
        text = shown(Message("explained by {command}: {paragraphs}", command=_EXPLAIN, paragraphs=" ".join(explained)))
        console.print(f"\n  {text}", style="dim")


def _print_item(console: "Console", severity: str, name: str, width: int, text: str) -> None:
    marks = _MARKS if shows_signs() else _PLAIN_MARKS
    mark_width = max(map(len, marks.values()))
    console.print(f"  {marks[severity]:<{mark_width}} ", style=_STYLES[severity], end="")
    _print_line(console, " " * (mark_width + 3), name, width, shown(text), begun=True)


def _print_command(console: "Console", width: int, command: str, *, looks: bool = False, until: str = "") -> None:
    """In one line, however long: it has to stay copyable. A fix has an arrow, and what only looks a question mark."""
    if command:
        marks, arrow = (_MARKS, "→") if shows_signs() else (_PLAIN_MARKS, "->")
        indent = " " * (max(map(len, marks.values())) + 3 + width)
        mark = "?".ljust(len(arrow)) if looks else arrow
        remark = f"  # {shown(until)}" if until else ""
        console.print(f"{indent}{mark} {shown(command)}{remark}", style="dim")


def _print_line(console: "Console", indent: str, name: str, width: int, text: str, *, begun: bool = False) -> None:
    """The text in lines of a terminal's width beside the name; elsewhere in one line. With `begun` the indent of the
    first line is there already."""
    import textwrap

    start = "" if begun else indent
    room = console.width - len(indent) - width
    lines = [text]
    if console.is_terminal:
        # Beside so long a name no word fits: the text begins below it.
        lines = textwrap.wrap(text, max(room, 20), break_long_words=False, break_on_hyphens=False) or [""]
    console.print(f"{start}{name:<{width}}{lines[0]}".rstrip())
    for line in lines[1:]:
        console.print(f"{indent}{'':<{width}}{line}")


def _machine_lines(board: "Board") -> list[tuple[str, str]]:
    from trilithon.board.sysfs import format_cpu_list

    lines: list[tuple[str, str]] = [("CPU", _cluster_text(cluster, board.chip)) for cluster in board.clusters]
    runs_on = [f"cpu{format_cpu_list(board.big_cpus)}"]
    if board.limits.cpu_quota is not None:
        runs_on.append(Message("with the time of {quota:g} CPUs", quota=board.limits.cpu_quota))
    lines.append((Message("runs on"), listed([*runs_on, board.architecture])))
    lines.append((Message("memory"), _memory_text(board)))
    if board.gpu:
        driver = Message("driver {driver}", driver=board.gpu.driver)
        lines.append(("GPU", listed([board.gpu.name, driver] if board.gpu.name else [driver])))
    lines += [("Vulkan", _vulkan_text(driver)) for driver in board.vulkan if driver.serves or driver.software]
    if board.npu:
        driver = Message("driver {driver}", driver=f"{board.npu.driver} {board.npu.version or ''}".rstrip())
        cores = board.npu.cores
        count = [Message("{count} core", plural="{count} cores", count=cores)] if cores else []
        lines.append(("NPU", listed([*count, driver])))
    lines += [("NPU", Message("{npu}, not supported", npu=name)) for name in board.other_npus]
    unknown = Message("of unknown version")
    lines += [
        (Message("NPU runtime"), listed((runtime.path, runtime.version or unknown), " ")) for runtime in board.runtimes
    ]
    lines += [
        (Message("{disk} swap", disk=swap.kind), listed((swap.path, _size(swap.size_bytes)))) for swap in board.swaps
    ]
    lines += [
        (
            Message("disk"),
            Message("{folder}: {size} free, {disk}", folder=disk.folder, size=_size(disk.free_bytes), disk=disk.kind),
        )
        for disk in board.disks
    ]
    system = [board.operating_system, f"Linux {board.kernel}"]
    if board.container:
        system.append(Message("container ({container})", container=board.container))
    lines.append((Message("system"), listed(system)))
    return lines


def _vulkan_text(driver: "VulkanDriver") -> Message:
    parts = [
        driver.name,
        f"Mesa {driver.version}" if driver.version else "",
        Message("software") if driver.software else "",
    ]
    return listed(filter(None, parts))


def _cluster_text(cluster: "Cluster", chip: str) -> Message:
    from trilithon.board.sysfs import format_cpu_list

    name: str = f"cpu{format_cpu_list(cluster.cpus)} {cluster.core_type or chip}"
    if cluster.kind != "all":
        name = Message("{cluster} ({kind})", cluster=name, kind=cluster.kind)
    parts = [name]
    if cluster.max_khz:
        parts.append(Message("up to {top:.2f} GHz", top=cluster.max_khz / 1e6))
        if cluster.current_khz:
            parts.append(Message("now {clock:.2f}", clock=cluster.current_khz / 1e6))
    if cluster.governor:
        parts.append(Message("governor {governor}", governor=cluster.governor))
    return listed(parts)


def _memory_text(board: "Board") -> Message:
    available = Message("{size} available", size=_size(board.memory_available_bytes))
    parts = [listed((_size(board.memory_bytes), available))]
    if board.limits.memory_bytes is not None:
        parts.append(Message("limited to {size}", size=_size(board.limits.memory_bytes)))
    if board.swap_bytes:
        size, used = _size(board.swap_bytes), _size(board.swap_used_bytes)
        parts.append(Message("swap {size}, {used} used", size=size, used=used))
    clock = board.clock("memory")
    if clock and clock.current_hz and clock.max_hz:
        now, top = clock.current_hz / 1e6, clock.max_hz / 1e6
        parts.append(Message("clock {clock:.0f} of {top:.0f} MHz", clock=now, top=top))
    return listed(parts, "; ")


def _size(count: int | None) -> str:
    from trilithon.units import format_bytes

    return Message("unknown") if count is None else format_bytes(count)
