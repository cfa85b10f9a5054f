"""What a reader wants to see of the results, as an address says it and as SQL asks for it. Pure."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self
from urllib.parse import urlencode

__all__ = ["PAGE_SIZE", "Chosen", "Query"]

PAGE_SIZE = 50
_MOST_PAGES = 10**6
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_COLUMNS = {
    "model": "json_extract(placements.model, '$.name')",
    "quantization": "json_extract(placements.model, '$.quantization')",
    "placement": "placements.name",
    "build": "placements.engine || ' ' || placements.build_version || ' (' || placements.build || ')'",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """An empty text is no filter. `build` is "llama.cpp b7120 (wheel)"; `since` and `until` are days (2026-11-20), both
    included; `page` counts from 0."""

    model: str = ""
    quantization: str = ""
    placement: str = ""
    build: str = ""
    since: str = ""
    until: str = ""
    page: int = 0

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> Self:
        """From an address. What is garbled in it is no filter."""
        given: dict[str, Any] = {field.name: parameters.get(field.name, "") for field in fields(cls)}
        days = {name: given[name] if _DATE.fullmatch(given[name]) else "" for name in ("since", "until")}
        page = given["page"] if given["page"].isascii() and given["page"].isdecimal() else "0"
        return cls(**given | days | {"page": min(int(page[:9]), _MOST_PAGES)})

    def address(self) -> str:
        """The part after the `?`, empty for everything."""
        return urlencode({name: value for name, value in asdict(self).items() if value})

    def with_filter(self, **changes: str) -> "Query":
        """From its first page on."""
        return replace(self, page=0, **changes)

    @property
    def filtered(self) -> bool:
        return replace(self, page=0) != Query()

    def where(self) -> tuple[str, list[str]]:
        """A condition on campaigns and placements, and its values."""
        pairs = [(f"{column} = ?", getattr(self, name)) for name, column in _COLUMNS.items()]
        pairs += [("substr(campaigns.started, 1, 10) >= ?", self.since)]
        pairs += [("substr(campaigns.started, 1, 10) <= ?", self.until)]
        pairs = [(condition, value) for condition, value in pairs if value]
        return " AND ".join(condition for condition, _ in pairs) or "1", [value for _, value in pairs]

    @staticmethod
    def column(name: str) -> str:
        """The SQL of a filter's column. Raises KeyError for the days."""
        return _COLUMNS[name]


@dataclass(frozen=True, slots=True)
class Chosen:
    """One placement of a campaign, spelled as `trilithon results compare` takes it: 3:llama.cpp/cpu."""

    campaign: int
    placement: str

    @classmethod
    def read(cls, text: str) -> "Chosen | None":
        number, colon, placement = text.partition(":")
        if not (colon and placement and number.isascii() and number.isdecimal() and len(number) < 16):
            return None
        return cls(int(number), placement)

    def __str__(self) -> str:
        return f"{self.campaign}:{self.placement}"
