"""What a buyer types, and reads: other spellings of models and chips, narrow terminals, Russian."""

import json
import re

import pytest

from trilithon.cli.main import run
from trilithon.language import use_language


@pytest.mark.parametrize(
    ("model", "opened"),
    [
        *((name, "qwen2.5:1.5b") for name in ("qwen2.5-1.5b", "Qwen2.5-1.5B-Instruct", "qwen2.5:1.5b", "Qwen2.5 1.5B")),
        ("Llama-3.2-3B-Instruct", "llama3.2:3b"),
        ("qwen2.5:1.5b-instruct-q8_0", "qwen2.5:1.5b-instruct-q8_0"),  # it can be pulled as it is
        ("qwen2-1.5b", "MODEL.gguf"),
        ("my-model-3b", "MODEL.gguf"),
    ],
)
def test_the_command_names_what_can_be_pulled(model: str, opened: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate", model, "--offline", "--chip", "rk3588", "--engine", "llama.cpp"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{model}: ")
    assert text.endswith(f"to verify: trilithon bench {opened} --placement llama.cpp/cpu\n")


@pytest.mark.parametrize("chip", ["RK3588S", "rk3588s", "Rockchip RK3588S", "rockchip,rk3588s", " rk-3588s "])
def test_chips_are_known_in_other_spellings(chip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate", "qwen3-4b", "--chip", chip, "--engine", "rkllm", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["estimates"]
    assert row["chip"] == "RK3588S"
    assert run(["atlas", "--chip", chip, "--json"]) == 0
    assert {row["chip"] for row in json.loads(capsys.readouterr().out)} == {"RK3588S"}


@pytest.mark.parametrize("chip", ["rk3599", "rockchip", "", "orange pi"])
def test_an_unknown_chip_is_one_line(chip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recommend", "--chip", chip]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("width", [40, 60, 100, 200])
@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize(
    "words",
    [
        ["estimate", "qwen2.5-1.5b", "--chip", "all", "--memory", "2GB"],
        ["recommend", "--chip", "rk3588", "--memory", "8GB"],
        ["atlas", "qwen2.5-1.5b", "--chip", "rk3576"],
    ],
    ids=lambda words: words[0],
)
def test_rows_fit_into_the_terminal(
    words: list[str], language: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TRILITHON_LANG", language)
    monkeypatch.setenv("LANGUAGE", language)
    assert run(words) == 0
    use_language(None)
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()[words[0] == "estimate" :]
    assert max(map(len, lines)) <= max(width, 70)
    assert any(line.startswith("  ") for line in lines) == (width <= 100)
    if language == "ru" and words[0] == "recommend" and width >= 60:  # a narrower one breaks words
        names = re.findall(r"[A-Za-z][\w./-]*", "\n".join(lines))
        assert {name for name in names if name.isalpha()} <= {"MMLU", "MIT", "Qwen", "Research", "Llama", "Community"}
