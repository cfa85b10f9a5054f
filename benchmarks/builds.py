"""What compiling for this CPU gains: each native build and the wheel's server, interleaved, as a ratio of rates.

    python benchmarks/builds.py [FOLDER ...] [--rounds 5] [--model FILE] [--json]

FOLDER holds a llama-server. Without one, every build that was added or compiled here is measured. Each round runs
every build, and the order alternates. The rates are medians over the rounds. The ratio is the median of the rounds'
ratios, so that drift of the machine cancels; low and high are its 95% interval.
"""

import asyncio
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from _figures import Bound, CannotMeasure, Figure, arguments, count, report, run
from _placements import ENGINE, TESTS, build_in, configuration_with, demo_path, rates_of, ratio_figures, resolved

from trilithon.bench.setup import in_turn
from trilithon.engines.table import engine
from trilithon.settings import Configuration

_WHEEL = "embedded"
Rates = dict[tuple[str, str], list[float]]


def native_builds(folders: list[Path], configuration: Configuration) -> list[str]:
    """Names of the builds in `folders`, or of all that run on the CPU except the wheel's."""
    if folders:
        return [build_in(folder, configuration) for folder in folders]
    builds = engine(ENGINE, configuration).builds()
    names = [build.name for build in builds if "cpu" in build.units and build.name != _WHEEL]
    if not names:
        raise CannotMeasure("there is no native build here; run: trilithon engines build")
    return names


def rates_of_rounds(names: list[str], model: Path, rounds: int, configuration: Configuration) -> Rates:
    placements = resolved([f"{ENGINE}@{name}/cpu" for name in names], model, TESTS, configuration)
    rates: Rates = defaultdict(list)
    for number in range(rounds):
        for placement in in_turn(placements, number):
            for test, rate in asyncio.run(rates_of(placement, configuration)).items():
                rates[placement.build.name, test].append(rate)
        latest = (f"{name} {test} {values[-1]:.1f}" for (name, test), values in rates.items())
        print(f"round {number + 1}: {', '.join(latest)}", file=sys.stderr)
    return rates


def figures_of(names: list[str], rates: Rates) -> dict[str, Figure]:
    figures: dict[str, Figure] = {f"{name} {test} tokens/s": median(values) for (name, test), values in rates.items()}
    for name in names:
        for test in TESTS:
            pairs = zip(rates[name, test.name], rates[_WHEEL, test.name], strict=True)
            figures |= ratio_figures(f"ratio {name} {test.name}", [native / wheel for native, wheel in pairs])
    return figures


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    configuration = configuration_with(*options.folders)
    names = native_builds(options.folders, configuration)
    model = options.model or demo_path(configuration)
    rates = rates_of_rounds([_WHEEL, *names], model, options.rounds, configuration)
    bounds = [Bound(f"ratio {name} {test.name}", least=1.0) for name in names for test in TESTS]
    return report(figures_of(names, rates), bounds, as_json=options.json)


if __name__ == "__main__":
    run(main)
