"""The program in this process: the imports are paid for once. What signals do to it is tested with real processes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from trilithon.bench import campaign
from trilithon.cli.main import run


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


Program = Callable[..., Done]


@pytest.fixture
def trilithon(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """Call it with the words of a command line. It neither waits for an idle machine nor measures its memory."""

    async def settle(*, limit_seconds: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(campaign, "settle", settle)
    monkeypatch.setattr(campaign, "measure_bandwidth", lambda _: 1e10)
    monkeypatch.setenv("TRILITHON_HANG_SECONDS", "2")

    def call(*words: object) -> Done:
        capsys.readouterr()
        code = run([str(word) for word in words])
        output = capsys.readouterr()
        return Done(code, output.out, output.err)

    return call
