"""How often a verdict is right: a placement and itself must be "same", a 5% slowdown must be found, and one
of 3% at the default number of rounds or at the number that the report names.

    python benchmarks/verdicts.py [--quick] [--simulated] [--same 20] [--slower 100] [--json]
    python benchmarks/verdicts.py --tables [--quick]

Simulated runs have the noise of real boards: lognormal noise, disturbed runs that take 10 to 30% longer, and drift
that both placements of a round share. Real campaigns follow: the demo model and itself (A and A), and the scripted
engine with a slower one. `--tables` prints the tables of docs/methodology.md instead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from _campaigns import answers_for_itself, answers_for_slower
from _figures import Bound, Figure, arguments, attempted, count, not_measured, report, run

from trilithon.bench.progress import MOST_ROUNDS
from trilithon.measure.statistics import LEAST_RUNS, SOUGHT, Answer, compare, interval, narrow_enough, runs_to_find

SLOWDOWN, SMALL_SLOWDOWN = 1.05, 1 + SOUGHT
MOST_RUNS = 20
# These detect a 5% slowdown at 1% noise in over 95% of cases, with one disturbed run in twenty.
RUNS_FOR_A_VERDICT = 13
_SEED = 20261122
_REAL_SAME, _REAL_FOUND = "real: A and A are same", "real: 5% found, scripted engine"

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


def rounds(random: Generator, runs: int, noise: Noise, slowdown: float = 1.0) -> tuple[list[float], list[float]]:
    """Seconds of two placements over interleaved rounds, the second `slowdown` times as slow. It runs half a round
    after the first, so drift reaches it a little later; drift is a ramp or a wave."""
    ramp, phase, sign = random.random() < 0.5, random.uniform(0, 2 * np.pi), random.choice((-1, 1))

    def side(offset: float, factor: float) -> list[float]:
        position = (np.arange(runs) + offset) / runs
        course = position if ramp else np.sin(2 * np.pi * position + phase) / 2
        slow = np.where(random.random(runs) < noise.disturbed, random.uniform(1.1, 1.3, runs), 1.0)
        noise_factors = random.lognormal(0, noise.spread, runs)
        return [float(seconds) for seconds in factor * noise_factors * slow * np.exp(sign * noise.drift * course)]

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


def simulated_found(random: Generator, times: int, runs: int, noise: Noise) -> float:
    return fraction(times, lambda: verdict(*rounds(random, runs, noise, SLOWDOWN)) == "better")


def stopped(a: list[float], b: list[float], most: int) -> int:
    """The round at which a campaign stops: the intervals of both placements are narrow enough."""
    stops = (n for n in range(LEAST_RUNS, most) if narrow_enough(a[:n]) and narrow_enough(b[:n]))
    return next(stops, most)


def simulated_same_when_stopped(random: Generator, times: int) -> float:
    """The campaign's rule: stop at the round in which the interval of every placement is narrow enough."""

    def same() -> bool:
        a, b = rounds(random, MOST_RUNS, any_noise(random))
        stop = stopped(a, b, MOST_RUNS)
        return verdict(a[:stop], b[:stop]) == "same"

    return fraction(times, same)


def simulated_found_in_named_rounds(random: Generator, times: int, noise: Callable[[Generator], Noise]) -> float:
    """A campaign of the default number of rounds finds the small slowdown, or one of as many rounds as the first one's
    reason names does."""

    def found() -> bool:
        of_machine = noise(random)
        a, b = rounds(random, MOST_ROUNDS, of_machine, SMALL_SLOWDOWN)
        stop = stopped(a, b, MOST_ROUNDS)
        first = compare(a[:stop], b[:stop], higher_is_better=False, paired=True)
        needed = stop if first.ratio is None else runs_to_find(first.ratio, stop)
        if first.answer == "better" or needed == stop:
            return first.answer == "better"
        return verdict(*rounds(random, needed, of_machine, SMALL_SLOWDOWN)) == "better"

    return fraction(times, found)


