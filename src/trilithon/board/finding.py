"""What a rule of the doctor yields, and what a rule is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trilithon.board.snapshot import Board
from trilithon.board.sysfs import Machine
from trilithon.language import Message

__all__ = ["UNTIL_BOOT", "UNTIL_LOGOUT", "Finding", "Rule", "Severity"]

UNTIL_BOOT = Message("until the next boot")
UNTIL_LOGOUT = Message("in this shell alone")

Severity = Literal["good", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`id` names its paragraph in docs/doctor.md. `message` is one line; `fix` is the command that puts it right, empty
    where no single command does. With `look` that command changes nothing and shows where to look. `until` says when
    its effect ends, empty for never, and `lasting` is then the command that makes it last, where there is one.
    Texts are in English; a Message can be `translated`."""

    id: str
    severity: Severity
    subject: str
    message: str
    fix: str = ""
    look: bool = False
    until: str = ""
    lasting: str = ""


Rule: TypeAlias = Callable[[Board, Machine], Iterator[Finding]]
