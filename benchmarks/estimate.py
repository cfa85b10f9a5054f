"""How far estimates of speed are from published measurements of models that the fit has not seen.

    python benchmarks/estimate.py [--rows FILE] [--json]
    python benchmarks/estimate.py --models
    python benchmarks/estimate.py --memory [--every N]
    python benchmarks/estimate.py --here

Without `--rows` whole models are left out of the atlas, one after the other, and the rest is fitted; with it the
effects of the package are judged on the rows of FILE, a CSV file with the columns of the atlas. A row that cannot be
judged is refused on stderr, with the reason. The author of a row counts as unknown. The baselines use one bandwidth or
one rate of operations per machine, from the rows of other models ("constant"), or 0.85 of the memory's peak ("peak"),
as public calculators do. The kernel path of a CPU build is given: it is seen in the rate that the build's rows of one
quantisation reach. `--models` prints the errors per model.

`--memory` compares memory with what a process of llama.cpp has here, for every Nth of the cases below 3 GiB (8 models
of true size with random weights, 3 quantisations, 3 contexts), and with the memory column of RKLLM's maker. `--here`
runs a campaign of one model, and compares the estimates that it shifts with the speeds of the others.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from _estimated import errors_here, memory_errors
from _figures import Bound, Figure, arguments, count, report, run

from trilithon.errors import UserError
from trilithon.estimate.memory import vendor_memory
from trilithon.estimate.predict import PHASES, Phase, fitted
from trilithon.estimate.rows import Measurement, atlas, checked_rows, why_dropped
from trilithon.estimate.sizes import size_named
from trilithon.estimate.terms import case_of, machine_rates
from trilithon.estimate.training import Residual, TrainingRow, errors_left_out, quantile, residual, training_rows

# Group of the issue → groups of the package and the phase.
GROUPS: dict[str, tuple[Phase, str]] = {
    "RKLLM decode, maker's rows": ("decode", "vendor-npu"),
    "RKLLM first token, maker's rows": ("prefill", "vendor-npu"),
    "RKLLM decode, users' rows": ("decode", "vendor-npu user"),
    "CPU decode, RK3588": ("decode", "cpu board"),
    "CPU prefill, RK3588, kernel path given": ("prefill", "cpu board"),
    "NPU GGUF decode": ("decode", "fork-npu"),
    "NPU GGUF prefill": ("prefill", "fork-npu"),
}
LIMITS = {
    "RKLLM decode, maker's rows": (4.5, 15),
    "RKLLM first token, maker's rows": (8, 30),
    "RKLLM decode, users' rows": (13, 40),
    "CPU decode, RK3588": (15, 40),
    "CPU prefill, RK3588, kernel path given": (22, 50),
    "NPU GGUF decode": (15, 60),
}
CAMPAIGN_LIMITS: dict[Phase, float] = {"decode": 9, "prefill": 11}
LEAST_MODELS = 5
# A campaign's own deviation from strangers, and the noise of one measurement (logarithms).
_CAMPAIGN, _NOISE = 0.25, 0.08
_PEAK_SHARE = 0.85
_MAKERS_MEMORY, _MAKERS_CONTEXT = "airockchip/rknn-llm benchmark.md", 320
_CAMPAIGN_MODEL, _CAMPAIGN_QUANTIZATION = "qwen2.5-0.5b", "Q4_0"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=Path, help="judge the package's effects on the rows of this file")
    parser.add_argument("--models", action="store_true", help="print the errors per model")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of judging speeds")
    parser.add_argument("--every", type=count, default=1, metavar="N", help="of --memory: measure every Nth case")
    parser.add_argument("--here", action="store_true", help="measure speeds after one campaign on this machine")
    options = parser.parse_args()
    if options.memory or options.here:
        return report(*(measured_memory(options.every) if options.memory else measured_here()), as_json=options.json)
    figures: dict[str, Figure] = {}
    bounds: list[Bound] = []
    rows = judgeable_rows(options.rows, figures) if options.rows else atlas()
    errors: dict[Phase, list[Residual]] = {}
    for phase in PHASES:
        points = training_rows(rows, phase)
        if options.rows:
            errors[phase] = [residual(point, fitted()[phase].effects) for point in points]
        else:
            errors[phase] = errors_left_out(points)
    for name, (phase, group) in GROUPS.items():
        seen = [error for error in errors[phase] if error.point.group == group and _on_rk3588(name, error)]
        judge(name, phase, group, seen, figures, bounds, nested=options.rows is None)
    if options.rows:
        judge_others(errors, figures)
    if options.rows is None:
        for phase, limit in CAMPAIGN_LIMITS.items():
            judge_campaigns(f"CPU {phase} after one campaign", errors[phase], limit, figures, bounds)
    if options.models:
        print_models(error for phase in PHASES for error in errors[phase])
    return report(figures, bounds, as_json=options.json)


def judgeable_rows(path: Path, figures: dict[str, Figure]) -> list[Measurement]:
    """The rows of a file that say enough. Raises UserError for a file of which no row does."""
    rows, refusals = [], []
    for row in checked_rows(path):
        reason = str(row) if isinstance(row, UserError) else why_not_judged(row)
        if reason:
            refusals.append(reason)
        elif isinstance(row, Measurement):
            rows.append(row)
    for reason in refusals:
        print(f"refused: {reason}", file=sys.stderr)
    figures["rows judged"], figures["rows refused"] = len(rows), len(refusals)
    if not rows:
        raise UserError("{path} has no row that can be judged; {count} were refused", path=path, count=len(refusals))
    return rows


def why_not_judged(row: Measurement) -> str:
    """Empty for a row that is a point of one of the phases."""
    place = f"{row.source}, {row.model} {row.quant} on {row.machine}"
    if reason := why_dropped(row):
        return f"{place}: {reason}"
    if size_named(row.model, row.params_b) is None:
        return f"{place}: the size of the model is unknown; state params_b"
    if case_of(row) is None:
        return f"{place}: unknown quantisation"
    if not any(training_rows([row], phase) for phase in PHASES):
        return f"{place}: no prefill or decode speed, and no ttft_ms with prompt_tokens"
    return ""


def judge_others(errors: Mapping[Phase, Sequence[Residual]], figures: dict[str, Figure]) -> None:
    """Rows that are in no group of the issue: other engines, machines and units."""
    for phase, residuals in errors.items():
        others: dict[str, list[Residual]] = defaultdict(list)
        for error in residuals:
            group = error.point.group
            if not any((phase, group) == named and _on_rk3588(name, error) for name, named in GROUPS.items()):
                others[group].append(error)
        for group, seen in sorted(others.items()):
            judge(f"other {phase}, {group}", phase, group, seen, figures, [], nested=False)


def measured_memory(every: int) -> tuple[dict[str, Figure], list[Bound]]:
    shares = {name: _percent(error) for name, error in memory_errors(every)}
    maker = [_percent(error) for error in maker_memory_errors()]
    figures: dict[str, Figure] = {
        "llama.cpp memory: cases": len(shares),
        "llama.cpp memory: median %": median(shares.values()),
        "llama.cpp memory: largest %": max(shares.values()),
        "llama.cpp memory: largest of": max(shares, key=lambda name: shares[name]),
        "RKLLM memory, maker's rows: rows": len(maker),
        "RKLLM memory, maker's rows: median %": median(maker),
    }
    bounds = [Bound("llama.cpp memory: largest %", most=5), Bound("RKLLM memory, maker's rows: median %", most=3)]
    return figures, bounds


def maker_memory_errors() -> Iterable[float]:
    """Of the maker's benchmark.md, which names no context: 320 tokens, as its README states of the same models."""
    for row in atlas():
        case = case_of(row) if row.memory_mb and row.source == _MAKERS_MEMORY else None
        if case is not None and row.memory_mb:
            estimated = vendor_memory(case.size, case.weights, _MAKERS_CONTEXT).total
            yield math.log(estimated / (row.memory_mb * (1 << 20)))


