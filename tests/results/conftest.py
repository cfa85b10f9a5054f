"""A believable campaign, made up: five placements on an RK3588 board, of which one crashes and one is degraded."""

from dataclasses import dataclass, replace
from random import Random

import pytest

from trilithon.measure.metrics import METRICS
from trilithon.measure.records import Campaign, Failure, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.results.compare import ComparisonRow, Estimate, summarise

MODEL = "Qwen3 1.7B Q8_0"
PREFILL = Test(kind="pp", prompt_tokens=512)
DECODE = Test(kind="tg", generated_tokens=128)
QUESTION = Test(kind="question", question="tell me about openai")
RUNS = 5
CEILING = 24.1e9 / 1.83e9  # tokens per second that the memory of the board allows

# prefill and decode rate, seconds of thinking, words of the answer
_RATES = {
    "llama.cpp/cpu": (38.4, 9.6, 3.1, 143),
    "llama.cpp/gpu": None,
    "rk-llama.cpp/npu": (92.7, 8.9, 1.4, 131),
    "rkllm/npu": (171.0, 11.2, 1.1, 138),
    "llama.cpp@native/cpu": (71.2, 11.5, 1.9, 140),
}
_QUALITY = {
    "llama.cpp/cpu": QualityRecord(
        verdict="reference", reference="llama.cpp/cpu", positions=64, divergence=0.0, agreement=1.0, perplexity=14.21
    ),
    "rk-llama.cpp/npu": QualityRecord(
        verdict="degraded",
        reference="llama.cpp/cpu",
        positions=64,
        divergence=0.213,
        divergence_prefill=0.201,
        divergence_decode=0.225,
        agreement=0.797,
        perplexity=16.9,
        reasons=("divergence 0.213 is above 0.1",),
    ),
    "rkllm/npu": QualityRecord(
        verdict="unknown",
        reference="llama.cpp/cpu",
        reasons=("this engine gives no log-probabilities; its answer reads as text",),
    ),
    "llama.cpp@native/cpu": QualityRecord(
        verdict="same", reference="llama.cpp/cpu", positions=64, divergence=0.0007, agreement=0.984, perplexity=14.23
    ),
}
_CRASH = Failure(
    kind="died",
    message="llama.cpp/gpu died while it read the prompt: segmentation fault (SIGSEGV)",
    cause="segmentation fault",
    advice="try a newer Mesa (25.2 or later), or leave this placement out with --placement",
    last_words=("ggml_vulkan: Found 1 Vulkan devices:", "ggml_vulkan: 0 = Mali-G610 MC4 (panvk)"),
)
_ANSWER = (
    "OpenAI is an artificial intelligence company, founded in San Francisco in December 2015. It is known for the"
    " GPT family of language models and for ChatGPT, which made them known to a wide public.\n\nIt began as a"
    " non-profit and later added a company with capped profit."
)
_BOARD = {
    "description": "Orange Pi 5 Plus · RK3588 · 4×Cortex-A76 + 4×Cortex-A55 · 16 GiB · Linux 6.1.43",
    "model": "Orange Pi 5 Plus",
    "chip": "RK3588",
    "memory_bytes": 16 * 1024**3,
    "kernel": "6.1.43-rockchip-rk3588",
    "clusters": [
        {"cpus": [4, 5, 6, 7], "core_type": "Cortex-A76", "governor": "performance"},
        {"cpus": [0, 1, 2, 3], "core_type": "Cortex-A55", "governor": "performance"},
    ],
    "npu": {"driver": "rknpu", "version": "0.9.8", "cores": 3},
}


@dataclass(frozen=True)
class Example:
    campaign: Campaign
    rows: list[ComparisonRow]


@pytest.fixture(scope="session")
def example() -> Example:
    return Example(campaign=_campaign(), rows=summarise(_campaign()))


@pytest.fixture(scope="session")
def sweep() -> list[ComparisonRow]:
    """Prefill by prompt length and decode by depth; the GPU fails, the NPU is broken."""
    random, rows = Random(5), []
    for name, rate, verdict in [
        ("llama.cpp/cpu", 71.0, "reference"),
        ("llama.cpp/gpu", None, "unknown"),
        ("rk-llama.cpp/npu", 90.0, "broken"),
        ("rk-llama.cpp/npu+llama.cpp@native-armv8.2/cpu", 88.0, "same"),
        ("rkllm/npu", 171.0, "unknown"),
    ]:
        quality = QualityRecord(verdict=verdict, reference="llama.cpp/cpu")
        for tokens in (128, 256, 512, 1024, 2048):
            test = Test(kind="pp", prompt_tokens=tokens)
            values = [rate * (1 - tokens / 9000) * random.gauss(1, 0.02) for _ in range(RUNS)] if rate else []
            rows.append(_row(name, test, values, quality))
        for depth in (0, 4096, 8192):
            test = replace(DECODE, depth=depth)
            values = [rate / 8 * (1 - depth / 20000) * random.gauss(1, 0.02) for _ in range(RUNS)] if rate else []
            rows.append(_row(name, test, values, quality))
    return rows


