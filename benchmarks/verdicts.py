"""How often a verdict is right: a placement against itself must be "same", a 5% slowdown must be found.

    python benchmarks/verdicts.py [--simulated] [--quick] [--tables] [--json]

Simulated runs have the noise of real boards: lognormal noise, disturbed runs that take 10 to 30% longer, and drift
that both sides of a round share. Then the bench itself: the demo model against itself,
and the scripted engine against a slower one. `--tables` prints the tables of docs/methodology.md instead.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from _campaigns import found_slowdowns, same_as_itself
from _figures import Bound, Figure, arguments, report

from trilithon.measure.statistics import LEAST_RUNS, RUNS_FOR_A_VERDICT, Answer, compare, interval, narrow_enough

SLOWDOWN = 1.05
MOST_RUNS = 20
_SEED = 20261122

Generator = np.random.Generator


@dataclass(frozen=True, slots=True)
class Noise:
    """`spread` is the deviation of a run's logarithm; `disturbed` the probability of a run that takes 10–30%
    longer; `drift` how far the machine moves in the course of the rounds, as a fraction."""

    spread: float
    disturbed: float = 0.0
    drift: float = 0.0


QUIET = Noise(0.01)
DISTURBED = Noise(0.01, disturbed=0.05)


def rounds(random: Generator, count: int, noise: Noise, slowdown: float = 1.0) -> tuple[list[float], list[float]]:
    """Seconds of two placements over interleaved rounds, the second `slowdown` times as slow. It runs half a round
    after the first, so drift reaches it a little later; drift is a ramp or a wave."""
    ramp, phase, sign = random.random() < 0.5, random.uniform(0, 2 * np.pi), random.choice((-1, 1))

    def side(offset: float, factor: float) -> list[float]:
        position = (np.arange(count) + offset) / count
        path = position if ramp else np.sin(2 * np.pi * position + phase) / 2
        slow = np.where(random.random(count) < noise.disturbed, random.uniform(1.1, 1.3, count), 1.0)
        own = random.lognormal(0, noise.spread, count)
        return [float(seconds) for seconds in factor * own * slow * np.exp(sign * noise.drift * path)]

    return side(0.0, 1.0), side(0.5, slowdown)


def verdict(a: list[float], b: list[float]) -> Answer:
    return compare(a, b, higher_is_better=False, paired=True).answer


def fraction(times: int, happens: Callable[[], bool]) -> float:
    return sum(happens() for _ in range(times)) / times


def any_noise(random: Generator) -> Noise:
    return Noise(random.uniform(0.005, 0.03), disturbed=0.05 * random.integers(2), drift=random.uniform(0, 0.1))


def simulated_same(random: Generator, times: int) -> float:
    def same() -> bool:
        return verdict(*rounds(random, int(random.integers(LEAST_RUNS, MOST_RUNS + 1)), any_noise(random))) == "same"

    return fraction(times, same)


def simulated_found(random: Generator, times: int, count: int, noise: Noise) -> float:
    return fraction(times, lambda: verdict(*rounds(random, count, noise, SLOWDOWN)) == "better")


def simulated_same_when_stopped(random: Generator, times: int) -> float:
    """The campaign's rule: stop at the round in which the interval of every placement is narrow enough."""

    def same() -> bool:
        a, b = rounds(random, MOST_RUNS, any_noise(random))
        stops = (n for n in range(LEAST_RUNS, MOST_RUNS) if narrow_enough(a[:n]) and narrow_enough(b[:n]))
        stop = next(stops, MOST_RUNS)
        return verdict(a[:stop], b[:stop]) == "same"

    return fraction(times, same)


def simulated(times: int) -> dict[str, Figure]:
    random = np.random.default_rng(_SEED)
    return {
        "simulated: A against A is same": simulated_same(random, times),
        "simulated: A against A is same, stopped by width": simulated_same_when_stopped(random, times),
        f"simulated: 5% found, quiet, {LEAST_RUNS} runs": simulated_found(random, times, LEAST_RUNS, QUIET),
        f"simulated: 5% found, disturbed, {RUNS_FOR_A_VERDICT} runs": simulated_found(
            random, times, RUNS_FOR_A_VERDICT, DISTURBED
        ),
    }


def tables(times: int) -> Iterator[str]:
    """How often a difference is claimed, by the number of runs: where there is none, and where there is one of 5%."""
    random = np.random.default_rng(_SEED)
    counts = (5, 7, 9, 11, 13, 15, 20)
    cases = [
        (factor, Noise(spread, disturbed, drift))
        for factor in (1.0, SLOWDOWN)
        for spread in (0.005, 0.01, 0.03)
        for disturbed in (0.0, 0.05)
        for drift in (0.0, 0.03, 0.1)
    ]
    yield "| difference | noise | disturbed | drift | " + " | ".join(f"{count} runs" for count in counts) + " |"
    yield "|---" * (4 + len(counts)) + "|"
    for factor, noise in cases:

        def claimed(count: int, factor: float = factor, noise: Noise = noise) -> bool:
            answer = verdict(*rounds(random, count, noise, factor))
            return answer in ("better", "worse") if factor == 1 else answer == "better"

        cells = [f"{fraction(times, lambda count=count: claimed(count)):.1%}" for count in counts]
        head = f"{factor - 1:.0%} | {noise.spread:.1%} | {noise.disturbed:.0%} | {noise.drift:.0%}"
        yield f"| {head} | " + " | ".join(cells) + " |"
    yield ""
    yield from coverage_table(random, times * 5)


def coverage_table(random: Generator, times: int) -> Iterator[str]:
    """How often the 95% interval of a figure holds the true median."""
    counts = (3, 4, 5, 6, 7, 9, 13, 20)

    def covered(count: int) -> bool:
        found = interval([float(value) for value in random.lognormal(0, 0.02, count)])
        return found.low is not None and found.high is not None and found.low <= 1 <= found.high

    yield "| runs | " + " | ".join(map(str, counts)) + " |"
    yield "|---" * (1 + len(counts)) + "|"
    cells = [f"{fraction(times, lambda count=count: covered(count)):.1%}" for count in counts]
    yield "| interval holds the true median | " + " | ".join(cells) + " |"


def real(comparisons: int, slowdowns: int) -> dict[str, Figure]:
    same, found = same_as_itself(comparisons), found_slowdowns(slowdowns, SLOWDOWN)
    return {
        f"real: A against A is same, {same.total()} comparisons": same["same"] / same.total(),
        f"real: 5% found, scripted engine, {found.total()} comparisons": found["better"] / found.total(),
    }


def main() -> int:
    parser = arguments("How often a verdict is right.")
    parser.add_argument("--quick", action="store_true", help="fewer simulated comparisons")
    parser.add_argument("--tables", action="store_true", help="print the tables of docs/methodology.md and stop")
    parser.add_argument("--simulated", action="store_true", help="leave the real campaigns out (about half an hour)")
    parser.add_argument("--same", type=int, default=20, help="real comparisons of a placement with itself")
    parser.add_argument("--found", type=int, default=100, help="real comparisons with a 5%% slowdown")
    chosen = parser.parse_args()
    if chosen.tables:
        for line in tables(100 if chosen.quick else 400):
            print(line, flush=True)
        return 0
    figures = simulated(50 if chosen.quick else 500)
    if not chosen.simulated:
        figures |= real(chosen.same, chosen.found)
    return report(figures, [Bound(name, least=0.95) for name in figures], as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
