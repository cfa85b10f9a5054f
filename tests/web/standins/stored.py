"""A store of results, made by the project's own writer: campaigns of five placements, of which one fails."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from trilithon.measure.records import Campaign, Failure, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.results.store.database import Store

__all__ = ["campaign", "fill"]

PREFILL, DECODE = Test(kind="pp", prompt_tokens=512), Test(kind="tg", generated_tokens=128)
_RATES = {
    "llama.cpp/cpu": (38.4, 9.6),
    "llama.cpp/gpu": None,
    "rk-llama.cpp/npu": (92.7, 8.9),
    "rkllm/npu": (171.0, 11.2),
    "llama.cpp@native/cpu": (71.2, 11.5),
}
_MODELS = (("Qwen3 1.7B", "Q8_0", 1834426016, 1720574976), ("Gemma 3 270M", "Q4_K_M", 253000000, 268000000))
_BEGIN = datetime(2026, 11, 1, 12, tzinfo=UTC)
_CRASH = Failure(kind="died", message="died: segmentation fault (SIGSEGV)", cause="segmentation fault")


def fill(database: Path, campaigns: int, runs: int = 5) -> None:
    """Every other campaign is of another model, each a day later than the one before."""
    with Store.open(database) as store:
        for index in range(campaigns):
            store.add(campaign(index, runs))


def campaign(index: int, runs: int = 5) -> Campaign:
    return Campaign(
        id=0,
        started=(_BEGIN + timedelta(days=index)).isoformat(),
        status="finished",
        source="trilithon",
        version="0.1.0",
        board={"description": "Orange Pi 5 Plus · RK3588 · 16 GiB", "model": "Orange Pi 5 Plus"},
        plan={},
        placements=tuple(_placement(name, index) for name in _RATES),
        runs=tuple(_run(name, number, Random(f"{index} {name} {number}")) for number in range(runs) for name in _RATES),
    )


def _placement(name: str, index: int) -> PlacementRecord:
    model, quantization, size_bytes, parameters = _MODELS[index % len(_MODELS)]
    engine, unit = name.split("/")
    engine, _, build = engine.partition("@")
    return PlacementRecord(
        name=name,
        engine=engine,
        build=build or "wheel",
        build_version="b7120",
        unit=unit,
        model={
            "name": model,
            "quantization": quantization,
            "size_bytes": size_bytes,
            "bytes_per_token": size_bytes,
            "parameters": parameters,
        },
        settings={"threads": 4},
        must_match={"board": "Orange Pi 5 Plus", "kernel": f"6.1.{index % 2}"},
        bandwidth_bytes_per_second=24.1e9 if name.endswith("/cpu") else None,
        quality=QualityRecord(verdict="reference" if name == "llama.cpp/cpu" else "same", reference="llama.cpp/cpu"),
    )


def _run(name: str, number: int, random: Random) -> Run:
    rates = _RATES[name]
    if rates is None:
        return Run(placement=name, round=number, outcome="failed", started_ns=0, finished_ns=1, failure=_CRASH)
    prefill, decode = (rate * random.gauss(1, 0.01) for rate in rates)
    return Run(
        placement=name,
        round=number,
        outcome="finished",
        started_ns=0,
        finished_ns=1,
        samples=(_prefill(512, prefill), _decode(128, decode)),
    )


def _prefill(tokens: int, rate: float) -> Sample:
    spent = int(tokens / rate * 1e9)
    return Sample(test=PREFILL, started_ns=0, finished_ns=spent, prompt_evaluated=tokens, prompt_ns=spent)


def _decode(tokens: int, rate: float) -> Sample:
    spent = int(tokens / rate * 1e9)
    return Sample(test=DECODE, started_ns=0, finished_ns=spent, decode_steps=tokens, decode_ns=spent)
