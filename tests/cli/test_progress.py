import io
import re
from dataclasses import replace

import pytest

from trilithon.bench.progress import CampaignStep
from trilithon.cli import progress
from trilithon.cli.progress import CampaignProgress, reading

STEP = CampaignStep(text="llama.cpp/cpu: pp512", runs_done=2, runs_planned=10, remaining_seconds=75.0)


def test_lines_go_to_stderr_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with CampaignProgress() as show:
        show(replace(STEP, remaining_seconds=None))
        show(STEP)  # the same text: said once
        show(replace(STEP, text="llama.cpp/cpu: tg128"))
        show(replace(STEP, text="done", runs_done=10))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "[3/10] llama.cpp/cpu: pp512",
        "[3/10] llama.cpp/cpu: tg128, about 1:15 left",
        "[10/10] done, about 1:15 left",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        with CampaignProgress() as show:
            show(STEP)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "llama.cpp/cpu: pp512" in plain
    assert "run 3 of 10" in plain
    assert "about 1:15 left" in plain
    assert capsys.readouterr().out == ""


def test_the_bar_goes_away_on_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        with pytest.raises(ValueError, match="stop"), CampaignProgress() as show:
            show(STEP)
            raise ValueError("stop")
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is shown again


def test_reading_is_told_after_two_seconds_and_not_more_often_than_each_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter((100.0, 100.0, 101.9, 102.1, 102.5, 103.2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    show = reading("reading the model")
    for _ in range(5):
        show(1 << 20, 4 << 20)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "reading the model: 1.0 MiB of 4.0 MiB\n" * 2
