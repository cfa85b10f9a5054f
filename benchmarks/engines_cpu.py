"""Engines on the CPU side by side: rates, their ratio to a native llama.cpp's, and the quality of each, model by model.

    python benchmarks/engines_cpu.py [--build FOLDER ...] [--model MODEL ...] [--part PART ...] [--rounds 7] [--json]

FOLDER holds a llama-server of llama.cpp or ik_llama.cpp. Without one, every build for the CPU that was added or
compiled here is measured, with the wheel's llama.cpp always. MODEL is a GGUF file, or NAME:QUANTISATION of a model of
true size with random weights (`trilithon models synthesize` lists the names), which is made and kept in the cache; the
demo model where none is named. Each round runs every build, and the order alternates.

The parts are `rates` (pp512, tg128, and tg128's part of the memory bandwidth), `depth` (pp512 behind 4,096 tokens) and
`served`: 512 tokens in and 128 out through `trilithon serve`, from its engine directly, and from the first native
llama.cpp's llama-server with the arguments that Ollama passes. KL divergence and the share of equal first choices are
those of the quality check of `trilithon bench`, against the wheel. Models with random weights give almost equal
probabilities to thousands of tokens, where neither tells much; for them the share of the 64 most probable tokens that
are also the wheel's decides, which wrong kernels bring near 0. Bounds are for the fastest build that is "same": over
the first native llama.cpp, else over the wheel; the bounds on rates are for Q4_K_M and Q8_0. `load` is the load average
before and after: on a busy machine rates are low, and ratios hold within limits.
"""

import asyncio
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

import httpx
from _figures import Bound, CannotMeasure, Figure, arguments, attempted, count, not_measured, report, run
from _placements import TESTS, configuration_with, demo_path, opened, rates_of, ratio_figures, resolved
from _served import as_ollama_starts_it, asked_for, engine_of, prompt_for, served
from _server import private_folders

from trilithon.bench.quality import QualityReading, decode_positions, judge, read_quality
from trilithon.bench.setup import in_turn
from trilithon.bench.workloads import DEFAULT_QUESTION
from trilithon.board.bandwidth import measure_bandwidth
from trilithon.engines.base import Build, Placement
from trilithon.engines.table import engines
from trilithon.measure.divergence import SAME_DIVERGENCE
from trilithon.measure.metrics import fraction_of_bandwidth
from trilithon.measure.records import QualityRecord, Test
from trilithon.models.synthetic.architectures import find_architecture
from trilithon.models.synthetic.true_size import plan_synthetic, write_synthetic
from trilithon.packages import install_line
from trilithon.settings import Configuration

_WHEEL = "embedded"
_PARTS = {"rates": TESTS, "depth": (Test(kind="pp", prompt_tokens=512, depth=4096),), "served": ()}
_LEAST = {"pp512": 2.5, "tg128": 1.3}
_BOUNDED = ("Q4_K_M", "Q8_0")
# Of random weights, of a vocabulary of 152,000: seen are 0.86 to 0.94 for right kernels, by their rounding.
_SAME_CANDIDATES = 0.75
_LEAST_BYTES_OF_BANDWIDTH = 1_000_000_000  # smaller models are partly read from caches
_LEAST_OF_BANDWIDTH, _LEAST_SERVED, _LEAST_OVER_OLLAMA = 0.75, 0.98, 1.5
Rates = Mapping[tuple[str, str], Sequence[float]]
Figures = dict[str, Figure]


def builds_here(folders: Sequence[Path], configuration: Configuration) -> list[Build]:
    """The wheel's first, then those in `folders` or all others."""
    makers = [maker for maker in engines(configuration) if not maker.only_when_named]
    builds = [build for maker in makers for build in maker.builds() if "cpu" in build.units]
    wheel = [build for build in builds if build.name == _WHEEL]
    if not wheel:
        raise CannotMeasure(f"the wheel's llama.cpp is missing; run: {install_line('xllamacpp')}")
    wanted = {(folder / "llama-server").resolve() for folder in folders}
    others = [build for build in builds if build.name != _WHEEL and (not wanted or Path(build.where) in wanted)]
    if len(others) < max(len(wanted), 1):
        raise CannotMeasure("there is no other build for the CPU; run: trilithon engines build --engine ik")
    return wheel + others


def model_file(name: str, configuration: Configuration) -> Path:
    """The file, or the synthetic model of that name, which is made where it is not in the cache."""
    key, colon, quantization = name.rpartition(":")
    if not colon or Path(name).exists():
        return Path(name)
    synthetic = plan_synthetic(find_architecture(key), quantization)
    path = configuration.cache / "synthetic" / synthetic.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path if path.exists() else write_synthetic(synthetic, path)


def label_of(placement: Placement) -> str:
    return f"{placement.build.engine}@{placement.build.name}"


def native_of(placements: Sequence[Placement]) -> Placement:
    """The first llama.cpp that is not the wheel's, else the wheel's."""
    return next((p for p in placements[1:] if label_of(p).startswith("llama.cpp@")), placements[0])


