"""`trilithon run`: one answer through pipes, by a running server and by one of its own; chats are in test_run_chat."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_table import descendants_of, goes

from trilithon.models.synthetic.tiny import write_tiny_model

Program = Callable[..., Any]

PROGRAM = str(Path(sys.executable).with_name("trilithon"))
SCRIPTED = ("--placement", "scripted/cpu:prefill=5000,decode=500")
# One grey pixel.
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
TEXT = "A trilithon is the simplest gate that people have ever built"


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """What comes through the pipe; nothing by default."""

    def fill(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    fill(b"")
    return fill


@pytest.fixture
def asked(served: Any, trilithon: Program, monkeypatch: pytest.MonkeyPatch, pipe: Callable[[bytes], None]) -> Program:
    """The program, with the module's server to speak to."""
    monkeypatch.setenv("TRILITHON_HOST", served.url)
    return trilithon


def process(served: Any, *words: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    environment = served.environment | {"TRILITHON_HOST": served.url} | more
    return subprocess.run(
        [PROGRAM, "run", *words], input=given, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_answer_is_all_of_stdout(asked: Program) -> None:
    code, out, errors = asked("run", "tiny", "hello")
    assert (code, errors) == (0, "")
    assert out.startswith(TEXT)
    assert out.endswith("does best.\n")


def test_verbose_says_how_fast_and_where(asked: Program) -> None:
    asked("run", "tiny", "hello there", "-p", "num_predict=2")
    code, out, errors = asked("run", "tiny", "hello there", "-p", "num_predict=9", "--verbose")
    assert code == 0
    assert TEXT.startswith(out.strip())
    rows = dict(line.split(": ", 1) for line in errors.splitlines())
    assert list(rows) == ["total", "time to first token", "prefill", "from the cache", "decode", "ran on"]
    assert rows["decode"].strip().startswith("9 tokens in ")
    assert rows["decode"].endswith(" tokens/s")
    assert rows["ran on"].strip().startswith("scripted/cpu")
    assert 0 < float(rows["time to first token"].removesuffix(" s")) < 60


def test_what_is_piped_stands_behind_the_prompt(served: Any) -> None:
    """Seen in the count of prompt tokens."""

    def tokens(*words: str, given: str = "") -> int:
        done = process(served, "tiny", *words, "--verbose", "-p", "num_predict=1", given=given)
        assert done.returncode == 0, done.stderr
        rows = dict(line.split(": ", 1) for line in done.stderr.splitlines())
        return sum(int(rows[name].split()[0]) for name in ("prefill", "from the cache") if name in rows)

    alone, both = tokens("Summarise"), tokens("Summarise", given="one two three\n")
    assert tokens(given="Summarise\n") == alone
    assert tokens("Summarise", given=" \n") == alone
    assert tokens("Summarise\n\none two three") == both > alone


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no question; write it after the model"), (b"\xff\xfe", "not UTF-8 text; convert it")],
)
def test_nothing_to_ask(asked: Program, pipe: Callable[[bytes], None], content: bytes, message: str) -> None:
    pipe(content)
    code, out, errors = asked("run", "tiny")
    assert (code, out) == (2, "")
    assert message in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no-such", "hi"), "see trilithon list for what is here, and trilithon pull for more"),
        (("./none.gguf", "hi"), "none.gguf is not a file"),
        (("tiny", "hi", "-p", "seed"), "--parameter seed: write NAME=VALUE"),
        (("tiny", "hi", "-p", "sede=1"), "did you mean seed?"),
        (("tiny", "hi", "--format", "yaml"), "--format yaml: write json, or a JSON schema"),
        (("tiny", "hi", "--keepalive", "soon"), "--keepalive soon: write"),
        (("tiny", "hi", "--placement", "nonsense"), "write ENGINE/UNIT"),
        (("tiny", "hi", "--think"), "think"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(asked: Program, words: tuple[str, ...], message: str) -> None:
    code, out, errors = asked("run", *words)
    assert (code, out) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_json_and_a_schema_are_taken_where_the_engine_has_grammars(asked: Program, tiny: Path) -> None:
    for form in ("json", json.dumps({"type": "object"})):
        words = ("hello", "--format", form, "-p", "num_predict=3")
        assert asked("run", str(tiny), *words, "--placement", "llama.cpp@embedded/cpu:t=1").code == 0
        code, _, errors = asked("run", "tiny", *words)
        assert (code, errors.count("\n")) == (2, 1)
        assert "does not support structured output" in errors


def test_an_image_for_a_model_that_does_not_see(asked: Program, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(base64.b64decode(PICTURE))
    code, out, errors = asked("run", "tiny", f"what is in {path}?")
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert "does not support images" in errors


def test_a_file_is_run_by_a_server_of_its_own(
    trilithon: Program, tiny: Path, pipe: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILITHON_HOST", "127.0.0.1:1")  # it is not asked
    code, out, errors = trilithon("run", tiny, "hello", *SCRIPTED, "--think", "--verbose")
    assert (code, out) == (2, "")
    assert "think" in errors
    code, out, errors = trilithon("run", tiny, "hello", *SCRIPTED, "--verbose")
    assert code == 0
    assert out.startswith(TEXT)
    assert "ran on:              scripted/cpu" in errors


def test_a_real_engine_answers_without_a_server(trilithon: Program, tiny: Path, pipe: Callable[[bytes], None]) -> None:
    code, _, errors = trilithon("run", tiny, "hello", "-p", "num_predict=4", "--verbose")
    assert code == 0, errors
    assert "ran on:              llama.cpp" in errors


def test_an_engine_that_breaks_down_is_told(trilithon: Program, tiny: Path, pipe: Callable[[bytes], None]) -> None:
    for fault, message in (("crash_after=5", "died"), ("refuse_start=no room", "no room")):
        code, out, errors = trilithon("run", tiny, "hello", "--placement", f"scripted/cpu:{fault}")
        assert code == 1
        *waiting, last = errors.splitlines()
        assert last.startswith("error: ")
        assert message in last
        assert all(line.startswith("waiting for") for line in waiting)  # where the machine is slow
        assert out == "" or TEXT.startswith(out.strip())


def test_thinking_goes_to_stderr(trilithon: Program, tmp_path: Path, pipe: Callable[[bytes], None]) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}"
    model = write_tiny_model(tmp_path / "thinker.gguf", template=template)
    placement = "scripted/cpu:decode=500,thinking=Let me see.,text=It is four."
    code, out, errors = trilithon("run", model, "2+2?", "--placement", placement)
    assert (code, out) == (0, "It is four.\n")
    assert errors == "Let me see.\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGINT, "stopped")])
def test_a_signal_ends_it_with_130_and_its_own_server_too(
    home: Path, tiny: Path, number: signal.Signals, said: str
) -> None:
    words = [PROGRAM, "run", str(tiny), "hello", "--placement", "scripted/cpu:decode=2"]
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.read(1) == "A"
    below = descendants_of(child.pid)
    assert below
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors.splitlines()[-1].endswith(said)
    assert all(goes(pid) for pid in below)


def test_a_reader_that_goes_away_is_no_error(served: Any) -> None:
    environment = served.environment | {"TRILITHON_HOST": served.url}
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        done = subprocess.run(
            [PROGRAM, "run", "tiny", "hello"],
            stdin=subprocess.DEVNULL,
            stdout=gone,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr in ("", "waiting for tiny:latest …\n")  # a busy machine makes it wait
