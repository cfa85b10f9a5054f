"""`trilithon doctor` with the real engines of this machine."""

import json
from pathlib import Path

import pytest

from trilithon.cli.main import run


@pytest.fixture
def rows(home: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    assert run(["doctor", "--json"]) == 0
    return {row["placement"]: row for row in json.loads(capsys.readouterr().out)["engines"]}


def test_the_embedded_engine_is_usable(rows: dict[str, dict[str, object]]) -> None:
    row = rows["llama.cpp@embedded/cpu"]
    assert row["usable"] is True
    assert "xllamacpp" in str(row["why"])


def test_the_scripted_engine_is_told_once(rows: dict[str, dict[str, object]]) -> None:
    assert [name for name in rows if name.startswith("scripted")] == ["scripted/cpu"]
    assert "only when named" in str(rows["scripted/cpu"]["why"])


def test_a_unit_without_an_engine_says_why(rows: dict[str, dict[str, object]]) -> None:
    assert rows["npu"]["usable"] is False
    assert "NPU" in str(rows["npu"]["why"])
