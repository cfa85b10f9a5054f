"""What `tune` may change about a placement, and how its end is had without Trilithon: each engine declares its
variables and its command line in its own folder."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from trilithon.board.snapshot import Board
from trilithon.board.sysfs import format_cpu_list
from trilithon.engines.base import Placement

__all__ = ["Choice", "StartedByHand", "TunedEngine", "Variable", "cpu_masks", "shell_line", "variable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One value of a variable: options as in a placement's text; without any, the engine's default. A `lossy` one can
    change answers, and is compared with the defaults before its speed is measured. `expected_gain` is the logarithm of
    the default's time divided by this one's, as far as it is known before anything is measured here; `known`: from a
    tune of another model on this board."""

    options: Mapping[str, str] = field(default_factory=dict)
    lossy: bool = False
    expected_gain: float = 0.0
    known: bool = False

    @property
    def text(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.options.items()) or "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One thing that can be changed; the first of `choices` is the default. `expected_gain` is by how much a
    choice may change the logarithm of the time: its standard deviation before anything is measured here."""

    name: str
    choices: tuple[Choice, ...]
    expected_gain: float


@runtime_checkable
class TunedEngine(Protocol):
    """An engine of which settings can be tuned."""

    def variables(self, placement: Placement, board: Board, depth: int) -> tuple[Variable, ...]:
        """What may be changed about the placement for a prompt of `depth` tokens, the most to gain first."""


@runtime_checkable
class StartedByHand(Protocol):
    """An engine with a command line of its own."""

    def by_hand(self, placement: Placement) -> str:
        """The line that a person types into a shell to start the placement without Trilithon."""


def shell_line(argv: Sequence[str], placement: Placement, environment: Mapping[str, str] | None = None) -> str:
    """With the CPUs of the placement."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    cpus = placement.settings.cpus
    pinned = ["taskset", "-c", format_cpu_list(cpus)] if cpus else []
    return " ".join([*variables, shlex.join([*pinned, *argv])])


def variable(name: str, expected_gain: float, *choices: Mapping[str, str], lossy: bool = False) -> Variable:
    """The default, then `choices`, all of them lossy or none."""
    every = (Choice(), *(Choice(options=options, lossy=lossy) for options in choices))
    return Variable(name=name, choices=every, expected_gain=expected_gain)


def cpu_masks(board: Board) -> tuple[tuple[str, int], ...]:
    """CPU sets that are worth trying, as a placement's mask, with the number of their CPUs: the fast cores, of which
    one may be left to everything else, and all."""
    fast = board.big_cpus
    every = tuple(sorted({cpu for cluster in board.clusters for cpu in cluster.cpus})) or fast
    sets = dict.fromkeys((fast, fast[:-1] or fast, every))
    return tuple((format_cpu_list(cpus).replace(",", "+"), len(cpus)) for cpus in sets)
