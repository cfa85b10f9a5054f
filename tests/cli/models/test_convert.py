"""What the commands make of their words; the conversions themselves are tested in tests/engines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.cli.models.fit import fit_json, fit_lines
from trilithon.engines.llamacpp import programs
from trilithon.models.files.model_file import read_model_file
from trilithon.models.synthetic.architectures import find_architecture
from trilithon.models.synthetic.true_size import plan_synthetic
from trilithon.settings import load_configuration

Program = Callable[..., Any]


@pytest.fixture
def model(home: Path) -> Path:
    folder = home / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--to", "rkllm"), "needs --chip"),
        (("--to", "rkllm", "--chip", "rk3588"), "needs --quant"),
        (("--to", "rkllm", "--chip", "RK3588", "--quant", "W4A16"), "does not run on rk3588"),
        (("--to", "rkllm", "--chip", "rk3588", "--quant", "w8a8", "--cores", "4"), "write 1 to 3"),
        (("--to", "rkllm", "--chip", "rk3588", "--quant", "w8a8"), "rkllm-toolkit is not set up here"),
        (("--to", "rkllm", "--converter", "x"), "--converter has no effect with --to rkllm; leave it out"),
        (("--to", "gguf", "--hybrid-rate", "0.5"), "--hybrid-rate has no effect with --to gguf; leave it out"),
        (("--to", "gguf", "--quant", "q4_0"), "then use: trilithon quantize"),
        (("--to", "gguf", "--mean", "0,0,0"), "--mean has no effect with --to gguf; leave it out"),
        (("--to", "rknn", "--quant", "w8a8"), "--quant has no effect with --to rknn; leave it out"),
        (("--to", "rknn", "--chip", "rk3568"), "--chip rk3568: encoders are converted for rk3588, rk3576, rk3562"),
        (("--to", "rknn", "--mean", "1,2"), "--mean 1,2: write three numbers, for red, green and blue"),
        (("--to", "rknn"), "is a folder; name the ONNX file of the encoder"),
    ],
)
def test_words_that_do_not_fit_are_one_line(
    trilithon: Program, model: Path, words: tuple[str, ...], expected: str
) -> None:
    done = trilithon("convert", model, *words)
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert expected in done.stderr
    assert list(model.iterdir()) == [model / "config.json"]


def test_a_source_that_is_not_there(trilithon: Program, home: Path) -> None:
    assert "does not exist; name the folder" in trilithon("convert", home / "none", "--to", "gguf").stderr
    assert "does not exist; name an ONNX file" in trilithon("convert", home / "none", "--to", "rknn").stderr
    (home / "v.onnx").write_bytes(b"onnx")
    done = trilithon("convert", home / "v.onnx", "--to", "rknn", "--chip", "RK3588S", "-o", home / "v.rknn")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "rknn-toolkit2 is not set up here: on x86-64 Linux" in done.stderr


# known(source): ggml-org/llama.cpp@007dbbf src/llama-quant.cpp: a line for each tensor, with "converting to"
def test_quantize_names_the_file_after_its_source(
    trilithon: Program, home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / "build"
    folder.mkdir()
    copies = '#!/bin/sh\necho "[   1/   1] x"\ncp "$1" "$2"\n'
    for name, script in (("llama-server", "#!/bin/sh\necho 'version: 1 (abc)' >&2\n"), ("llama-quantize", copies)):
        (folder / name).write_text(script, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(programs, "_packaged", lambda: None)
    monkeypatch.setenv("TRILITHON_BUILDS", str(folder))
    monkeypatch.chdir(home)
    source = home / "m-f16.gguf"
    source.write_bytes(tiny.read_bytes())
    done = trilithon("quantize", source, "Q4_K_M")
    assert (done.code, done.stdout) == (0, "m-q4_k_m.gguf\n")
    assert (home / "m-q4_k_m.gguf").read_bytes() == tiny.read_bytes()
    assert "quantising 100%" in done.stderr
    assert trilithon("quantize", source, "Q4_K_M").code == 2


def test_what_fits_in_words_and_as_data(home: Path) -> None:
    """Of a model in full size: a header with a hole behind it."""
    synthetic = plan_synthetic(find_architecture("qwen2.5-0.5b"), "Q4_0")
    path = home / "m.gguf"
    with path.open("wb") as file:
        file.write(synthetic.head)
        file.truncate(synthetic.size_bytes)
    configuration = load_configuration()
    found = read_model_file(path, configuration.cache)
    lines = fit_lines(found, configuration)
    assert [line.split()[0] for line in lines[1:4]] == ["2,048", "8,192", "32,768"]
    assert "KV cache 96.0 MiB" in lines[2]
    assert any("llama.cpp" in line and line.endswith("  yes") for line in lines)
    assert any("rkllm" in line and "  no: " in line for line in lines)
    data = fit_json(found, configuration)
    assert [each["context"] for each in data["memory"]] == [2048, 8192, 32768]
    assert data["memory"][1]["kv_bytes"] == 96 << 20
    assert data["bytes_per_token"] == found.bytes_per_token
    assert any(not each["refusal"] for each in data["placements"])


def test_what_fits_of_an_rkllm_file(home: Path) -> None:
    path = home / "m.rkllm"
    path.write_bytes(b"\xda\xee\xb3\x36" + bytes(2000))
    configuration = load_configuration()
    lines = fit_lines(read_model_file(path, configuration.cache), configuration)
    assert lines[1] == "  2.0 KiB of weights, and the memory for the context"