def rates_in(
    placements: Sequence[Placement], tests: Sequence[Test], rounds: int, configuration: Configuration
) -> Rates:
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(rounds):
        for placement in in_turn(placements, number):
            for test, rate in asyncio.run(rates_of(placement, configuration, tests)).items():
                rates[label_of(placement), test].append(rate)
        latest = (f"{label} {test} {values[-1]:.1f}" for (label, test), values in rates.items())
        print(f"round {number + 1}: {', '.join(latest)}", file=sys.stderr)
    return rates


async def reading_of(placement: Placement, by_decode: int, configuration: Configuration) -> QualityReading:
    async with opened(placement, configuration) as runner:
        return await read_quality(runner, DEFAULT_QUESTION, by_decode)


def qualities(
    placements: Sequence[Placement], configuration: Configuration
) -> tuple[dict[str, QualityRecord], dict[str, float]]:
    """And the share of common candidates. The first of `placements` is the reference."""
    by_decode = max(decode_positions(placement, placements[0]) for placement in placements)
    readings = [asyncio.run(reading_of(placement, by_decode, configuration)) for placement in placements]
    pairs = zip(placements, [None, *[readings[0]] * (len(readings) - 1)], readings, strict=True)
    records = {label_of(p): judge(reading, against, label_of(placements[0])) for p, against, reading in pairs}
    shares = {
        label_of(p): common_candidates(reading, readings[0]) for p, reading in zip(placements, readings, strict=True)
    }
    return records, shares


def common_candidates(reading: QualityReading, reference: QualityReading) -> float:
    """The mean share of the tokens that `reference` lists as the most probable and that `reading` lists too."""
    pairs = [(reference.prefill, reading.prefill), (reference.decode, reading.decode)]
    return fmean(
        len(candidates.keys() & other[at].keys()) / len(candidates)
        for distributions, other in pairs
        for at, candidates in distributions.items()
        if at in other
    )


def verdict_of(record: QualityRecord, common: float, *, synthetic: bool) -> str:
    """Random weights speak no language, which the quality check calls broken: of them only the differences count."""
    if not synthetic:
        return record.verdict
    if record.divergence is None:
        return "reference"
    worst = max(record.divergence_prefill or 0.0, record.divergence_decode or 0.0)
    return "same" if worst <= SAME_DIVERGENCE and common >= _SAME_CANDIDATES else "different"


def quality_figures(
    model: str, records: Mapping[str, QualityRecord], shares: Mapping[str, float], verdicts: Mapping[str, str]
) -> Figures:
    figures: Figures = {}
    for label, record in records.items():
        figures[f"{model} {label} quality"] = verdicts[label]
        if record.divergence is not None and record.agreement is not None:
            figures[f"{model} {label} KL"], figures[f"{model} {label} top-1"] = record.divergence, record.agreement
            figures[f"{model} {label} common candidates"] = shares[label]
    return figures


def best_figures(name: str, ratios: Mapping[str, Sequence[float]], verdicts: Mapping[str, str]) -> Figures:
    """The ratios of the fastest build whose answers are the reference's."""
    same = [label for label in ratios if verdicts[label] in ("same", "reference")]
    best = max(same, key=lambda label: median(ratios[label]), default=None)
    if best is None:
        return {name: not_measured("no build is judged same")}
    return {**ratio_figures(name, ratios[best]), f"{name} is": best}


def rate_figures(model: str, placements: Sequence[Placement], rates: Rates, verdicts: Mapping[str, str]) -> Figures:
    native = label_of(native_of(placements))
    figures: Figures = {}
    for test in dict.fromkeys(test for _, test in rates):
        ratios = {}
        for label in map(label_of, placements):
            figures[f"{model} {label} {test} tokens/s"] = median(rates[label, test])
            pairs = zip(rates[label, test], rates[native, test], strict=True)
            ratios[label] = [rate / base for rate, base in pairs]
        figures |= best_figures(f"{model} best {test} over {native}", ratios, verdicts)
    return figures


def bandwidth_figures(model: str, placements: Sequence[Placement], rates: Rates) -> Figures:
    """The best build's, since it is the memory that limits it."""
    need = placements[0].file.bytes_per_token
    bandwidth = measure_bandwidth(placements[0].settings.cpus)
    figures: Figures = {f"{model} bandwidth GB/s": bandwidth / 1e9}
    name = f"{model} best tg128, part of bandwidth"
    if not need:
        return {**figures, name: not_measured("the bytes per token are not known")}
    best = max(median(rates[label_of(placement), "tg128"]) for placement in placements)
    return {**figures, name: fraction_of_bandwidth(best, need, bandwidth)}


