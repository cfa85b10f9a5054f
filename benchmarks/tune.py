"""How good `trilithon tune` is: its race on simulated boards, beside Optuna's TPE and random search, and whole tunes.

    python benchmarks/tune.py [--boards 30] [--equal 100] [--json]
    python benchmarks/tune.py --part real [--build FOLDER ...] [--model MODEL ...] [--workload 512,64] [--budget 3m]

A simulated board has ten settings with true times, choices that crash and fast ones that are forbidden (wrong answers),
4% noise, 6% disturbed runs, and drift. A figure is the part of the best possible gain that the settings kept after so
many runs really have. TPE needs Optuna (pip install optuna), which nothing else here uses. `--equal` is the number of
boards on which nothing is faster than the defaults.

The part `real` tunes each model on this machine: the demo model and two of true size with random weights where none is
named (as benchmarks/engines_cpu.py names them). It then runs the tuned settings beside the defaults of Trilithon, those
of llama-server and the flags that Ollama passes, in fresh interleaved rounds. FOLDER holds a llama-server; without one
the last two are left out. Bounds: the lower end of each interval, the share of told ratios within the fresh interval,
the time of a later tune as a part of the first, and with two builds the gain of a workload that is nearly all prompt
(2048,64).
"""

import importlib
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from _figures import Bound, CannotMeasure, Figure, arguments, attempted, count, report, run
from _placements import configuration_with, demo_path
from _tuned import real_bounds, real_figures
from _tuning import SimulatedBoard, gaining_board, run_race, run_random, run_tpe, says_as_good
from engines_cpu import model_file

from trilithon.engines.table import engine
from trilithon.measure.records import Test
from trilithon.tune.race import Setting
from trilithon.tune.setup import parse_workload
from trilithon.units import parse_duration

_RUNS = (40, 75)
_SYNTHETIC = ("gemma3-270m:Q8_0", "qwen2.5-0.5b:Q4_0")
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


def _real(options: Namespace) -> int:
    configuration = configuration_with(*options.build)
    models = [model_file(name, configuration) for name in options.model or _SYNTHETIC]
    if not options.model:
        models.insert(0, demo_path(configuration))
    prompt_tokens, generated_tokens = parse_workload(options.workload)
    test = Test(kind="pg", prompt_tokens=prompt_tokens, generated_tokens=generated_tokens)
    budget = parse_duration(options.budget, name="--budget")
    figures = real_figures(models, test, budget, options.rounds, configuration)
    builds = len([build for build in engine("llama.cpp", configuration).builds() if "cpu" in build.units])
    return report(figures, real_bounds(figures, test, builds=builds), as_json=options.json)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--boards", type=count, default=30, help="simulated boards on which something is to be gained")
    parser.add_argument("--equal", type=count, default=100, help="simulated boards on which nothing is")
    parser.add_argument("--part", choices=("simulated", "real"), default="simulated")
    parser.add_argument("--build", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--model", action="append", default=[], metavar="MODEL")
    parser.add_argument("--workload", default="512,64", help="chat, rag, code, or tokens of prompt,answer")
    parser.add_argument("--budget", default="3m", help="of each tune")
    parser.add_argument("--rounds", type=count, default=9)
    options = parser.parse_args()
    if options.part == "real":
        return _real(options)
    figures = _race(options.boards, options.equal)
    figures |= _random(options.boards)
    names = [name.replace("race", "TPE") for name in figures if name.startswith("race,")]
    figures |= attempted(names, _tpe, options.boards)
    figures |= {f"race ahead of {other}": _ahead(figures, other) for other in ("random", "TPE")}
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
