"""`trilithon estimate`."""

import json
from pathlib import Path

import pytest

from trilithon.cli.main import run
from trilithon.models.synthetic.tiny import write_tiny_model


def test_one_chip(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate", "qwen2.5-1.5b", "--chip", "rk3588"]) == 0
    text = capsys.readouterr().out
    assert "rkllm/npu" in text and "llama.cpp/cpu" in text
    assert "to verify: trilithon bench qwen2.5:1.5b --placement llama.cpp/cpu" in text


def test_the_command_that_verifies_can_be_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`pull` knows no "qwen2.5-1.5b", and a path may have spaces."""
    path = tmp_path / "my model.gguf"
    write_tiny_model(path)
    for model, word in (("qwen2.5-1.5b", "qwen2.5:1.5b"), ("Qwen2.5:1.5B", "qwen2.5:1.5b"), (str(path), f"'{path}'")):
        assert run(["estimate", model, "--offline", "--chip", "rk3588", "--engine", "llama.cpp", "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["estimates"]
        assert row["verify"] == f"trilithon bench {word} --placement llama.cpp/cpu"


def test_a_converted_file_is_measured_with_its_engine_and_a_name_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "qwen2.5-1.5b.rkllm"
    path.write_bytes(b"RKLLM")
    for model, opened, engines in (
        (str(path), str(path), {"rkllm"}),
        ("qwen2.5:1.5b", "MODEL.rkllm", {"rkllm", "rk-llama.cpp", "llama.cpp", "ik_llama.cpp"}),
    ):
        assert run(["estimate", model, "--offline", "--chip", "rk3588", "--json"]) == 0
        rows = {row["engine"]: row for row in json.loads(capsys.readouterr().out)["estimates"]}
        assert set(rows) == engines
        assert rows["rkllm"]["verify"] == f"trilithon bench {opened} --placement rkllm/npu"
        assert run(["estimate", model, "--offline", "--chip", "rk3588", "--engine", "rkllm"]) == 0
        assert f"to verify: trilithon bench {opened} " in capsys.readouterr().out


def test_all_chips_as_json_and_a_least_speed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate", "qwen2.5-1.5b", "--chip", "all", "--json", "--min-tokens-per-second", "10"]) == 0
    rows = json.loads(capsys.readouterr().out)["estimates"]
    assert {row["chip"] for row in rows} >= {"RK3588", "RK3576"}
    assert all(row["decode_tps"]["value"] >= 10 for row in rows)


def test_memory_says_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "llama-3-8b", "--chip", "rk3588", "--engine", "rkllm", "--json"]
    for memory, fits in (("8GB", False), ("16GB", True)):
        assert run([*words, "--memory", memory]) == 0
        assert json.loads(capsys.readouterr().out)["estimates"][0]["fits"] is fits


def test_a_file_is_read_from_its_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_model(path)
    assert run(["estimate", str(path), "--chip", "rk3588", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["estimates"]
    assert {row["engine"] for row in rows} >= {"llama.cpp"}
    assert "rkllm" not in {row["engine"] for row in rows}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-model", "--offline"], "nothing is known of"),
        (["qwen3-4b", "--chip", "rk9999"], "unknown chip"),
        (["qwen3-4b", "--chip", "rk3588", "--here"], "--here and --chip"),
        (["qwen3-4b", "--chip", "rk3588", "--engine", "x"], "no estimates for"),
        (["qwen3-4b", "--chip", "rk3588", "--memory", "much"], "--memory"),
        (["missing.gguf", "--chip", "rk3588"], "missing.gguf"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
