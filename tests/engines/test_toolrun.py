import os
import signal
import time
from pathlib import Path

import pytest
from process_table import goes

from trilithon.engines.toolrun import run_tool
from trilithon.errors import Interrupted, TrilithonError


@pytest.mark.parametrize("waiting", [None, lambda: None])
def test_every_line_is_heard_and_kept(tmp_path: Path, waiting: object) -> None:
    heard: list[str] = []
    script = "echo one; echo two >&2; printf 'th'; sleep 0.05; printf 'ree\\r3\\nno end'"
    run_tool(["sh", "-c", script], tmp_path / "log", heard.append, check=waiting)  # type: ignore[arg-type]
    assert heard == ["one", "two", "three\r3", "no end"]
    assert (tmp_path / "log").read_bytes().endswith(b"\none\ntwo\nthree\r3\nno end")


def test_one_that_says_nothing_can_be_ended(tmp_path: Path) -> None:
    heard: list[str] = []

    def leave() -> None:
        if heard:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        run_tool(["sh", "-c", "echo $$; exec sleep 60"], tmp_path / "log", heard.append, check=leave)
    assert goes(int(heard[0]))


def test_one_that_talks_without_end_can_be_ended(tmp_path: Path) -> None:
    ends = time.monotonic() + 0.1

    def leave() -> None:
        if time.monotonic() > ends:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        run_tool(["sh", "-c", "while :; do echo more; done"], tmp_path / "log", lambda _: None, check=leave)


def test_what_was_killed_says_by_which_signal(tmp_path: Path) -> None:
    with pytest.raises(TrilithonError, match=r"^sh failed: killed by signal 9 \(Killed\) \(log: "):
        run_tool(
            ["sh", "-c", "echo $$; exec sleep 60"], tmp_path / "log", lambda line: os.kill(int(line), signal.SIGKILL)
        )


def test_what_runs_gently_makes_way(tmp_path: Path) -> None:
    """Also what it starts, and its threads."""
    said: list[str] = []
    own = os.getpriority(os.PRIO_PROCESS, 0)
    script = "until [ $(nice) -ge 10 ]; do sleep 0.01; done; nice"
    run_tool(["sh", "-c", script], tmp_path / "log", said.append, low_priority=True)
    run_tool(["nice"], tmp_path / "log", said.append)
    assert said == [str(max(own, 10)), str(own)]
