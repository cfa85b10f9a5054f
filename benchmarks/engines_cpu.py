"""Engines on the CPU side by side: rates, their ratio to a native llama.cpp's, and the quality of each, model by model.

    python benchmarks/engines_cpu.py [--build FOLDER ...] [--rounds 7] [--model FILE ...] [--threads N] [--json]

FOLDER holds a llama-server of llama.cpp or ik_llama.cpp. Without one, every build for the CPU that was added or
compiled here is measured, with the wheel's llama.cpp always. Each round runs every build, and the order alternates.
KL divergence and the share of equal first choices are those of the quality check of `trilithon bench`, against the
wheel. Bounds are for the fastest build that is judged "same": over the first native llama.cpp, else over the wheel.
`trilithon synthesize` writes models of the true size of others.
"""

import asyncio
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from _figures import Bound, CannotMeasure, Figure, arguments, count, not_measured, report, run
from _placements import TESTS, configuration_with, demo_path, opened, rates_of, ratio_figures, resolved

from trilithon.bench.quality import QualityReading, judge, read_quality
from trilithon.bench.setup import in_turn
from trilithon.bench.workloads import DEFAULT_QUESTION
from trilithon.engines.base import Build, Placement
from trilithon.engines.table import engines
from trilithon.measure.records import QualityRecord
from trilithon.settings import Configuration

_WHEEL = "embedded"
_LEAST = {"pp512": 2.5, "tg128": 1.3}
Rates = Mapping[tuple[str, str], Sequence[float]]


def builds_here(folders: Sequence[Path], configuration: Configuration) -> list[Build]:
    """The wheel's first, then those in `folders` or all others."""
    makers = [maker for maker in engines(configuration) if not maker.only_when_named]
    builds = [build for maker in makers for build in maker.builds() if "cpu" in build.units]
    wheel = [build for build in builds if build.name == _WHEEL]
    if not wheel:
        raise CannotMeasure("the wheel's llama.cpp is missing; run: pip install xllamacpp")
    wanted = {(folder / "llama-server").resolve() for folder in folders}
    others = [build for build in builds if build.name != _WHEEL and (not wanted or Path(build.where) in wanted)]
    if len(others) < max(len(wanted), 1):
        raise CannotMeasure("there is no other build for the CPU; run: trilithon engines build --engine ik")
    return wheel + others


def label_of(placement: Placement) -> str:
    return f"{placement.build.engine}@{placement.build.name}"


def rates_in(placements: Sequence[Placement], rounds: int, configuration: Configuration) -> Rates:
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(rounds):
        for placement in in_turn(placements, number):
            for test, rate in asyncio.run(rates_of(placement, configuration)).items():
                rates[label_of(placement), test].append(rate)
        latest = (f"{label} {test} {values[-1]:.1f}" for (label, test), values in rates.items())
        print(f"round {number + 1}: {', '.join(latest)}", file=sys.stderr)
    return rates


async def reading_of(placement: Placement, configuration: Configuration) -> QualityReading:
    async with opened(placement, configuration) as runner:
        return await read_quality(runner, DEFAULT_QUESTION)


def qualities(placements: Sequence[Placement], configuration: Configuration) -> dict[str, QualityRecord]:
    """The first of `placements` is the reference."""
    readings = [asyncio.run(reading_of(placement, configuration)) for placement in placements]
    pairs = zip(placements, [None, *[readings[0]] * (len(readings) - 1)], readings, strict=True)
    return {label_of(p): judge(reading, against, label_of(placements[0])) for p, against, reading in pairs}


def figures_of(
    model: str, placements: Sequence[Placement], rates: Rates, quality: Mapping[str, QualityRecord]
) -> dict[str, Figure]:
    labels = [label_of(placement) for placement in placements]
    native = next((label for label in labels[1:] if label.startswith("llama.cpp@")), labels[0])
    figures: dict[str, Figure] = {}
    for label in labels:
        record = quality.get(label)
        figures[f"{model} {label} quality"] = record.verdict if record else "not checked: random weights"
        if record and record.divergence is not None and record.agreement is not None:
            figures[f"{model} {label} KL"], figures[f"{model} {label} top-1"] = record.divergence, record.agreement
    for test in (test.name for test in TESTS):
        ratios = {}
        for label in labels:
            figures[f"{model} {label} {test} tokens/s"] = median(rates[label, test])
            pairs = zip(rates[label, test], rates[native, test], strict=True)
            ratios[label] = [rate / base for rate, base in pairs]
        same = [label for label in labels if not quality or quality[label].verdict in ("same", "reference")]
        best = max(same, key=lambda label: median(ratios[label]), default=None)
        name = f"{model} best {test} over {native}"
        figures |= ratio_figures(name, ratios[best]) if best else {name: not_measured("no build is judged same")}
    return figures


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--build", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--model", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--rounds", type=count, default=7)
    parser.add_argument("--threads", type=count)
    options = parser.parse_args()
    configuration = configuration_with(*options.build)
    builds = builds_here(options.build, configuration)
    suffix = f":t={options.threads}" if options.threads else ""
    specs = [f"{build.engine}@{build.name}/cpu{suffix}" for build in builds]
    figures: dict[str, Figure] = {}
    for path in options.model or [demo_path(configuration)]:
        placements = resolved(specs, path, TESTS, configuration)
        windowed = resolved(specs, path, TESTS, configuration, keep_window=True)
        quality = {} if placements[0].file.synthetic else qualities(windowed, configuration)
        figures |= figures_of(path.stem, placements, rates_in(placements, options.rounds, configuration), quality)
    bounds = [
        Bound(name, least=_LEAST[test.name])
        for test in TESTS
        for name in figures
        if f" best {test.name} over " in name and not name.endswith((" low", " high"))
    ]
    return report(figures, bounds, as_json=options.json)


if __name__ == "__main__":
    run(main)
