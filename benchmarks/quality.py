"""Whether the quality check tells a ruined model from a re-quantised one, on the demo model.

    python benchmarks/quality.py [--block 9] [--json]

Three copies are held against the original on the CPU: itself, one re-quantised to Q8_0, and one whose weights of one
block are scrambled. The last must be called broken, the others must not.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from _figures import Bound, Figure, arguments, report
from _placements import configuration_with, demo_path, opened, resolved

from trilithon.bench.quality import QualityReading, judge, read_quality
from trilithon.bench.workloads import DEFAULT_QUESTION
from trilithon.measure.records import QualityRecord
from trilithon.models.synthetic.tiny import requantise, scramble_block
from trilithon.settings import Configuration


async def read(model: Path, configuration: Configuration) -> QualityReading:
    (placement,) = resolved(["llama.cpp@embedded/cpu"], model, [], configuration, keep_window=True)
    async with opened(placement, configuration) as runner:
        return await read_quality(runner, DEFAULT_QUESTION)


def figures_of(name: str, record: QualityRecord) -> dict[str, Figure]:
    return {
        f"{name} verdict": record.verdict,
        f"{name} KL divergence": record.divergence,
        f"{name} top-1 agreement": record.agreement,
        f"{name} perplexity": record.perplexity,
    }


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--block", type=int, default=9, help="the block to scramble")
    words = parser.parse_args()
    configuration = configuration_with()
    original = demo_path(configuration)
    reference = asyncio.run(read(original, configuration))
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as folder:
        copies = {
            "itself": original,
            "requantised": requantise(original, Path(folder) / "requantised.gguf"),
            "scrambled": scramble_block(original, Path(folder) / "scrambled.gguf", block=words.block),
        }
        for name, copy in copies.items():
            print(f"reading {name}", file=sys.stderr)
            record = judge(asyncio.run(read(copy, configuration)), reference, original.name)
            figures |= figures_of(name, record)
            figures[f"{name} called broken"] = int(record.verdict == "broken")
    bounds = [
        Bound("scrambled called broken", least=1, most=1),
        Bound("requantised called broken", least=0, most=0),
        Bound("itself called broken", least=0, most=0),
        Bound("itself KL divergence", most=0.001),
    ]
    return report(figures, bounds, as_json=words.json)


if __name__ == "__main__":
    sys.exit(main())
