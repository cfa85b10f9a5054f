"""What a rule of the doctor yields, and what a rule is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trilithon.board.snapshot import Board
from trilithon.board.sysfs import Machine

__all__ = ["Finding", "Rule", "Severity"]

Severity = Literal["good", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`id` names its paragraph in docs/doctor.md. `message` is one line; `fix` is the command that puts it right, or
    shows where to look, empty where no single command does. Message and fix are in English; a Message can be
    `translated`."""

    id: str
    severity: Severity
    subject: str
    message: str
    fix: str = ""


Rule: TypeAlias = Callable[[Board, Machine], Iterator[Finding]]
