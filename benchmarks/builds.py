"""What compiling for this very CPU gains: each native build against the wheel's server, interleaved, as a ratio.

    python benchmarks/builds.py [FOLDER ...] [--rounds 5] [--model FILE] [--json]

FOLDER holds a llama-server; without one, every build that was added or made here is taken. Each round runs every
build, in turn first; the rates are medians over rounds, and the ratio is the median of the rounds' ratios, so that
drift of the machine cancels; low and high are its 95% interval.
"""

import asyncio
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from _figures import Bound, Figure, arguments, report
from _placements import TESTS, configuration_with, demo_path, rates_of, resolved

from trilithon.bench.setup import in_turn
from trilithon.engines.table import engine
from trilithon.measure.statistics import interval
from trilithon.settings import Configuration

ENGINE, WHEEL = "llama.cpp", "embedded"


def native_builds(folders: list[Path], configuration: Configuration) -> list[str]:
    """Their names: of those in `folders`, or of all that run on the CPU but the wheel's."""
    wanted = {(folder / "llama-server").resolve() for folder in folders}
    builds = [b for b in engine(ENGINE, configuration).builds() if "cpu" in b.units and b.name != WHEEL]
    found = {Path(b.where): b.name for b in builds if not wanted or Path(b.where) in wanted}
    if missing := wanted - found.keys():
        sys.exit(f"no build in {', '.join(str(path.parent) for path in missing)}")
    return list(found.values()) or sys.exit("no native build here; run: trilithon engines build")


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    words = parser.parse_args()
    configuration = configuration_with(*words.folders)
    names = native_builds(words.folders, configuration)
    model = words.model or demo_path(configuration)
    placements = resolved([f"{ENGINE}@{name}/cpu" for name in (WHEEL, *names)], model, TESTS, configuration)
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(words.rounds):
        for placement in in_turn(placements, number):
            for test, rate in asyncio.run(rates_of(placement, configuration)).items():
                rates[placement.build.name, test].append(rate)
        latest = (f"{name} {test.name} {rates[name, test.name][-1]:.1f}" for name in (WHEEL, *names) for test in TESTS)
        print(f"round {number + 1}: {', '.join(latest)}", file=sys.stderr)
    figures: dict[str, Figure] = {f"{name} {test} tokens/s": median(values) for (name, test), values in rates.items()}
    for name in names:
        for test in TESTS:
            pairs = zip(rates[name, test.name], rates[WHEEL, test.name], strict=True)
            found, label = interval([native / wheel for native, wheel in pairs]), f"ratio {name} {test.name}"
            figures |= {label: found.median, f"{label} low": found.low, f"{label} high": found.high}
    bounds = [Bound(f"ratio {name} {test.name}", least=1.0) for name in names for test in TESTS]
    return report(figures, bounds, as_json=words.json)


if __name__ == "__main__":
    sys.exit(main())
