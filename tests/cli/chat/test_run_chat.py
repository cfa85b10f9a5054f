"""A chat on a pseudo-terminal, with a server in another process."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trilithon.models.synthetic.tiny import write_tiny_model

PROGRAM = str(Path(sys.executable).with_name("trilithon"))
CTRL_C, CTRL_D = "\x03", "\x04"
END = "what it does best."

Chat = Callable[..., "Terminal"]
Nudge = Callable[[], object] | None
_PATIENCE_SECONDS = 10.0


class Terminal:
    """`trilithon run` on a terminal of its own; `text` is what it shows and has not been waited for."""

    def __init__(self, *words: str, environment: dict[str, str]):
        self._master, slave = pty.openpty()
        self._settings = termios.tcgetattr(slave)

        def take_terminal() -> None:  # so that Ctrl-C is a signal to it
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        command = [PROGRAM, "run", *words]
        environment = environment | {"TERM": "dumb", "COLUMNS": "1000"}
        self.child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=take_terminal
        )
        os.close(slave)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, words: str, nudge: Nudge = None) -> str:
        """What was shown up to these words, and with them."""
        self._wait(lambda: words in self.text, nudge)
        shown, _, self.text = self.text.partition(words)
        return shown + words

    def says(self, line: str, words: str = ">>> ") -> str:
        """What it shows after a line, up to the next prompt."""
        self.type(f"{line}\n")
        return self.until(words)

    def ended(self, nudge: Nudge = None) -> int:
        self._wait(lambda: self.child.poll() is not None, nudge)
        assert self.child.returncode is not None
        return self.child.returncode

    def _wait(self, over: Callable[[], bool], nudge: Nudge) -> None:
        """`nudge` is done at once, and again where nothing comes of it: a signal between the prompt and readline's
        wait for a key is heard of with the next one (CPython 3.11, Modules/readline.c)."""
        deadline = time.monotonic() + 60
        nudged = -_PATIENCE_SECONDS
        while not over():
            assert time.monotonic() < deadline, self.text
            if nudge is not None and time.monotonic() - nudged >= _PATIENCE_SECONDS:
                nudge()
                nudged = time.monotonic()
            self._take()

    def restored(self) -> bool:
        return termios.tcgetattr(self._master)[3] == self._settings[3]

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        os.close(self._master)

    def _take(self) -> None:
        if select.select([self._master], [], [], 0.05)[0]:
            with contextlib.suppress(OSError):  # its other side is closed
                self.text += os.read(self._master, 1 << 16).decode(errors="replace").replace("\r", "")


@pytest.fixture
def chat(served: Any, tmp_path: Path) -> Iterator[Chat]:
    """`chat(*words)`: a chat with the module's server, at its first prompt; its data folder is `tmp_path`'s own."""
    with contextlib.ExitStack() as running:

        def start(*words: str) -> Terminal:
            own = {"TRILITHON_HOST": served.url, "TRILITHON_DATA": str(tmp_path / "chat")}
            terminal = Terminal("tiny", *words, environment=served.environment | own)
            running.callback(terminal.close)
            assert "/? lists the commands" in terminal.until(">>> ")
            return terminal

        yield start


@pytest.mark.slow
def test_questions_answers_and_an_end(chat: Chat) -> None:
    terminal = chat()
    for _ in range(2):
        assert END in terminal.says("hello")
    assert "/set parameter NAME VALUE" in terminal.says("/?")
    terminal.type("/bye\n")
    assert terminal.ended() == 0


@pytest.mark.slow
def test_a_base_model_is_told_and_a_model_without_answers_is_refused(served: Any, tmp_path: Path) -> None:
    terminal = Terminal("tiny", environment=served.environment | {"TRILITHON_HOST": served.url})
    try:
        assert "note: tiny is a base model (completes text): it has no chat template" in terminal.until(">>> ")
        terminal.type("/bye\n")
        assert terminal.ended() == 0
    finally:
        terminal.close()
    silent = write_tiny_model(tmp_path / "minilm.gguf", pooling=1)
    refused = Terminal(str(silent), environment=served.environment)
    try:
        assert refused.ended() == 2
        assert "minilm:latest makes vectors of texts and does not chat; choose another model" in refused.text
    finally:
        refused.close()


@pytest.mark.slow
@pytest.mark.parametrize("key", [CTRL_C, CTRL_D])
def test_a_key_at_the_prompt_ends_it_with_0(chat: Chat, key: str) -> None:
    terminal = chat()
    assert terminal.ended(lambda: terminal.type(key)) == 0
    assert "Traceback" not in terminal.text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("line", ["", "hello\n"])
def test_a_signal_ends_it_with_130_and_puts_the_terminal_back(chat: Chat, number: signal.Signals, line: str) -> None:
    terminal = chat()
    if line:
        terminal.type(line)
        terminal.until("A trilithon")
    assert terminal.ended(lambda: terminal.child.send_signal(number)) == 130
    assert f"stopped by {number.name}" in terminal.text
    assert "Traceback" not in terminal.text
    assert terminal.restored()


def test_ctrl_c_stops_the_answer_and_not_the_chat(chat: Chat, tmp_path: Path) -> None:
    terminal = chat()
    terminal.type("hello\n")
    terminal.until("A trilithon")
    assert END not in terminal.until(">>> ", lambda: terminal.type(CTRL_C))
    terminal.says("/save stopped")
    question, answer = json.loads((tmp_path / "chat" / "conversations" / "stopped.json").read_text())["messages"]
    assert question == {"role": "user", "content": "hello"}
    assert answer["content"].startswith("A trilithon")
    assert END in terminal.says("hello")


def test_several_lines_and_ctrl_c_gives_them_up(chat: Chat, tmp_path: Path) -> None:
    terminal = chat("--parameter", "num_predict=3")
    terminal.says('"""one', "... ")
    terminal.until(">>> ", lambda: terminal.type(CTRL_C))
    terminal.says('"""two', "... ")
    terminal.says('three"""')
    terminal.says("/save lines")
    first = json.loads((tmp_path / "chat" / "conversations" / "lines.json").read_text())["messages"][0]
    assert first["content"] == "two\nthree"