def simulated(times: int) -> dict[str, Figure]:
    random = np.random.default_rng(_SEED)
    return {
        "simulated: A and A are same": simulated_same(random, times),
        "simulated: A and A are same, stopped by width": simulated_same_when_stopped(random, times),
        f"simulated: 5% found, quiet, {LEAST_RUNS} runs": simulated_found(random, times, LEAST_RUNS, QUIET),
        f"simulated: 5% found, disturbed, {RUNS_FOR_A_VERDICT} runs": simulated_found(
            random, times, RUNS_FOR_A_VERDICT, DISTURBED
        ),
        "simulated: 3% found, quiet, default or named rounds": simulated_found_in_named_rounds(
            random, times, lambda _: QUIET
        ),
        "simulated: 3% found, any noise, default or named rounds": simulated_found_in_named_rounds(
            random, times, any_noise
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
    yield "| difference | noise | disturbed | drift | " + " | ".join(f"{runs} runs" for runs in counts) + " |"
    yield "|---" * (4 + len(counts)) + "|"
    for factor, noise in cases:

        def claimed(runs: int, factor: float = factor, noise: Noise = noise) -> bool:
            answer = verdict(*rounds(random, runs, noise, factor))
            return answer in ("better", "worse") if factor == 1 else answer == "better"

        cells = [f"{fraction(times, partial(claimed, runs)):.1%}" for runs in counts]
        head = f"{factor - 1:.0%} | {noise.spread:.1%} | {noise.disturbed:.0%} | {noise.drift:.0%}"
        yield f"| {head} | " + " | ".join(cells) + " |"
    yield ""
    yield from coverage_table(random, times * 5)


def coverage_table(random: Generator, times: int) -> Iterator[str]:
    """How often the 95% interval of a figure holds the true median."""
    counts = (3, 4, 5, 6, 7, 9, 13, 20)

    def covered(runs: int) -> bool:
        of_median = interval([float(value) for value in random.lognormal(0, 0.02, runs)])
        return of_median.low is not None and of_median.high is not None and of_median.low <= 1 <= of_median.high

    yield "| runs | " + " | ".join(map(str, counts)) + " |"
    yield "|---" * (1 + len(counts)) + "|"
    cells = [f"{fraction(times, partial(covered, runs)):.1%}" for runs in counts]
    yield "| interval holds the true median | " + " | ".join(cells) + " |"


def real_same(comparisons: int) -> dict[str, Figure]:
    answers = answers_for_itself(comparisons)
    return {_REAL_SAME: answers["same"] / answers.total(), "real: comparisons of A and A": answers.total()}


def real_found(comparisons: int) -> dict[str, Figure]:
    answers = answers_for_slower(comparisons, SLOWDOWN)
    return {_REAL_FOUND: answers["better"] / answers.total(), "real: comparisons with a 5% slowdown": answers.total()}


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="fewer simulated comparisons")
    parser.add_argument("--tables", action="store_true", help="print the tables of docs/methodology.md and stop")
    parser.add_argument("--simulated", action="store_true", help="leave the real campaigns out (about half an hour)")
    parser.add_argument("--same", type=count, default=20, help="real comparisons of a placement with itself")
    parser.add_argument("--slower", type=count, default=100, help="real comparisons with a 5%% slowdown")
    options = parser.parse_args()
    if options.tables:
        for line in tables(100 if options.quick else 400):
            print(line, flush=True)
        return 0
    figures = simulated(50 if options.quick else 500)
    if not options.simulated:
        figures |= attempted([_REAL_SAME], real_same, options.same)
        figures |= attempted([_REAL_FOUND], real_found, options.slower)
    bounds = [Bound(name, least=0.95) for name in figures if not name.startswith("real: comparisons")]
    if options.simulated:
        figures |= dict.fromkeys((_REAL_SAME, _REAL_FOUND), not_measured("--simulated leaves it out"))
    return report(figures, bounds, as_json=options.json)


if __name__ == "__main__":
    run(main)
