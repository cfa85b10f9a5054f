import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from trilithon.cli.main import main

Program = Callable[..., Any]

PROGRAM = Path(sys.executable).parent / "trilithon"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_calls_the_program_by_its_name(trilithon: Program, shell: str) -> None:
    done = trilithon("completion", shell)
    assert done.code == 0
    assert done.stderr == ""
    assert f"_TRILITHON_COMPLETE={shell}_complete" in done.stdout


def test_bash_takes_the_script(trilithon: Program) -> None:
    if shutil.which("bash") is None:
        pytest.skip("this machine has no bash")
    script = trilithon("completion", "bash").stdout
    done = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p trilithon"], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 0, done.stderr
    assert "_trilithon_completion trilithon" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trilithon ", set(main.list_commands(click.Context(main)))),
        ("trilithon ver", {"verify"}),
        ("trilithon results ", {"list", "show", "compare", "export", "import", "report", "rm"}),
        ("trilithon bench --pla", {"--placement"}),
        ("trilithon bench --test ", {"pp", "tg", "pg", "question", "cold"}),
    ],
)
def test_it_completes(home: Path, words: str, expected: set[str]) -> None:
    count = len(words.split()) - (0 if words.endswith(" ") else 1)
    environment = {**os.environ, "_TRILITHON_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=20)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected
    assert done.stderr == ""


def completed(*words: str) -> dict[str, str | None]:
    """What the last word may become, with the help that zsh and fish show."""
    items = ShellComplete(main, {}, "trilithon", "_TRILITHON_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return {item.value: item.help for item in items if item.type == "plain"}


def test_words_of_this_machine_are_completed(trilithon: Program, home: Path, tiny: Path) -> None:
    assert completed("results", "show", "") == {}
    short = ("-p", "16", "-n", "4", "-r", "1", "--test", "pp", "--placement", "scripted/cpu:prefill=2000,decode=2000")
    for _ in range(2):
        assert trilithon("bench", tiny, *short).code == 0
    numbers = {"2": "Tiny", "1": "Tiny", "last": "Tiny"}
    for words in (("results", "show"), ("results", "compare", "1"), ("results", "rm"), ("results", "report")):
        assert completed(*words, "") == numbers, words
    assert completed("results", "export", "l") == {"last": "Tiny"}
    assert "llama.cpp/cpu" in completed("plan", "set", str(tiny), "")
    for command in ("bench", "run", "serve"):
        assert "llama.cpp/cpu" in completed(command, str(tiny), "--placement", "LLAMA")
        assert completed(command, "nothing.gguf", "--placement", "") == {}
    assert completed("bench", "--preset", "") == {"article": None, "depth": None}
    for words in (("pull", "m"), ("estimate", "m"), ("recommend",), ("atlas",), ("convert", "m")):
        assert {"rk3588", "rk3588s"} <= completed(*words, "--chip", "RK3588").keys(), words
    assert "rkllm" in completed("estimate", "m", "--engine", "rk")
    modelfile = home / "Modelfile"
    modelfile.write_text(f"FROM {tiny}\n", encoding="utf-8")
    assert trilithon("create", "mine", "-f", modelfile).code == 0
    for words in (("estimate",), ("bench", "--also"), ("serve",), ("quantize",), ("show",)):
        assert "mine:latest" in completed(*words, "mi"), words


def test_completion_asks_nothing_and_makes_no_files(home: Path) -> None:
    for words in (("results", "show", ""), ("plan", "set", "none", ""), ("bench", "none", "--placement", "")):
        assert completed(*words) == {}, words
    assert not (home / "data").exists()
