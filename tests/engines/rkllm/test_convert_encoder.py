"""What can be checked without rknn-toolkit2; tests/emulated runs it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.engines.rkllm.convert_encoder import EncoderRecipe, PixelScale, convert_to_rknn, find_scale
from trilithon.errors import UserError
from trilithon.settings import Configuration

CLIP = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "repository" / "onnx" / "encoder.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"onnx")
    return path


def python(folder: Path, answer: str) -> Path:
    """An environment whose Python prints `answer`, whatever it runs."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
    (folder / "bin/python").chmod(0o755)
    return folder


@pytest.mark.parametrize("folder", ["onnx", "."])
def test_the_scale_of_pixels_is_the_preprocessors(source: Path, folder: str) -> None:
    assert find_scale(source, None, None) == PixelScale()
    preprocessor = source.parents[1] / folder / "preprocessor_config.json"
    preprocessor.write_text(json.dumps(CLIP), encoding="utf-8")
    expected = PixelScale((0.48, 0.46, 0.41), (0.27, 0.26, 0.28), "preprocessor_config.json")
    assert find_scale(source, None, None) == expected
    assert find_scale(source, "0,0,0", "1,1,1") == PixelScale((0.0,) * 3, (1.0,) * 3, "--mean and --std")
    preprocessor.write_text(json.dumps(CLIP | {"do_normalize": False}), encoding="utf-8")
    assert find_scale(source, None, None) == replace(expected, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.mark.parametrize(
    "content",
    [{}, [], {"image_mean": [1], "image_std": [1]}, CLIP | {"image_std": None}, CLIP | {"image_std": [0] * 3}],
)
def test_a_preprocessor_without_a_scale(source: Path, content: Any) -> None:
    source.with_name("preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="has no image_mean and image_std of three numbers; write --mean and --std"):
        find_scale(source, None, None)


@pytest.mark.parametrize("text", ["", "0.5", "0.5,0.5", "a,b,c", "nan,0,0", "1e9,0,0", "0,0,0,0"])
def test_a_scale_that_is_none(source: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"--mean .*: write three numbers"):
        find_scale(source, text, None)
    with pytest.raises(UserError, match=r"--std .*: write (three numbers|numbers above 0)"):
        find_scale(source, None, text or "0,1,1")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            None,
            r"rknn-toolkit2 is not set up here: on x86-64 Linux, .*pip install rknn-toolkit2, and name it with TRILI",
        ),
        ('{"toolkit": null}', r"rknn-toolkit2 is not installed in .*environment: on x86-64 Linux"),
        ("hello", r"does not work \(.*\); name another virtual environment"),
    ],
)
def test_without_the_toolkit_it_says_where_to_get_it(
    source: Path, tmp_path: Path, answer: str | None, message: str
) -> None:
    folder = None if answer is None else python(tmp_path / "environment", answer)
    configuration = Configuration(data=tmp_path / "data", cache=tmp_path / "cache", rknn_toolkit=folder)
    recipe = EncoderRecipe(source=source, chip="rk3588", scale=PixelScale())
    with pytest.raises(UserError, match=message):
        convert_to_rknn(recipe, tmp_path / "v.rknn", configuration, lambda *_: None)
    assert "v.rknn" not in {path.name for path in tmp_path.iterdir()}
