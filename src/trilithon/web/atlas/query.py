"""What a reader wants to see of the atlas, as an address says it. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self
from urllib.parse import urlencode

__all__ = ["FIGURES", "FILTERS", "AtlasQuery"]

FILTERS = ("model", "chip", "engine")
FIGURES = ("decode", "prefill")
_LONGEST = 200
_MOST_PAGES = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasQuery:
    """An empty text is no filter. `figure` is what the chart shows, one of FIGURES; `page` counts from 0."""

    model: str = ""
    chip: str = ""
    engine: str = ""
    figure: str = "decode"
    page: int = 0

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> Self:
        """From an address. What is garbled in it is no filter."""
        values: dict[str, Any] = {field.name: parameters.get(field.name, "")[:_LONGEST] for field in fields(cls)}
        page = values["page"] if values["page"].isascii() and values["page"].isdecimal() else "0"
        figure = values["figure"] if values["figure"] in FIGURES else FIGURES[0]
        return cls(**values | {"figure": figure, "page": min(int(page[:9]), _MOST_PAGES)})

    def address(self) -> str:
        """The part after the `?`, empty for everything."""
        usual = asdict(AtlasQuery())
        return urlencode({name: value for name, value in asdict(self).items() if value != usual[name]})

    def with_changes(self, **changes: Any) -> "AtlasQuery":
        """From its first page on, unless that changes."""
        return replace(self, **{"page": 0, **changes})

    @property
    def filtered(self) -> bool:
        return any(getattr(self, name) for name in FILTERS)
