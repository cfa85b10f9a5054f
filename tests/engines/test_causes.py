"""The tables of known causes: each engine's own, and what makes one malformed."""

import re
from pathlib import Path

import pytest

from trilithon.engines.causes import CauseTable, KnownCause, read_causes
from trilithon.engines.table import ENGINES, cause_tables
from trilithon.runtime.diagnostics import known_causes, settings_help


def test_every_engine_on_real_hardware_has_causes() -> None:
    tables = dict(zip(ENGINES, cause_tables(), strict=True))
    assert [name for name, known in tables.items() if not known.causes] == ["scripted"]


def test_a_sign_means_one_thing() -> None:
    """Causes of all engines are looked up together."""
    meanings: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for known in known_causes().causes:
        for sign in filter(None, (*known.signs, known.pattern)):
            meanings.setdefault((sign, known.under), set()).add((known.cause, known.advice))
    assert {sign: causes for sign, causes in meanings.items() if len(causes) > 1} == {}


def test_a_cause_is_beyond_settings_wherever_it_is_listed() -> None:
    helped = {known.cause for known in known_causes().causes if known.settings_help}
    assert not [cause for cause in helped if not settings_help(cause)]
    assert not settings_help("not a GGUF file")
    assert not settings_help("killed from outside (SIGTERM)")
    assert settings_help("segmentation fault (SIGSEGV)")


def test_a_table_is_read_with_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "causes.toml"
    assert read_causes(file) == CauseTable()
    file.write_text('harmless = ["a"]\nrestarts = ["b"]\n[[causes]]\ncause = "C"\nadvice = ""\nsigns = ["d"]\n')
    cause = KnownCause(cause="C", advice="", signs=("d",))
    assert read_causes(file) == CauseTable(causes=(cause,), harmless=("a",), restarts=("b",))
    assert (cause.settings_help, cause.precedence, cause.fatal, cause.status) == (True, 1, True, 500)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[causes]", "Expected ']]'"),
        ('[[causes]]\ncause = "C"\nsigns = ["d"]', "missing 1 required keyword-only argument: 'advice'"),
        ('[[causes]]\ncause = "C"\nadvice = ""\nsigns = ["d"]\nfatal = 1', "C: fatal is 1"),
        ('[[causes]]\ncause = "C"\nadvice = ""\nsigns = ["D"]', "signs are texts in lower case, not ['D']"),
        ('harmless = "x"', "signs are texts in lower case, not 'x'"),
    ],
)
def test_a_malformed_table_names_its_file(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "causes.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"causes\.toml: .*{re.escape(problem)}"):
        read_causes(file)