def served_figures(
    model: str, placements: Sequence[Placement], verdicts: Mapping[str, str], rounds: int, spec_of: Mapping[str, str]
) -> Figures:
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    native = native_of(placements)
    path = placements[0].file.path
    with tempfile.TemporaryDirectory() as name:
        environment = private_folders(Path(name))
        for number in range(rounds):
            for placement in in_turn(placements, number):
                label = label_of(placement)
                folder = Path(placement.build.where).parent if placement.build.name != _WHEEL else None
                with (
                    served(path, spec_of[label], folder, environment) as server,
                    httpx.Client(base_url=server.url, timeout=None) as through,
                ):
                    prompt, plain = prompt_for(through)
                    asked_for(through, prompt, plain, tokens=2)  # loads the model, and warms up
                    with engine_of(server) as direct:
                        sides = [("served", through), ("direct", direct)]
                        for side, client in sides if number % 2 else reversed(sides):
                            seconds[label, side].append(asked_for(client, f"{number} {prompt}", plain))
            if native.build.name != _WHEEL:
                with as_ollama_starts_it(Path(native.build.where), path) as client:
                    asked_for(client, prompt, plain, tokens=2)
                    seconds["Ollama", "direct"].append(asked_for(client, f"{number} {prompt}", plain))
            latest = (f"{label} {side} {values[-1]:.2f} s" for (label, side), values in seconds.items())
            print(f"round {number + 1}: {', '.join(latest)}", file=sys.stderr)
    figures: Figures = {f"{model} {label} {side} s": median(values) for (label, side), values in seconds.items()}
    over = {label: _ratios(seconds[label, "direct"], seconds[label, "served"]) for label in map(label_of, placements)}
    ollama = seconds.get(("Ollama", "direct"))
    name = f"{model} best served over llama-server with Ollama's arguments"
    if not ollama:
        return {**figures, name: not_measured("it needs a native llama.cpp")}
    ratios = {label: _ratios(ollama, seconds[label, "served"]) for label in over}
    figures |= best_figures(name, ratios, verdicts)
    if best := figures.get(f"{name} is"):
        figures |= ratio_figures(f"{model} best served over the same directly", over[str(best)])
    return figures


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def bounds_of(figures: Figures, quantizations: Mapping[str, tuple[str, int]]) -> list[Bound]:
    bounds = []
    for model, (quantization, size_bytes) in quantizations.items():
        for name in figures:
            if not name.startswith(f"{model} best ") or name.endswith((" low", " high", " is")):
                continue
            test = name.removeprefix(f"{model} best ").partition(" over ")[0]
            if test in _LEAST and quantization in _BOUNDED:
                bounds.append(Bound(name, least=_LEAST[test]))
            elif (
                name.endswith("part of bandwidth")
                and quantization == "Q8_0"
                and size_bytes >= _LEAST_BYTES_OF_BANDWIDTH
            ):
                bounds.append(Bound(name, least=_LEAST_OF_BANDWIDTH))
            elif test == "served":
                over_ollama = name.endswith("Ollama's arguments")
                bounds.append(Bound(name, least=_LEAST_OVER_OLLAMA if over_ollama else _LEAST_SERVED))
    return bounds


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--build", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--model", action="append", default=[], metavar="MODEL")
    parser.add_argument("--part", choices=_PARTS, action="append", default=[], help="default: all")
    parser.add_argument("--rounds", type=count, default=7)
    parser.add_argument("--threads", type=count)
    options = parser.parse_args()
    configuration = configuration_with(*options.build)
    builds = builds_here(options.build, configuration)
    suffix = f":t={options.threads}" if options.threads else ""
    specs = [f"{build.engine}@{build.name}/cpu{suffix}" for build in builds]
    parts = options.part or list(_PARTS)
    figures: Figures = {"load before": os.getloadavg()[0]}
    kinds = {}
    for path in [model_file(name, configuration) for name in options.model] or [demo_path(configuration)]:
        tests = [test for part in parts for test in _PARTS[part]]
        placements = resolved(specs, path, tests or TESTS, configuration)
        file, model = placements[0].file, path.stem
        kinds[model] = (file.quantization or "", file.size_bytes)
        records, shares = qualities(resolved(specs, path, TESTS, configuration, keep_window=True), configuration)
        verdicts = {
            label: verdict_of(record, shares[label], synthetic=file.synthetic) for label, record in records.items()
        }
        figures |= quality_figures(model, records, shares, verdicts)
        if tests:
            rates = rates_in(placements, tests, options.rounds, configuration)
            figures |= rate_figures(model, placements, rates, verdicts)
        if "rates" in parts:
            figures |= bandwidth_figures(model, placements, rates)
        if "served" in parts:
            # In the server's own folders a build has no name: it is the first of its engine.
            spec_of = {
                label_of(p): spec if p.build.name == _WHEEL else f"{p.build.engine}/cpu{suffix}"
                for p, spec in zip(placements, specs, strict=True)
            }
            names = [f"{model} best served over llama-server with Ollama's arguments"]
            figures |= attempted(names, served_figures, model, placements, verdicts, options.rounds, spec_of)
    figures["load after"] = os.getloadavg()[0]
    return report(figures, bounds_of(figures, kinds), as_json=options.json)


if __name__ == "__main__":
    run(main)
