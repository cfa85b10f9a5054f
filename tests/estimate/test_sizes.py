"""The sizes of models, by name and compared with exact tensor tables."""

import math

import pytest

from trilithon.estimate.sizes import bits_of, known_sizes, size_named, weights_of
from trilithon.models.files.quantizations import tensor_type
from trilithon.models.synthetic.architectures import architectures, shapes_of, types_of


@pytest.mark.parametrize("key", list(architectures()))
def test_the_table_agrees_with_the_tensor_tables(key: str) -> None:
    model, size = architectures()[key], size_named(key)
    assert size is not None
    assert size.exact
    assert size.parameters == pytest.approx(model.parameters, rel=0.01)
    assert (size.layers, size.embedding, size.tied) == (model.layers, model.embedding, model.tied)
    assert size.vocabulary == model.vocabulary
    assert size.kv == 2 * model.kv_heads * model.head_size


@pytest.mark.parametrize("quantization", ["F16", "Q8_0", "Q4_0", "Q4_K_M", "Q6_K"])
@pytest.mark.parametrize("key", list(architectures()))
def test_the_bytes_agree_with_the_tensor_tables(key: str, quantization: str) -> None:
    model, size = architectures()[key], size_named(key)
    assert size is not None
    types, shapes = types_of(model, quantization), dict(shapes_of(model))
    exact = sum(
        math.prod(shape) / tensor_type(types[name]).elements * tensor_type(types[name]).size_bytes
        for name, shape in shapes.items()
    )
    held = weights_of(size, *bits_of(quantization, size.embedding)).held
    assert held == pytest.approx(exact, rel=0.06)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Qwen2.5-1.5B-Instruct", "qwen2-1.5b"),
        ("qwen2.5:1.5b", "qwen2-1.5b"),
        ("unsloth/Qwen3-4B-GGUF", "qwen3-4b"),
        ("Qwen3-4B-Instruct-2507", "qwen3-4b"),
        ("llama3.2:1b", "llama-3.2-1b"),
        ("google/gemma-3-1b-it", "gemma-3-1b"),
        ("Gemma-4-E2B-it", "gemma-4-e2b"),
        ("Phi-3-mini-4k-instruct", "phi-3-mini"),
        ("DeepSeek-R1-Distill-Qwen-1.5B", "deepseek-r1-distill-qwen-1.5b"),
        ("tinyllama", "tinyllama-1.1b"),
        ("qwen3:4b-q4_K_M", "qwen3-4b"),
        ("llama3.2:1b-instruct-q8_0", "llama-3.2-1b"),
        ("qwen2.5:7b-instruct-fp16", "qwen2.5-7b"),
        ("unsloth/gemma-3-4b-it-IQ4_XS", "gemma-3-4b"),
    ],
)
def test_a_name_is_known_however_it_is_written(name: str, key: str) -> None:
    size = size_named(name)
    assert size is not None
    assert (size.key, size.exact) == (key, True)


def test_an_unknown_name_is_estimated_by_its_parameters() -> None:
    size = size_named("some-new-model-3.5b")
    assert size is not None
    assert not size.exact
    assert size.parameters == 3.5e9
    experts = size_named("some-new-model-30b-a3b")
    assert experts is not None and experts.active is not None
    assert experts.active < 3.1e9 < experts.body
    assert size_named("some-new-model") is None
    assert size_named("some-new-model", 2.0) is not None


@pytest.mark.parametrize("name", ["a-0b", "a-0.0m", "a-3b-a0b", "a-1b-a100b", f"a-{'9' * 400}b", "a-0.0001b"])
def test_an_impossible_size_is_no_size(name: str) -> None:
    assert size_named(name) is None


def test_sizes_are_possible() -> None:
    for name, size in known_sizes().items():
        assert 0 < size.body < size.parameters, name
        assert size.read <= size.body, name
        assert size.window_layers <= size.layers, name
        assert (size.attention_layers or 0) <= size.layers, name


def test_a_window_limits_the_cache() -> None:
    size = size_named("gemma-3-1b")
    assert size is not None
    assert size.cached_numbers(4096) < 0.3 * size.kv * size.layers * 4096
    assert size.cached_numbers(100) == size.kv * size.layers * 100
