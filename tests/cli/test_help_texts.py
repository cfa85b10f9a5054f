"""The command line in Russian: help, wrong words and questions. That each text has a translation is tested in
tests/test_language.py."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from command_tree import command_at, command_paths

from trilithon.cli.help_texts import texts_of
from trilithon.cli.main import loaded, main
from trilithon.cli.output import agreed
from trilithon.language import Message, _catalogue, use_language

Program = Callable[..., Any]


@pytest.fixture
def russian(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "ru_RU.UTF-8")
    for variable in ("LC_ALL", "LC_MESSAGES", "LANGUAGE", "TRILITHON_LANG"):
        monkeypatch.delenv(variable, raising=False)


def test_all_help_is_in_russian(trilithon: Program, russian: None) -> None:
    """That each translation has no English words is tested in tests/test_language.py."""
    for path in command_paths():
        done = trilithon(*path, "--help")
        assert (done.code, done.stderr) == (0, "")
        assert done.stdout.startswith(f"Использование: {' '.join(('trilithon', *path))} [ПАРАМЕТРЫ]")
        assert "Показать эту справку и выйти." in done.stdout
        assert "..." not in done.stdout.partition("Команды:")[2]
        shown = " ".join(done.stdout.split())
        command = loaded(path[0]) if path else main
        assert [text for text in texts_of(command) if text in shown] == []


def test_help_in_another_language_leaves_the_english_help_as_it_is(trilithon: Program) -> None:
    for words in (["--help"], ["bench", "--help"], ["results", "--help"], ["results"], ["bench", "--nonsense"]):
        english = trilithon(*words)
        assert not re.search("[а-я]", english.stdout + english.stderr)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LANG", "ru_RU.UTF-8")
            patch.delenv("LC_ALL", raising=False)
            other = trilithon(*words)
        assert other != english
        assert trilithon(*words) == english


def test_a_language_that_is_named_goes_before_that_of_the_locale(
    trilithon: Program, russian: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Показать эту справку" in trilithon("--help").stdout
    monkeypatch.setattr(main, "_help_option", None)  # as in a new process
    assert not re.search("[а-я]", trilithon("--lang", "en", "--help").stdout)
    assert "Показать эту справку" in trilithon("--lang", "ru", "bench", "--help").stdout


def test_english_help_reads_no_catalogue(trilithon: Program) -> None:
    _catalogue.cache_clear()
    for path in command_paths():
        assert trilithon(*path, "--help").code == 0
    assert _catalogue.cache_info().misses == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bnech",), "Нет такой команды: 'bnech'. Возможно, имелось в виду 'bench'?"),
        (("results", "shwo"), "Нет такой команды: 'shwo'. Возможно, имелось в виду 'show'?"),
        (("bench", "--preest"), "Нет такого параметра: '--preest'. (Возможно, имелось в виду одно из: '--preset'"),
        (("--nonsense",), "Нет такого параметра: '--nonsense'."),
        (("bench", "--preset", "artcle"), "'artcle' — не из списка: 'article', 'depth'. Возможно, имелось"),
        (("completion", "csh"), "'csh' — не из списка: 'bash', 'zsh', 'fish'."),
        (("results", "show"), "Не указан аргумент 'CAMPAIGNS...'."),
        (("convert", "x"), "Не указан параметр '--to'. Выберите из:"),
        (("bench", "--placement"), "Параметру '--placement' нужно значение."),
        (("bench", "--no-quality=1"), "Параметр '--no-quality' не принимает значения."),
        (("ps", "x", "y"), "Лишние аргументы: x y"),
        (("serve", "--port", "x"), "Недопустимое значение '--port': 'x' — не подходящее число."),
        (("serve", "--port", "70000"), "Недопустимое значение '--port': 70000 вне диапазона 0<=x<=65535."),
        (("setup", "--root", "/nowhere"), "Нет такого файла или папки: '/nowhere'."),
        (("serve", "--tls-cert", "/"), "'/' — папка, а нужен файл."),
        (("setup", "--root", __file__), f"'{__file__}' — файл, а нужна папка."),
    ],
)
def test_wrong_words_are_told_in_russian(
    trilithon: Program, russian: None, words: tuple[str, ...], message: str
) -> None:
    done = trilithon(*words)
    assert done.code == 2
    assert message in done.stderr
    assert "Справка: trilithon" in done.stderr or "--placement" in words or "--no-quality=1" in words
    assert re.search(r"[A-Z][a-z]+ [a-z]+", done.stderr) is None  # no sentence of English


def test_questions_are_asked_in_russian(
    russian: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions: list[str] = []
    answers = iter(["да", "y"])
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda text: questions.append(text) or next(answers))
    use_language(None)
    assert agreed(Message("Write {file}?", file="x\x1b"))
    assert questions == ["Записать x�? [Y/n]: "] * 2
    assert capsys.readouterr().err == "Ошибка: введите y (да) или n (нет)\n"


def test_tables_and_messages_are_in_russian(trilithon: Program, russian: None, tiny: Path) -> None:
    (tiny.parent / "Modelfile").write_text(f"FROM {tiny}\n")
    created = trilithon("create", "one", "-f", tiny.parent / "Modelfile")
    assert created.stderr.endswith("создана модель one:latest; подробности: trilithon show one:latest\n")
    assert trilithon("plan", "list").stderr == "планов нет; создать: trilithon bench MODEL\n"
    assert trilithon("engines", "list").stdout.split()[:5] == ["сборка", "версия", "вычислительные", "блоки", "умеет"]
    shown = trilithon("show", "one").stdout
    for line in ("архитектура  llama", "контекст     2048 токенов", "файлы", "память", "запускается здесь"):
        assert line in shown
    assert re.search(r"веса [\d,]+ КиБ, KV-кэш [\d,]+ КиБ, вычисления", shown)
    assert trilithon("rm", "one").stderr.startswith("удалено: one:latest, освобождено ")


def test_every_placeholder_of_click_has_a_translation(russian: None) -> None:
    """`TEXT`, `INTEGER RANGE`: what an option without a name for its value shows."""
    parameters = [parameter for path in command_paths() for parameter in command_at(path).params]
    names = {
        option.make_metavar(click.Context(click.Command("x")))
        for option in parameters
        if isinstance(option, click.Option) and not isinstance(option.type, click.Choice) and not option.is_flag
    }
    assert {"ТЕКСТ", "ЧИСЛО", "ПУТЬ", "ФАЙЛ"} <= names
    assert {"INTEGER", "INTEGER RANGE", "FLOAT", "FLOAT RANGE", "DIRECTORY"}.isdisjoint(names)
