"""The cause that is told for whole logs, not for single lines: the reason, not what follows from it."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from trilithon.runtime.diagnostics import Diagnosis, diagnose, settings_help

LOGS: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("logs.toml").read_text(encoding="utf-8"))["logs"]


def judge(returncode: int, log: str) -> Diagnosis:
    return diagnose(returncode, log, killed_by_us=False, oom_kills_before=0, oom_kills_after=0)


@pytest.mark.parametrize("entry", LOGS, ids=lambda entry: str(entry["name"]))
def test_the_cause_of_a_log(entry: dict[str, Any]) -> None:
    diagnosis = judge(entry["returncode"], entry["log"])
    assert diagnosis.cause == entry["cause"]
    assert entry["advice"] in diagnosis.advice
    assert settings_help(diagnosis.cause) is entry["settings_help"]


@pytest.mark.parametrize("entry", LOGS, ids=lambda entry: str(entry["name"]))
def test_what_a_child_prints_besides_changes_nothing(entry: dict[str, Any]) -> None:
    """Colours, Windows line ends, other lines between, and the consequences printed again."""
    lines = entry["log"].splitlines()
    noise = "I srv  load_model: initializing slots"
    log = "\r\n".join(f"\x1b[31m{line}\x1b[0m\r\n{noise}" for line in lines)
    assert judge(entry["returncode"], log).cause == entry["cause"]
    assert judge(entry["returncode"], f"{entry['log']}\nexiting\n{lines[-1]}\n").cause == entry["cause"]


def test_a_reason_before_thousands_of_its_consequences_is_found_and_shown() -> None:
    reason = "E RKNN: [10:00:00.000] This rknn model is for RK3588, but current platform is RK3576"
    log = reason + "".join(
        f"\nE RKNN: [10:00:{number % 60:02}.{number:03}] failed to submit!, op id: {number}" for number in range(900)
    )
    diagnosis = judge(-11, log)
    assert diagnosis.cause == "model converted for another chip"
    assert diagnosis.last_words[0] == reason
    assert len(diagnosis.last_words) == 8


@pytest.mark.parametrize(
    "warning", ["W rkllm: {}", "W RKNN: [10:00:00.000] {}", "warning: {}", "0.01.002.003 W x: {}", "WARNING: {}"]
)
@pytest.mark.parametrize(
    "text", ["Cannot allocate memory", "failed to submit!", "invalid magic characters", "out of memory"]
)
def test_a_warning_is_never_the_cause(warning: str, text: str) -> None:
    assert judge(-11, warning.format(text)).cause == "segmentation fault (SIGSEGV)"
