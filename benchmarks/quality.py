"""Whether the quality check tells a damaged model from a re-quantised one, on the demo model or on FILE.

    python benchmarks/quality.py [--model FILE] [--block 9] [--json]

Three copies are compared with the original on the CPU: the original itself, a copy re-quantised to Q8_0, and a copy
with the weights of one block scrambled. The last must be called broken, the other two must not.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from _figures import Bound, Figure, arguments, attempted, not_measured, report, run
from _placements import configuration_with, demo_path, opened, resolved

from trilithon.bench.quality import QualityReading, judge, read_quality
from trilithon.bench.workloads import DEFAULT_QUESTION
from trilithon.measure.records import QualityRecord
from trilithon.models.synthetic.tiny import requantise, scramble_block
from trilithon.settings import Configuration

_BOUNDS = [
    Bound("scrambled called broken", least=1, most=1),
    Bound("requantised called broken", least=0, most=0),
    Bound("itself called broken", least=0, most=0),
    Bound("itself KL divergence", most=0.001),
]


async def read(model: Path, configuration: Configuration) -> QualityReading:
    (placement,) = resolved(["llama.cpp@embedded/cpu"], model, [], configuration, keep_window=True)
    async with opened(placement, configuration) as runner:
        return await read_quality(runner, DEFAULT_QUESTION)


def figures_of(name: str, record: QualityRecord) -> dict[str, Figure]:
    measured = {
        f"{name} KL divergence": record.divergence,
        f"{name} top-1 agreement": record.agreement,
        f"{name} perplexity": record.perplexity,
    }
    reasons = not_measured("; ".join(record.reasons) or "the engine gives no probabilities")
    return {
        f"{name} verdict": record.verdict,
        **{label: reasons if value is None else value for label, value in measured.items()},
        f"{name} called broken": int(record.verdict == "broken"),
    }


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--block", type=int, default=9, help="the block to scramble")
    parser.add_argument("--model", type=Path, metavar="FILE")
    options = parser.parse_args()
    configuration = configuration_with()
    original = options.model or demo_path(configuration)
    reference = asyncio.run(read(original, configuration))
    figures: dict[str, Figure] = {}

    def judged(name: str, copy: Callable[[], Path]) -> dict[str, Figure]:
        print(f"reading {name}", file=sys.stderr)
        return figures_of(name, judge(asyncio.run(read(copy(), configuration)), reference, original.name))

    with tempfile.TemporaryDirectory() as folder:
        copies: dict[str, Callable[[], Path]] = {
            "itself": lambda: original,
            "requantised": lambda: requantise(original, Path(folder) / "requantised.gguf"),
            "scrambled": lambda: scramble_block(original, Path(folder) / "scrambled.gguf", block=options.block),
        }
        for name, copy in copies.items():
            names = [bound.figure for bound in _BOUNDS if bound.figure.startswith(name)]
            figures |= attempted(names, judged, name, copy)
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
