"""What `tune` may change about a placement: each engine declares its variables in its own folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Choice", "Variable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One value of a variable: options as in a placement's text; without any, the engine's default. A `lossy` one can
    change answers, and is compared with the defaults before its speed is measured. `expected_gain` is the logarithm of
    the default's time divided by this one's, as far as it is known before anything is measured here."""

    options: Mapping[str, str] = field(default_factory=dict)
    lossy: bool = False
    expected_gain: float = 0.0

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
