import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

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
