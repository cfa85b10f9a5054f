"""Where the lead changes from one line of a chart to another: the depth from which another placement is the fastest."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trilithon.results.report.charts import Line

__all__ = ["Crossing", "crossings"]


@dataclass(frozen=True, slots=True)
class Crossing:
    """Beyond `x` the line `after` is above the line `before`; `y` is their common value there, by interpolation."""

    x: float
    y: float
    before: str
    after: str


def crossings(lines: Sequence[Line]) -> list[Crossing]:
    """Of the two best lines there, by x. One counts where each of the two is ahead by more than the intervals on its
    side of it; placements with broken answers do not."""
    sound = [line for line in lines if not line.broken and len(line.points) > 1]
    pairs = ((one, other) for one in sound for other in sound if one is not other)
    crossed = [crossing for one, other in pairs for crossing in _of_pair(one, other)]
    return sorted((crossing for crossing in crossed if _leads(crossing, sound)), key=lambda crossing: crossing.x)


def _of_pair(before: Line, after: Line) -> Iterator[Crossing]:
    """Those from `before` to `after`."""
    shared = sorted({point[0] for point in before.points} & {point[0] for point in after.points})
    mine, theirs = ({point[0]: point for point in line.points} for line in (before, after))
    ahead = [mine[x][2] > theirs[x][3] for x in shared]
    behind = [mine[x][3] < theirs[x][2] for x in shared]
    for (index, x), (_, end) in pairwise(enumerate(shared)):
        start_gap, end_gap = (mine[at][1] - theirs[at][1] for at in (x, end))
        if start_gap >= 0 > end_gap and any(ahead[: index + 1]) and any(behind[index + 1 :]):
            share = start_gap / (start_gap - end_gap)
            y = mine[x][1] + share * (mine[end][1] - mine[x][1])
            yield Crossing(x + share * (end - x), y, before.label, after.label)


def _leads(crossing: Crossing, lines: Sequence[Line]) -> bool:
    others = (line for line in lines if line.label not in (crossing.before, crossing.after))
    return all((value := _value(line, crossing.x)) is None or value <= crossing.y for line in others)


def _value(line: Line, x: float) -> float | None:
    """By interpolation; None outside of the line."""
    xs = [point[0] for point in line.points]
    if not xs[0] <= x <= xs[-1]:
        return None
    index = max(bisect_left(xs, x), 1)
    (left, low, *_), (right, high, *_) = line.points[index - 1 : index + 1]
    return low + (high - low) * (x - left) / (right - left)
