"""Texts in the reader's language. The catalogues of gettext in `locale/` have the English text as the key.

A Message is its English text, so that logs, JSON and stored results stay in English; where a text is shown to a person,
`translated` says it in their language."""

import functools
import gettext
import os
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "LANGUAGES",
    "Message",
    "all_of",
    "changed",
    "language_of_environment",
    "listed",
    "translated",
    "use_language",
]

LANGUAGES = ("en", "ru")
_ENGLISH = "en"
_DOMAIN = "trilithon"
_VARIABLE = "TRILITHON_LANG"
_FOLDER = Path(__file__).with_name("locale")
# Python's marks in numbers ("1,024", "23.5", "75%") as each language writes them: docs/translating.md.
_NUMBER_MARKS = {"ru": str.maketrans({",": "\N{NO-BREAK SPACE}", ".": ",", "%": " %"})}


class Message(str):
    """`Message("{size} are in swap", size=…)`: English text that knows its template and its values. With `plural`, the
    value `count` decides between the two templates. Raises KeyError for a field without a value."""

    __slots__ = ("plural", "template", "values")
    plural: str
    template: str
    values: Mapping[str, Any]

    def __new__(cls, template: str, /, *, plural: str = "", **values: Any) -> "Message":
        chosen = plural if plural and values["count"] != 1 else template
        message = super().__new__(cls, chosen.format(**values) if values else chosen)
        message.template, message.plural, message.values = template, plural, values
        return message

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        """For copies: the text alone could not be made again."""
        return (self.template,), {"plural": self.plural, **self.values}


def listed(parts: Iterable[str], separator: str = ", ") -> Message:
    """The parts in one text; each is translated for itself."""
    values = {f"part{number}": part for number, part in enumerate(parts)}
    return Message(separator.join(f"{{{name}}}" for name in values), **values)


def all_of(parts: Sequence[str]) -> Message:
    """ "one, two and three"."""
    if len(parts) < 2:
        return listed(parts)
    return Message("{parts} and {last}", parts=listed(parts[:-1]), last=parts[-1])


def changed(text: str, change: Callable[[str], str]) -> str:
    """With `change` applied to the text, or to a Message's values that are texts."""
    if not isinstance(text, Message):
        return change(text)
    values = {name: changed(value, change) if isinstance(value, str) else value for name, value in text.values.items()}
    return Message(text.template, plural=text.plural, **values)


def translated(text: str, language: str) -> str:
    """In one of LANGUAGES; text that the catalogue does not have stays as it is."""
    if language == _ENGLISH or not text:
        return str(text)
    catalogue = _catalogue(language)
    if not isinstance(text, Message):
        return catalogue.gettext(text)
    template = text.template
    if text.plural:
        template = catalogue.ngettext(template, text.plural, text.values["count"])
    elif template:
        template = catalogue.gettext(template)
    if not text.values:
        return template
    values = {name: _translated_value(value, language) for name, value in text.values.items()}
    return _Localised(language).vformat(template, (), values)


def _translated_value(value: Any, language: str) -> Any:
    """Of an exception, its text."""
    if isinstance(value, Exception) and len(value.args) == 1:
        value = value.args[0]
    return translated(value, language) if isinstance(value, str) else value


def language_of_environment(environment: Mapping[str, str] = os.environ) -> str:
    """That of `--lang` (TRILITHON_LANG), or what gettext does: the list LANGUAGE and the first of LC_ALL, LC_MESSAGES
    and LANG that is set, unless that one is C."""
    chosen = environment.get(_VARIABLE, "")
    if chosen in LANGUAGES:
        return chosen
    locale = next(filter(None, map(environment.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "C")
    if locale.partition(".")[0] in ("C", "POSIX"):
        return _ENGLISH
    wishes = [*environment.get("LANGUAGE", "").split(":"), locale]
    known = (wish.partition(".")[0].partition("_")[0].lower() for wish in wishes)
    return next((name for name in known if name in LANGUAGES), _ENGLISH)


def use_language(language: str | None) -> None:
    """In this process and those that it starts; None is that of the environment. click asks gettext for its texts."""
    language = language or os.environ.get(_VARIABLE)
    if language in LANGUAGES:
        os.environ[_VARIABLE] = os.environ["LANGUAGE"] = language
    gettext.bindtextdomain(_DOMAIN, _FOLDER)
    english = language_of_environment() == _ENGLISH
    gettext.textdomain("messages" if english else _DOMAIN)  # "messages" is gettext's default, which nothing has


class _Localised(string.Formatter):
    def __init__(self, language: str):
        self._marks = _NUMBER_MARKS[language]

    def format_field(self, value: Any, format_spec: str) -> str:
        text = str(format(value, format_spec))
        return text.translate(self._marks) if isinstance(value, int | float) else text


@functools.cache
def _catalogue(language: str) -> gettext.NullTranslations:
    return gettext.translation(_DOMAIN, _FOLDER, [language])
