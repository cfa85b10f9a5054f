"""Held against what llama-server (0c1e570) reported of such files: its "KV buffer size" and "compute buffer size"."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilithon.errors import ModelError
from trilithon.models.files.gguf import GgufFacts, read_gguf
from trilithon.models.files.memory import bytes_per_token, kv_cache_bytes, memory_need
from trilithon.models.synthetic.architectures import find_architecture
from trilithon.models.synthetic.true_size import plan_synthetic

MEBIBYTE = 1 << 20
_FACTS: dict[str, GgufFacts] = {}


def facts_of(name: str, quantization: str, folder: Path) -> GgufFacts:
    """Of the model in full size: a header with nothing behind it but a hole."""
    key = f"{name}-{quantization}"
    if key not in _FACTS:
        synthetic = plan_synthetic(find_architecture(name), quantization)
        path = folder / f"{key}.gguf"
        with path.open("wb") as file:
            file.write(synthetic.head)
            file.truncate(synthetic.size_bytes)
        _FACTS[key] = read_gguf(path)
    return _FACTS[key]


@pytest.mark.parametrize(
    ("name", "quantization", "context", "words", "kv_mebibytes", "work_mebibytes"),
    [
        ("qwen2.5-0.5b", "F16", 4096, {"flash_attention": False}, 48, 129.26),
        ("qwen2.5-0.5b", "F16", 32768, {}, 384, 67.51),
        ("qwen2.5-0.5b", "F16", 32768, {"flash_attention": False}, 384, 969.26),
        ("gemma3-1b", "Q4_0", 8192, {}, 32 + 22, 58.27),
        ("gemma3-1b", "Q4_0", 8192, {"micro_batch": 128, "full_window_cache": True}, 32 + 176, 16.32),
        ("tinyllama-1.1b", "Q4_0", 1024, {}, 22, 50.01),
        ("llama3.2-1b", "Q4_0", 4096, {"slots": 2, "kv_type_k": "q8_0", "kv_type_v": "q8_0"}, 136, 64.04),
    ],
)
def test_as_llama_cpp_reported_it(
    tmp_path: Path,
    name: str,
    quantization: str,
    context: int,
    words: dict[str, Any],
    kv_mebibytes: int,
    work_mebibytes: float,
) -> None:
    facts = facts_of(name, quantization, tmp_path)
    need = memory_need(facts, context, **words)
    assert need.weights_bytes == facts.size_bytes
    assert need.kv_bytes == kv_mebibytes * MEBIBYTE
    assert need.compute_bytes / MEBIBYTE == pytest.approx(work_mebibytes, rel=0.07)
    assert need.total_bytes == need.weights_bytes + need.kv_bytes + need.compute_bytes


@settings(deadline=None)  # the first example writes the file
@given(
    shorter=st.integers(1, 40_000),
    longer=st.integers(1, 40_000),
    kinds=st.sampled_from([("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0")]),
    slots=st.integers(1, 8),
    name=st.sampled_from(["gemma3-1b", "qwen2.5-0.5b"]),
)
def test_more_context_never_takes_less(
    tmp_path_factory: pytest.TempPathFactory, shorter: int, longer: int, kinds: tuple[str, str], slots: int, name: str
) -> None:
    facts = facts_of(name, "F16", tmp_path_factory.getbasetemp())
    shorter, longer = sorted((shorter, longer))
    sizes = [
        memory_need(facts, each, kv_type_k=kinds[0], kv_type_v=kinds[1], slots=slots) for each in (shorter, longer)
    ]
    assert 0 < sizes[0].kv_bytes <= sizes[1].kv_bytes
    assert 0 < sizes[0].compute_bytes <= sizes[1].compute_bytes
    assert sizes[0].kv_bytes % slots == 0


def test_a_window_bounds_its_layers_alone(tmp_path: Path) -> None:
    facts = facts_of("gemma3-1b", "F16", tmp_path)
    per_layer = 2 * 256 * 2
    assert kv_cache_bytes(facts, 100_000) == per_layer * (4 * 100_000 + 22 * (512 + 512))
    assert kv_cache_bytes(facts, 100) == per_layer * 26 * 100
    assert kv_cache_bytes(facts, 100_000, full_window_cache=True) == per_layer * 26 * 100_000


def test_experts_that_work_at_once_count_together(tiny: Path) -> None:
    facts = read_gguf(tiny)
    up = next(tensor for tensor in facts.tensors if tensor.name.endswith("ffn_up.weight"))
    wide = replace(up, name="blk.0.ffn_up_exps.weight", shape=(64, 100, 8))
    experts = replace(facts, tensors=(wide,), experts=8, experts_used=4)
    one = replace(experts, experts_used=1)
    assert memory_need(experts, 512).compute_bytes > memory_need(one, 512).compute_bytes


def test_a_decode_step_reads_the_weights_and_the_cache(tmp_path: Path) -> None:
    facts = facts_of("qwen2.5-0.5b", "F16", tmp_path)
    assert bytes_per_token(facts) == sum(tensor.size_bytes for tensor in facts.tensors)
    assert bytes_per_token(facts, 1000) - bytes_per_token(facts) == kv_cache_bytes(facts, 1000)


def test_an_unknown_kv_type_is_refused(tiny: Path) -> None:
    with pytest.raises(ModelError, match="unknown KV type q9"):
        memory_need(read_gguf(tiny), 512, kv_type_k="q9")
