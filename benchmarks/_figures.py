"""The common frame of the benchmark scripts: arguments, figures as text or JSON, bounds, and exit codes.

Exit codes: 0 every bound is met, 1 a bound is missed (a figure that was not measured misses its bound), 2 bad input
or something that this machine lacks, 130 stopped by a signal.
"""

import argparse
import json
import math
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec

from trilithon.errors import RunError, TrilithonError, UserError

__all__ = ["Bound", "CannotMeasure", "Figure", "arguments", "attempted", "count", "not_measured", "report", "run"]

Figure = float | int | str
P = ParamSpec("P")


class CannotMeasure(TrilithonError):
    """Something that this machine lacks, or that does not work here; the message ends with the fix."""


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
        """False for a figure that was not measured or is not a finite number."""
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 every bound is met, 1 a bound is missed, 2 bad input or something is missing here.",
    )
    parser.add_argument("--json", action="store_true", help="print figures and bounds as JSON")
    return parser


def count(text: str) -> int:
    """An argument that is a number of rounds, runs or the like: 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} does not fit; write a whole number of 1 or more")
    return int(text)


def not_measured(reason: object) -> str:
    """What stands in the place of a figure: why there is none."""
    return f"not measured: {reason}"


def attempted(
    names: Sequence[str], measure: Callable[P, dict[str, Figure]], *args: P.args, **kwargs: P.kwargs
) -> dict[str, Figure]:
    """The figures of one part of a benchmark. When the part fails, `names` (at least those with bounds) carry the
    reason, and the other parts still run. Raises UserError: bad input is bad for every part."""
    try:
        return measure(*args, **kwargs)
    except UserError:
        raise
    except (TrilithonError, OSError) as error:
        _print_error(error)
        return dict.fromkeys(names, not_measured(error))


def report(figures: Mapping[str, Figure], bounds: Sequence[Bound], *, as_json: bool) -> int:
    """Print them; the exit code is 0 only when every bound holds. Raises KeyError for a bound without a figure."""
    judged = [(bound, figures[bound.figure], bound.holds(figures[bound.figure])) for bound in bounds]
    if as_json:
        rows = [
            {"figure": bound.figure, "value": _finite(value), "bound": bound.words, "holds": holds}
            for bound, value, holds in judged
        ]
        shown = {name: _finite(value) for name, value in figures.items()}
        print(json.dumps({"figures": shown, "bounds": rows}, ensure_ascii=False, allow_nan=False))
    else:
        width = max(map(len, figures), default=0)
        for name, value in figures.items():
            print(f"{name:{width}}  {value:.4g}" if isinstance(value, float) else f"{name:{width}}  {value}")
        for bound, _, holds in judged:
            print(f"{'met   ' if holds else 'MISSED'} {bound.figure} {bound.words}")
    return 0 if all(holds for _, _, holds in judged) else 1


def run(main: Callable[[], int]) -> None:
    """The entry of a script. A known error becomes one line (and the last lines of an engine that failed)."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the engines it started would stay
    try:
        code = main()
    except (TrilithonError, OSError) as error:
        _print_error(error)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def _finite(value: Figure) -> Figure:
    """JSON has no infinity and no NaN."""
    return not_measured(f"the value is {value}") if isinstance(value, float) and not math.isfinite(value) else value


def _print_error(error: Exception) -> None:
    print(f"error: {error}", file=sys.stderr)
    for line in error.last_words if isinstance(error, RunError) else ():
        print(f"  {line}", file=sys.stderr)
