"""Texts in the reader's language: a Message keeps its English, and the catalogues are complete and fresh."""

import ast
import copy
import os
import pickle
import re
import runpy
from pathlib import Path

import pytest
from parsed_source import parsed
from russian import english_in

from trilithon.errors import UserError
from trilithon.language import LANGUAGES, Message, all_of, changed, language_of_environment, listed, translated
from trilithon.units import format_bytes

ROOT = Path(__file__).parent.parent
CATALOGUES = runpy.run_path(str(ROOT / "scripts" / "catalogues.py"))
FILES = sorted(CATALOGUES["LOCALE"].glob("*/LC_MESSAGES/trilithon.po"))
RUSSIAN = CATALOGUES["read"]((CATALOGUES["LOCALE"] / "ru" / "LC_MESSAGES" / "trilithon.po").read_text(encoding="utf-8"))
TRANSLATIONS = [(entry.text, text) for entry in RUSSIAN.values() for text in entry.translations]


# Of programs, files, functions and values that have no Russian name.
NAMES = frozenset(
    re.findall(
        r"\S+",
        """addr apt attention auth auto big-endian chmod flash gguf git hf http https iconv ip journalctl json
        GiB h k l little-endian llama-gguf-split login ls M object off on question rkllm-toolkit s service stderr
        stores type unix venv
        add add-scc-to-user adm Anthropic API apt Arm Assistant backports board-report c cat cgroup config
        containerd cpu Ctrl-C cpufreq cpuset CRI-O Debian default device Docker eMMC Face GitHub Home Hugging
        Incus install kbase kubelet kubelet-arg Kubernetes Linux llama-server LXC lxc LXD Mesa NAME npu
        NVMe oc Ollama OpenAI OpenShift PanVK performance Podman policy privileged proc RKLLM rknn-llm
        rknpu rwm SD Service set spec SSD sudo systemd systemd-nspawn taskset ulimit unix-char userspace
        v Vulkan xllamacpp z zram zram-tools
        C++ compinit csv demo en Flash Gemma glslc Jinja jsonl K llama-quantize md N n P q Rockchip sql stdout
        Studio Unix V X-Forwarded-For X-Forwarded-Proto rm userdel y zsh""",
    )
)


def test_every_language_but_english_has_a_catalogue() -> None:
    assert {file.parts[-3] for file in FILES} == set(LANGUAGES) - {"en"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parts[-3])
