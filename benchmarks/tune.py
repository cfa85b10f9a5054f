"""How good `trilithon tune` is: its race on simulated boards, beside Optuna's TPE and random search on the same ones.

    python benchmarks/tune.py [--boards 30] [--equal 100] [--json]

A simulated board has ten settings with true times, choices that crash and fast ones that are forbidden (wrong answers),
4% noise, 6% disturbed runs, and drift. A figure is the part of the best possible gain that the settings kept after so
many runs really have. TPE needs Optuna (pip install optuna), which nothing else here uses. `--equal` is the number of
boards on which nothing is faster than the defaults.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from _figures import Bound, CannotMeasure, Figure, arguments, attempted, count, report, run
from _tuning import SimulatedBoard, gaining_board, run_race, run_random, run_tpe, says_as_good

from trilithon.tune.race import Setting

_RUNS = (40, 75)
_FIRST_SEED = 20261130
_BOUNDS = (
    Bound("race, 40 runs: median", least=0.90),
    Bound("race, 40 runs: worst tenth", least=0.75),
    Bound("race, 75 runs: median", least=0.97),
    Bound("race, 75 runs: worst tenth", least=0.90),
    Bound("race: forbidden choices kept", most=0),
    Bound("race ahead of random", least=1),
    Bound("race ahead of TPE", least=1),
    Bound("nothing to gain: defaults called as good", least=0.95),
)


def _parts(
    name: str, boards: int, search: Callable[[SimulatedBoard, int], Mapping[int, Setting]]
) -> tuple[dict[str, Figure], int]:
    """The figures of one search, and how often it kept a forbidden choice."""
    parts: dict[int, list[float]] = {runs: [] for runs in _RUNS}
    forbidden = 0
    for seed in range(_FIRST_SEED, _FIRST_SEED + boards):
        board = gaining_board(seed)
        for runs, setting in search(board, seed).items():
            parts[runs].append((board.gain(setting) - 1) / (board.best_gain - 1))
            forbidden += any(challenger in board.forbidden for challenger in enumerate(setting))
    return {
        f"{name}, {runs} runs: {word}": float(np.quantile(parts[runs], quantile))
        for runs in _RUNS
        for word, quantile in (("median", 0.5), ("worst tenth", 0.1))
    }, forbidden


def _race(boards: int, equal: int) -> dict[str, Figure]:
    figures, forbidden = _parts("race", boards, lambda board, _: run_race(board, _RUNS))
    seeds = range(_FIRST_SEED, _FIRST_SEED + equal)
    as_good = [says_as_good(SimulatedBoard(seed, gains=False), _RUNS[-1]) for seed in seeds]
    return figures | {
        "race: forbidden choices kept": forbidden,
        "nothing to gain: defaults called as good": sum(as_good) / len(as_good),
    }


def _random(boards: int) -> dict[str, Figure]:
    return _parts("random", boards, lambda board, seed: run_random(board, _RUNS, seed))[0]


def _tpe(boards: int) -> dict[str, Figure]:
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise CannotMeasure("Optuna is not installed; run: pip install optuna") from error
    return _parts("TPE", boards, lambda board, seed: run_tpe(optuna, board, _RUNS, seed))[0]


def _ahead(figures: Mapping[str, Figure], other: str) -> Figure:
    """1 where the race's four figures are each above the other's."""
    names = [name.removeprefix("race") for name in figures if name.startswith("race,")]
    values: Sequence[tuple[Figure, Figure]] = [(figures["race" + name], figures[other + name]) for name in names]
    if any(isinstance(value, str) for pair in values for value in pair):
        return str(next(value for pair in values for value in pair if isinstance(value, str)))
    return int(all(float(race) > float(beaten) for race, beaten in values))


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--boards", type=count, default=30, help="simulated boards on which something is to be gained")
    parser.add_argument("--equal", type=count, default=100, help="simulated boards on which nothing is")
    options = parser.parse_args()
    figures = _race(options.boards, options.equal)
    figures |= _random(options.boards)
    names = [name.replace("race", "TPE") for name in figures if name.startswith("race,")]
    figures |= attempted(names, _tpe, options.boards)
    figures |= {f"race ahead of {other}": _ahead(figures, other) for other in ("random", "TPE")}
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
