import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.rkllm.recipe import CHIPS, RkllmRecipe, check_recipe, toolkit_calls
from trilithon.errors import ModelError, UserError
from trilithon.models.synthetic.tiny import requantise

CORES = {"rk3588": 3, "rk3576": 2, "rk3562": 1, "rv1126b": 1}


@pytest.fixture
def recipe(tmp_path: Path) -> RkllmRecipe:
    source = tmp_path / "Qwen"
    source.mkdir()
    (source / "config.json").write_text("{}", encoding="utf-8")
    return RkllmRecipe(source=source, chip="rk3588", quantization="w8a8")


def refusal(recipe: RkllmRecipe) -> str:
    with pytest.raises(UserError) as caught:
        check_recipe(recipe)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("chip", CHIPS)
def test_each_chip_takes_its_own_quantisations_and_cores(recipe: RkllmRecipe, chip: str) -> None:
    for quantization in CHIPS[chip].quantizations:
        for cores in range(1, CORES[chip] + 1):
            check_recipe(replace(recipe, chip=chip, quantization=quantization, cores=cores))
    assert f"the NPU of {chip} has" in refusal(
        replace(recipe, chip=chip, quantization=CHIPS[chip].quantizations[0], cores=CORES[chip] + 1)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chip": "rk3566"}, "rkllm-toolkit supports rk3588, rk3576, rk3562, rv1126b"),
        ({"quantization": "w4a16"}, "does not run on rk3588; use one of w8a8, w8a8_g512"),
        ({"chip": "rk3576", "quantization": "w8a8_g128"}, "does not run on rk3576; use one of w4a16"),
        ({"cores": 0}, "write 1 to 3"),
        ({"algorithm": "gptq"}, "write normal, grq, normal_rN or grq_rN"),
        ({"algorithm": "normal_r65"}, "N from 1 to 64"),
        ({"algorithm": "normal_r0"}, "N from 1 to 64"),
        ({"algorithm": "grq"}, "works with w4a16 and its groups, not with w8a8; take --algorithm normal"),
        ({"chip": "rk3576", "algorithm": "grq_r8"}, "not with w8a8; take --quant w4a16"),
        ({"context": 16_416}, "a multiple of 32, at most 16384"),
        ({"context": 1000}, "a multiple of 32"),
        ({"context": 0}, "a multiple of 32"),
        ({"hybrid_rate": 1.0}, "a share from 0 up to, not including, 1"),
        ({"hybrid_rate": float("nan")}, "a share from 0"),
        ({"optimization": 2}, "write 0 or 1"),
        ({"dataset": Path("none.json")}, "cannot be read"),
    ],
)
def test_what_the_toolkit_would_refuse_is_refused_first(
    recipe: RkllmRecipe, changes: dict[str, object], words: str
) -> None:
    assert words in refusal(replace(recipe, **changes))  # type: ignore[arg-type]


def test_grq_goes_with_the_w4a16_family(recipe: RkllmRecipe) -> None:
    for quantization in ("w4a16", "w4a16_g64"):
        check_recipe(replace(recipe, chip="rk3576", quantization=quantization, algorithm="grq_r16"))


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "[1]", '[{"input": "a"}]', '[{"input": 1, "target": "b"}]', "[" * 9999]
)
def test_datasets_of_another_form(recipe: RkllmRecipe, tmp_path: Path, content: str) -> None:
    dataset = tmp_path / "d.json"
    dataset.write_text(content, encoding="utf-8")
    assert '[{"input": "…", "target": "…"}' in refusal(replace(recipe, dataset=dataset))
    dataset.write_text(json.dumps([{"input": "a", "target": "b"}]), encoding="utf-8")
    check_recipe(replace(recipe, dataset=dataset))


def test_sources(recipe: RkllmRecipe, tmp_path: Path, tiny: Path) -> None:
    (recipe.source / "config.json").unlink()
    assert "it has no config.json" in refusal(recipe)
    check_recipe(replace(recipe, source=tiny))
    q4_0 = requantise(tiny, tmp_path / "q.gguf", "Q4_0")
    assert "becomes w4a16_g32 (for rk3576, rk3562, rv1126b); take the F16 file" in refusal(replace(recipe, source=q4_0))
    check_recipe(replace(recipe, source=q4_0, chip="rk3562", quantization="w4a16_g32"))
    with pytest.raises(ModelError, match="reads GGUF files of Q4_0 and F16 only"):
        check_recipe(replace(recipe, source=requantise(tiny, tmp_path / "8.gguf", "Q8_0")))


def test_the_calls_have_the_toolkits_own_names(recipe: RkllmRecipe, tiny: Path) -> None:
    load, build, export = toolkit_calls(replace(recipe, context=4096), Path("out.rkllm"), cuda=False)
    assert load == ("load_huggingface", [], {"model": str(recipe.source), "device": "cpu"})
    assert build == (
        "build",
        [],
        {
            "do_quantization": True,
            "optimization_level": 0,
            "quantized_dtype": "w8a8",
            "quantized_algorithm": "normal",
            "target_platform": "rk3588",
            "num_npu_core": 3,
            "extra_qparams": None,
            "dataset": None,
            "hybrid_rate": 0.0,
            "max_context": 4096,
        },
    )
    assert export == ("export_rkllm", ["out.rkllm"], {})
    assert toolkit_calls(replace(recipe, source=tiny), Path("o.rkllm"), cuda=True)[0] == (
        "load_gguf",
        [],
        {"model": str(tiny)},
    )
    assert "max_context" not in toolkit_calls(recipe, Path("o.rkllm"), cuda=True)[1][2]


@given(
    chip=st.sampled_from([*CHIPS, "", "rk9"]),
    quantization=st.sampled_from(["w8a8", "w4a16", "w4a16_g32", "w4a8_g32", "w8a8_g512", "x"]),
    algorithm=st.text("normalgq_r0123456789", max_size=12) | st.sampled_from(["normal", "grq", "grq_r64"]),
    hybrid_rate=st.floats(),
    context=st.none() | st.integers(-100, 20_000),
    cores=st.none() | st.integers(-1, 4),
)
def test_a_recipe_fits_or_is_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, **words: object) -> None:
    source = tmp_path_factory.getbasetemp()
    (source / "config.json").touch()
    recipe = RkllmRecipe(source=source, **words)  # type: ignore[arg-type]
    try:
        check_recipe(recipe)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert recipe.quantization in CHIPS[recipe.chip].quantizations
        assert 0 <= recipe.hybrid_rate < 1