def test_settings_are_obeyed_and_shown(chat: Chat) -> None:
    terminal = chat()
    assert "num_predict is 3 now" in terminal.says("/set parameter num_predict 3")
    assert "timings are on" in terminal.says("/set verbose")
    shown = terminal.says("hello")
    assert END not in shown
    assert re.search(r"decode: +3 tokens in [\d.]+ s, [\d.]+ tokens/s\nran on: +scripted/cpu", shown)
    assert "unknown parameter" in terminal.says("/set parameter colour red")
    terminal.says("/set system Be brief.")
    assert "Be brief." in terminal.says("/show system")
    assert "llama" in terminal.says("/show info")
    assert "num_predict" in terminal.says("/show parameters")


def test_a_conversation_is_saved_and_taken_up_again(chat: Chat) -> None:
    terminal = chat("--parameter", "num_predict=3")
    terminal.says("my name is Rosa")
    assert "kept in" in terminal.says("/save rosa")
    terminal.type(CTRL_D)
    assert terminal.ended() == 0
    terminal = chat()
    assert "there are rosa" in terminal.says("/load carl")
    assert "2 messages with tiny" in terminal.says("/load rosa")
    terminal.says("/set verbose")
    with_it = terminal.says("and?")
    terminal.says("/clear")
    without = terminal.says("and?")

    def prompt_tokens(shown: str) -> int:
        return sum(map(int, re.findall(r"(?:prefill|from the cache): +(\d+) tokens", shown)))

    assert prompt_tokens(with_it) > prompt_tokens(without) > 0


def test_what_was_written_is_remembered(chat: Chat, tmp_path: Path) -> None:
    terminal = chat("--parameter", "num_predict=3")
    terminal.says("remember me")
    terminal.type("/bye\n")
    assert terminal.ended() == 0
    path = tmp_path / "chat" / "chat-history"
    assert "remember me" in path.read_text().splitlines()
    assert path.stat().st_mode & 0o777 == 0o600
    terminal = chat()
    terminal.type("\x1b[A\x1b[A\n")  # up, past /bye
    assert "remember me" in terminal.until(END)


def test_what_goes_wrong_is_told_and_the_chat_goes_on(chat: Chat, tmp_path: Path) -> None:
    terminal = chat()
    terminal.says("/set think")
    assert "does not support thinking" in terminal.says("hello")
    terminal.says("/set nothink")
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate((20 << 20) + 1)
    assert "send a smaller copy" in terminal.says(f"what is {large}")
    assert END in terminal.says("hello")


def test_a_model_that_is_not_there_and_is_not_to_be_pulled_ends_it(served: Any) -> None:
    environment = served.environment | {"TRILITHON_HOST": served.url}
    terminal = Terminal("no-such", environment=environment)
    try:
        terminal.until("Pull no-such? [Y/n]")
        terminal.type("n\n")
        terminal.until("trilithon pull")
        assert terminal.ended() == 2
    finally:
        terminal.close()


@pytest.mark.slow
def test_without_a_server_it_has_one_of_its_own(tiny: Path, served: Any) -> None:
    terminal = Terminal(str(tiny), "--placement", "scripted/cpu:decode=500", environment=served.environment)
    try:
        terminal.until(">>> ")
        assert END in terminal.says("hello")
        terminal.type("/bye\n")
        assert terminal.ended() == 0
    finally:
        terminal.close()
