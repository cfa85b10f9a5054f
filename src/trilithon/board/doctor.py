"""What is wrong with this machine, or would make its numbers wrong, in one line each and with what fixes it.

A rule looks at a Board (and at the machine for what a Board does not hold) and yields findings. docs/doctor.md has a
paragraph for each. Findings about engines are not made here."""

from dataclasses import replace

from trilithon.board.finding import Finding, Severity
from trilithon.board.rules import clocks as clock_rules
from trilithon.board.rules import gpu as gpu_rules
from trilithon.board.rules import limits as limit_rules
from trilithon.board.rules import npu as npu_rules
from trilithon.board.rules import system as system_rules
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import Machine
from trilithon.language import changed

__all__ = ["Finding", "Severity", "findings"]

_RULES = (*clock_rules.RULES, *npu_rules.RULES, *gpu_rules.RULES, *system_rules.RULES, *limit_rules.RULES)


def findings(board: Board, machine: Machine) -> list[Finding]:
    """In the order to show."""
    return [_in_one_line(finding) for rule in _RULES for finding in rule(board, machine)]


def _in_one_line(finding: Finding) -> Finding:
    """A garbled file must not break the output, nor send a terminal control characters."""
    return replace(finding, message=changed(finding.message, _printable), fix=changed(finding.fix, _printable))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
