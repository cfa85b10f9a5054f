"""Files of questions: what is read, and every fault in one line before anything is measured."""

from pathlib import Path

import pytest

from trilithon.bench.question_file import read_questions
from trilithon.errors import UserError
from trilithon.measure.questions import RULES, fault

TOOLS = '[[tools]]\nname = "set_timer"\nparameters = { type = "object" }\n'


def refusal(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        read_questions(str(path))
    told = str(caught.value)
    assert "\n" not in told
    return told.removeprefix(f"{path}, ")


def test_the_set_that_comes_with_the_package() -> None:
    standard = read_questions("standard")
    assert standard.name == "standard"
    assert 20 <= len(standard.questions) <= 30
    assert {question.language for question in standard.questions} == {"en", "ru"}
    assert {question.rule for question in standard.questions} == {"", *RULES}
    for question in standard.questions:
        assert question.rule == "" or fault(question, "I cannot say.")
        assert bool(question.tools) == (question.rule == "tool_call")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("change", "2.80"),
        ("change", "€2,80"),
        ("product", "17 × 24 = 408"),
        ("English to Russian", "Кот спит на столе."),
        ("English to Russian, a time", "Поезд прибывает завтра в 7 часов утра."),
        ("English to Russian, a time", "Завтра в семь утра придёт поезд."),
        ("Russian to English", "It rained yesterday, and we stayed at home."),
        ("Russian to English, a request", "Please shut the window."),
        ("author of Hamlet", "William Shakespeare"),
        ("автор «Войны и мира»", "Толстой"),
        ("заказ в JSON", '{"product": "Лампа", "quantity": 3, "price": 450.0, "paid": false}'),
        ("a list as JSON", '```json\n{"primes": [2, 3, 5, 7, 11]}\n```'),
    ],
)
def test_good_answers_to_its_questions(name: str, answer: str) -> None:
    questions = {question.name: question for question in read_questions("standard").questions}
    assert fault(questions[name], answer) == ""


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "max_tokens = 20\n"
        + TOOLS
        + '[[questions]]\nname = "a"\ntext = " Which? "\nwords = "Oslo"\n'
        + '[[questions]]\nname = "b"\ntext = "Say it"\nmax_tokens = 5\ntool_call = { name = "set_timer" }\n',
        encoding="utf-8",
    )
    first, second = read_questions(str(path)).questions
    assert (first.text, first.max_tokens, first.rule, first.expected, first.tools) == (
        "Which?",
        20,
        "words",
        ["Oslo"],
        (),
    )
    assert (second.max_tokens, second.expected) == (5, {"name": "set_timer", "arguments": {}})
    assert [tool["name"] for tool in second.tools] == ["set_timer"]


Q = '[[questions]]\nname = "q"\ntext = "t"\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no questions; write [[questions]] with a name and a text for each"),
        ("questions = 3", "has no questions"),
        ("questions = [3]", "question 1: it is no table"),
        ("x = 1\n" + Q, "x is unknown; there are max_tokens, questions, tools"),
        (Q + "answer = 3", "question 1: answer is unknown; there are name, text, kind"),
        ('[[questions]]\nname = "q"', "question 1: text is missing"),
        ('[[questions]]\nname = "q"\ntext = "  "', "question 1: text has to be a text"),
        ('[[questions]]\nname = 3\ntext = "t"', "question 1: name has to be a text"),
        (f'[[questions]]\nname = "{"n" * 101}"\ntext = "t"', "question 1: its name is longer than 100 characters"),
        (Q + Q, "question 2: another question is named q"),
        (Q + 'number = 1\nwords = ["a"]', "question 1: it has the rules number, words; keep one"),
        (Q + 'number = "408"', "question 1: number has to be a number"),
        (Q + "number = true", "question 1: number has to be a number"),
        (Q + "number = inf", "question 1: number has to be a number"),
        (Q + "words = []", "question 1: words has to be a list of words"),
        (Q + 'words = ["a|"]', "question 1: words has to be a list of words"),
        (Q + "words = [1]", "question 1: words has to be a list of words"),
        (Q + 'json = "{}"', "question 1: json has to be a table"),
        (Q + "json = { a = 1979-05-27 }", "question 1: json has to be a table"),
        (Q + "json = {}", "question 1: json has to be a table"),
        (Q + "max_tokens = 0", "question 1: max_tokens has to be a whole number from 1 to 100000"),
        ("max_tokens = true\n" + Q, "max_tokens has to be a whole number from 1 to 100000"),
        (Q + 'tool_call = { name = "x" }', "question 1: there are no tools to call; write [[tools]] in the file"),
        (TOOLS + Q + 'tool_call = { name = "x" }', "question 1: there is no tool x; there are set_timer"),
        (TOOLS + Q + 'tool_call = "x"', "question 1: tool_call has to be a table with the name"),
        (TOOLS + Q + 'tool_call = { name = "set_timer", arguments = 3 }', "question 1: tool_call has to be a table"),
        ('[[tools]]\ntitle = "x"\n' + Q, "tools has to be tables with a name"),
        ("tools = 3\n" + Q, "tools has to be tables with a name"),
        ("[[questions", "is not TOML"),
        (b"\xff", "is not TOML"),
        ("a = " + "[" * 100_000, "is not TOML"),
        ("#" * (1 << 20) + "\n", "is larger than 1 MiB; split it"),
        ("".join(Q.replace('"q"', f'"{n}"') for n in range(1001)), "has more than 1000 questions; split it"),
    ],
    ids=range(33),
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str | bytes, reason: str) -> None:
    assert reason in refusal(tmp_path / "q.toml", text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"--questions .*{reason}.*name a file of questions, or: standard"):
            read_questions(str(path))