def measured_here() -> tuple[dict[str, Figure], list[Bound]]:
    errors = list(errors_here(_CAMPAIGN_MODEL, _CAMPAIGN_QUANTIZATION))
    figures: dict[str, Figure] = {f"{key} {phase} %": _percent(error) for key, phase, error in errors}
    names = {phase: f"{phase} after one campaign here: median %" for phase in PHASES}
    for phase, name in names.items():
        figures[name] = median(_percent(error) for _, other, error in errors if other == phase)
    return figures, [Bound(name, most=10) for name in names.values()]


def _percent(error: float) -> float:
    return abs(math.exp(error) - 1) * 100


def judge(
    name: str,
    phase: Phase,
    group: str,
    seen: Sequence[Residual],
    figures: dict[str, Figure],
    bounds: list[Bound],
    *,
    nested: bool,
) -> None:
    """Median and 90th percentile of the errors in percent, coverage of the intervals, and the baselines."""
    if not seen:
        return
    shares = sorted(abs(math.exp(error.error) - 1) * 100 for error in seen)
    models = len({error.point.case.size.key for error in seen})
    figures[f"{name}: rows"], figures[f"{name}: models"] = len(shares), models
    figures[f"{name}: median %"] = median(shares)
    figures[f"{name}: p90 %"] = shares[min(int(0.9 * len(shares)), len(shares) - 1)]
    for number, (level, (least, most)) in enumerate({0.80: (75, 87), 0.95: (92, None)}.items()):
        figure = f"{name}: held by {level:.0%} intervals %"
        multiple = None if nested else fitted()[phase].multiples.get(group, (math.inf, math.inf))[number]
        figures[figure] = 100 * coverage(seen, level, multiple)
        if models >= LEAST_MODELS and name in LIMITS:
            bounds.append(Bound(figure, least, most))
    for baseline, value in baselines(phase, [error.point for error in seen]).items():
        figures[f"{name}: {baseline}, median %"] = value
    if name in LIMITS:
        bounds += [
            Bound(f"{name}: {what} %", most=most) for what, most in zip(("median", "p90"), LIMITS[name], strict=True)
        ]


