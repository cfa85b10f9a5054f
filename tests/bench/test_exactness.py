"""How far log-probabilities are from others, and pairs of tiny models with the same weights."""

import math
from pathlib import Path

import pytest

from trilithon.bench.exactness import Reading, compare, write_pair
from trilithon.errors import RunError
from trilithon.models.files.gguf import read_gguf


def reading(*probabilities: float, length: int = 8) -> Reading:
    logs = {token: math.log(p) if p else -math.inf for token, p in enumerate(probabilities)}
    return {("prefill", length): logs}


def test_the_same_has_no_error() -> None:
    exactness = compare(reading(0.5, 0.3, 0.2), reading(0.5, 0.3, 0.2))
    assert (exactness.largest, exactness.mean, exactness.top1, exactness.positions) == (0, 0, 1, 1)
    assert exactness.divergence == pytest.approx(0)


def test_errors_are_those_of_single_tokens() -> None:
    exactness = compare(reading(0.5, 0.3, 0.2), reading(0.3, 0.5, 0.2))
    assert exactness.largest == pytest.approx(math.log(5 / 3))
    assert exactness.mean == pytest.approx(2 / 3 * math.log(5 / 3))
    assert exactness.top1 == 0
    assert exactness.divergence == pytest.approx(0.2 * math.log(5 / 3), abs=1e-6)


def test_the_largest_divergence_is_that_of_the_worst_position() -> None:
    right, wrong = reading(0.9, 0.1), reading(0.1, 0.9)
    both = compare({**right, **reading(0.9, 0.1, length=32)}, {**right, **reading(0.1, 0.9, length=32)})
    assert both.divergence == compare(right, wrong).divergence > 1
    assert (both.top1, both.positions) == (0.5, 2)


def test_what_cannot_happen_is_not_counted_and_what_is_missed_is() -> None:
    never = 1e-12
    assert compare(reading(1 - never, never), reading(1 - 2 * never, 2 * never)).largest < 0.001
    assert compare(reading(0.5, 0.5), {("prefill", 8): {0: 0.0, 1: -1000.0}}).largest > 30


def test_another_list_of_tokens_cannot_be_compared() -> None:
    with pytest.raises(RunError, match="1 tokens were listed, and the reference lists 2"):
        compare(reading(0.5, 0.5), reading(1.0))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_pair_has_the_same_weights(tmp_path: Path, kind: str) -> None:
    quantized, plain = write_pair(tmp_path, kind, "Q4_0")
    assert write_pair(tmp_path, kind, "Q4_0") == (quantized, plain)
    types = (
        {tensor.type for tensor in read_gguf(quantized).tensors},
        {tensor.type for tensor in read_gguf(plain).tensors},
    )
    assert types == ({"Q4_0", "F32"}, {"F32"})
    names = [[tensor.name for tensor in read_gguf(path).tensors] for path in (quantized, plain)]
    assert names[0] == names[1]
