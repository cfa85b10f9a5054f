"""Estimates: what they say, their order, and that the fitted file is that of the atlas."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from trilithon.board.chips import chips
from trilithon.errors import UserError
from trilithon.estimate.answer import Subject, estimates
from trilithon.estimate.fit import fit
from trilithon.estimate.memory import copied_bytes, gguf_memory
from trilithon.estimate.predict import PHASES, Phase, fitted, log_seconds
from trilithon.estimate.rows import atlas
from trilithon.estimate.sizes import WeightBytes, bits_of, size_named, weights_of
from trilithon.estimate.training import training_rows


def subject(name: str) -> Subject:
    size = size_named(name)
    assert size is not None
    return Subject(reference=name, size=size)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_the_fitted_file_is_that_of_the_atlas(phase: Phase) -> None:
    points = training_rows(atlas(), phase)
    again = fit([point.observation for point in points], fitted()[phase].effects)
    for point in points:
        terms, whole = list(point.observation.terms), point.observation.whole
        stored, _ = log_seconds(terms, whole, fitted()[phase].effects)
        assert log_seconds(terms, whole, again)[0] == pytest.approx(stored, abs=0.02), "run scripts/fit_estimates.py"
    assert {point.group for point in points} == set(fitted()[phase].multiples)


@pytest.mark.parametrize(
    ("name", "engine", "form", "slowest", "fastest"),
    [  # published by the maker (w8a8, RKLLM 1.3.0): 16.7 and 6.2; users get up to a third less
        ("qwen2.5-1.5b", "rkllm", "w8a8", 11, 17.5),
        ("qwen3.5-4b", "rkllm", "w8a8", 4.2, 6.6),
        # gregordinary/rockchip-npu-notes: 7.9 with 8 threads
        ("llama-3.2-3b", "llama.cpp", "Q4_K_M", 6, 10),
    ],
)
def test_what_is_published_is_estimated(name: str, engine: str, form: str, slowest: float, fastest: float) -> None:
    (row,) = estimates(subject(name), [chips()["RK3588"]], engine=engine, quantization=form)
    assert slowest < row.decode.value < fastest
    assert "of this model" in row.basis and "none" not in row.basis


@pytest.mark.parametrize("chip", list(chips().values()), ids=lambda chip: chip.name)
def test_every_estimate_is_ordered(chip: object) -> None:
    small = {row.engine: row for row in estimates(subject("qwen3-0.6b"), [chip])}  # type: ignore[list-item]
    large = {row.engine: row for row in estimates(subject("qwen3-8b"), [chip])}  # type: ignore[list-item]
    for engine, row in small.items():
        assert row.decode.value > large[engine].decode.value
        assert row.prefill.value > large[engine].prefill.value
        assert row.memory.total < large[engine].memory.total
        for seen in (row.decode, row.prefill, row.first_token):
            (low, high), (lowest, highest) = seen.within_80, seen.within_95
            assert 0 < lowest <= low <= seen.value <= high <= highest
            assert math.isfinite(highest)


def test_a_longer_prompt_takes_longer_and_a_longer_context_needs_more() -> None:
    short, long = (
        estimates(subject("qwen3-1.7b"), [chips()["RK3588"]], prompt=prompt, context=16 * prompt)
        for prompt in (256, 2048)
    )
    for one, other in zip(short, long, strict=True):
        assert one.first_token.value < other.first_token.value
        assert one.memory.cache < other.memory.cache


def test_the_interval_is_wider_where_less_is_known() -> None:
    known, unknown = (
        estimates(subject("qwen3-1.7b"), [chips()[chip]], engine="llama.cpp")[0].decode for chip in ("RK3588", "A733")
    )
    assert known.within_80[1] / known.within_80[0] < unknown.within_80[1] / unknown.within_80[0]


def test_chips_without_an_npu_have_no_estimate_of_one() -> None:
    assert {row.unit for row in estimates(subject("qwen3-1.7b"), [chips()["BCM2712"]])} == {"cpu"}


def test_decode_without_a_prompt_reads_a_shorter_cache() -> None:
    """tg128 of bench has nothing before it."""
    plain, answer = (
        estimates(subject("qwen3-0.6b"), [chips()["RK3588"]], engine="llama.cpp", prompt=prompt)[0]
        for prompt in (None, 512)
    )
    assert plain.decode.value > 1.03 * answer.decode.value
    assert plain.prefill == answer.prefill


# VmHWM in MiB of llama.cpp's process on x86-64 after a prompt of 600 tokens (benchmarks/estimate.py --memory).
@pytest.mark.parametrize(
    ("name", "form", "context", "measured"),
    [
        ("gemma3-270m", "Q4_0", 4096, 413),
        ("gemma3-270m", "Q4_K_M", 4096, 379),
        ("gemma3-270m", "Q8_0", 4096, 407),
        ("qwen2.5-0.5b", "Q4_0", 4096, 702),
        ("qwen2.5-0.5b", "Q4_K_M", 1024, 545),
        ("qwen2.5-0.5b", "Q4_K_M", 32768, 917),
        ("tinyllama-1.1b", "Q4_K_M", 2048, 1225),
        ("tinyllama-1.1b", "Q8_0", 2048, 1247),
    ],
)
def test_the_memory_that_llama_cpp_took(name: str, form: str, context: int, measured: int) -> None:
    size = subject(name).size
    weights = weights_of(size, *bits_of(form, size.embedding))
    memory = gguf_memory(size, weights, context, copies=copied_bytes(size, weights, form, "x86_64"))
    assert memory.total / (1 << 20) == pytest.approx(measured, rel=0.05)


def test_copies_are_of_the_engine_and_the_cpu() -> None:
    """Only llama.cpp's own kernels copy; what is copied need not stay in memory twice."""
    rows = {row.engine: row.memory for row in estimates(subject("qwen3-4b"), [chips()["RK3588"]], quantization="Q8_0")}
    assert rows["llama.cpp"].copies > 0.9 * rows["llama.cpp"].weights
    assert rows["ik_llama.cpp"].copies == 0
    assert rows["llama.cpp"].total == rows["llama.cpp"].needed + rows["llama.cpp"].copies
    assert copied_bytes(subject("qwen3-4b").size, WeightBytes(body=1, head=1, held=2), "Q8_0", "x86_64") == 0


@pytest.mark.parametrize(
    ("engine", "form", "word"),
    [("ollama", None, "no estimates for"), (None, "Q9_Z", "unknown quantisation"), ("rkllm", "Q4_0", "no engine")],
)
def test_what_does_not_exist_is_refused(engine: str | None, form: str | None, word: str) -> None:
    with pytest.raises(UserError, match=word):
        estimates(subject("qwen3-1.7b"), [chips()["RK3588"]], engine=engine, quantization=form)


def test_a_file_has_one_quantisation() -> None:
    file = replace(subject("qwen3-4b"), quantization="Q4_K_M")
    assert estimates(file, [chips()["RK3588"]], engine="llama.cpp", quantization="q4_k_m")
    with pytest.raises(UserError, match="is Q4_K_M; leave --quant out"):
        estimates(file, [chips()["RK3588"]], engine="llama.cpp", quantization="Q8_0")


def test_no_numpy_is_loaded_to_estimate() -> None:
    code = "import sys, trilithon.estimate.answer; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