def test_a_catalogue_is_complete_and_compiled(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    entries = CATALOGUES["merged"](CATALOGUES["read"](text))
    assert CATALOGUES["written"](entries) == text, "run: make docs"
    assert [entry.text for entry in entries if not all(entry.translations)] == [], "translate these"
    assert file.with_suffix(".mo").read_bytes() == CATALOGUES["compiled"](entries), "run: make docs"


def test_errors_are_translated_or_technical() -> None:
    """What a user may see of these packages has a text in the catalogue: a literal, with its values beside it."""
    formatted = [
        f"{path}:{call.lineno}"
        for path in sorted(CATALOGUES["SOURCE"].rglob("*.py"))
        if CATALOGUES["is_translated"](path)
        for call in ast.walk(parsed(path))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in CATALOGUES["ERRORS"]
        if call.args and isinstance(call.args[0], ast.JoinedStr)
    ]
    assert formatted == []
    stale = [name for name in CATALOGUES["TECHNICAL"] if not (CATALOGUES["SOURCE"] / name).exists()]
    assert stale == []


def test_an_error_knows_its_text_and_its_values() -> None:
    inner = UserError("{path} is not TOML: {reason}", path="c.toml", reason=OSError(13, "Permission denied"))
    assert str(UserError("no values {}")) == "no values {}"
    error = pickle.loads(pickle.dumps(UserError("{place}: {reason}", place="x", reason=inner)))
    assert str(error) == "x: c.toml is not TOML: [Errno 13] Permission denied"
    assert translated(error.args[0], "ru").startswith("x: c.toml — не TOML: ")
    space = Message("{target}: {reason}; free some space, and run this again", target="t", reason=os.strerror(28))
    assert translated(space, "ru") == "t: на устройстве нет места; освободите место и повторите"


def test_translations_have_the_fields_of_the_english_text() -> None:
    def fields(text: str) -> set[str]:
        return set(re.findall(r"\{\w+(?:![rs])?(?::[^}]*)?\}", text))

    plurals = {entry.text: entry.plural for entry in RUSSIAN.values()}
    for english, text in TRANSLATIONS:
        if english in CATALOGUES["CLICK"] or english == "Did you mean {possibility}?":
            # click's name of a type, such as "integer range", stays out of a Russian sentence.
            assert fields(text) <= fields(english) | fields(plurals[english]), english
        else:
            assert fields(english) == fields(text), english


def test_commands_are_not_translated() -> None:
    """A fix is a command, and a remark after a number sign."""
    for english, text in TRANSLATIONS:
        command, mark, _ = english.partition("  # ")
        assert not mark or text.startswith(f"{command}  # "), english


def test_no_english_is_left_in_the_russian_texts() -> None:
    left = {}
    for _, text in TRANSLATIONS:
        remark = text.partition("  # ")[2] or text
        literal = re.sub(
            r"`[^`]*`|\{\w+(?:![rs])?(?::[^}]*)?\}|(?<!\S)-{1,2}[a-z-]+|trilithon(?: [a-z-]+)+", "", remark
        )
        literal = literal.replace("<b>", "").replace("</b>", "").replace("Unicode", "")
        literal = re.sub(r"\S*(?:[A-Z]{2}|[._*/])\S*", "", literal)  # abbreviations, placeholders of commands, files
        if words := english_in(literal) - NAMES:
            left[text] = words
    assert left == {}


# Terms that are also other words of English, or that Russian inflects beyond the last three letters.
OTHER_WORDS = {"core", "decode", "load", "run", "same", "unit"}


def test_the_translations_use_the_terms_of_the_table() -> None:
    table = (ROOT / "docs" / "translating.md").read_text(encoding="utf-8")
    table = table.partition("| English | Russian |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [re.sub(r" \([^|]*?\)", "", row).strip("| ").split(" | ") for row in table.splitlines()]
    pairs = [pair for english, russian in rows for pair in zip(english.split(", "), russian.split(", "), strict=False)]
    assert len(pairs) > 40
    other = {}
    for english, russian in pairs:
        if english in OTHER_WORDS:
            continue
        term = re.compile(rf"(?<![\w=#-])(?:{english}|{english.capitalize()})s?(?![\w=-])")
        beginnings = [word[: max(3, len(word) - 3)] for word in russian.casefold().split()]
        for text, translation in TRANSLATIONS:
            used = term.search(re.sub(r"^.*  # |\{.*?\}|`[^`]*`", "", text))
            if used and not all(beginning in translation.casefold() for beginning in beginnings):
                other[text] = russian
    assert other == {}


def test_a_message_is_its_english_text() -> None:
    message = Message("{size} are in swap; reading them back slows a run", size=format_bytes(2.5 * 2**30))
    assert message == "2.5 GiB are in swap; reading them back slows a run"
    assert translated(message, "en") == message
    assert translated(message, "ru") == "в подкачке 2,5 ГиБ; их чтение замедляет прогон"
    for copied in (copy.deepcopy(message), pickle.loads(pickle.dumps(message))):
        assert (copied, translated(copied, "ru")) == (message, translated(message, "ru"))


@pytest.mark.parametrize(
    ("count", "english", "russian"),
    [
        (0, "0 cores", "0 ядер"),
        (1, "1 core", "1 ядро"),
        (2, "2 cores", "2 ядра"),
        (5, "5 cores", "5 ядер"),
        (11, "11 cores", "11 ядер"),
        (21, "21 cores", "21 ядро"),
        (112, "112 cores", "112 ядер"),
    ],
)
def test_plural_forms_are_right(count: int, english: str, russian: str) -> None:
    message = Message("{count} core", plural="{count} cores", count=count)
    assert (str(message), translated(message, "ru")) == (english, russian)


def test_lists_are_translated_part_by_part() -> None:
    parts = [Message("memory"), "{not} a field", Message("{count:.1f} {unit}", count=1.5, unit=Message("GiB"))]
    assert all_of(parts) == "memory, {not} a field and 1.5 GiB"
    assert translated(all_of(parts), "ru") == "память, {not} a field и 1,5 ГиБ"
    assert (listed([]), all_of(["one"]), translated(listed([]), "ru")) == ("", "one", "")
    # Only values are changed: templates are ours.
    assert (
        changed(Message("unknown chip {chip}: no engine", chip="rk\n1"), str.strip) == "unknown chip rk\n1: no engine"
    )
    assert changed(Message("{npu}, not supported", npu="x\t"), str.strip) == "x, not supported"


def test_numbers_have_the_marks_of_the_language() -> None:
    message = Message("limit {hard:,}; NPU engines need {needed:,} and crash without", hard=1024, needed=65536)
    assert "limit 1,024; NPU engines need 65,536" in message
    assert "предел 1\N{NO-BREAK SPACE}024" in translated(message, "ru")


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "ru_RU.UTF-8"}, "ru"),
        ({"LANG": "ru_RU.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "ru_RU.UTF-8", "LC_MESSAGES": "en_GB.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8", "LANGUAGE": "de:ru:en"}, "ru"),
        ({"LANG": "ru_RU.UTF-8", "LANGUAGE": "en"}, "en"),
        ({"LANG": "C.UTF-8", "LANGUAGE": "ru"}, "en"),
        ({"LANG": "xx"}, "en"),
        ({"LC_ALL": "C", "TRILITHON_LANG": "ru"}, "ru"),
        ({"LANG": "ru_RU", "TRILITHON_LANG": "en"}, "en"),
        ({"LANG": "ru_RU", "TRILITHON_LANG": "xx"}, "ru"),
    ],
)
def test_the_language_is_that_of_the_locale(environment: dict[str, str], language: str) -> None:
    assert language_of_environment(environment) == language
