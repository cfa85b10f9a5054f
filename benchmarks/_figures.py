"""What every benchmark script here shares: figures as text or JSON, bounds, and an exit code that says whether
all of them hold."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Bound", "arguments", "report"]

Figure = float | int | str | None


@dataclass(frozen=True, slots=True)
class Bound:
    """The figure of this name must lie between `least` and `most`, both included; None leaves a side open."""

    figure: str
    least: float | None = None
    most: float | None = None

    @property
    def words(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"

    def holds(self, value: Figure) -> bool:
        """A figure that is missing or no number breaks its bound."""
        if not isinstance(value, int | float) or math.isnan(value):
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print figures and bounds as JSON")
    return parser


def report(figures: Mapping[str, Figure], bounds: Sequence[Bound], *, as_json: bool) -> int:
    """Print them; the exit code is 0 only when every bound holds. Raises KeyError for a bound without a figure."""
    judged = [(bound, figures[bound.figure], bound.holds(figures[bound.figure])) for bound in bounds]
    if as_json:
        rows = [
            {"figure": bound.figure, "value": value, "bound": bound.words, "holds": holds}
            for bound, value, holds in judged
        ]
        print(json.dumps({"figures": dict(figures), "bounds": rows}, ensure_ascii=False))
    else:
        width = max(map(len, figures), default=0)
        for name, value in figures.items():
            print(f"{name:{width}}  {value:.4g}" if isinstance(value, float) else f"{name:{width}}  {value}")
        for bound, _, holds in judged:
            print(f"{'holds ' if holds else 'BROKEN'} {bound.figure} {bound.words}")
    return 0 if all(holds for _, _, holds in judged) else 1
