"""`bench --questions` and what is shown of the answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.results.store.database import Store

Program = Callable[..., Any]
SHORT = ("-n", "8", "-r", "1", "--test", "tg", "--no-quality")
RIGHT, WRONG = "scripted/cpu:decode=5000,text=It is 408", "scripted/npu:decode=5000,text=<b>Oslo</b>"
QUESTIONS = """
max_tokens = 30
[[questions]]
name = "product"
kind = "sum"
language = "en"
text = "What is 17 * 24?"
number = 408
[[questions]]
name = "открытый"
text = "Почему?"
"""


@pytest.fixture
def questions(home: Path) -> Path:
    path = home / "mine.toml"
    path.write_text(QUESTIONS, encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_score_stands_beside_the_speed(trilithon: Program, home: Path, tiny: Path, questions: Path) -> None:
    both = ("--placement", RIGHT, "--placement", WRONG)
    done = trilithon("bench", tiny, *SHORT, *both, "--questions", questions, "--report", home / "report")
    assert done.code == 0, done.stderr
    assert f"{RIGHT}, questions: 1 of 1 correct" in done.stdout
    assert f"questions answered correctly: {RIGHT} 1 of 1 (21%–100%), {WRONG} 0 of 1 (0%–79%)" in done.stdout
    report = (home / "report" / "report.html").read_text(encoding="utf-8")
    assert "What is 17 * 24?" in report
    assert "&lt;b&gt;Oslo&lt;/b&gt;" in report
    assert (home / "report" / "correct-answers-questions.png").is_file()

    shown = trilithon("results", "show", "last", "--answers").stdout
    assert "product (sum, en)\n  What is 17 * 24?\n  expected: 408\n" in shown
    assert f"  {RIGHT}: correct; " in shown
    assert f"  {WRONG}: wrong; no number; " in shown
    assert "открытый\n  Почему?\n" in shown
    assert "not scored" in shown
    lines = trilithon("results", "show", "1", "--answers", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["correct", "unscored", "wrong", "unscored"]
    assert json.loads(trilithon("results", "show", "1", "--answers", "-o", "json").stdout) == list(
        map(json.loads, lines)
    )
    scores = [json.loads(line) for line in trilithon("results", "show", "1", "-o", "jsonl").stdout.splitlines()]
    assert [(row["median"], row["runs"]) for row in scores if row["test"] == "questions"] == [(100.0, 1), (0.0, 1)]

    assert f"{WRONG}: its answers to 2 questions" in trilithon("results", "export", "1", "-o", "md").stderr

    article = trilithon("results", "report", "1", "--lang", "ru", "--report", home / "article")
    assert article.code == 0, article.stderr
    page = (home / "article" / "article.html").read_text(encoding="utf-8")
    assert "Правильные ответы, mine: " in page
    assert "Верно, % (mine)" in page
    header, *_ = (home / "article" / "article.csv").read_text(encoding="utf-8").splitlines()
    assert "correct_answers mine,correct_answers mine_least" in header
    assert "верно" in trilithon("--lang", "ru", "results", "show", "1", "--answers").stdout


def test_a_wrong_file_is_refused_before_anything_is_measured(trilithon: Program, home: Path, tiny: Path) -> None:
    (home / "bad.toml").write_text('[[questions]]\nname = "a"', encoding="utf-8")
    for path, reason in ((home / "bad.toml", "question 1: text is missing"), (home / "none", "No such file")):
        done = trilithon("bench", tiny, *SHORT, "--placement", RIGHT, "--questions", path)
        assert (done.code, done.stdout) == (2, "")
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
    with Store.open(home / "data" / "trilithon" / "results.sqlite") as store:
        assert store.campaigns() == []
    russian = trilithon("--lang", "ru", "bench", tiny, *SHORT, "--placement", RIGHT, "--questions", home / "bad.toml")
    assert "вопрос 1: не хватает ключа text" in russian.stderr


def test_a_campaign_without_questions_says_how_to_ask(trilithon: Program, tiny: Path) -> None:
    assert trilithon("bench", tiny, *SHORT, "--placement", RIGHT).code == 0
    done = trilithon("results", "show", "1", "--answers")
    assert done.code == 2
    assert "campaign 1 asked no set of questions; ask one with: trilithon bench --questions standard" in done.stderr
