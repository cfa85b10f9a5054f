"""Two boards, three models and six placements, made up: what the article was made for."""

from collections.abc import Callable
from random import Random

import pytest

from trilithon.measure.records import Campaign, Failure, PlacementRecord, QualityRecord, Run, Sample, Test

TESTS = (
    Test(kind="pp", prompt_tokens=512),
    Test(kind="tg", generated_tokens=128),
    Test(kind="question", question="tell me about openai"),
)
# prefill and decode of the smallest model on the first board
RATES = {
    "llama.cpp/cpu": (92.0, 21.0),
    "llama.cpp@native/cpu": (174.0, 22.6),
    "llama.cpp/gpu": (61.0, 9.3),
    "rk-llama.cpp/npu": (260.0, 15.1),
    "rkllm/npu": (512.0, 24.9),
    "rkllm/npu+llama.cpp@native/cpu": (500.0, 22.4),
}
BOARDS = {"Orange Pi 5 Plus · RK3588": 1.0, "Radxa Zero 3W · RK3566": 0.24}
MODELS = {("Qwen2.5 0.5B", "Q8_0"): 1.0, ("Qwen3 1.7B", "Q8_0"): 0.31, ("Qwen3 4B", "Q4_K_M"): 0.14}
SECOND = 10**9

Maker = Callable[..., Campaign]


def sample(test: Test, rates: tuple[float, float], noise: float) -> Sample:
    prefill, decode = (rate * noise for rate in rates)
    if test.kind == "pp":
        spent = round(512 / prefill * SECOND)
        return Sample(test=test, started_ns=0, finished_ns=spent, prompt_evaluated=512, prompt_ns=spent)
    spent = round(128 / decode * SECOND)
    if test.kind == "tg":
        return Sample(test=test, started_ns=0, finished_ns=spent, decode_steps=128, decode_ns=spent)
    first = round(40 / prefill * SECOND)
    return Sample(
        test=test,
        started_ns=0,
        finished_ns=first + spent,
        answer_at_ns=(first, first + spent),
        answer_text="word " * 90,
    )


def make(
    number: int, board: str, model: tuple[str, str], *, names: tuple[str, ...] = tuple(RATES), runs: int = 5
) -> Campaign:
    speed, dice = BOARDS.get(board, 1.0) * MODELS.get(model, 1.0), Random(number)
    qualities = {"rk-llama.cpp/npu": "degraded", "rkllm/npu": "unknown", "llama.cpp/cpu": "reference"}
    placements = tuple(
        PlacementRecord(
            name=name,
            engine=name.split("/")[0].split("@")[0],
            build="wheel",
            build_version="b7120",
            unit=name.rsplit("/", 1)[1],
            model={"name": model[0], "quantization": model[1], "parameters": 494_000_000},
            settings={"threads": 4},
            must_match={"prefill build": "rkllm 1"} if "+" in name else {},
            quality=QualityRecord(verdict=qualities.get(name, "same"), reference="llama.cpp/cpu"),  # type: ignore[arg-type]
        )
        for name in names
    )
    crash = Failure(kind="died", message="died: segmentation fault", cause="segmentation fault")
    measured = []
    for turn in range(runs):
        for name in names:
            common = {"placement": name, "round": turn, "started_ns": 0, "finished_ns": 1}
            if name == "llama.cpp/gpu" and "RK3566" in board:
                measured.append(Run(**common, outcome="failed", failure=crash))  # type: ignore[arg-type]
                continue
            rates = tuple(rate * speed for rate in RATES[name])
            samples = tuple(sample(test, rates, dice.gauss(1, 0.012)) for test in TESTS)  # type: ignore[arg-type]
            hot = ("npu at 81 °C: it slows down from 85 °C",) if name == "rkllm/npu" and turn == 3 else ()
            measured.append(Run(**common, outcome="finished", samples=samples, warnings=hot))  # type: ignore[arg-type]
    return Campaign(
        id=number,
        started=f"2026-11-{20 + number}T18:42:07+01:00",
        status="finished",
        source="trilithon",
        version="0.1.0",
        board={"description": f"{board} · 16 GiB", "model": board.split(" · ")[0], "npu": {"cores": 3}},
        plan={},
        placements=placements,
        runs=tuple(measured),
    )


@pytest.fixture(scope="session")
def made() -> Maker:
    return make


@pytest.fixture(scope="session")
def everything() -> list[Campaign]:
    """Six campaigns: 36 placements."""
    pairs = [(board, model) for board in BOARDS for model in MODELS]
    return [make(number, *pair) for number, pair in enumerate(pairs, start=1)]
