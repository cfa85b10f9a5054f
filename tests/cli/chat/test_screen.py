import io
import time
from pathlib import Path

import pytest

from trilithon.cli.chat.conversation import TerminalChat
from trilithon.cli.chat.files import load_conversation, save_conversation
from trilithon.cli.chat.screen import ChatScreen, shown_lines, timing_lines, waiting
from trilithon.errors import UserError
from trilithon.settings import Configuration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache")


def test_answers_go_to_stdout_and_thinking_to_stderr() -> None:
    out, notes = io.StringIO(), io.StringIO()
    screen = ChatScreen(out=out, notes=notes)
    screen.piece("Hm. ", thinking=True)
    screen.piece("Yes.", thinking=True)
    screen.piece("The answer")
    screen.piece("")
    screen.piece(" is\x1b[2J 4.")
    screen.end_line()
    screen.tell("done")
    assert out.getvalue() == "The answer is\x1b[2J 4.\n"  # a pipe gets the bytes
    assert notes.getvalue() == "Hm. Yes.\ndone\n"


def test_an_answer_does_not_command_a_terminal() -> None:
    out, notes = Terminal(), Terminal()
    screen = ChatScreen(out=out, notes=notes)
    screen.piece("\x1b]0;title\x07", thinking=True)
    screen.piece("\x1b[2J\x9b\r one\ttwo\nthree\n")
    screen.end_line()
    assert out.getvalue() == "\ufffd[2J\ufffd\ufffd one\ttwo\nthree\n"
    assert notes.getvalue() == "\x1b[2m\ufffd]0;title\ufffd\x1b[0m\n"


END = {
    "total_duration": 3_500_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_count": 100,
    "prompt_eval_duration": 500_000_000,
    "eval_count": 40,
    "eval_duration": 2_000_000_000,
}


def test_timings_of_a_server_that_says_little() -> None:
    assert timing_lines(END, 1.5) == [
        "total:               3.500 s",
        "load:                1.000 s",
        "time to first token: 1.500 s",
        "prefill:             100 tokens in 0.500 s, 200 tokens/s",
        "decode:              40 tokens in 2.000 s, 20.0 tokens/s",
    ]
    assert timing_lines({}, None) == []


def test_timings_tell_the_cache_the_units_and_the_handover() -> None:
    handed = {"transfer_bytes": 3 << 20, "transfer_seconds": 0.0121}
    placed = {"placement": "a/npu+b/cpu", "prefill_unit": "npu", "decode_unit": "cpu"}
    assert timing_lines({"prompt_eval_count": 0, "prompt_cached_count": 7, "timings": handed | placed}, None) == [
        "from the cache:      7 tokens",
        "handed over:         3.0 MiB in 0.012 s",
        "ran on:              a/npu+b/cpu (npu then cpu)",
    ]
    assert timing_lines({"timings": {"transfer_bytes": 0, "reason": "a/npu did not start"}}, None) == [
        "handed over:         no: a/npu did not start"
    ]


@pytest.mark.parametrize(
    ("shown", "subject", "lines"),
    [
        ({}, "info", ["unknown"]),
        ({}, "system", ["the model has no system of its own"]),
        ({"template": "{{ .Prompt }}\x1b[2J"}, "template", ["{{ .Prompt }}\ufffd[2J"]),
        ({}, "parameters", ["no parameter is set"]),
        ({"parameters": "stop  a\ntop_k  5"}, "parameters", ["of the model:", "stop  a", "top_k  5"]),
        (
            {
                "details": {"family": "qwen2", "parameter_size": "494M", "quantization_level": "Q4_K_M"},
                "model_info": {"qwen2.context_length": 32768},
                "capabilities": ["completion", "tools"],
            },
            "info",
            [
                "architecture:   qwen2",
                "parameters:     494M",
                "quantization:   Q4_K_M",
                "context length: 32768",
                "capabilities:   completion, tools",
            ],
        ),
    ],
)
def test_what_show_prints(shown: dict[str, object], subject: str, lines: list[str]) -> None:
    assert shown_lines(shown, subject, {}) == lines  # type: ignore[arg-type]


@pytest.mark.slow
def test_what_takes_long_is_told_and_what_is_quick_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("loading a"):
        pass
    assert capsys.readouterr().err == ""
    with waiting("loading b"):
        time.sleep(1.5)
    assert capsys.readouterr().err == "loading b …\n"


def test_a_kept_conversation_is_its_owners_alone(configuration: Configuration) -> None:
    talk = TerminalChat(model="m").asked("Hello").answered("Hi")
    path = save_conversation(talk, "tea", configuration)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_conversation(TerminalChat(model="other"), "tea", configuration) == talk


def test_conversations_that_cannot_be_had(configuration: Configuration) -> None:
    talk = TerminalChat(model="m")
    with pytest.raises(UserError, match="there is no conversation tea; there are none"):
        load_conversation(talk, "tea", configuration)
    path = save_conversation(talk, "coffee", configuration)
    with pytest.raises(UserError, match="there are coffee"):
        load_conversation(talk, "tea", configuration)
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="save it again with /save coffee"):
        load_conversation(talk, "coffee", configuration)


def test_a_folder_that_takes_no_files(configuration: Configuration) -> None:
    configuration.data.write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        save_conversation(TerminalChat(model="m"), "tea", configuration)
