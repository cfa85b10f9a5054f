import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from command_tree import command_at, command_paths

from trilithon import __version__

Program = Callable[..., Any]

PROGRAM = Path(sys.executable).parent / "trilithon"


def process(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=60, check=False, **more)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("path", command_paths(), ids=lambda path: " ".join(path) or "trilithon")
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_mentions_every_option(trilithon: Program, path: tuple[str, ...], word: str) -> None:
    done = trilithon(*path, word)
    assert done.code == 0
    assert done.stderr == ""
    assert done.stdout.startswith(f"Usage: {' '.join(('trilithon', *path))}")
    for parameter in command_at(path).params:
        assert all(option in done.stdout for option in parameter.opts if option.startswith("-")), parameter
        if isinstance(parameter, click.Argument):
            assert parameter.make_metavar(click.Context(command_at(path))).strip("[].") in done.stdout


@pytest.mark.parametrize("path", command_paths()[1:], ids=" ".join)
def test_every_option_says_what_it_does(path: tuple[str, ...]) -> None:
    command = command_at(path)
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_the_groups_help_lists_every_command(trilithon: Program) -> None:
    listed = trilithon("--help").stdout
    assert all(f"\n  {path[0]} " in listed for path in command_paths() if len(path) == 1)


@pytest.mark.parametrize("words", [(), ("results",)])
def test_without_a_command_it_shows_what_there_is(trilithon: Program, words: tuple[str, ...]) -> None:
    done = trilithon(*words)
    assert done.code == 2
    assert "Usage: trilithon" in done.stderr
    assert "Commands:" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bnech",), "No such command 'bnech'. Did you mean 'bench'?"),
        (("results", "shwo"), "No such command 'shwo'. Did you mean 'show'?"),
        (("bench", "--preest", "article"), "No such option '--preest'. (Did you mean one of: '--preset'"),
        (("bench", "--preset", "artcle"), "Did you mean 'article'?"),
        (("key", "add", "a", "--scope", "chta"), "Did you mean 'chat'?"),
        (("pull", "m", "--chip", "rk3589"), "did you mean rk3588?"),
        (("recommend", "--chip", "RK358"), "did you mean RK3588?"),
        (("atlas", "list", "--chip", "rockchip"), "unknown chip 'rockchip'; there are BCM2712, RK3562"),
        (("estimate", "qwen2.5:7b", "--engine", "rklm"), "did you mean rkllm?"),
        (("models", "synthesize", "qwen25:0.5b"), "did you mean qwen2.5-0.5b?"),
        (("bench", "demo", "--placement", "lama.cpp/cpu"), "did you mean llama.cpp?"),
        (("bench", "demo", "--placement", "llama.cpp/gpuu"), "there are cpu, gpu, npu; did you mean gpu?"),
        (("bench", "demo", "--placement", "llama.cpp@embeded/cpu"), "did you mean llama.cpp@embedded/cpu?"),
        (("bench", "demo", "--placement", "llama.cpp/cpu:thraeds=4"), "did you mean threads?"),
        (("bench", "demo", "-ctk", "q8_O"), "did you mean q8_0?"),
        (("bench", "demo", "--placement", "llama.cpp/cpu:spec=ngram-smple"), "did you mean ngram-simple?"),
        (("engines", "install", "rklm"), "did you mean rkllm?"),
        (("engines", "check", "llama.cpp@embeded"), "did you mean llama.cpp@embedded?"),
        (("config", "set", "hang_second", "3"), "did you mean hang_seconds?"),
        (("doctor", "--explain", "cpu-governer"), "did you mean cpu-governor?"),
        (("tune", "no.gguf", "--report", "/dev/null/x"), "/dev/null/x: Not a directory; name another folder"),
        (("bench", "--nonsense"), "No such option"),
        (("bench", "a.gguf", "b.gguf"), "a.gguf does not exist; name a .gguf or .rkllm file"),
        (("results", "show"), "Missing argument"),
        (("results", "compare", "1"), "Missing argument"),
        (("completion", "csh"), "'csh' is not one of"),
    ],
)
def test_wrong_words_are_told_with_exit_code_2(trilithon: Program, words: tuple[str, ...], message: str) -> None:
    done = trilithon(*words)
    assert done.code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_real_program_says_its_version() -> None:
    done = process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"trilithon {__version__}\n", "")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom trilithon.cli.main import run\nrun(['--help'])\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "scipy", "rich", "httpx", "asyncio", "sqlite3", "matplotlib", "starlette"}
    assert heavy.isdisjoint(done.stdout.rpartition("\n")[2].split() + done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("words", [("completion", "bash"), ("doctor",), ("results", "--help")], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(home: Path, words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [PROGRAM, *words], stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_behind_stdout_is_one_line(home: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [PROGRAM, "completion", "bash"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


def test_a_terminal_without_utf_8_gets_question_marks(home: Path) -> None:
    done = process("doctor", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "Findings" in done.stdout
    assert done.stderr == ""


def test_a_configuration_that_is_not_toml(trilithon: Program, home: Path) -> None:
    path = home / "config" / "trilithon" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("hang_seconds: 3\n")
    for words in (("bench",), ("results", "list"), ("doctor",)):
        done = trilithon(*words)
        assert done.code == 2
        assert re.fullmatch(rf"error: {re.escape(str(path))} is not TOML: [^\n]+\n", done.stderr)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", "unknown setting colour; there are aliases, builds, cache, data"),
        ('hang_seconds = "soon"', "hang_seconds = 'soon' does not fit"),
        ("start_seconds = -1", "start_seconds = -1 does not fit"),
        ("data = 5", "data = 5 does not fit"),
    ],
)
def test_a_configuration_with_a_mistake(trilithon: Program, home: Path, text: str, message: str) -> None:
    path = home / "config" / "trilithon" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    done = trilithon("results", "list")
    assert done.code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text"), [("HANG_SECONDS", "soon"), ("START_SECONDS", "0"), ("CONFIG", "/nowhere.toml")]
)
def test_variables_with_a_mistake(trilithon: Program, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"TRILITHON_{name}", text)
    done = trilithon("results", "list")
    assert done.code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_arguments_and_file_names_that_are_not_utf_8_are_told_in_one_line(
    trilithon: Program, home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is an argument that the shell passed as bytes; of every command that takes any."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "stdin", None)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(errors="replace")  # as `entry` does
    odd = os.fsdecode(b"\xff\xfe")
    file = os.fsdecode(b"m\xff.gguf")
    Path(file).write_bytes(tiny.read_bytes())
    Path(os.fsdecode(b"folder\xff")).mkdir()
    wrong = [
        [odd],
        *(["run", "tiny.gguf", odd], ["run", str(tiny), "hi", "--system", odd], ["run", odd, "hi"]),
        *(["run", str(tiny), "hi", "-p", f"stop={odd}"], ["run", file, "hi"]),
        *(["run", str(tiny), "hi", "--format", odd], ["serve", odd], ["bench", odd], ["pull", odd]),
        *(["bench", file, "--placement", f"scripted/cpu:{odd}"], ["pull", f"hf.co/u/{odd}"]),
        *(["pull", f"https://{odd}/m.gguf"], ["show", odd], ["rm", odd], ["cp", odd, odd], ["verify", odd]),
        *(["create", odd], ["create", "m", "-f", odd], ["quantize", odd, "Q8_0"], ["stop", odd]),
        *(["convert", file, "--to", "rknn", "--chip", odd], ["models", "synthesize", odd]),
        *(["results", command, odd] for command in ("show", "import", "export", "report", "rm")),
        *(["results", "compare", odd, odd], ["plan", "rm", odd], ["plan", "set", file, odd], ["plan", "show", odd]),
        *(["engines", command, odd] for command in ("add", "remove", "check")),
        *(["engines", "build", "--source", odd], ["key", "add", odd], ["key", "rm", odd], ["doctor", "--root", odd]),
        *(["board-report", "show", odd], ["completion", odd]),
    ]
    for words in wrong:
        done = trilithon(*words)
        assert done.code == 2, (words, done)
        assert done.stderr.splitlines()[-1].lower().startswith("error: "), (words, done)
    for words in (["show", file], ["show", file, "--json"], ["adopt", os.fsdecode(b"folder\xff")], ["adopt", "--json"]):
        assert trilithon(*words).code == 0, words
    short = ("-p", "16", "-n", "4", "-r", "1", "--test", "pp", "--placement", "scripted/cpu:prefill=2000,decode=2000")
    measured = trilithon("bench", file, *short)
    assert measured.code == 0, measured
    assert trilithon("results", "report", "1").code == trilithon("results", "show", "1", "-o", "json").code == 0
    assert trilithon("plan", "set", file, "scripted/cpu").code == 0
    assert trilithon("plan", "list").code == trilithon("plan", "show", file).code == 0


def test_the_package_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trilithon", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == process("--version").stdout
