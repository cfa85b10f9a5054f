import math
from collections import Counter

import pytest

from trilithon.errors import ModelError
from trilithon.models.files.quantizations import tensor_type
from trilithon.models.synthetic.architectures import (
    QUANTIZATIONS,
    architectures,
    find_architecture,
    rope_factors,
    shapes_of,
    types_of,
)

QWEN = find_architecture("qwen2.5-0.5b")


@pytest.mark.parametrize("name", architectures())
def test_the_tensors_hold_as_many_parameters_as_published(name: str) -> None:
    model = find_architecture(name)
    counted = sum(math.prod(shape) for _, shape in shapes_of(model))
    assert counted == (model.file_parameters or model.parameters)
    assert len({tensor for tensor, _ in shapes_of(model)}) == len(list(shapes_of(model)))


def test_the_tensor_table_of_qwen2_5_0_5b() -> None:
    """As its published GGUF has it: 290 tensors, 494,032,768 parameters, tied, with biases."""
    table = dict(shapes_of(QWEN))
    assert len(table) == 290
    assert sum(map(math.prod, table.values())) == 494_032_768
    assert table["token_embd.weight"] == (896, 151_936)
    assert "output.weight" not in table
    block = {name.removeprefix("blk.23."): shape for name, shape in table.items() if name.startswith("blk.23.")}
    assert block == {
        "attn_norm.weight": (896,),
        "attn_q.weight": (896, 896),
        "attn_q.bias": (896,),
        "attn_k.weight": (896, 128),
        "attn_k.bias": (128,),
        "attn_v.weight": (896, 128),
        "attn_v.bias": (128,),
        "attn_output.weight": (896, 896),
        "ffn_norm.weight": (896,),
        "ffn_gate.weight": (896, 4864),
        "ffn_up.weight": (896, 4864),
        "ffn_down.weight": (4864, 896),
    }
    assert not any(name.startswith("blk.24.") for name in table)


@pytest.mark.parametrize(
    ("name", "tensors"),
    [("qwen2.5-1.5b", 338), ("qwen3-0.6b", 310), ("tinyllama-1.1b", 201), ("gemma3-1b", 340), ("llama3.2-1b", 147)],
)
def test_the_number_of_tensors_of_other_published_files(name: str, tensors: int) -> None:
    assert len(list(shapes_of(find_architecture(name)))) == tensors


def test_types_are_those_of_published_files() -> None:
    """What llama.cpp's loader counts in them: Qwen2.5 0.5B as Ollama has it, Gemma 3 270M as the demo model."""
    assert Counter(types_of(QWEN, "Q4_K_M").values()) == {"F32": 121, "Q5_0": 132, "Q8_0": 13, "Q4_K": 12, "Q6_K": 12}
    gemma = types_of(find_architecture("gemma3-270m"), "Q4_K_M")
    assert Counter(gemma.values()) == {"F32": 109, "Q5_0": 81, "Q4_K": 27, "Q8_0": 10, "Q6_K": 9}


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", architectures())
def test_every_row_fills_its_blocks(name: str, quantization: str) -> None:
    model = find_architecture(name)
    types = types_of(model, quantization)
    for tensor, shape in shapes_of(model):
        assert shape[0] % tensor_type(types[tensor]).elements == 0
        assert (types[tensor] == "F32") >= (len(shape) == 1)


def test_fewer_bits_leave_more_to_the_output() -> None:
    assert types_of(QWEN, "Q8_0")["token_embd.weight"] == "Q8_0"
    assert types_of(find_architecture("llama3.2-1b"), "Q4_0")["token_embd.weight"] == "Q6_K"
    own = types_of(find_architecture("tinyllama-1.1b"), "Q4_0")
    assert (own["token_embd.weight"], own["output.weight"]) == ("Q4_0", "Q6_K")


@pytest.mark.parametrize("text", ["qwen2.5-0.5b", "qwen2.5:0.5b", "Qwen2.5 0.5B", " QWEN2.5_0.5b "])
def test_a_model_is_found_as_people_write_it(text: str) -> None:
    assert find_architecture(text) is QWEN


def test_what_is_unknown_is_refused_with_what_is_known() -> None:
    with pytest.raises(ModelError, match=r"unknown architecture 'gpt-5'; there are qwen2\.5-0\.5b, "):
        find_architecture("gpt-5")
    with pytest.raises(ModelError, match=r"cannot synthesise IQ2_XXS; choose one of F32, F16"):
        types_of(QWEN, "IQ2_XXS")


def test_rope_factors_run_from_one_to_the_whole_stretch() -> None:
    factors = rope_factors(find_architecture("llama3.2-1b"))
    assert len(factors) == 32
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(32.0)
    assert factors == sorted(factors)
    assert rope_factors(QWEN) == []