def coverage(seen: Sequence[Residual], level: float, multiple: float | None) -> float:
    """The share of rows within the interval, in the mean of the models; `multiple` None: from the other models."""
    held = []
    for model in {error.point.case.size.key for error in seen}:
        others = [error for error in seen if error.point.case.size.key != model]
        if multiple is None and not others:
            continue
        reach = quantile(others, level) if multiple is None else multiple
        judged = [error for error in seen if error.point.case.size.key == model]
        held.append(sum(abs(error.error) <= reach * error.scale for error in judged) / len(judged))
    return sum(held) / len(held) if held else math.nan


def judge_campaigns(
    name: str, errors: Sequence[Residual], limit: float, figures: dict[str, Figure], bounds: list[Bound]
) -> None:
    """An author's rows of one model shift the estimates of the other models on the same board and engine, as a campaign
    here does."""
    sources: dict[tuple[str, ...], dict[str, list[Residual]]] = defaultdict(lambda: defaultdict(list))
    for error in errors:
        if error.point.group == "cpu board":
            row = error.point.row
            sources[row.source, row.machine, row.board, row.engine][error.point.case.size.key].append(error)
    shares = []
    for models in sources.values():
        for model, campaign in models.items():
            shift = sum(error.error for error in campaign) / (len(campaign) + (_NOISE / _CAMPAIGN) ** 2)
            shares += [
                abs(math.exp(error.error - shift) - 1) * 100
                for other, judged in models.items()
                if other != model
                for error in judged
            ]
    figures[f"{name}: median %"] = median(shares)
    bounds.append(Bound(f"{name}: median %", most=limit))


def baselines(phase: Phase, points: Sequence[TrainingRow]) -> dict[str, float]:
    """The median error of one rate per machine (of the other models), and of 0.85 of the memory's peak."""
    work = [(point, _work(phase, point)) for point in points]
    constant, peak = [], []
    for point, amount in work:
        others = [
            amount_there / other.observation.seconds
            for other, amount_there in work
            if other.row.machine == point.row.machine and other.case.size.key != point.case.size.key
        ]
        if others:
            constant.append(abs(median(others) / (amount / point.observation.seconds) - 1) * 100)
        if (rate := machine_rates(point.row.machine).get("bandwidth")) and phase == "decode":
            peak.append(abs(_PEAK_SHARE * rate / (amount / point.observation.seconds) - 1) * 100)
    errors = {"constant rate": constant, "0.85 of the peak": peak}
    return {name: median(shares) for name, shares in errors.items() if shares}


def _work(phase: Phase, point: TrainingRow) -> float:
    """Gigabytes of one token, or billions of operations of a prompt."""
    case = point.case
    if phase == "decode":
        return (case.weights.body + case.weights.head) / 1e9
    return 2 * case.size.read * case.prompt / 1e9


def _on_rk3588(name: str, error: Residual) -> bool:
    return "RK3588" not in name or error.point.row.chip.startswith("RK3588")


def print_models(errors: Iterable[Residual]) -> None:
    per_model: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for error in errors:
        point = error.point
        key = (point.group, point.case.size.key, point.row.machine, point.row.quant, point.row.source)
        per_model[key].append(100 * (math.exp(error.error) - 1))
    for names, shares in sorted(per_model.items()):
        print(*names, " ".join(f"{share:+.0f}%" for share in shares), sep="  ")


if __name__ == "__main__":
    run(main)
