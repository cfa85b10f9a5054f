"""Whether our pp512 and tg128 are llama-bench's: the same native build, interleaved, as a ratio of rates.

    python benchmarks/fidelity.py FOLDER [--rounds 10] [--model FILE] [--json]

FOLDER holds llama-server and llama-bench of one build. Each round runs both, in turn first; the figures are medians
over rounds, and the ratio is the median of the rounds' ratios, so that drift of the machine cancels; low and high are
its 95% interval. The bound is on the median.
"""

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from _figures import Bound, Figure, arguments, report
from _placements import TESTS, configuration_with, demo_path, rates_of, resolved

from trilithon.engines.base import Placement
from trilithon.measure.statistics import interval


def llama_bench(program: Path, placement: Placement) -> dict[str, float]:
    """One repetition of each test, with the placement's own threads and micro-batch."""
    settings = placement.settings
    pinned = ["taskset", "-c", ",".join(map(str, settings.cpus))] if settings.cpus else []
    words = [*pinned, program, "-m", placement.file.path, "-p", 512, "-n", 128, "-r", 1, "-o", "json", "-ngl", 0]
    words += ["-t", settings.threads, "-ub", settings.micro_batch, "-b", settings.batch, "-fa", "auto"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{program} failed: {done.stderr.strip().splitlines()[-1:]}")
    rows = json.loads(done.stdout)
    return {f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}": row["avg_ts"] for row in rows}


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--model", type=Path)
    words = parser.parse_args()
    configuration = configuration_with(words.folder)
    model = words.model or demo_path(configuration)
    (placement,) = resolved(["llama.cpp@native/cpu"], model, TESTS, configuration)
    rates: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    for number in range(words.rounds):
        sides = {}
        for side in ("ours", "llama-bench") if number % 2 else ("llama-bench", "ours"):
            if side == "ours":
                sides[side] = asyncio.run(rates_of(placement, configuration))
            else:
                sides[side] = llama_bench(words.folder / "llama-bench", placement)
        for test in TESTS:
            ratios[test.name].append(sides["ours"][test.name] / sides["llama-bench"][test.name])
            for side, figures in sides.items():
                rates[f"{side} {test.name} tokens/s"].append(figures[test.name])
        print(f"round {number + 1}: " + ", ".join(f"{t} {r[-1]:.3f}" for t, r in ratios.items()), file=sys.stderr)
    figures: dict[str, Figure] = {name: median(values) for name, values in rates.items()}
    for name, values in ratios.items():
        found = interval(values)
        figures |= {f"ratio {name}": found.median, f"ratio {name} low": found.low, f"ratio {name} high": found.high}
    bounds = [Bound(f"ratio {test.name}", least=0.97, most=1.03) for test in TESTS]
    return report(figures, bounds, as_json=words.json)


if __name__ == "__main__":
    sys.exit(main())
