"""Whether pp512 and tg128 agree with llama-bench: the same native build, interleaved, as a ratio of rates.

    python benchmarks/fidelity.py FOLDER [--rounds 10] [--model FILE] [--json]

FOLDER holds llama-server and llama-bench of one build. Each round runs both, and the order alternates. The rates are
medians over the rounds. The ratio is the median of the rounds' ratios, so that drift of the machine cancels; low and
high are its 95% interval. The bound is on the median.
"""

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from _figures import Bound, CannotMeasure, Figure, arguments, count, report, run
from _placements import ENGINE, TESTS, build_in, configuration_with, demo_path, rates_of, ratio_figures, resolved

from trilithon.engines.base import Placement
from trilithon.settings import Configuration

_OURS, _THEIRS = "ours", "llama-bench"
_BOUNDS = [Bound(f"ratio {test.name}", least=0.97, most=1.03) for test in TESTS]


def llama_bench(program: Path, placement: Placement) -> dict[str, float]:
    """One repetition of each test, with the placement's own threads and micro-batch."""
    settings = placement.settings
    pinned = ["taskset", "-c", ",".join(map(str, settings.cpus))] if settings.cpus else []
    words = [*pinned, program, "-m", placement.file.path, "-p", 512, "-n", 128, "-r", 1, "-o", "json", "-ngl", 0]
    words += ["-t", settings.threads, "-ub", settings.micro_batch, "-b", settings.batch, "-fa", "auto"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasure(f"{program} failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    rows = json.loads(done.stdout)
    return {f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}": row["avg_ts"] for row in rows}


def one_round(
    number: int, placement: Placement, program: Path, configuration: Configuration
) -> dict[str, dict[str, float]]:
    """Tokens per second by side and test."""
    rates = {}
    for side in (_OURS, _THEIRS) if number % 2 else (_THEIRS, _OURS):
        if side == _OURS:
            rates[side] = asyncio.run(rates_of(placement, configuration))
        else:
            rates[side] = llama_bench(program, placement)
    ratios = (f"{test.name} {rates[_OURS][test.name] / rates[_THEIRS][test.name]:.3f}" for test in TESTS)
    print(f"round {number + 1}: {', '.join(ratios)}", file=sys.stderr)
    return rates


def figures_of(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Figure]:
    rates: dict[str, list[float]] = defaultdict(list)
    for rates_by_side in rounds:
        for side, rates_by_test in rates_by_side.items():
            for name, rate in rates_by_test.items():
                rates[f"{side} {name} tokens/s"].append(rate)
    figures: dict[str, Figure] = {name: median(values) for name, values in rates.items()}
    for test in TESTS:
        ratios = [of_round[_OURS][test.name] / of_round[_THEIRS][test.name] for of_round in rounds]
        figures |= ratio_figures(f"ratio {test.name}", ratios)
    return figures


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=count, default=10)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    program = options.folder / "llama-bench"
    if not program.is_file():
        raise CannotMeasure(f"{options.folder} holds no llama-bench; name the folder of a build that has it")
    configuration = configuration_with(options.folder)
    spec = f"{ENGINE}@{build_in(options.folder, configuration)}/cpu"
    (placement,) = resolved([spec], options.model or demo_path(configuration), TESTS, configuration)
    rounds = [one_round(number, placement, program, configuration) for number in range(options.rounds)]
    return report(figures_of(rounds), _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
