"""The two READMEs: a short first screen, a true session, and the same commands."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from board_tree import plant_tree
from russian import english_in

ROOT = Path(__file__).parents[2]
PAGES = {"en": ROOT / "README.md", "ru": ROOT / "README.ru.md"}
MOST_WORDS = 25
COLUMNS = 100


def terminal_output(words: list[str], columns: int, **environment: str) -> str:
    """What `trilithon` prints on a terminal of so many columns, without colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "LC_ALL")}
    variables |= {"TERM": "xterm", "NO_COLOR": "1"} | environment
    command = [sys.executable, "-m", "trilithon.cli", *words]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=slave, env=variables) as process:
        os.close(slave)
        output = b""
        try:
            while piece := os.read(master, 1 << 16):
                output += piece
        except OSError:  # Linux answers so once the other side has closed
            pass
    os.close(master)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[\d;]*m", "", output.decode().replace("\r\n", "\n"))


def first_screen(language: str) -> str:
    """The page up to the installation."""
    return PAGES[language].read_text(encoding="utf-8").partition("\n## ")[0]


@pytest.mark.parametrize("language", PAGES)
def test_the_first_screen_has_short_sentences(language: str) -> None:
    prose = re.sub(r"```.*?```|!\[[^\n]*", "", first_screen(language), flags=re.DOTALL)
    sentences = re.split(r"(?<=[.:])\s|\n\n|\n- ", prose)
    assert len(sentences) > 5
    assert [sentence for sentence in sentences if len(sentence.split()) > MOST_WORDS] == []


@pytest.mark.parametrize("language", PAGES)
def test_the_session_is_what_the_program_prints(language: str, tmp_path: Path) -> None:
    (session,) = re.findall(r"```console\n\$ trilithon [^\n]*doctor\n(.*?)```", first_screen(language), re.DOTALL)
    plant_tree(tmp_path, "rk3588_vendor")
    words = ["--lang", language, "doctor", "--root", str(tmp_path / "rk3588_vendor")]
    assert terminal_output(words, COLUMNS) == session


def test_no_picture_shows_an_answer_of_the_demo_model() -> None:
    assert "page-chat" not in PAGES["en"].read_text(encoding="utf-8").partition("## Engines")[0]


def test_the_russian_page_has_no_english_but_names_and_links() -> None:
    text = re.sub(
        r"```.*?```|`[^`]*`|\[[^\]]*\]\([^)]*\)", "", PAGES["ru"].read_text(encoding="utf-8"), flags=re.DOTALL
    )
    names = "API Anthropic Debian Gemma LM Linux MIT Ollama OpenAI Orange Pi Plus Python RKLLAMA Rockchip Studio Ubuntu"
    names += " make venv"
    assert english_in(text, "270M") - set(names.split()) == set()


def test_both_pages_have_the_same_first_commands() -> None:
    def commands(language: str) -> set[str]:
        text = PAGES[language].read_text(encoding="utf-8")
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
        return {line for line in lines if line}

    assert commands("ru") <= commands("en")


@pytest.mark.parametrize("tree", ["rk3588_vendor", "rk3588_container"])
def test_no_word_is_broken_on_a_narrow_terminal(tree: str, tmp_path: Path) -> None:
    plant_tree(tmp_path, tree)
    words = ["--lang", "en", "doctor", "--root", str(tmp_path / tree)]
    narrow, wide = terminal_output(words, 60), terminal_output(words, 400)
    assert narrow.split() == wide.split()
    fixes = re.compile(r"\s+(→|\?|explained)")
    assert [line for line in narrow.splitlines()[1:] if len(line) > 60 and not fixes.match(line)] == []


def test_a_terminal_without_utf_8_gets_words_for_marks(tmp_path: Path) -> None:
    plant_tree(tmp_path, "rk3588_container")
    words = ["--lang", "en", "doctor", "--root", str(tmp_path / "rk3588_container")]
    for environment in ({"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"TERM": "linux"}):
        output = terminal_output(words, 100, **environment)
        assert "  ok CPU clocks" in output and "  no NPU" in output and "-> docker run" in output
        assert output.isascii(), output
