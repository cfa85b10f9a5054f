"""A terminal of 60 columns: no table and no message breaks a word. One with ASCII alone: no sign that it lacks."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from board_tree import plant_tree
from one_terminal import one_terminal
from standin_web import WebStandIn, as_json

from trilithon.cli.main import run

Program = Callable[..., Any]

COLUMNS = 60
# Every command that prints a table or prose; TREE is a board's.
COMMANDS = (
    *("--help", "bench --help", "bnech", "bench --preest 1", "bench nope --placement x/y", "run nope:1b hi"),
    *("list", "list -v", "show tiny", "show TINY", "ps", "verify", "prune --dry-run", "adopt", "models synthesize"),
    *("results list", "results show 1", "results show 1 2", "results compare 1 2", "results compare 1 2 --all"),
    *("plan list", "plan show TINY", "plan rm nope", "engines list", "engines check nope", "engines remove nope"),
    *("estimate qwen2.5-7b --chip rk3588 --offline", "recommend --chip rk3588 --memory 8GB", "atlas list"),
    *("doctor", "doctor --root TREE", "doctor --explain cpu-governor", "setup --root TREE", "key list", "config list"),
    "fleet list",
    *("serve --host 203.0.113.9", "serve --tls-cert x", "config set hang_secnds 3", "service status"),
)


@contextmanager
def terminal(columns: int) -> Iterator[list[str]]:
    """Its lines are in the list afterwards, without colours."""
    lines: list[str] = []
    with one_terminal(columns) as shown:
        yield lines
    lines += re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown[0]).replace("\r", "").splitlines()


@pytest.fixture
def planted(trilithon: Program, home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A user with a model, two campaigns, a plan, a key and a server. What TREE and TINY stand for."""
    monkeypatch.chdir(home)
    for variable in ("LC_ALL", "LC_MESSAGES", "LANGUAGE", "TRILITHON_LANG", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("LANG", "en_GB.UTF-8")
    (home / "Modelfile").write_text(f"FROM {tiny}\nSYSTEM {'Answer in short sentences. ' * 6}\n")
    row = {"build_commit": "x", "build_number": 1, "cpu_info": "A76", "backends": "CPU", "model_type": "qwen2 1B Q4_K"}
    row |= {"model_filename": "a-model-with-a-long-name-q4_k_m.gguf", "model_size": 1000, "model_n_params": 1000}
    row |= {"n_batch": 512, "n_ubatch": 512, "n_threads": 4, "type_k": "f16", "type_v": "f16", "n_gpu_layers": 0}
    row |= {"n_prompt": 16, "n_gen": 0, "test_time": "2025-01-01T00:00:00Z", "avg_ts": 9.5, "samples_ts": [9.0, 10.0]}
    row |= {
        "samples_ns": [1_700_000_000, 1_600_000_000],
        "avg_ns": 1_650_000_000,
        "stddev_ns": 70_710_678,
        "stddev_ts": 1.0,
        "gpu_info": "",
    }
    (home / "rows.json").write_text(json.dumps([row]))
    short = ("-p", "16", "-n", "4", "-r", "1", "--test", "pp", "--no-quality")
    placements = [f"scripted/cpu:prefill={speed},decode={speed}" for speed in (2000, 1000)]
    for words in (
        ("create", "tiny"),
        ("bench", tiny, *short, *(word for placement in placements for word in ("--placement", placement))),
        ("results", "import", home / "rows.json"),
        ("key", "add", "the-tablet-in-the-kitchen-upstairs"),
    ):
        assert trilithon(*words).code == 0, words
    with WebStandIn() as server:
        loaded = {"name": "qwen2.5:0.5b-instruct-q4_K_M", "model": "x", "size": 1 << 29, "details": {}}
        loaded |= {"placement": "llama.cpp@embedded/cpu:t=4,fa=off", "expires_at": "2030-01-01T00:00:00Z"}
        server.files["/api/ps"] = as_json({"models": [loaded]})
        server.files["/api/version"] = as_json({"version": "0.1.0"})
        monkeypatch.setenv("TRILITHON_HOST", server.url)
        yield {"TREE": str(plant_tree(home / "tree", "rk3588_vendor").root), "TINY": str(tiny)}


def output(command: str, columns: int, names: dict[str, str]) -> list[str]:
    with terminal(columns) as lines:
        run([names.get(word, word) for word in command.split()])
    return lines


def words_of(lines: list[str]) -> set[str]:
    """Whole ones: not of paths and addresses, which may be longer than a line."""
    return {word for line in lines for word in re.findall(r"(?<![\w./:@=-])[^\W\d_]{3,40}(?![\w/@=-])", line)}


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "ru"])
def test_no_command_breaks_a_word(planted: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", {"en": "en_GB.UTF-8", "ru": "ru_RU.UTF-8"}[language])
    for command in COMMANDS:
        wide, narrow = output(command, 500, planted), output(command, COLUMNS, planted)
        assert wide, command
        # A command to copy stays whole, and so does a path.
        copied = re.compile(r"\s*[→?$] |.* --explain|  trilithon |.*\S{30}")
        long = [line for line in narrow if len(line) > COLUMNS and not copied.match(line)]
        assert long == [], command
        shortened = "..." in "".join(narrow)  # click's lists of commands
        # A table that does not fit has another form: not every title of a column is in it.
        titles = words_of(wide[:2]) if len(wide) > 3 else set()
        missing = words_of(wide) - words_of(narrow) - titles
        assert shortened or missing == set(), command


@pytest.mark.slow
def test_a_terminal_without_signs_gets_ascii(planted: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "linux")
    shown = {command: output(command, COLUMNS, planted) for command in COMMANDS}
    other = {command: [line for line in lines if not line.isascii()] for command, lines in shown.items()}
    assert {command: lines for command, lines in other.items() if lines} == {}
    assert any(line.startswith("  ok ") for line in shown["doctor --root TREE"])
