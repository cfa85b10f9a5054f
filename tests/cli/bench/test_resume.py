"""`bench --resume N`, and folders that cannot be written."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.measure.records import Failure
from trilithon.results.phrases import ENGLISH
from trilithon.results.report.sections import failures
from trilithon.results.statements import remark_lines, warning_lines
from trilithon.results.store.database import Store

Program = Callable[..., Any]
WORDS = ("-n", "8", "-r", "1", "--test", "tg", "--no-quality", "--placement", "scripted/cpu:decode=5000")


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    with Store.open(home / "data" / "trilithon" / "results.sqlite") as opened:
        yield opened


@pytest.mark.slow
def test_a_campaign_is_resumed_by_its_number_and_its_report_is_written_where_it_was_wanted(
    trilithon: Program, home: Path, tiny: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    for number in (1, 2):
        assert trilithon("bench", tiny, *WORDS, "--report", f"report {number}").code == 0
        store.set_status(number, "interrupted")
    page = home / "report 1" / "report.html"
    page.unlink()
    monkeypatch.chdir("/")
    done = trilithon("bench", "--resume", "1")
    assert done.code == 0, done.stderr
    assert "resuming campaign 1" in done.stderr
    assert page.is_file()
    assert [one.status for one in store.campaigns()] == ["finished", "interrupted"]
    assert trilithon("bench", "--resume", "2", "--report", home / "other").code == 0
    assert (home / "other" / "report.html").is_file()


def test_what_cannot_be_resumed_is_said_in_one_line(trilithon: Program, tiny: Path, store: Store) -> None:
    assert trilithon("bench", tiny, *WORDS).code == 0
    store.add_once(replace(store.campaign(1), started="2026-01-01T00:00:00+00:00", status="interrupted"))
    store.add(replace(store.campaign(1), source="llama-bench abc", status="interrupted"))
    for text, reason in (
        ("1", "campaign 1 is finished; only an interrupted one can be resumed"),
        ("2", "campaign 2 was not measured by bench here; it cannot be resumed"),
        ("3", "campaign 3 was not measured by bench here; it cannot be resumed"),
        ("7", "--resume 7: there is no such campaign; see: trilithon results list"),
        ("x", "--resume x: there is no such campaign; see: trilithon results list"),
        ("", "--resume : there is no such campaign; see: trilithon results list"),
    ):
        done = trilithon("bench", "--resume", text)
        assert (done.code, done.stdout, done.stderr) == (2, "", f"error: {reason}\n")


def test_a_folder_that_cannot_be_written_is_found_before_measuring(
    trilithon: Program, home: Path, tiny: Path, store: Store
) -> None:
    (home / "file").touch()
    for folder in (home / "file", home / "file" / "below", Path("/proc/report"), Path("/sys/a/b")):
        done = trilithon("bench", tiny, *WORDS, "--report", folder)
        assert (done.code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"{folder}: " in done.stderr
        assert "name another folder with --report" in done.stderr
    assert store.campaigns() == []
    assert trilithon("bench", home / "no.gguf", *WORDS, "--report", home / "new" / "folder").code == 2
    assert not (home / "new").exists()

    assert trilithon("bench", tiny, *WORDS).code == 0
    store.set_status(1, "interrupted")
    done = trilithon("bench", "--resume", "--report", home / "file")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert store.campaigns()[0].status == "interrupted"
    assert "another folder" in trilithon("results", "report", "1", "--report", home / "file").stderr


def test_a_round_that_was_interrupted_and_repeated_is_no_failure(trilithon: Program, tiny: Path, store: Store) -> None:
    assert trilithon("bench", tiny, *WORDS).code == 0
    campaign = store.campaign(1)
    (run,) = campaign.runs
    failure = Failure(kind="interrupted", message="stopped by the user")
    cut = replace(run, outcome="failed", failure=failure, samples=(), warnings=("hot",), remarks=("odd",))
    once = replace(campaign, runs=(cut,))
    assert "stopped by the user" in failures(once, ENGLISH)
    assert (len(warning_lines(once)), len(remark_lines(once))) == (1, 1)
    repeated = replace(campaign, runs=(cut, replace(run, warnings=(), remarks=())))
    assert failures(repeated, ENGLISH) == ""
    assert (warning_lines(repeated), remark_lines(repeated)) == ([], [])
