"""What the pages say, in the reader's language: each text has a key, and stands in a catalogue beside its page's."""

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

__all__ = ["LANGUAGES", "Texts", "language_of", "texts_for"]

LANGUAGES = {"en": "English", "ru": "Русский"}
_DEFAULT = "en"
_MOST_WISHES = 32


class Texts:
    """`text("models.pulled", name=…)`. Raises KeyError for a key or a value that is not there: a page with a hole in it
    is a fault of ours."""

    def __init__(self, language: str, known: Mapping[str, str]):
        self.language = language
        self.known = known

    def __call__(self, key: str, /, **values: Any) -> str:
        return self.known[key].format(**values)


@functools.cache
def texts_for(language: str) -> Texts:
    """Of all pages. Raises KeyError for a language that is none of LANGUAGES."""
    LANGUAGES[language]
    known: dict[str, str] = {}
    for file in (resources.files(__package__) / "catalogues").iterdir():
        if file.name.endswith(f".{language}.toml"):
            page = file.name.partition(".")[0]
            for key, text in _flat(tomllib.loads(file.read_text(encoding="utf-8"))):
                known[key if key.startswith(f"{page}.") else f"{page}.{key}"] = text
    return Texts(language, known)


def language_of(chosen: str, accepted: str) -> str:
    """`chosen` by the reader, or else the one of ours that the browser's Accept-Language likes best."""
    if chosen in LANGUAGES:
        return chosen
    wishes = [_wish(part) for part in accepted.split(",")[:_MOST_WISHES]]
    for _, name in sorted(wishes, key=lambda wish: -wish[0]):
        if name in LANGUAGES:
            return name
    return _DEFAULT


def _wish(text: str) -> tuple[float, str]:
    """Of "ru-RU;q=0.8": (0.8, "ru"). What is garbled comes last."""
    tag, _, weight = text.partition(";")
    value = weight.strip().removeprefix("q=")
    try:
        share = float(value) if value else 1.0
    except ValueError:
        share = 0.0
    return (share if 0 < share <= 1 else 0.0, tag.strip().lower().partition("-")[0])


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """TOML reads `chat.send = …` as a table in a table."""
    flat: list[tuple[str, str]] = []
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((prefix + name, str(value)))
    return flat
