"""The common frame of the scripts in benchmarks/: what is printed, and which exit code it gives."""

import importlib
import json
import math
import signal
from pathlib import Path
from types import ModuleType

import pytest

from trilithon.errors import ModelError, StartError


@pytest.fixture
def frame(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("_figures")


def test_a_bound_includes_its_ends(frame: ModuleType) -> None:
    bound = frame.Bound("ratio", least=0.97, most=1.03)
    assert bound.words == "0.97 to 1.03"
    assert [bound.holds(value) for value in (0.969, 0.97, 1.03, 1.031)] == [False, True, True, False]
    assert frame.Bound("ms", most=3).words == "<= 3"
    assert frame.Bound("rate", least=2).words == ">= 2"


@pytest.mark.parametrize("value", ["not measured: no engine", "fast", math.nan, math.inf])
def test_what_is_no_number_misses_its_bound(frame: ModuleType, value: float | str) -> None:
    assert not frame.Bound("rate", least=0.5).holds(value)


@pytest.mark.parametrize(("value", "code"), [(0.5, 0), (0.4, 1), ("not measured: no engine", 1)])
def test_the_exit_code_says_whether_every_bound_is_met(
    frame: ModuleType, capsys: pytest.CaptureFixture[str], value: float | str, code: int
) -> None:
    bounds = [frame.Bound("rate", least=0.5), frame.Bound("ms", most=9)]
    assert frame.report({"rate": value, "ms": 1}, bounds, as_json=True) == code
    assert json.loads(capsys.readouterr().out) == {
        "figures": {"rate": value, "ms": 1},
        "bounds": [
            {"figure": "rate", "value": value, "bound": ">= 0.5", "holds": code == 0},
            {"figure": "ms", "value": 1, "bound": "<= 9", "holds": True},
        ],
    }
    assert frame.report({"rate": value, "ms": 1}, bounds, as_json=False) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [f"{'MISSED' if code else 'met   '} rate >= 0.5", "met    ms <= 9"]


def test_json_has_no_infinity(frame: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.report({"rate": math.inf}, [frame.Bound("rate", least=1)], as_json=True) == 1
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures == {"rate": "not measured: the value is inf"}


def test_a_bound_needs_a_figure(frame: ModuleType) -> None:
    with pytest.raises(KeyError):
        frame.report({}, [frame.Bound("rate", least=1)], as_json=True)


def test_a_part_that_fails_gives_its_reason(frame: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(message: str) -> dict[str, float]:
        raise StartError(message, last_words=("no such device",))

    assert frame.attempted(["rate"], fails, "it did not start") == {"rate": "not measured: it did not start"}
    assert capsys.readouterr().err == "error: it did not start\n  no such device\n"
    assert frame.attempted(["rate"], lambda: {"rate": 3.0, "ms": 1.0}) == {"rate": 3.0, "ms": 1.0}


def test_bad_input_ends_the_script(frame: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        frame.attempted(["rate"], wrong_file)
        return 0

    def wrong_file() -> dict[str, float]:
        raise ModelError("model.gguf does not exist")

    with pytest.raises(SystemExit) as end:
        frame.run(fails)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: model.gguf does not exist\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_script_has_the_exit_code_of_a_stop(frame: ModuleType, number: signal.Signals) -> None:
    def stopped() -> int:
        signal.raise_signal(number)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            frame.run(stopped)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 130