def _sample(test: Test, rates: tuple[float, float, float, int], random: Random) -> Sample:
    prefill, decode, thinking, words = (value * random.gauss(1, 0.012) for value in rates)
    second = 10**9
    common = {"test": test, "started_ns": 0}
    if test.kind == "pp":
        spent = int(512 / prefill * second)
        return Sample(**common, finished_ns=spent, prompt_evaluated=512, prompt_ns=spent)
    if test.kind == "tg":
        spent = int(128 / decode * second)
        return Sample(**common, finished_ns=spent, decode_steps=128, decode_ns=spent)
    text = " ".join([_ANSWER] * 4).split(" ")[: round(words)]
    start, spent = int(thinking * second), int(words * 1.35 / decode * second)
    return Sample(
        **common,
        finished_ns=start + spent + second // 50,
        decode_steps=round(words * 1.35),
        decode_ns=spent,
        thinking_at_ns=(start // 3, start),
        answer_at_ns=(start, start + spent),
        thinking_text="The user asks about OpenAI. I should be brief.",
        answer_text=" ".join(text),
        stop_reason="stop",
    )


def _runs() -> tuple[Run, ...]:
    random = Random(3588)
    runs = []
    for index in range(RUNS):
        for name, rates in _RATES.items():
            common = {"placement": name, "round": index, "started_ns": 0, "finished_ns": 1}
            if rates is None:
                runs.append(Run(**common, outcome="failed", failure=_CRASH))
                continue
            samples = tuple(_sample(test, rates, random) for test in (PREFILL, DECODE, QUESTION))
            hot = ("npu at 81 °C: it slows down from 85 °C",) if name == "rkllm/npu" and index == 3 else ()
            given_up = ("runs with flash attention off",) if name == "rkllm/npu" else ()
            runs.append(Run(**common, outcome="finished", samples=samples, warnings=hot, remarks=given_up))
    return tuple(runs)


def _row(name: str, test: Test, values: list[float], quality: QualityRecord) -> ComparisonRow:
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2] if ordered else None
    return ComparisonRow(
        placement=name,
        model=MODEL,
        test=test,
        metric=METRICS[test.kind][0],
        estimate=Estimate(middle, ordered[0], ordered[-1], len(ordered)) if middle else None,
        quality=quality,
        fraction_of_bandwidth=middle / CEILING if middle and test.kind == "tg" and not test.depth else None,
        note="" if values else "failed 5 of 5: segmentation fault",
        values=tuple(values),
    )


def _placement(name: str) -> PlacementRecord:
    engine, unit = name.split("/")
    engine, _, build = engine.partition("@")
    version = {"llama.cpp": "b7120", "rk-llama.cpp": "b6822-rk2", "rkllm": "1.2.3"}[engine]
    return PlacementRecord(
        name=name,
        engine=engine,
        build=build or "wheel",
        build_version=version,
        unit=unit,
        model={
            "name": MODEL,
            "quantization": "Q8_0",
            "size_bytes": 1834426016,
            "parameters": 1720574976,
            "bytes_per_token": 1830000000,
            "sha256": "061b54daade076b5d3362dac252678d17da8c68f07560be70818cace6590cb1a",
        },
        settings={"threads": 4, "cpus": [4, 5, 6, 7], "flash_attention": "auto", "context": None},
        must_match={"board": "Orange Pi 5 Plus", "kernel": "6.1.43", "governors": "cpu4-7 performance"},
        bandwidth_bytes_per_second=24.1e9 if unit == "cpu" else None,
        quality=_QUALITY.get(name),
    )


def _campaign() -> Campaign:
    return Campaign(
        id=7,
        started="2026-11-20T18:42:07+01:00",
        status="finished",
        source="trilithon",
        version="0.1.0",
        board=_BOARD,
        plan={"rounds": RUNS, "time_budget_seconds": None},
        placements=tuple(map(_placement, _RATES)),
        runs=_runs(),
    )
